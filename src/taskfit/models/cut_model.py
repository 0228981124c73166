"""A model over token trees whose lower layers run apart from those in training."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.frozen_depth import FrozenDepth, StateStore, decoder_layers
from taskfit.models.prefix import Prefix
from taskfit.models.served import OWN_ERRORS, is_of_model
from taskfit.tree import TokenTree


class CutModel(ABC):
    """What training in upper layers alone needs of a model over trees.

    Attributes:
        model: The transformers model.
        num_tokens_run: Tokens run through the decoder so far.
    """

    model: PreTrainedModel
    num_tokens_run: int
    _decoder: nn.Module
    _depth: FrozenDepth | None = None

    @abstractmethod
    def _decode(self, tree: TokenTree, *, prefix: Prefix | None) -> Tensor:
        """Run the decoder over a tree; return its last hidden states, (T, D)."""

    def freeze_below(self, first: int) -> None:
        """Run the layers below `first` apart from the others, without gradients; 0: none.

        Where a model cannot be cut there, all its layers go on running as one: training is the
        same, and only takes longer.

        Args:
            first: Index of the first layer in training.
        """
        self._depth = None
        if first == 0:
            return
        layers = decoder_layers(self._decoder)
        # Layers that share weights with those below: what these say changes in training.
        if any(p.requires_grad for p in layers[:first].parameters()):
            return
        whole = self._small_hidden()
        self._depth = FrozenDepth(self._decoder, layers, first)
        try:
            error = float((self._small_hidden() - whole).abs().max() / (whole.abs().max() + 1e-6))
        except OWN_ERRORS as found:
            if not is_of_model(found):
                raise
            self._depth = None
            return
        # More: upper layers read more than what the one below gives out.
        if not error < 1e-3:
            self._depth = None

    @property
    def first_trained(self) -> int:
        """Return the index of the first layer in training; 0: all are, or none is."""
        return 0 if self._depth is None else self._depth.first

    @torch.no_grad()
    def keep_tree(self, tree: TokenTree, *, prefix: Prefix | None = None) -> None:
        """Put the states of a tree that enter the first trained layer into the store."""
        if self._depth is None:
            return
        self._depth.only_lower = True
        try:
            with self.keeping():
                self._decode(tree, prefix=prefix)
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
        ids = np.random.default_rng(0).integers(
            0, self.model.get_input_embeddings().weight.shape[0], 8
        )
        tree = TokenTree.build([ids[:6], np.concatenate((ids[:3], ids[5:]))])
        before = self.num_tokens_run
        with evaluation_mode(self.model):
            states = self._decode(tree, prefix=None)
        self.num_tokens_run = before
        return states.float()
