"""Run a causal language model over token trees sequence by sequence, padded on the right.

Attention biased by distance, recurrent and convolutional state cannot fork inside of a row of
tokens, so these models read each sequence of a tree whole. What comes after a token changes nothing
of it, so padding on the right needs no mask, in recurrent layers either, and states are exact.

Legend: T unique tokens of a tree, D hidden width, P prefix tokens, B sequences of a batch, L their
length with padding.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin
from transformers.utils import logging as transformers_logging

from taskfit.errors import ModelError, first_line
from taskfit.models.attention import IMPLEMENTATION
from taskfit.models.causal_model import CausalModel
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.prefix import Prefix
from taskfit.models.served import (
    OWN_ERRORS,
    SEES_LATER,
    is_of_model,
    refuse_others,
    sees_later,
    unusable,
)
from taskfit.models.transfer import on_device
from taskfit.models.tree_rows import RowBatch, row_batches, states_by_node
from taskfit.tree import IntArray, TokenTree

# What decoders call the states that they go on from, in arguments and results.
CACHES = ("past_key_values", "cache_params")


class PaddedPrefix:
    """Tokens before a tree, with the model's states behind them where it can go on from these.

    States are made when they are first asked for.

    Attributes:
        ids: The tokens, (P,).
    """

    def __init__(self, ids: IntArray, model: "PaddedModel") -> None:
        """Bind to the model that runs them."""
        self.ids = ids
        self._model = model
        self._state: DynamicCache | None = None
        self._cropped: PaddedPrefix | None = None

    @property
    def length(self) -> int:
        """Return the number of tokens, P."""
        return len(self.ids)

    def run(self) -> DynamicCache:
        """Run the tokens, unless that is done; return the states behind them, not to be changed."""
        if self._state is None:
            self._state = self._model.state_behind(self.ids)
        return self._state

    def cropped(self, length: int) -> "PaddedPrefix":
        """Return the first `length` tokens; recurrent states cannot be cropped and run again."""
        if length == self.length:
            return self
        if self._cropped is None or self._cropped.length != length:
            self._cropped = PaddedPrefix(self.ids[:length], self._model)
        return self._cropped

    def followed_by(self, ids: IntArray, state: DynamicCache | None) -> "PaddedPrefix":
        """Return the prefix with what comes behind it, and the states there."""
        longer = PaddedPrefix(np.concatenate((self.ids, ids)), self._model)
        longer._state = state
        return longer


class PaddedModel(CausalModel):
    """A causal LM over the sequences of trees: what `TreeModel` gives, but nothing is shared.

    Attributes:
        continues: Whether the model goes on from copies of its states by several tokens; else what
            stands before a tree runs again with each of its sequences.
    """

    shares_prefixes = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        refusal: str,
        verify: bool = True,
        adapter: str | None = None,
    ) -> None:
        """Bind to a model; its attention is transformers' own.

        Args:
            model: A causal LM.
            refusal: Why the token tree does not serve it, one clause.
            verify: Compare a small tree with plain forward passes, and find out whether the model
                goes on from its states (a few tokens).
            adapter: See `CausalModel.adapter`.

        Raises:
            ModelError: If it is no causal LM, reads more than what stands before a token, or scores
                are not finite.
        """
        refuse_others(model)
        super().__init__(model, adapter=adapter)
        self.refusal = refusal
        if model.config._attn_implementation == IMPLEMENTATION:
            model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
        if "rescale_every" in model.config.to_dict():
            # RWKV halves weights in place before it predicts: not those of adapters, and for good
            # if it is saved then. It only keeps float16 from overflowing.
            model.config.rescale_every = 0
        takes = inspect.signature(self._decoder.forward).parameters
        self._cache_name = next((name for name in CACHES if name in takes), None)
        self._takes_positions = "position_ids" in takes
        self.continues = False
        if verify:
            self._verify()

    def over(self, model: PreTrainedModel, *, adapter: str | None = None) -> "PaddedModel":
        """Return another padded model over this model or a copy of it; see `CausalModel.over`."""
        assert self.refusal is not None, "a padded model has a reason"
        other = PaddedModel(model, refusal=self.refusal, verify=False, adapter=adapter)
        other.continues = self.continues
        return other

    def encode_prefix(self, ids: IntArray) -> PaddedPrefix:
        """Return tokens to go on from; they run when they are first needed, without dropout.

        Args:
            ids: Token ids, (P,), P >= 1.
        """
        return PaddedPrefix(ids, self)

    @torch.no_grad()
    def state_behind(self, ids: IntArray) -> DynamicCache:
        """Run tokens, (P,), and return the model's states behind them."""
        with self.evaluating():
            self._switch()
            return self._going_on(ids, None)[1]

    @torch.no_grad()
    def extend(self, ids: IntArray, *, prefix: Prefix | None = None) -> tuple[Tensor, PaddedPrefix]:
        """Run tokens behind a prefix; see `CausalModel.extend`."""
        before = _padded(prefix) or PaddedPrefix(ids[:0], self)
        self._switch()
        if not self.continues:
            longer = before.followed_by(ids, None)
            states = self._decode(TokenTree.build([longer.ids]), prefix=None)
            return states[-1:], longer
        hidden, state = self._going_on(ids, before if before.length else None)
        return hidden, before.followed_by(ids, state)

    @contextmanager
    def plain_attention(self) -> Iterator[PreTrainedModel]:
        """Lend the model; its attention is transformers' own."""
        self._switch()
        yield self.model

    def _decode(self, tree: TokenTree, *, prefix: Prefix | None) -> Tensor:
        """Run the decoder over a tree's sequences; return the nodes' last hidden states, (T, D)."""
        self._switch()
        before = _padded(prefix)
        if before is not None and not self.continues:
            return self._decode(tree.behind(before.ids), prefix=None)[before.length :]
        if before is not None:
            before.run()  # whole, before layers are passed over
        batches = row_batches(tree, 0 if before is None else before.length)
        self.num_tokens_run += sum(batch.nodes.size for batch in batches)

        def run(batch: RowBatch) -> Tensor:
            ids = on_device(tree.ids[batch.nodes], self.device)
            return self._run(ids, before)[0]

        depth = self._depth
        if depth is None:
            return states_by_node(batches, [run(batch) for batch in batches])

        def upper(states: Tensor) -> Tensor:
            found = []
            for batch in batches:
                entering = states[on_device(batch.nodes, states.device)]  # (B, L, D)
                found.append(depth.upper(partial(run, batch), entering))
            return states_by_node(batches, found)

        return depth.hidden(
            tree,
            np.empty(0, np.int64) if before is None else before.ids,
            lower=lambda: states_by_node(batches, [depth.lower(partial(run, b)) for b in batches]),
            upper=upper,
            recorded=False,
        )

    def _going_on(self, ids: IntArray, before: PaddedPrefix | None) -> tuple[Tensor, DynamicCache]:
        """Run one sequence behind a prefix.

        Returns:
            The last token's last hidden state, (1, D), and the states behind it.
        """
        self.num_tokens_run += len(ids)
        states, cache = self._run(on_device(ids, self.device)[None], before, keep=True)
        assert isinstance(cache, DynamicCache), "it was looked at when the model was loaded"
        return states[0, -1:], cache

    def _run(
        self, ids: Tensor, before: PaddedPrefix | None, *, keep: bool = False
    ) -> tuple[Tensor, object]:
        """Run the decoder over rows of tokens, (B, L), each behind a prefix.

        Returns:
            The last hidden states, (B, L, D), and with `keep` the model's states.
        """
        if before is None and not keep:
            output = self._decoder(input_ids=ids, use_cache=False)
            return output.last_hidden_state.to(self._head.weight.dtype), None
        assert self._cache_name is not None, "nothing is kept of this model"
        options: dict[str, object] = {}
        if before is not None:
            # Models write into their states; what is gathered below is new.
            cache = copy.deepcopy(before.run())
            cache.reorder_cache(torch.zeros(len(ids), dtype=torch.long, device=self.device))
            options[self._cache_name] = cache
            if self._takes_positions:
                positions = before.length + torch.arange(ids.shape[1], device=self.device)
                options["position_ids"] = positions.expand(ids.shape)
        output = self._decoder(input_ids=ids, use_cache=True, **options)
        states = output.last_hidden_state.to(self._head.weight.dtype)
        return states, output.get(self._cache_name)

    def _verify(self) -> None:
        name = f"{type(self.model).__name__} (model type {self.model.config.model_type})"
        start = (
            f"{name} can be run neither by the token tree ({self.refusal}) nor in padded batches"
        )
        advice = "Use another model and report this one."
        try:
            with _no_advice() if self.device.type == "cpu" else nullcontext():
                error, allowed = self._error()
        except OWN_ERRORS as found:
            if not is_of_model(found):
                raise
            raise ModelError(
                f"{start}: its code ends in {first_line(found)!r}. {advice}"
            ) from found
        if not error < allowed:
            if sees_later(self.model):
                raise unusable(self.model, SEES_LATER)
            raise ModelError(
                f"{start}: on a few tokens its scores differ by {error:.2g} standard deviations "
                f"from its own of one text alone (allowed: {allowed}). It does something "
                f"unknown to its scores. {advice}"
            )
        try:
            self.continues = self._goes_on()
        except OWN_ERRORS as found:
            if not is_of_model(found):
                raise

    @torch.no_grad()
    def _goes_on(self) -> bool:
        """Return whether several tokens behind copied states give what the whole pass gives."""
        kinds = self.model.config.get_text_config().to_dict().get("layer_types") or ()
        # They always see the tokens of the first call, whichever those are.
        if self._cache_name is None or "reference_sliding_attention" in kinds:
            return False
        generator = np.random.default_rng(1)
        # More tokens before than the kernels of convolutions are wide.
        stem, *tails = (generator.integers(0, self._head.weight.shape[0], n) for n in (17, 7, 4))
        tree = TokenTree.build(tails)
        with evaluation_mode(self.model):
            whole = self._decode(tree.behind(stem), prefix=None)[len(stem) :].float()
            ids = on_device(stem, self.device)[None]
            if not isinstance(self._run(ids, None, keep=True)[1], DynamicCache):
                return False
            prefix = PaddedPrefix(stem, self)
            self.continues = True
            try:
                ours = self._decode(tree, prefix=prefix).float()
                reads = _reads_states(lambda: self._decode(tree, prefix=prefix), prefix.run())
            finally:
                self.continues = False
        allowed = 1e-3 if self.model.dtype == torch.float32 else 0.05
        return reads and float((ours - whole).norm() / (whole.norm() + 1e-6)) < allowed


@contextmanager
def _no_advice() -> Iterator[None]:
    """Hide that transformers misses kernels, which it says once: there are none for a CPU."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _padded(prefix: Prefix | None) -> PaddedPrefix | None:
    assert prefix is None or isinstance(prefix, PaddedPrefix), "a prefix of another engine"
    return prefix


def _reads_states(run: Callable[[], Tensor], state: DynamicCache) -> bool:
    """Return whether recurrent states make a difference to several tokens behind them.

    Some recurrent layers go on from their state by a single token only, and begin anew with
    several. With small weights scores hardly tell.

    Args:
        run: Runs several tokens from a copy of the states.
        state: The states, which are spoilt.
    """
    recurrent = [
        one
        for layer in state.layers
        if isinstance(layer, LinearAttentionCacheLayerMixin)
        for one in layer.recurrent_states.values()
        if one is not None
    ]
    before = run()
    for one in recurrent:
        one.mul_(-3).add_(1)
    return not recurrent or not torch.equal(run(), before)
