"""Run a causal language model over token trees.

Legend: T unique tokens of a tree, R rows read out, V vocabulary, D hidden width, P prefix tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from taskfit.errors import ModelError
from taskfit.models.adapters import adapter_layers, use_adapter
from taskfit.models.attention import (
    IMPLEMENTATION,
    KeyValueCache,
    TreeLayout,
    block_tensors,
    stack_blocks,
)
from taskfit.models.compiled import compile_layers
from taskfit.models.cut_model import CutModel
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.frozen_depth import decoder_layers
from taskfit.models.lean import LeanPass
from taskfit.models.lean_blocks import lean_layout
from taskfit.models.served import refuse_unserved
from taskfit.models.whole import require_finite
from taskfit.tree import IntArray, TokenTree, attention_blocks

# Queries in one block of attention. Small blocks waste less on pairs that cannot see each other;
# at 128 the products are still large enough (measured on two CPU cores, 100 to 1,000 tokens).
BLOCK_SIZE = {"cpu": 128, "cuda": 1024}
# On a CPU, oneDNN generates code for every new shape of a 16-bit product and keeps it: trees of any
# length would cost time and memory at every step. Rounded up, a few shapes serve all. (Products in
# float32 are another library's, which does not.)
CPU_MULTIPLE = 16
# Scoring answers single short texts, whose time is that of their tokens, with few kinds of product.
SHORT, SHORT_MULTIPLE = 64, 4
# Rows of logits in memory at once: 128 x 50,000 words x 4 bytes = 26 MB.
LOGIT_ROWS = 128


class TreeModel(CutModel):
    """A causal LM that reads token trees: hidden states at nodes, log-probabilities of tokens.

    The model object stays transformers' own (with PEFT's layers inside where there is an adapter);
    this class only calls its decoder and its LM head.

    Attributes:
        model: The transformers model.
        adapter: Of several on the model, the one that this object computes with; empty: with none;
            None: with whatever is active.
        device: Where it lives.
        lean: What decodes in scoring after `prepare_scoring`, where it knows the model.
        num_tokens_run: Unique tokens run through the decoder so far.
    """

    def __init__(
        self, model: PreTrainedModel, *, verify: bool = True, adapter: str | None = None
    ) -> None:
        """Take over a model's attention.

        Args:
            model: A causal LM of pure attention.
            adapter: See the attribute; it must be on the model before the first pass.
            verify: Compare a small tree with plain forward passes (a few tokens; do not skip it
                for models from outside).

        Raises:
            ModelError: If the tree cannot serve the architecture, or scores are not finite.
        """
        refuse_unserved(model)
        self.model = model
        self.adapter = adapter
        self._adapter_layers: list[LoraLayer] | None = None
        self.device = model.device
        self.num_tokens_run = 0
        self._is_compiled = False
        window = self._config_number("sliding_window")
        self._window = None if window is None else int(window)
        self._head = model.get_output_embeddings()
        self._decoder = model.get_decoder()
        self._softcap = self._config_number("final_logit_softcapping")
        self._logit_scale = (self._config_number("logit_scale") or 1.0) / (
            self._config_number("logits_scaling") or 1.0
        )
        self.lean = LeanPass(model)
        model.set_attn_implementation(IMPLEMENTATION)
        if verify:
            self._verify()

    @property
    def max_length(self) -> int:
        """Longest sequence that the model was made for (tokens)."""
        text_config = self.model.config.get_text_config()
        return int(text_config.max_position_embeddings)

    def hidden(
        self, tree: TokenTree, nodes: IntArray, *, prefix: KeyValueCache | None = None
    ) -> Tensor:
        """Return the last hidden states at chosen nodes.

        Args:
            tree: The tokens; their depths count from the end of the prefix.
            nodes: Nodes to read, (R,).
            prefix: Keys and values of what stands before the root.

        Returns:
            Hidden states after the final norm, ready for the LM head, (R, D).
        """
        states = self._decode(tree, prefix=prefix, record=None)  # (T, D)
        return states.index_select(0, torch.from_numpy(nodes).to(self.device))

    @torch.no_grad()
    def encode_prefix(self, ids: IntArray) -> KeyValueCache:
        """Run a prefix once and return its keys and values, for use under any number of trees.

        Args:
            ids: Token ids, (P,), P >= 1.
        """
        record = KeyValueCache(len(ids), ids)
        # Validations come in the middle of training; a prefix must not be read with dropout.
        with self.evaluating():
            self._decode(TokenTree.build([ids]), prefix=None, record=record)
        return record

    @torch.no_grad()
    def extend(
        self, ids: IntArray, *, prefix: KeyValueCache | None = None
    ) -> tuple[Tensor, KeyValueCache]:
        """Run tokens behind a prefix, to write on from there; the model must be in evaluation mode.

        Args:
            ids: Token ids, (T,), T >= 1.
            prefix: Keys and values of what stands before.

        Returns:
            The last hidden state of the last token, (1, D), and keys and values of prefix and ids.
        """
        record = KeyValueCache(len(ids), ids)
        states = self._decode(TokenTree.build([ids]), prefix=prefix, record=record)
        return states[-1:], record if prefix is None else prefix.followed_by(record)

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the LM head: (R, D) to scores in float32, (R, V)."""
        return self._finish(self._head(hidden).float())

    def token_scores(self, hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the LM head's scores of single tokens, computed in float32.

        In bfloat16 two label words often get the very same score; a product of width D in
        float32 for a few tokens costs nothing and tells them apart.

        Args:
            hidden: Hidden states, (R, D).
            rows: For every target the row of `hidden` that predicts it, (Y,).
            targets: Token ids, (Y,).

        Returns:
            Scores before normalisation, (Y,).
        """
        weight = self._head.weight[targets].float()  # (Y, D)
        scores = (hidden[rows].float() * weight).sum(dim=-1)
        if self._head.bias is not None:
            scores = scores + self._head.bias[targets].float()
        return self._finish(scores)

    def token_log_probs(self, hidden: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of tokens under the whole vocabulary.

        Works in slices of rows, recomputed in the backward pass, so that (R, V) never exists.

        Args:
            hidden: Hidden states, (R, D).
            rows: For every target the row of `hidden` that predicts it, (Y,).
            targets: Token ids, (Y,).

        Returns:
            log p(target), float32, (Y,).
        """
        normalizers = []
        for part in torch.split(hidden, LOGIT_ROWS):
            if torch.is_grad_enabled() and len(hidden) > LOGIT_ROWS:
                normalizers.append(checkpoint(self._log_normalizer, part, use_reentrant=False))
            else:
                normalizers.append(self._log_normalizer(part))
        return self.token_scores(hidden, rows, targets) - torch.cat(normalizers)[rows]

    def _log_normalizer(self, hidden: Tensor) -> Tensor:
        return torch.logsumexp(self.logits(hidden), dim=-1)

    def _finish(self, scores: Tensor) -> Tensor:
        """Do what models do to their scores after the head.

        Granite divides, Cohere multiplies, Gemma 2 caps; anything else `_verify` catches.
        """
        scores = scores * self._logit_scale
        return (
            scores if self._softcap is None else torch.tanh(scores / self._softcap) * self._softcap
        )

    @contextmanager
    def plain_attention(self) -> Iterator[PreTrainedModel]:
        """Lend the model with transformers' own attention, for padded batches and generation."""
        self._switch()
        self.model.set_attn_implementation("sdpa" if self.model._supports_sdpa else "eager")
        try:
            yield self.model
        finally:
            self.model.set_attn_implementation(IMPLEMENTATION)

    def compile_layers(self) -> None:
        """Compile the layers in training in place; the first passes then take tens of seconds."""
        compile_layers(decoder_layers(self._decoder), first=self.first_trained)
        self._is_compiled = True

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(decoder_layers(self._decoder))

    def prepare_scoring(self, *, fold: bool | None = None) -> None:
        """Score with the lean pass from now on, where it knows the model; see `LeanPass.use`."""
        self.freeze_below(0)  # all layers run, whatever was trained
        self.lean.use(fold=fold)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Run without dropout meanwhile."""
        self._switch()
        # The lean pass knows no dropout, and a model that is seen through an adapter by name only
        # predicts; to switch thousands of modules takes as long as their work.
        if self.adapter is not None or self.lean.decoder(self._small_hidden) is not None:
            yield
        else:
            with evaluation_mode(self.model):
                yield

    def _decode(
        self, tree: TokenTree, *, prefix: KeyValueCache | None, record: KeyValueCache | None
    ) -> Tensor:
        """Run the decoder over a tree; return its last hidden states, (T, D)."""
        self._switch()
        offset = prefix.length if prefix is not None else 0
        num_tokens = len(tree)
        on_cpu = self.device.type == "cpu"
        rounds = on_cpu and self.model.dtype != torch.float32
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
        ids = torch.from_numpy(padded.ids).to(self.device)[None]
        positions = torch.from_numpy(padded.positions + offset).to(self.device)[None]
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
        like = torch.empty((), dtype=self.model.dtype, device=self.device)
        blocks = [
            block_tensors(
                block,
                padded.positions,
                prefix_length=offset,
                window=self._window,
                like=like,
                multiple=multiple,
            )
            for block in attention_blocks(padded, block_size)
        ]
        stacked = stack_blocks(blocks, offset) if compiled else None
        layout = TreeLayout(blocks, prefix, record, stacked)

        def run() -> Tensor:
            output = self._decoder(
                input_ids=ids, position_ids=positions, use_cache=False, tree_layout=layout
            )
            states: Tensor = output.last_hidden_state
            return states

        if self._depth is None:
            states = run()
        else:
            before = np.empty(0, np.int64) if prefix is None else prefix.ids
            states = self._depth.hidden(run, tree, before, recorded=record is not None)
        return states[0, :num_tokens]

    def _switch(self) -> None:
        """Let this object's adapter compute; others may share the model with theirs."""
        if self.adapter is None:
            return
        if self._adapter_layers is None:
            self._adapter_layers = adapter_layers(self.model)
        use_adapter(self._adapter_layers, self.adapter)

    def _config_number(self, name: str) -> float | None:
        value = self.model.config.get_text_config().to_dict().get(name)
        return None if value is None else float(value)

    @torch.no_grad()
    def _verify(self) -> None:
        """Compare a branching tree, cut after a prefix, with plain passes of the same model."""
        vocabulary = self._head.weight.shape[0]
        generator = np.random.default_rng(0)
        stem, *tails = (generator.integers(0, vocabulary, n) for n in (5, 3, 2))
        sequences = [np.concatenate((stem, tail)) for tail in tails]
        tree = TokenTree.build([sequence[2:] for sequence in sequences])
        leaves = np.array([path[-1] for path in tree.paths])
        with evaluation_mode(self.model):
            prefix = self.encode_prefix(stem[:2])
            ours = self.logits(self.hidden(tree, leaves, prefix=prefix))  # (2, V)
            with self.plain_attention() as plain:
                inputs = [torch.from_numpy(ids).to(self.device)[None] for ids in sequences]
                theirs = torch.stack([plain(ids).logits[0, -1].float() for ids in inputs])
        require_finite(theirs, ["a few tokens", "a few others"])
        scale = (theirs - theirs.mean(dim=-1, keepdim=True)).std() + 1e-6
        error = float((ours - theirs).abs().max() / scale)
        tolerance = 1e-2 if self.model.dtype == torch.float32 else 0.5
        if not error < tolerance:
            raise ModelError(
                f"The token tree does not reproduce {type(self.model).__name__}: on a small tree "
                f"its scores differ by {error:.2g} standard deviations from the model's own "
                f"(allowed: {tolerance}). The model does something to its positions, attention or "
                f"scores that taskfit does not know; use another model and report this one."
            )
