"""Search over wordings of a task: all on a few examples, the better half on twice as many, ...

Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943, algorithm 1), on labelled
training examples. The prompts of all candidates run in shared token trees, so what two wordings
have in common runs once.

Legend: N examples, L labels.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example, draw
from taskfit.errors import DataError, PromptError, SettingsError
from taskfit.files import write_text_atomic
from taskfit.method_base import MethodSettings
from taskfit.method_settings import InContextSettings, as_method
from taskfit.models.load import load_model
from taskfit.runs.prepare import PreparedData, prepare_data
from taskfit.runs.sources import check_labels_task
from taskfit.screen import Screen
from taskfit.search.wording_scores import SharedScorer, WordingResult
from taskfit.settings import RunSettings
from taskfit.stats.paired import paired_bootstrap
from taskfit.tasks import Task, task_to_dict
from taskfit.tasks.control_tokens import as_written
from taskfit.tasks.variants import (
    NamedTask,
    RefusedVariant,
    encode_candidates,
    generate_variants,
    with_base,
)
from taskfit.yaml_text import dump_yaml

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
FEWEST_EXAMPLES = 16  # Fewer tell nothing about a wording.


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The winner against the task as given, on the same examples.

    Attributes:
        difference: Winner's metric minus that of the task as given.
        interval: 95 % percentile interval of the difference over resampled examples.
        caution: What not to conclude, in words; None where the interval leaves out 0.
    """

    difference: float
    interval: tuple[float, float]
    caution: str | None


@dataclass(frozen=True, slots=True)
class PromptSearch:
    """What a search found.

    Attributes:
        results: All candidates, best first; those scored on more examples stand before others.
        base: Name of the candidate that is the task as given; it is scored on the whole sample.
        refused: Candidates that cannot be turned into tokens.
        comparison: The winner against the task as given; None where that is the winner.
        rounds: For each round its candidates, and the examples scored of each up to its end.
        num_tokens_run: Tokens run to score the sample (priors not counted).
        num_tokens_separate: The same with a tree for each candidate, nothing shared among them.
        prompt: The winner's prompt of the sample's first example.
        answer: That example's label word.
    """

    results: tuple[WordingResult, ...]
    base: str
    refused: tuple[RefusedVariant, ...]
    comparison: PairedComparison | None
    rounds: tuple[tuple[int, int], ...]
    num_tokens_run: int
    num_tokens_separate: int
    prompt: str
    answer: str

    @property
    def winner(self) -> WordingResult:
        """Return the best candidate."""
        return self.results[0]


def search_prompts(
    settings: RunSettings,
    *,
    candidates: Callable[[Task], list[NamedTask]] = generate_variants,
    num_examples: int,
    keep: int,
    screen: Screen,
) -> PromptSearch:
    """Rank wordings of a task by in-context scores on training examples.

    Evaluation sets are read, to keep their texts out of training, and never scored.

    Args:
        settings: Data, task, model; the method is read as `in_context`, its calibration `none` or
            `contextual`.
        candidates: From the task as given to the wordings to try.
        num_examples: Examples to draw from the training data, demonstrations not among them; all
            where there are fewer.
        keep: At least this many candidates are scored on the whole sample.
        screen: Where notes and progress go.

    Raises:
        TaskfitError: As a run with these settings would, or if the search cannot serve them.
    """
    check_labels_task(settings, several=False)
    method = as_method(settings.method, "in_context")
    settings = settings.model_copy(update={"method": method})
    _refuse_unserved(method, num_examples, keep)
    data = prepare_data(settings)
    sample = _draw_sample(data, num_examples, settings.seed, screen)
    named, base = with_base(candidates(data.task), data.task)
    model = load_model(settings.model, quantization=settings.adapter)
    limit = min(model.tree.max_length, settings.model.max_length or model.tree.max_length)
    encoders, refused = encode_candidates(
        named, model.tokenizer, data.demonstrations, max_length=limit
    )
    scorer = SharedScorer(model, settings)
    for name, encoder in encoders.items():
        try:
            scorer.add(name, encoder, sample)
        except PromptError as error:
            refused.append(RefusedVariant(name, str(error)))
    for one in refused:
        if one.name == base:
            raise PromptError(f"The task as given cannot be tried: {one.reason}")
    results, rounds = _halve(scorer, base=base, num_examples=len(sample), keep=keep, screen=screen)
    first, given = results[0], next(one for one in results if one.name == base)
    comparison = None
    if first is not given:
        predicted = (one.probabilities.argmax(axis=1) for one in (first, given))
        gold = scorer.wordings[base].gold
        comparison = compare(gold, *predicted, metric=data.task.metric)
    words = {label.name: label.words[0] for label in first.task.labels}
    return PromptSearch(
        results=tuple(results),
        base=base,
        refused=tuple(refused),
        comparison=comparison,
        rounds=tuple(rounds),
        num_tokens_run=scorer.num_tokens_run,
        num_tokens_separate=scorer.num_tokens_separate(),
        prompt=as_written(encoders[first.name].render(sample[0].texts)),
        answer=words[str(sample[0].label)],
    )


def schedule(
    num_candidates: int, num_examples: int, *, keep: int, fewest: int
) -> list[tuple[int, int]]:
    """Return for each round its candidates and examples: halved and doubled, up to all examples.

    The first round has at least `fewest` examples, the last at least `keep` candidates.
    """
    counts = [num_candidates]
    while counts[-1] > keep and num_examples >> len(counts) >= fewest:
        counts.append(max(keep, math.ceil(counts[-1] / 2)))
    last = len(counts) - 1
    return [(count, num_examples >> (last - index)) for index, count in enumerate(counts)]


