"""Score many wordings of the same examples in shared token trees.

Legend: N examples, L labels.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.method_settings import InContextSettings
from taskfit.methods.calibration import apply_prior, content_free_prior
from taskfit.methods.reading import PrefixCache, run_in_trees
from taskfit.methods.scoring import JOINT, LabelScorer, scores_per_token, sum_over_words
from taskfit.models.load import LoadedModel
from taskfit.settings import RunSettings
from taskfit.stats import Evaluation, evaluate_probabilities
from taskfit.tasks import EncodedExample, PromptEncoder, Task
from taskfit.tree import unique_tokens

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WordingResult:
    """How a wording did on the examples that it was scored on.

    Attributes:
        name: Its name.
        task: The task in this wording.
        evaluation: Metrics with intervals.
        probabilities: Of the labels, in the order of the sample, (N scored, L).
        dropped_in_round: Round, from 1, after which it was left out; None: it saw all examples.
    """

    name: str
    task: Task
    evaluation: Evaluation
    probabilities: FloatArray
    dropped_in_round: int | None

    @property
    def metric(self) -> float:
        """Return the task's metric."""
        return float(self.evaluation.to_dict()[self.task.metric])

    @property
    def interval(self) -> tuple[float, float]:
        """Return the metric's 95 % bootstrap interval."""
        return self.evaluation.intervals[self.task.metric]


@dataclass(slots=True)
class _Wording:
    """A candidate, the sample in its words, and what was scored so far, (N scored, L)."""

    encoder: PromptEncoder
    items: list[EncodedExample]
    gold: IntArray
    prior: FloatArray | None
    opening: str
    log_probs: FloatArray
    per_token: bool
    every: list[int]
    owners: list[int]


class SharedScorer:
    """Scores many wordings of the same examples in shared trees; keeps what it scored.

    Attributes:
        wordings: What was added, by name.
        num_tokens_run: Tokens run to score examples so far.
    """

    def __init__(self, model: LoadedModel, settings: RunSettings) -> None:
        """Bind a model; of the settings, calibration and budget are used."""
        self.wordings: dict[str, _Wording] = {}
        self.num_tokens_run = 0
        self._model = model.tree
        self._settings = settings
        self._prefixes: dict[str, PrefixCache] = {}

    def add(self, name: str, encoder: PromptEncoder, sample: Sequence[Example]) -> None:
        """Encode the sample in a wording, and measure its prior where one is asked for.

        Raises:
            PromptError: If a text of the sample cannot be encoded in this wording.
        """
        items, labels = encoder.encode(sample), encoder.task.label_names
        budget = self._settings.training.score_token_budget
        method = self._settings.method
        contextual = isinstance(method, InContextSettings) and method.calibration == "contextual"
        per_token = method.per_token if isinstance(method, InContextSettings) else False
        prior = LabelScorer(self._model, encoder, token_budget=budget) if contextual else None
        self.wordings[name] = _Wording(
            encoder=encoder,
            items=items,
            gold=np.array([labels.index(str(example.label)) for example in sample]),
            prior=content_free_prior(prior) if prior else None,
            opening=encoder.opening,
            log_probs=np.empty((0, len(labels))),
            per_token=scores_per_token(encoder, per_token),
            every=list(range(len(encoder.candidates))),
            owners=[candidate.label_index for candidate in encoder.candidates],
        )

    def score(self, names: Sequence[str], stop: int, advance: Callable[[int], None]) -> None:
        """Score candidates on the examples before `stop` that they were not scored on yet."""
        # Prompts that open with the same text share its keys and values.
        families: dict[str, list[_Wording]] = defaultdict(list)
        for name in names:
            families[self.wordings[name].opening].append(self.wordings[name])
        # What only dropped candidates open with is not needed again.
        self._prefixes = {key: self._prefixes[key] for key in families if key in self._prefixes}
        before = self._model.num_tokens_run
        for key, members in families.items():
            first = members[0].encoder
            prefixes = self._prefixes.setdefault(key, PrefixCache(self._model, first))
            self._score_family(members, stop, prefixes, advance)
        self.num_tokens_run += self._model.num_tokens_run - before

    def num_tokens_separate(self) -> int:
        """Return the unique tokens of what was scored, counted for each candidate alone."""
        total = 0
        for one in self.wordings.values():
            scored = one.items[: len(one.log_probs)]
            total += unique_tokens([row for i in scored for row in JOINT.sequences(i, one.every)])
        return total

    def result(self, name: str, dropped_in_round: int | None) -> WordingResult:
        """Measure a candidate on the examples scored so far."""
        one = self.wordings[name]
        task, found = one.encoder.task, apply_prior(one.log_probs, one.prior)
        evaluation = evaluate_probabilities(found, one.gold[: len(found)], labels=task.label_names)
        return WordingResult(name, task, evaluation, found, dropped_in_round)

    def _score_family(
        self,
        family: Sequence[_Wording],
        stop: int,
        prefixes: PrefixCache,
        advance: Callable[[int], None],
    ) -> None:
        owners = [one for one in family for _ in one.items[len(one.log_probs) : stop]]
        items = [item for one in family for item in one.items[len(one.log_probs) : stop]]
        if not items:
            return
        prefix = prefixes.shared_by(items)
        skip = prefix.length if prefix else 0
        scores = np.empty((len(items), family[0].log_probs.shape[1]))

        def run(chosen: list[int]) -> None:
            spans = [owners[i].every for i in chosen]
            found = [items[i] for i in chosen]
            joint = JOINT.log_probs(self._model, found, spans, prefix=prefix).double().cpu()
            ends = np.cumsum([len(words) for words in spans]).tolist()
            for i, words, end in zip(chosen, spans, ends, strict=True):
                row = joint[None, end - len(words) : end]
                if owners[i].per_token:
                    row = row / torch.tensor([len(ids) for ids in items[i].completions])
                scores[i] = sum_over_words(row, owners[i].owners, scores.shape[1])[0].numpy()
            advance(len(chosen))

        run_in_trees(
            self._model,
            [
                JOINT.sequences(i, one.every, skip=skip)
                for i, one in zip(items, owners, strict=True)
            ],
            run,
            token_budget=self._settings.training.score_token_budget,
            names=[item.id for item in items],
        )
        for one in family:
            fresh = [place for place, owner in enumerate(owners) if owner is one]
            one.log_probs = np.concatenate((one.log_probs, scores[fresh]))
