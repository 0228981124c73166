"""Layers that no training changes run once a text; what they give out is kept for all epochs.

With adapters on the top layers alone, everything below has no gradient and says the same in every
epoch and at every validation. So a step needs only the states that enter the first trained layer.

The stock decoders stay as they are. To run their lower or upper part, the layers of the other part
let their input through, and a hook on the first trained layer reads or replaces what enters it.

Legend: T unique tokens of a tree, D hidden width, B sequences of a batch (a tree is one), L their
length.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.tree import IntArray, TokenTree

# Disk space that is left for checkpoints and results (bytes).
DISK_RESERVE = 2 * 10**9
# Runs the decoder over a batch; returns its last hidden states, (B, L, D).
Run = Callable[[], Tensor]
# What decoder layers return: states, or a tuple that begins with them.
Output = Tensor | tuple[Tensor | None, ...]
# In the names of parts that read no text, but see or hear, or cut it into patches (BLT).
SENSES = ("vision", "visual", "image", "video", "audio", "connector", "patcher")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder's layers: the longest list of modules, whatever a family calls it.

    Parts that read no text are passed over, though they often have more layers.
    """
    lists: list[nn.ModuleList] = []
    inside: set[int] = set()
    for path, module in model.named_modules():  # outer ones first
        if any(sense in path for sense in SENSES):
            continue
        if isinstance(module, nn.ModuleList) and id(module) not in inside:
            lists.append(module)
            # Experts of a layer may be more than there are layers.
            inside.update(id(part) for part in module.modules())
    return max(lists, key=len)


def first_trained_layer(num_layers: int, layers: int | str) -> int:
    """Return the index of the first layer in training.

    Args:
        num_layers: Layers of the decoder.
        layers: `all`, `two_thirds`, `half`, or a number of top layers; more than there are means
            all.
    """
    if layers == "all":
        return 0
    if layers == "half":
        return num_layers // 2
    if layers == "two_thirds":
        return num_layers // 3
    return max(0, num_layers - int(layers))


class StateStore:
    """States that enter the first trained layer, by the tokens up to each, kept and never changed.

    Tokens that sequences of one tree share are kept once. In main memory up to a budget; what is
    beyond lies in memory-mapped files.

    Attributes:
        num_bytes: Bytes kept in main memory.
        num_file_bytes: Bytes kept in files.
        is_full: Whether states were turned away, since the disk was nearly full.
    """

    def __init__(self, *, memory_bytes: int, folder: Path) -> None:
        """Make an empty store.

        Args:
            memory_bytes: Most bytes in main memory.
            folder: Where files go; made when the first is needed.
        """
        self._memory_bytes = memory_bytes
        self._folder = folder
        self._chunks: list[Tensor] = []
        # Tokens of a sequence -> its chunk and the chunk's rows.
        self._rows: dict[bytes, tuple[int, IntArray]] = {}
        self.num_bytes = 0
        self.num_file_bytes = 0
        self.is_full = False

    def keep(self, tree: TokenTree, keys: Sequence[bytes], states: Tensor) -> None:
        """Keep the states of a tree, (T, D), under the keys of its sequences."""
        size = states.numel() * states.element_size()
        if self.num_bytes + size <= self._memory_bytes:
            chunk = states.detach().to("cpu", copy=True)
            self.num_bytes += size
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self._folder).free < size + DISK_RESERVE:
                self.is_full = True
                return
            path = self._folder / f"{len(self._chunks):06d}.bin"
            chunk = torch.from_file(
                str(path), shared=True, size=states.numel(), dtype=states.dtype
            ).view(states.shape)
            chunk.copy_(states)
            # The mapping keeps the space; nothing is left behind, however the run ends.
            path.unlink()
            self.num_file_bytes += size
        self._chunks.append(chunk)
        for key, path_nodes in zip(keys, tree.paths, strict=True):
            self._rows[key] = (len(self._chunks) - 1, path_nodes.astype(np.int32))

    def find(self, tree: TokenTree, keys: Sequence[bytes]) -> Tensor | None:
        """Return the states of a tree, (T, D), or None if one of its sequences is not kept."""
        if not all(key in self._rows for key in keys):
            return None
        width, dtype = self._chunks[0].shape[1], self._chunks[0].dtype
        states = torch.empty(len(tree), width, dtype=dtype)
        for key, nodes in zip(keys, tree.paths, strict=True):
            place, rows = self._rows[key]
            states[torch.from_numpy(nodes)] = self._chunks[place][torch.from_numpy(rows)]
        return states


