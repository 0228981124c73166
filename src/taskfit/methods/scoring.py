"""The one scoring path: log-probabilities of candidate label words, read off a token tree.

Evaluation, prediction, validation and the loss of label words all come through here, so they
cannot disagree.

Legend: N examples, C candidates (label words), L labels, P tokens of the static prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp
from torch import Tensor

from taskfit.data import Example
from taskfit.methods.reading import PrefixCache, nodes_to_read, run_in_trees
from taskfit.models.causal_model import CausalModel
from taskfit.models.prefix import Prefix
from taskfit.models.transfer import on_device
from taskfit.models.whole import require_finite
from taskfit.tasks import EncodedExample, PromptEncoder
from taskfit.tree import IntArray, TokenTree


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Where in a tree the tokens of completions are predicted.

    Attributes:
        tree: The tokens that must run: all but the last of each sequence, which nobody attends to.
        nodes: Nodes whose hidden states are read, ascending, (R,).
        rows: For every predicted token its row in `nodes`, (Y,).
        targets: The predicted tokens, (Y,).
        owners: For every predicted token the flat index of its candidate, (Y,).
    """

    tree: TokenTree
    nodes: IntArray
    rows: IntArray
    targets: IntArray
    owners: IntArray


def read_plan(
    items: Sequence[EncodedExample], candidates: Sequence[Sequence[int]], *, skip: int = 0
) -> ReadPlan:
    """Lay out examples and the chosen candidates of each as one tree.

    Args:
        items: Encoded examples.
        candidates: For every example the indices of the candidates to score.
        skip: Leading tokens that stand in a cached prefix.
    """
    chosen = [
        (item.prompt_ids[skip:], item.completions[c])
        for item, own in zip(items, candidates, strict=True)
        for c in own
    ]
    tree = TokenTree.build([np.concatenate((prompt, word[:-1])) for prompt, word in chosen])
    # A word's first token is predicted by the prompt's last.
    nodes, rows = nodes_to_read(tree, [slice(len(prompt) - 1, None) for prompt, _ in chosen])
    words = [word for _, word in chosen]
    owners = np.repeat(np.arange(len(words)), [len(word) for word in words])
    return ReadPlan(tree, nodes, rows, np.concatenate(words), owners)


