"""The label as ordinary generated text: trained on word and end token, predicted by decoding.

Legend: N examples, C candidates (label words), L labels, Y predicted tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.method_settings import LabelTextSettings
from taskfit.methods.generation import generate_texts, generation_config
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.losses import likelihood_loss_sum
from taskfit.methods.method import Advance, FloatArray, MethodContext
from taskfit.methods.objective import Objective
from taskfit.methods.reading import read_prompts
from taskfit.methods.scoring import token_log_probs
from taskfit.methods.tree_method import WordMethod, prompt_encoder
from taskfit.models.prefix import Prefix
from taskfit.tasks import EncodedExample, parse_answer


class LabelText(WordMethod):
    """Trains completion and end token; decodes along the tree of labels, or freely."""

    settings: LabelTextSettings

    def __init__(self, context: MethodContext) -> None:
        """Make encoder and scorer."""
        end = context.need_model().tokenizer.eos_token_id
        if end is None:
            raise PromptError(
                "label_text needs a tokenizer with an end token, and this one has none. Use "
                "label_words, or set the tokenizer's eos_token."
            )
        encoder = prompt_encoder(context, context.task, context.demonstrations, end_id=int(end))
        super().__init__(context, {"": encoder})
        self._num_unparsable = 0
        self._num_generated = 0

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return label probabilities by the chosen decoding, (N, L).

        exact: each label's share of the joint probability of all labels' texts with their ends.
        greedy: at each branch of the tree of labels the likeliest next token; the answer gets the
        probability of its branches, each normalised over the allowed tokens, and the others share
        what is left. free: 1 for the label that the generated text names, NaN where it names none.
        """
        if self.settings.decoding == "exact":
            return super().probabilities(examples, advance=advance)
        items = self.scorer.encoder.encode(examples)
        if self.settings.decoding == "greedy":
            return self._greedy(items, advance)
        return self._generate(items, advance)

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Score a few examples; what is generated before training says nothing."""
        self.scorer.log_probs(examples)

    def objective(self) -> Objective[EncodedExample]:
        """Return the cross-entropy of the completion with its end token."""
        return LabelWordLoss(
            self.model.tree,
            self.scorer.label_of_candidate,
            over="vocabulary",
            loss=self.weighted(likelihood_loss_sum),
        )

    def report(self) -> Mapping[str, Any]:
        """Return how many generated answers named no label."""
        if self.settings.decoding != "free":
            return {}
        return {"num_generated": self._num_generated, "num_unparsable": self._num_unparsable}

    def _greedy(self, items: Sequence[EncodedExample], advance: Advance | None) -> FloatArray:
        owners = self.scorer.label_of_candidate
        every, num_labels = list(range(len(owners))), max(owners) + 1

        def score(found: list[EncodedExample], prefix: Prefix | None) -> FloatArray:
            per_token, flat = token_log_probs(
                self.model.tree, found, [every] * len(found), prefix=prefix
            )
            log_probs, candidate_of = per_token.double().cpu().numpy(), flat.cpu().numpy()
            rows = np.empty((len(found), num_labels))
            for place, item in enumerate(found):
                own = [log_probs[candidate_of == place * len(every) + c] for c in every]
                best, probability = greedy_path(item.completions, own)
                rest = (1 - probability) / max(1, num_labels - 1)
                # The answer is the decoded one, also where a bushy tree left it little.
                rows[place] = min(rest, probability * (1 - 1e-6))
                rows[place, owners[best]] = probability
            return np.asarray(rows / rows.sum(axis=1, keepdims=True))

        return read_prompts(
            self.scorer.prefixes,
            items,
            np.empty((len(items), num_labels)),
            sequences=lambda item, skip: self.scorer.words.sequences(item, every, skip=skip),
            read=score,
            token_budget=self.context.settings.training.score_token_budget,
            advance=advance,
        )

    def _generate(self, items: Sequence[EncodedExample], advance: Advance | None) -> FloatArray:
        words = [[word.strip() for word in label.words] for label in self.task.labels]
        config = generation_config(self.model, max_new_tokens=self.settings.max_new_tokens)
        prompts = [item.prompt_ids for item in items]
        answers = generate_texts(self.model, prompts, config, advance=advance)
        result = np.full((len(items), len(words)), np.nan)
        for row, answer in enumerate(answers):
            label = parse_answer(answer, words)
            if label is not None:
                result[row] = np.eye(len(words))[label]
        self._num_generated += len(items)
        self._num_unparsable += int(np.isnan(result[:, :1]).sum())
        return result


def greedy_path(
    completions: Sequence[np.ndarray[Any, Any]], log_probs: Sequence[np.ndarray[Any, Any]]
) -> tuple[int, float]:
    """Follow the likeliest next token through the tree of completions.

    Args:
        completions: Token ids of each candidate, none a prefix of another, C of them.
        log_probs: For each candidate the log-probability of each of its tokens.

    Returns:
        The candidate reached, and the product over branches of the chosen token's share among the
        tokens allowed there.
    """
    alive = list(range(len(completions)))
    probability, depth = 1.0, 0
    while len(alive) > 1:
        by_token = {int(completions[c][depth]): float(log_probs[c][depth]) for c in alive}
        best = max(by_token, key=by_token.__getitem__)
        shares = np.exp(np.array(list(by_token.values())) - by_token[best])
        probability /= float(shares.sum())
        alive = [c for c in alive if int(completions[c][depth]) == best]
        depth += 1
    return alive[0], probability