class FrozenDepth:
    """Runs a decoder in two parts: the layers below the first trained one, and the others.

    Attributes:
        first: Index of the first trained layer, at least 1.
        store: What is kept; None: nothing.
        keeps: Whether states that are not in the store are put there.
        only_lower: Whether nothing is asked of the layers above, so that they need not run.
    """

    def __init__(self, decoder: nn.Module, layers: nn.ModuleList, first: int) -> None:
        """Bind to a decoder; nothing in it changes."""
        self._decoder = decoder
        self._lower, self._upper = list(layers[:first]), list(layers[first:])
        self.first = first
        self.store: StateStore | None = None
        self.keeps = False
        self.only_lower = False
        # Some families' layers return tuples; found out when the first one runs. 0: states alone.
        self._tuple_length = 0

    def hidden(
        self,
        tree: TokenTree,
        prefix_ids: IntArray,
        *,
        lower: Callable[[], Tensor],
        upper: Callable[[Tensor], Tensor],
        recorded: bool,
    ) -> Tensor:
        """Return the decoder's last hidden states of a tree, (T, D).

        Args:
            tree: The tree.
            prefix_ids: Tokens before its root.
            lower: Runs the frozen layers; returns what enters the first trained one, (T, D).
            upper: Runs the trained layers on that; returns the last hidden states, (T, D).
            recorded: Whether the run records keys and values, of all layers.
        """
        keys: list[bytes] = []
        found = None
        if self.store is not None and not recorded:
            keys = sequence_keys(tree, prefix_ids)
            found = self.store.find(tree, keys)
        if found is None:
            found = lower()
            if self.keeps and self.store is not None and keys:
                self.store.keep(tree, keys, found)
        return found if self.only_lower else upper(found)

    @torch.no_grad()
    def lower(self, run: Run) -> Tensor:
        """Return the states that enter the first trained layer, without dropout, (B, L, D)."""
        found: list[Tensor] = []

        def read(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(args[0] if args else kwargs["hidden_states"])

        def see(layer: nn.Module, args: tuple[Any, ...], output: object) -> None:
            self._tuple_length = len(output) if isinstance(output, tuple) else 0

        with (
            self._lower[0].register_forward_hook(see),
            self._upper[0].register_forward_pre_hook(read, with_kwargs=True),
            evaluation_mode(self._decoder),
            self._passed(self._upper),
        ):
            run()
        return found[0].detach()

    def upper(self, run: Run, states: Tensor) -> Tensor:
        """Run the trained layers on what enters them.

        The last layer below hands the states on as if it had computed them, so what checkpointing
        runs again in the backward pass gets them as well.

        Args:
            run: Runs the decoder over a batch.
            states: What enters, (B, L, D); less than L tokens if it is padded behind them.
        """

        def hand_on(hidden_states: Tensor, *args: object, **kwargs: object) -> Output:
            # What runs between layers may be in float32 where embeddings are not.
            filled = torch.zeros_like(hidden_states, dtype=states.dtype)
            filled[:, : states.shape[1]] = states.to(hidden_states.device)
            return self._output(filled)

        with self._passed(self._lower[:-1]), _replaced(self._lower[-1:], hand_on):
            return run()

    def _passed(self, layers: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Let layers return what enters them."""

        def through(hidden_states: Tensor, *args: object, **kwargs: object) -> Output:
            return self._output(hidden_states)

        return _replaced(layers, through)

    def _output(self, states: Tensor) -> Output:
        """Return states in the form in which the layers return theirs."""
        more = self._tuple_length - 1
        return states if more < 0 else (states, *[None] * more)


@contextmanager
def _replaced(layers: Sequence[nn.Module], forward: Callable[..., Output]) -> Iterator[None]:
    """Let layers do something else; all else about them stays, such as their attributes."""
    for layer in layers:
        # An attribute of the object hides the method of the class.
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def sequence_keys(tree: TokenTree, prefix_ids: IntArray) -> list[bytes]:
    """Return what identifies each sequence of a tree: a hash of all its tokens, prefix included."""
    start = hashlib.blake2b(np.asarray(prefix_ids, np.int64).tobytes(), digest_size=16)
    keys = []
    for path in tree.paths:
        whole = start.copy()
        whole.update(tree.ids[path].tobytes())
        keys.append(whole.digest())
    return keys
