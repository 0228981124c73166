"""Label words decided branch by branch, as along the tree of a hierarchical softmax.

The label words of a prompt form a tree of tokens. Where it branches, the model chooses among the
tokens that stand there; a word's probability is the product of its choices (as in Morin and Bengio
2005, with the words' own tokens in place of a tree of clusters). It sums to one over the words by
itself. Tokens after the last branch decide nothing and never run, nor is the vocabulary ever
normalised over: an example of training costs its own word's branches, however many labels there
are. For words of one token it is the softmax over the words.

Legend: N examples, C candidates (label words), R nodes read, Y options at all branches read, E
choices of all chosen candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from taskfit.errors import PromptError
from taskfit.method_base import MethodSettings
from taskfit.method_settings import LabelWordsSettings
from taskfit.methods.reading import nodes_to_read
from taskfit.methods.scoring import JOINT, WordReader
from taskfit.models.causal_model import CausalModel
from taskfit.models.prefix import Prefix
from taskfit.tasks import EncodedExample
from taskfit.tree import IntArray, TokenTree


@dataclass(frozen=True, slots=True)
class LabelTree:
    """Where the words of a prompt branch.

    Attributes:
        starts: For every branch the tokens between prompt and branch.
        options: For every branch the tokens that may follow.
        choices: Candidate, branch and option chosen there, ordered by candidate and depth, (E, 3).
    """

    starts: tuple[IntArray, ...]
    options: tuple[IntArray, ...]
    choices: IntArray

    @classmethod
    def build(cls, completions: Sequence[tuple[int, ...]], end_id: int | None) -> "LabelTree":
        """Find the branches of completions.

        Args:
            completions: Token ids of each candidate, no two alike.
            end_id: The token that stands for the end where another word goes on.

        Raises:
            PromptError: If a word starts another and there is no such token.
        """
        starts: list[IntArray] = []
        options: list[IntArray] = []
        choices: list[tuple[int, int, int]] = []
        waiting = [(0, list(range(len(completions))))]
        while waiting:
            depth, alive = waiting.pop()
            by_token: dict[int, list[int]] = {}
            for candidate in alive:
                ids = completions[candidate]
                token = ids[depth] if depth < len(ids) else end_id
                if token is None:
                    raise PromptError(
                        "A label's word starts another label's word, and the tokenizer has no end "
                        "token to tell them apart. Set method.loss=labels, or change a word."
                    )
                by_token.setdefault(token, []).append(candidate)
            if len(by_token) > 1:
                start = completions[alive[0]][:depth]
                for option, candidates in enumerate(by_token.values()):
                    choices += [(candidate, len(starts), option) for candidate in candidates]
                starts.append(np.array(start, dtype=np.int64))
                options.append(np.array(list(by_token), dtype=np.int64))
            waiting += [(depth + 1, found) for found in by_token.values() if len(found) > 1]
        return cls(
            starts=tuple(starts),
            options=tuple(options),
            choices=np.array(sorted(choices), dtype=np.int64).reshape(-1, 3),
        )


@lru_cache(maxsize=256)
def _cached_tree(completions: tuple[tuple[int, ...], ...], end_id: int | None) -> LabelTree:
    return LabelTree.build(completions, end_id)


def by_branch(settings: MethodSettings) -> bool:
    """Return whether a method reads label words branch by branch."""
    return isinstance(settings, LabelWordsSettings) and settings.word_loss == "branches"


def word_reader(settings: MethodSettings, *, end_id: int | None) -> WordReader:
    """Return how a method reads label words.

    Args:
        settings: Of the method.
        end_id: The tokenizer's end token.
    """
    return BranchWords(end_id) if by_branch(settings) else JOINT


class BranchWords(WordReader):
    """Reads label words branch by branch."""

    def __init__(self, end_id: int | None) -> None:
        """Keep the end token.

        Args:
            end_id: The tokenizer's end token; needed only where a word starts another.
        """
        self.end_id = end_id

    def sequences(
        self, item: EncodedExample, candidates: Sequence[int], *, skip: int = 0
    ) -> list[IntArray]:
        """Return what must run: the prompt up to each branch of the candidates."""
        tree = self._tree(item)
        choices = tree.choices[np.isin(tree.choices[:, 0], candidates)]
        prompt = item.prompt_ids[skip:]
        found = [np.concatenate((prompt, tree.starts[b])) for b in np.unique(choices[:, 1])]
        return found or [prompt]  # a single word is certain

    def log_probs(
        self,
        model: CausalModel,
        items: Sequence[EncodedExample],
        candidates: Sequence[Sequence[int]],
        *,
        prefix: Prefix | None = None,
        normalize: bool = True,
    ) -> Tensor:
        """Return log p(w | prompt) as the sum of its choices, see `WordReader.log_probs`."""
        skip = prefix.length if prefix else 0
        sequences: list[IntArray] = []
        options: list[IntArray] = []
        chosen: list[IntArray] = []
        num_branches = num_words = 0
        for item, asked in zip(items, candidates, strict=True):
            tree = self._tree(item)
            place = np.full(len(item.completions), -1)
            place[list(asked)] = num_words + np.arange(len(asked))
            choices = tree.choices[place[tree.choices[:, 0]] >= 0]
            branches, own = np.unique(choices[:, 1], return_inverse=True)
            chosen.append(
                np.stack((place[choices[:, 0]], num_branches + own, choices[:, 2]), axis=1)
            )
            prompt = item.prompt_ids[skip:]
            sequences += [np.concatenate((prompt, tree.starts[b])) for b in branches]
            options += [tree.options[b] for b in branches]
            num_branches += len(branches)
            num_words += len(asked)
        if not num_branches:
            return torch.zeros(num_words, device=model.device)
        laid = TokenTree.build(sequences)
        nodes, rows = nodes_to_read(laid, [slice(-1, None)] * num_branches)
        counts = np.array([len(found) for found in options])
        columns = np.concatenate([np.arange(count) for count in counts])
        of_branch = np.repeat(np.arange(len(counts)), counts)

        def on_device(array: IntArray) -> Tensor:
            return torch.from_numpy(array).to(model.device)

        hidden = model.hidden(laid, nodes, prefix=prefix)  # (R, D)
        scores = model.token_scores(
            hidden, on_device(rows[of_branch]), on_device(np.concatenate(options))
        )  # (Y,)
        # Branches have different numbers of options: rows of one table, normalised at once.
        table = scores.new_full((len(counts), int(counts.max())), float("-inf"))
        table = table.index_put((on_device(of_branch), on_device(columns)), scores)
        owner, branch, option = on_device(np.concatenate(chosen)).unbind(dim=1)
        taken = torch.log_softmax(table, dim=-1)[branch, option]  # (E,)
        return taken.new_zeros(num_words).index_add(0, owner, taken)

    def decisive(self, item: EncodedExample, candidate: int) -> set[int]:
        """Return the places in a word at which it is told from others, 0 for its first token."""
        tree = self._tree(item)
        branches = tree.choices[tree.choices[:, 0] == candidate][:, 1]
        return {len(tree.starts[branch]) for branch in branches}

    def first_tokens(self, item: EncodedExample) -> list[int] | None:
        """Return the first token of each word where it alone decides; None where it does not."""
        tree = self._tree(item)
        if len(tree.starts) != 1 or len(tree.starts[0]):
            return None
        return [int(tree.options[0][option]) for option in tree.choices[:, 2]]

    def _tree(self, item: EncodedExample) -> LabelTree:
        return _cached_tree(tuple(tuple(ids.tolist()) for ids in item.completions), self.end_id)