def _halve(
    scorer: SharedScorer, *, base: str, num_examples: int, keep: int, screen: Screen
) -> tuple[list[WordingResult], list[tuple[int, int]]]:
    """Run the rounds; return results best first, and the rounds' candidates and examples."""
    live = list(scorer.wordings)
    fewest = max(FEWEST_EXAMPLES, len(scorer.wordings[base].encoder.task.labels))
    plan = schedule(len(live), num_examples, keep=keep, fewest=fewest)
    done: list[WordingResult] = []
    rounds: list[tuple[int, int]] = []
    for number, (_, stop) in enumerate(plan, start=1):
        title = f"round {number} of {len(plan)}: {len(live)} candidates, {stop} examples"
        scored = rounds[-1][1] if rounds else 0
        with screen.progress(title, len(live) * (stop - scored)) as advance:
            scorer.score(live, stop, advance)
        rounds.append((len(live), stop))
        if number < len(plan):
            order = sorted((scorer.result(name, number) for name in live), key=_rank)
            # The task as given goes along to the end, since the winner is compared with it.
            kept = {base, *(one.name for one in order[: plan[number][0]])}
            done += [one for one in order if one.name not in kept]
            live = [name for name in live if name in kept]
    done += [scorer.result(name, None) for name in live]
    return sorted(done, key=_rank), rounds


def _rank(one: WordingResult) -> tuple[float, float, float, str]:
    """Return what results are sorted by: examples, metric, log loss; the name settles the rest."""
    return (-one.evaluation.num_examples, -one.metric, one.evaluation.log_loss, one.name)


def compare(gold: IntArray, first: IntArray, second: IntArray, *, metric: str) -> PairedComparison:
    """Compare two predictions of the same examples, all classes by index, each (N,).

    The interval is a paired bootstrap's over examples; see `paired_bootstrap`.
    """
    difference, (low, high) = paired_bootstrap(gold, first, second, metric=metric)
    caution = (
        f"The interval contains 0: on these {len(gold):,} examples the winner does not differ "
        "significantly from the task as given. Take more examples, or stay with the task as given."
    )
    return PairedComparison(difference, (low, high), caution if low <= 0 <= high else None)


def _refuse_unserved(method: MethodSettings, num_examples: int, keep: int) -> None:
    assert isinstance(method, InContextSettings)
    calibrated = method.calibration in ("none", "contextual")
    allowed = {
        f"{num_examples} examples (2 or more)": num_examples >= 2,
        f"keep={keep} (1 or more)": keep >= 1,
        "demonstrations=nearest (balanced, random, fixed)": method.demonstrations != "nearest",
        f"num_orders={method.num_orders} (1)": method.num_orders == 1,
        f"option_orders={method.option_orders} (1)": method.option_orders == 1,
        "length_normalization (false)": not method.length_normalization,
        f"calibration={method.calibration} (none, contextual)": calibrated,
    }
    found = ", ".join(what for what, is_allowed in allowed.items() if not is_allowed)
    if found:
        raise SettingsError(f"The prompt search cannot take (what it can in brackets): {found}.")


def _draw_sample(data: PreparedData, num: int, seed: int, screen: Screen) -> list[Example]:
    if data.task.multi_label:
        raise SettingsError("Prompts are searched for tasks with one label a text (multi_label).")
    if len(data.train) < 2:
        raise DataError(
            f"The search needs labelled training examples; {len(data.train)} are left without "
            "validation, duplicates and demonstrations. Give a larger table."
        )
    if len(data.train) < num:
        screen.note(f"there are only {len(data.train):,} training examples; all are used")
    num = min(num, len(data.train))
    return draw(data.train, num_examples=num, shots_per_class=None, seed=seed)


def check_free(path: Path, *, table: bool = False) -> None:
    """Raise `SettingsError` where writing the winner would overwrite a file."""
    if path.suffix not in (".yaml", ".yml"):
        raise SettingsError(f"{path} is to be a task file; give it a name that ends in .yaml.")
    for target in (path, path.with_suffix(".csv")) if table else (path,):
        if target.exists():
            raise SettingsError(f"{target} is there already. Remove it, or choose another name.")


def write_winner(search: PromptSearch, path: Path, *, table: bool = False) -> None:
    """Write the winner as a task file, and all candidates as a CSV beside it if asked.

    Raises:
        SettingsError: If a file of that name is there already.
    """
    check_free(path, table=table)
    data = task_to_dict(search.winner.task)
    write_text_atomic(path, dump_yaml(data))
    if table:
        columns = ("rank", "name", data["metric"], "low", "high", "log_loss", "num_examples")
        rows = []
        for rank, one in enumerate(search.results, start=1):
            found = one.evaluation
            numbers = (one.metric, *one.interval, found.log_loss, found.num_examples)
            words = json.dumps({label.name: label.words for label in one.task.labels})
            rows.append(dict(zip(columns, (rank, one.name, *numbers), strict=True)))
            rows[-1].update(task_to_dict(one.task)["template"], label_words=words)
        write_text_atomic(path.with_suffix(".csv"), pd.DataFrame(rows).to_csv(index=False))
