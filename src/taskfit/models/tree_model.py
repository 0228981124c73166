"""Run a causal language model over token trees.

Legend: T unique tokens of a tree, R rows read out, V vocabulary, D hidden width, P prefix tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from taskfit.errors import first_line
from taskfit.models.attention import IMPLEMENTATION, KeyValueCache, NoTreeError, TreeLayout
from taskfit.models.causal_model import CausalModel
from taskfit.models.compiled import compile_layers
from taskfit.models.fork_layout import ForkLayout, fork_layout
from taskfit.models.forked_state import fork_states, forks
from taskfit.models.frozen_depth import FrozenDepth, decoder_layers
from taskfit.models.lean import apart_from_stock
from taskfit.models.lean_blocks import lean_layout
from taskfit.models.lean_training import LeanTraining, TrainingPasses
from taskfit.models.lean_weights import NotLeanError, packs_weights
from taskfit.models.prefix import Prefix
from taskfit.models.served import OWN_ERRORS, UnservedError, is_of_model, refuse_unserved
from taskfit.models.transfer import on_device
from taskfit.models.tree_blocks import BlockTensors, block_tensors, stack_blocks
from taskfit.tree import CALL_TOKENS, IntArray, TokenTree, attention_blocks, cut_at_branches

# Queries in one block of attention. Small blocks waste less on pairs that cannot see each other;
# at 128 the products are still large enough (measured on two CPU cores, 100 to 1,000 tokens).
BLOCK_SIZE = {"cpu": 128, "cuda": 1024}
# On a CPU, oneDNN generates code for every new shape of a 16-bit product and keeps it: trees of any
# length would cost time and memory at every step. Rounded up, a few shapes serve all. (Products in
# float32 are another library's, which does not.)
CPU_MULTIPLE = 16
# Scoring answers single short texts, whose time is that of their tokens, with few kinds of product.
SHORT, SHORT_MULTIPLE = 64, 4


class TreeModel(CausalModel):
    """A causal LM under the token tree: every distinct prefix of a tree runs once."""

    shares_prefixes = True
    refusal = None

    def __init__(
        self, model: PreTrainedModel, *, verify: bool = True, adapter: str | None = None
    ) -> None:
        """Take over a model's attention.

        Args:
            model: A causal LM of attention and recurrences that fork.
            adapter: See the attribute; it must be on the model before the first pass.
            verify: Compare a small tree with plain forward passes (a few tokens; do not skip it
                for models from outside).

        Raises:
            UnservedError: If the tree cannot serve the architecture.
            ModelError: If it is no causal LM, or scores are not finite.
        """
        refuse_unserved(model)
        super().__init__(model, adapter=adapter)
        # Nothing and 0 both mean that there is none.
        self._window = int(self._config_number("sliding_window") or 0) or None
        self._windows: dict[int, int | None] | None = None
        self._trained: LeanTraining | None = None
        self._is_compiled = False
        model.set_attn_implementation(IMPLEMENTATION)
        self._forks = forks(model.config)
        if self._forks:
            fork_states(model)
        if verify:
            self._verify()

    def over(self, model: PreTrainedModel, *, adapter: str | None = None) -> "TreeModel":
        """Return another tree model over this model or a copy of it; see `CausalModel.over`."""
        return TreeModel(model, verify=False, adapter=adapter)

    @torch.no_grad()
    def encode_prefix(self, ids: IntArray) -> KeyValueCache:
        """Run a prefix once and return its keys and values, for use under any number of trees.

        Args:
            ids: Token ids, (P,), P >= 1.
        """
        record = KeyValueCache(len(ids), ids)
        # Validations come in the middle of training; a prefix must not be read with dropout.
        with self.evaluating():
            self._run(TokenTree.build([ids]), prefix=None, record=record)
        return record

    @torch.no_grad()
    def extend(
        self, ids: IntArray, *, prefix: Prefix | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """Run tokens behind a prefix; see `CausalModel.extend`."""
        before = _keys_and_values(prefix)
        record = KeyValueCache(len(ids), ids)
        states = self._run(TokenTree.build([ids]), prefix=before, record=record)
        return states[-1:], record if before is None else before.followed_by(record)

    @contextmanager
    def plain_attention(self) -> Iterator[PreTrainedModel]:
        """Lend the model with transformers' own attention, for padded batches and generation."""
        self._switch()
        self.model.set_attn_implementation("sdpa" if self.model._supports_sdpa else "eager")
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(IMPLEMENTATION)

    def prepare_scoring(self, *, fold: bool | None = None) -> None:
        """Score with the lean pass from now on, where it knows the model; see `LeanPass.use`."""
        self.end_training()
        super().prepare_scoring(fold=fold)
        self.lean.use(fold=fold)

    def prepare_training(self) -> None:
        """Train with a pass made for the CPU from now on, where that knows model and adapter."""
        if self.device.type != "cpu":
            return
        self.end_training()
        stock = self._small_hidden()
        try:
            self._trained = LeanTraining(self.model)
        except NotLeanError as found:
            self.lean.refusal = str(found)
            return
        apart = apart_from_stock(self._small_hidden(), stock, self.model.dtype)
        if apart is not None:
            self.end_training()
            self.lean.refusal = apart

    def end_training(self) -> None:
        """Leave training passes to the stock decoder again, and give back what was kept ready."""
        if self._trained is not None:
            self._trained.end()
            self._trained = None

    @property
    def suits_compiling(self) -> bool:
        """Return whether compiling the layers may pay."""
        return super().suits_compiling and not self._forks

    def compile_layers(self) -> None:
        """Compile the layers in training in place; the first passes then take tens of seconds."""
        if self._forks:
            super().compile_layers()
            return
        compile_layers(decoder_layers(self._decoder), first=self.first_trained)
        self._is_compiled = True

    @property
    def has_training_pass(self) -> bool:
        """Return whether training runs in a pass made for it, instead of the stock decoder."""
        return self._trained is not None

    def _decode(self, tree: TokenTree, *, prefix: Prefix | None) -> Tensor:
        """Run the decoder over a tree; return its last hidden states, (T, D)."""
        return self._run(tree, prefix=_keys_and_values(prefix), record=None)

    def _run(
        self, tree: TokenTree, *, prefix: KeyValueCache | None, record: KeyValueCache | None
    ) -> Tensor:
        """Run the decoder over a tree, keys and values recorded; return its last states, (T, D)."""
        self._switch()
        if self._forks and prefix is not None and not prefix.states:
            # It was cropped, which states cannot be; they serve all trees behind it.
            prefix.states = self.encode_prefix(prefix.ids).states
        offset = prefix.length if prefix is not None else 0
        num_tokens = len(tree)
        on_cpu = self.device.type == "cpu"
        dtype = self.model.dtype
        rounds = on_cpu and (dtype != torch.float32 or packs_weights(dtype))
        lean = self.lean.decoder(self._small_hidden)
        is_short = lean is not None and num_tokens <= SHORT
        multiple = (SHORT_MULTIPLE if is_short else CPU_MULTIPLE) if rounds else 1
        padded = tree.padded(multiple)
        block_size = BLOCK_SIZE["cpu" if on_cpu else "cuda"]
        # Just over one block, gathering the keys of a second costs more than it saves.
        whole = len(padded) <= 1.5 * block_size
        compiled = self._is_compiled and record is None and lean is None
        if compiled:  # blocks of equal size
            padded = tree.padded(CPU_MULTIPLE * (1 if whole else -(-len(padded) // block_size)))
        block_size = len(padded) if whole else block_size
        self.num_tokens_run += num_tokens
        ids = on_device(padded.ids, self.device)[None]
        positions = on_device(padded.positions + offset, self.device)[None]
        if lean is not None:
            aligned = lean_layout(
                tree,
                len(padded),
                block_size=block_size,
                window=self._window,
                prefix=prefix,
                record=record,
            )
            return lean.hidden(ids, positions, aligned)[0, :num_tokens]
        blocks = self._blocks(padded, block_size, prefix_length=offset, multiple=multiple)
        passes: TrainingPasses | StockPasses
        if self._trained is not None:
            layout = TreeLayout(blocks, prefix, record)
            first = self.first_trained
            passes = TrainingPasses(self._trained, ids, positions, layout, first)
        else:
            forks = self._fork_layout(tree, goes_on=offset > 0, recorded=record is not None)
            stacked = stack_blocks(blocks, offset) if compiled else None
            layout = TreeLayout(blocks, prefix, record, forks, self._windows, stacked)
            passes = StockPasses(self._decoder, self._depth, ids, positions, layout)
        if self._depth is None:
            return passes.whole()[:num_tokens]
        return self._depth.hidden(
            tree,
            np.empty(0, np.int64) if prefix is None else prefix.ids,
            lower=lambda: passes.lower()[:num_tokens],
            upper=lambda states: passes.upper(states)[:num_tokens],
            recorded=record is not None,
        )

    def _blocks(
        self, tree: TokenTree, block_size: int, *, prefix_length: int, multiple: int
    ) -> list[BlockTensors]:
        # The training pass adds masks to scores in float32.
        dtype = self.model.dtype if self._trained is None else torch.float32
        like = torch.empty((), dtype=dtype, device=self.device)
        return [
            block_tensors(
                block,
                tree.positions,
                prefix_length=prefix_length,
                window=self._window,
                like=like,
                multiple=multiple,
            )
            for block in attention_blocks(tree, block_size)
        ]

    def _fork_layout(self, tree: TokenTree, *, goes_on: bool, recorded: bool) -> ForkLayout | None:
        if not self._forks:
            return None
        segments = cut_at_branches(tree, goes_on=goes_on, state_wanted=recorded)
        return fork_layout(segments, self.device)

    def _verify(self) -> None:
        # Recurrent layers fork only where enough is shared.
        stem_length = 2 + 2 * CALL_TOKENS if self._forks else 5
        self._windows = {}
        try:
            error, allowed = self._error(prefix_length=2, stem_length=stem_length)
        except NoTreeError:
            reason = "layers that do not hand the tree on to their attention"
            raise UnservedError(self.model, reason) from None
        except OWN_ERRORS as found:
            if not is_of_model(found):
                raise
            reason = f"code that takes no tree ({first_line(found)})"
            raise UnservedError(self.model, reason) from found
        windows, self._windows = self._windows, None
        if not error < allowed:
            raise UnservedError(
                self.model,
                f"scores that it does not reproduce (on a few tokens they differ by {error:.2g} "
                f"standard deviations from the model's own; allowed: {allowed})",
            )
        # A few tokens are within every window, so that they do not show what is wrong here.
        kinds = self.model.config.get_text_config().to_dict().get("layer_types")
        for layer, window in windows.items():
            slides = self._window and (kinds is None or kinds[layer] == "sliding_attention")
            expected = self._window if slides else None
            # A window as long as the longest text hides nothing.
            if window != expected and (self._window or 0) < self.max_length:
                raise UnservedError(
                    self.model, "a sliding window of which layers do not tell their attention"
                )


@dataclass(frozen=True, slots=True)
class StockPasses:
    """The passes of transformers' decoder over one tree, in one part or two."""

    decoder: nn.Module
    depth: FrozenDepth | None
    ids: Tensor
    positions: Tensor
    layout: TreeLayout

    def whole(self) -> Tensor:
        """Return the last hidden states, (T, D)."""
        return self._run()[0]

    def lower(self) -> Tensor:
        """Return what enters the first layer in training, without dropout, (T, D)."""
        assert self.depth is not None, "all layers are in training"
        return self.depth.lower(self._run)[0]

    def upper(self, states: Tensor) -> Tensor:
        """Return the last hidden states, (T, D), of what enters the first layer in training."""
        assert self.depth is not None, "all layers are in training"
        return self.depth.upper(self._run, states[None])[0]

    def _run(self) -> Tensor:
        output = self.decoder(
            input_ids=self.ids,
            position_ids=self.positions,
            use_cache=False,
            tree_layout=self.layout,
        )
        states: Tensor = output.last_hidden_state
        return states


def _keys_and_values(prefix: Prefix | None) -> KeyValueCache | None:
    assert prefix is None or isinstance(prefix, KeyValueCache), "a prefix of another engine"
    return prefix