def token_log_probs(
    model: CausalModel,
    items: Sequence[EncodedExample],
    candidates: Sequence[Sequence[int]],
    *,
    prefix: Prefix | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return the log-probability of every token of label words, with gradient where enabled.

    Args:
        model: The model.
        items: Encoded examples; they run as one tree.
        candidates: For every example the indices of the candidates to score.
        prefix: Keys and values of the tokens that all prompts start with.
        normalize: False leaves out the normaliser over the vocabulary. Only sound where all
            candidates have one token, and then only differences within an example mean anything.

    Returns:
        log p(token | what stands before it), (Y,), and for each the flat index of its candidate.
    """
    plan = read_plan(items, candidates, skip=prefix.length if prefix else 0)
    hidden = model.hidden(plan.tree, plan.nodes, prefix=prefix)  # (R, D)
    rows, targets, owners = (
        on_device(array, model.device) for array in (plan.rows, plan.targets, plan.owners)
    )
    read = model.token_log_probs if normalize else model.token_scores
    return read(hidden, rows, targets), owners


class WordReader:
    """How the probability of a label word is read off the model: here the joint of its tokens.

    Loss, validation and prediction of a method share one reader, so that they cannot disagree.
    """

    def sequences(
        self, item: EncodedExample, candidates: Sequence[int], *, skip: int = 0
    ) -> list[IntArray]:
        """Return what must run to score candidates, without the first `skip` tokens."""
        prompt = item.prompt_ids[skip:]
        return [np.concatenate((prompt, item.completions[c][:-1])) for c in candidates]

    def log_probs(
        self,
        model: CausalModel,
        items: Sequence[EncodedExample],
        candidates: Sequence[Sequence[int]],
        *,
        prefix: Prefix | None = None,
        normalize: bool = True,
    ) -> Tensor:
        """Return the log-probabilities of words, with gradient where enabled.

        Args:
            model: The model.
            items: Encoded examples; they run as one tree.
            candidates: For every example the indices of the candidates to score.
            prefix: Keys and values of the tokens that all prompts start with.
            normalize: False allows to leave out what candidates have in common, see
                `token_log_probs`.

        Returns:
            log p(w | prompt), example by example, (sum of candidates,).
        """
        per_token, owners = token_log_probs(
            model, items, candidates, prefix=prefix, normalize=normalize
        )
        joint = per_token.new_zeros(sum(map(len, candidates)))
        return joint.index_add(0, owners, per_token)


JOINT = WordReader()


def sum_over_words(scores: Tensor, label_of_candidate: Sequence[int], num_labels: int) -> Tensor:
    """Add the probabilities of the words of each label: (N, C) to (N, L), both log."""
    if list(label_of_candidate) == list(range(num_labels)):
        return scores
    columns = []
    for label in range(num_labels):
        words = [c for c, owner in enumerate(label_of_candidate) if owner == label]
        columns.append(torch.logsumexp(scores[:, words], dim=1))
    return torch.stack(columns, dim=1)


def scores_per_token(encoder: PromptEncoder, length_normalization: bool | None) -> bool:
    """Return whether the log-probabilities of words are divided by their numbers of tokens.

    Where no answer stands in the prompt, a model goes on with any text behind the shorter of two
    words as readily as behind the longer one, so that their ends alone cannot tell them apart.

    Args:
        encoder: Of the words.
        length_normalization: What was asked for; None: only where ends are marked and the prompt
            shows none.
    """
    if length_normalization is not None:
        return length_normalization
    task = encoder.task
    return encoder.marks_ends and task.num_demonstrations == 0 and not task.chat


@dataclass(frozen=True, slots=True)
class _Family:
    """Prompts of a text that run in one tree.

    Attributes:
        owners: For every encoder the place of its question, and of its order among those of it.
        encoders: One for each prompt.
        prefixes: Keys and values of what they start with.
    """

    owners: list[tuple[int, int]]
    encoders: list[PromptEncoder]
    prefixes: PrefixCache


def label_of_candidate(encoders: Sequence[PromptEncoder]) -> list[int]:
    """Return for every candidate of prompts its label, those of all prompts side by side."""
    starts = np.cumsum([0, *(len(encoder.task.labels) for encoder in encoders)]).tolist()
    return [
        start + candidate.label_index
        for start, encoder in zip(starts, encoders, strict=False)
        for candidate in encoder.candidates
    ]


def _mean_over_orders(log_probs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the mean share of each label: (O, N, L) to (N, L)."""
    if len(log_probs) == 1:
        return np.asarray(log_probs[0])
    return np.asarray(logsumexp(log_softmax(log_probs, axis=2), axis=0) - np.log(len(log_probs)))


class LabelScorer:
    """Scores texts against all label words, with the static prefix of the prompt run once.

    The prompts of several questions about a text share instruction and text, so they run in one
    tree; what comes out is what every question gives alone. So do further orders of a question's
    options that stand behind the text; where they stand before it, texts share nothing but what
    each order starts with, which is kept for each. The prefix's keys and values are kept across
    calls; call `forget_prefix` when the weights have changed.
    """

    def __init__(
        self,
        model: CausalModel,
        *encoders: PromptEncoder,
        token_budget: int | None = None,
        length_normalization: bool | None = False,
        words: WordReader | None = None,
        orders: Sequence[Sequence[PromptEncoder]] = (),
    ) -> None:
        """Bind a model to the encoders of a task's questions, of which there is mostly one.

        Args:
            model: The model.
            encoders: Turn examples into prompts and candidates, one a question.
            token_budget: Most unique tokens in one forward pass (tokens), prefix not counted.
                None: 1,024, or what the largest example with all its questions needs.
            length_normalization: Divide a word's log-probability by its number of tokens; see
                `scores_per_token`.
            words: How words are read. None: their joint probability.
            orders: For every question its encoders of further orders of the options, over which
                probabilities are averaged; empty: there are none.
        """
        self.model = model
        self.encoders = encoders
        self.encoder = encoders[0]
        self.token_budget = token_budget
        self.length_normalization = length_normalization
        self.words = words or JOINT
        self.num_labels = [len(encoder.task.labels) for encoder in encoders]
        self.label_of_candidate = label_of_candidate(encoders)
        self.orders = tuple(map(tuple, orders)) or ((),) * len(encoders)
        self._families = self._make_families()
        self.prefixes = self._families[0].prefixes

    def _make_families(self) -> list[_Family]:
        """Return prompts by what runs in one tree: those that part behind the text, or at it."""
        # What is static in the prompts of one question is so in all, up to where they part.
        first = _Family(
            [(owner, 0) for owner in range(len(self.encoders))],
            list(self.encoders),
            PrefixCache(self.model, self.encoder),
        )
        if not any(self.orders):
            return [first]
        families = {encoder.opening: first for encoder in self.encoders}
        for owner, encoders in enumerate(self.orders):
            for place, encoder in enumerate(encoders, start=1):
                family = families.setdefault(
                    encoder.opening, _Family([], [], PrefixCache(self.model, encoder))
                )
                family.owners.append((owner, place))
                family.encoders.append(encoder)
        return list({id(family): family for family in families.values()}.values())

    def over(self, orders: Sequence[Sequence[PromptEncoder]]) -> "LabelScorer":
        """Return a scorer of the same prompts and these further orders; see `by_order`."""
        return LabelScorer(
            self.model,
            *self.encoders,
            token_budget=self.token_budget,
            length_normalization=self.length_normalization,
            words=self.words,
            orders=orders,
        )

    @property
    def prompts(self) -> list[PromptEncoder]:
        """Return the encoders of all prompts that are read of a text."""
        return [encoder for family in self._families for encoder in family.encoders]

    def forget_prefix(self) -> None:
        """Drop the cached keys and values."""
        for family in self._families:
            family.prefixes.forget()

    def log_probs(
        self,
        examples: Sequence[Example],
        *,
        demonstrations: Sequence[Sequence[Example]] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """Return log p(label words | prompt) of every label for every example, (N, L).

        Over several orders of the options it is the logarithm of each label's mean share. By the
        Brier score and the log loss, which are convex, that is at least as good as its orders are
        on average; in a mean of logarithms, one order could rule a label out for all.

        Args:
            examples: Texts; labels are not looked at.
            demonstrations: For every example its own demonstrations; None: the usual ones.
            advance: Called with the number of examples just finished.

        Raises:
            NotFiniteError: If scores are not finite.
        """
        found = self.by_order(examples, demonstrations=demonstrations, advance=advance)
        return np.concatenate([_mean_over_orders(one) for one in found], axis=1)

    def by_order(
        self,
        examples: Sequence[Example],
        *,
        demonstrations: Sequence[Sequence[Example]] | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> list[NDArray[np.float64]]:
        """Return for every question log p(label words | prompt) in each order, (O, N, L)."""
        found: dict[tuple[int, int], NDArray[np.float64]] = {}
        for family in self._families:
            encoded = [e.encode(examples, demonstrations=demonstrations) for e in family.encoders]
            tell = advance if family is self._families[-1] else None
            scores = self._score(family, list(zip(*encoded, strict=True)), tell)
            counts = [self.num_labels[owner] for owner, _ in family.owners]
            parts = np.split(scores, np.cumsum(counts)[:-1], axis=1)
            found.update(zip(family.owners, parts, strict=True))
        return [
            np.stack([found[owner, place] for place in range(1 + len(others))])
            for owner, others in enumerate(self.orders)
        ]

    def score_encoded(
        self, items: Sequence[EncodedExample], *, advance: Callable[[int], None] | None = None
    ) -> NDArray[np.float64]:
        """Score examples of one question that are encoded already, in one order of its options."""
        return self._score(self._families[0], [(item,) for item in items], advance)

    def _score(
        self,
        family: _Family,
        groups: Sequence[Sequence[EncodedExample]],
        advance: Callable[[int], None] | None,
    ) -> NDArray[np.float64]:
        """Score texts, each in all prompts of a family."""
        owners = label_of_candidate(family.encoders)
        num_labels = sum(self.num_labels[owner] for owner, _ in family.owners)
        per_token = [scores_per_token(one, self.length_normalization) for one in family.encoders]
        result = np.empty((len(groups), num_labels))
        if not groups:
            return result
        prefix = family.prefixes.shared_by([item for group in groups for item in group])
        lengths = torch.tensor(
            [
                [
                    len(ids) if is_divided else 1
                    for item, is_divided in zip(group, per_token, strict=True)
                    for ids in item.completions
                ]
                for group in groups
            ],
            device=self.model.device,
        )

        def score(chosen: list[int]) -> None:
            found = [item for i in chosen for item in groups[i]]
            every = [range(len(item.completions)) for item in found]
            joint = self.words.log_probs(self.model, found, every, prefix=prefix)
            words = joint.view(len(chosen), len(owners))  # (N, C)
            if any(per_token):
                words = words / lengths[chosen]
            labels = sum_over_words(words, owners, num_labels)
            require_finite(labels, [groups[i][0].id for i in chosen])
            result[chosen] = labels.double().cpu().numpy()
            if advance is not None:
                advance(len(chosen))

        skip = prefix.length if prefix else 0
        run_in_trees(
            self.model,
            [
                [
                    sequence
                    for item in group
                    for sequence in self.words.sequences(
                        item, range(len(item.completions)), skip=skip
                    )
                ]
                for group in groups
            ],
            score,
            token_budget=self.token_budget,
            names=[group[0].id for group in groups],
        )
        return result
