"""A model over token trees whose lower layers run apart from those in training."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskfit.errors import ModelError
from taskfit.models.attention import KeyValueCache
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.frozen_depth import FrozenDepth, StateStore, decoder_layers
from taskfit.tree import TokenTree


class CutModel(ABC):
    """What training in upper layers alone needs of a model over trees.

    Attributes:
        model: The transformers model.
        num_tokens_run: Unique tokens run through the decoder so far.
    """

    model: PreTrainedModel
    num_tokens_run: int
    _decoder: nn.Module
    _depth: FrozenDepth | None = None

    @abstractmethod
    def _decode(
        self, tree: TokenTree, *, prefix: KeyValueCache | None, record: KeyValueCache | None
    ) -> Tensor:
        """Run the decoder over a tree; return its last hidden states, (T, D)."""

    def freeze_below(self, first: int) -> None:
        """Run the layers below `first` apart from the others, without gradients; 0: none.

        Args:
            first: Index of the first layer in training.

        Raises:
            ModelError: If the architecture cannot be cut there.
        """
        self._depth = None
        if first == 0:
            return
        depth = FrozenDepth(self._decoder, decoder_layers(self._decoder), first)
        whole = self._small_hidden()
        self._depth = depth
        error = float((self._small_hidden() - whole).abs().max() / (whole.abs().max() + 1e-6))
        if not error < 1e-3:
            self._depth = None
            raise ModelError(
                f"{type(self.model).__name__} cannot be cut below layer {first}: upper layers read "
                f"more than what the one below gives out (difference {error:.2g}). Set "
                "adapter.layers=all."
            )

    @property
    def first_trained(self) -> int:
        """Return the index of the first layer in training; 0: all are, or none is."""
        return 0 if self._depth is None else self._depth.first

    @torch.no_grad()
    def keep_tree(self, tree: TokenTree, *, prefix: KeyValueCache | None = None) -> None:
        """Put the states of a tree that enter the first trained layer into the store."""
        if self._depth is None:
            return
        self._depth.only_lower = True
        try:
            with self.keeping():
                self._decode(tree, prefix=prefix, record=None)
        finally:
            self._depth.only_lower = False

    def forget_states(self) -> None:
        """Drop the store."""
        if self._depth is not None:
            self._depth.store = None

    def keep_states(self, *, memory_bytes: int, folder: Path) -> StateStore:
        """Make an empty store of the states that enter the first trained layer; return it.

        Args:
            memory_bytes: Most bytes of it in main memory.
            folder: Where the rest lies, in memory-mapped files.
        """
        assert self._depth is not None, "all layers are in training"
        self._depth.store = StateStore(memory_bytes=memory_bytes, folder=folder)
        return self._depth.store

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Put what the lower layers compute meanwhile into the store, if there is one.

        What is kept must not hang on chance, or a resumed run would not be bitwise the same: keep
        what is cut into trees the same way every time, not the steps of training.
        """
        if self._depth is None:
            yield
            return
        before, self._depth.keeps = self._depth.keeps, True
        try:
            yield
        finally:
            self._depth.keeps = before

    @torch.no_grad()
    def _small_hidden(self) -> Tensor:
        """Return the last hidden states of a small branching tree, (T, D)."""
        ids = np.arange(1, 9) % self.model.get_input_embeddings().weight.shape[0]
        tree = TokenTree.build([ids[:6], np.concatenate((ids[:3], ids[5:]))])
        with evaluation_mode(self.model):
            states = self._decode(tree, prefix=None, record=None)
        self.num_tokens_run -= len(tree)
        return states.float()
