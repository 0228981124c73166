"""In-context learning: label words read off the LM head after demonstrations, nothing trained."""

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, logsumexp

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.method_settings import InContextSettings
from taskfit.methods.calibration import (
    apply_prior,
    content_free_prior,
    domain_prior,
    text_prior,
)
from taskfit.methods.method import (
    Advance,
    FloatArray,
    Method,
    MethodContext,
    MethodState,
    Reading,
)
from taskfit.methods.retrieval import Retriever
from taskfit.methods.scoring import LabelScorer
from taskfit.methods.tree_method import (
    end_notes,
    in_other_orders,
    other_orders,
    prompt_encoders,
    prompts_of,
)
from taskfit.models.quantize import count_parameters


class InContext(Method):
    """Scores label words after a prompt with k demonstrations, k = 0 included.

    Several seeded orders of the demonstrations are averaged in probability (Lu et al. 2022,
    arXiv:2104.08786, show how much one order decides).
    """

    learns = False
    settings: InContextSettings

    def __init__(self, context: MethodContext) -> None:
        """Make a scorer for each order of the demonstrations."""
        super().__init__(context)
        model = context.need_model()
        nearest = self.settings.retrieves and context.asked.num_demonstrations > 0
        if nearest and self.settings.num_orders > 1:
            raise SettingsError(
                "method.num_orders averages orders of fixed demonstrations; with "
                "method.demonstrations=nearest every text has its own. Leave one of them out."
            )
        generator = np.random.default_rng([context.settings.seed, 4])
        shown = list(context.demonstrations)
        orders = [shown]
        for _ in range(self.settings.num_orders - 1):
            orders.append([shown[i] for i in generator.permutation(len(shown))])
        found = [prompt_encoders(context, order, marks_ends=True) for order in orders]
        self.scorers = [
            LabelScorer(
                model.tree,
                *encoders.values(),
                token_budget=context.settings.training.score_token_budget,
                length_normalization=self.settings.per_token,
                orders=other_orders(context, encoders),
            )
            for encoders in found
        ]
        self.log_prior: FloatArray | None = None
        self.retriever = Retriever(context, self.settings.retriever) if nearest else None
        if self.retriever is not None:
            self._readers = [self.retriever.reader]

    def prepare(self, train: Sequence[Example], validation: Sequence[Example]) -> None:
        """Index the training texts for retrieval, and measure the prior of the calibration.

        Raises:
            DataError: If there are no texts to do it with.
        """
        if self.retriever is not None:
            self.retriever.fit(train)
        how = self.settings.calibration
        if how == "contextual":
            self.log_prior = self._mean([content_free_prior(scorer) for scorer in self.scorers])
        elif how == "pmi":
            self.log_prior = domain_prior(self.scorers[0])
        elif how == "batch":
            texts = [*train, *validation][: self.context.settings.data.max_validation]
            self.log_prior = text_prior(lambda given: self._log_probs(given, None), texts)

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Score a few examples; with retrieval, without their demonstrations."""
        self.scorers[0].log_probs(examples)

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return label probabilities after the prompt, divided by the prior, (N, L)."""
        found = self._log_probs(examples, advance)
        return apply_prior(found, self.log_prior, num_labels=self.scorers[0].num_labels)

    def by_order(
        self, examples: Sequence[Example], count: int, *, advance: Advance | None = None
    ) -> list[FloatArray]:
        """Return each question's probabilities behind each of several orders, (O, N, L).

        Demonstrations stand in the first of their own orders.

        Args:
            examples: Texts; labels are not looked at.
            count: Most orders of a question's options; see `option_orders`.
            advance: Called with the number of examples just finished.
        """
        scorer, seed = self.scorers[0], self.context.settings.seed
        shown = None
        if self.retriever is not None:
            shown = self.retriever.nearest(examples, self.task.num_demonstrations)
        scorer = scorer.over(in_other_orders(scorer.encoders, count, seed=seed))
        found = scorer.by_order(examples, demonstrations=shown, advance=advance)
        if self.log_prior is not None:
            found = [scores - self.log_prior for scores in found]
        return [np.exp(log_softmax(scores, axis=2)) for scores in found]

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return the prompts of each order; with retrieval, the texts as they are compared."""
        if self.retriever is not None:
            return super().readings(examples)
        return [prompts_of(one, examples) for scorer in self.scorers for one in scorer.prompts]

    def notes(self) -> Sequence[str]:
        """Return how words are told apart of which one starts another."""
        return end_notes(self.scorers[0], self.context.need_model().tokenizer)

    def state(self) -> MethodState:
        """Return the prior, and the texts that demonstrations are retrieved from."""
        arrays = {} if self.log_prior is None else {"log_prior": self.log_prior}
        if self.retriever is None:
            return MethodState(arrays=arrays)
        found = self.retriever.state()
        return MethodState(values=found.values, arrays={**arrays, **found.arrays})

    def restore(self, state: MethodState) -> None:
        """Continue with a measured prior."""
        if "log_prior" in state.arrays:
            self.log_prior = np.asarray(state.arrays["log_prior"], dtype=np.float64)
        if self.retriever is not None:
            self.retriever.restore(state)

    @property
    def num_parameters(self) -> int:
        """Return the number of the model's weights."""
        return count_parameters(self.context.need_model().tree.model)

    def _log_probs(self, examples: Sequence[Example], advance: Advance | None) -> FloatArray:
        """Return log-probabilities of the labels, averaged over orders, (N, L)."""
        if self.retriever is not None:
            scorer = self.scorers[0]
            shown = self.retriever.nearest(examples, self.task.num_demonstrations)
            return scorer.log_probs(examples, demonstrations=shown, advance=advance)
        first, *others = self.scorers
        scores = [first.log_probs(examples, advance=advance)]
        scores += [scorer.log_probs(examples) for scorer in others]
        if not others:
            return scores[0]
        # Shares among the labels are averaged: joint probabilities of long words would let the
        # order decide that happens to like them best.
        return self._mean([log_softmax(found, axis=1) for found in scores])

    def _mean(self, log_probs: Sequence[FloatArray]) -> FloatArray:
        stacked = np.stack(log_probs)
        return np.asarray(logsumexp(stacked, axis=0) - np.log(len(stacked)))
