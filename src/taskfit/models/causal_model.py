"""A causal language model that reads token trees, whichever engine runs them.

Legend: T unique tokens of a tree, R rows read out, V vocabulary, D hidden width, P prefix tokens,
Y predicted tokens.
"""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from taskfit.models.adapters import adapter_layers, use_adapter
from taskfit.models.cut_model import CutModel
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.frozen_depth import decoder_layers
from taskfit.models.head_input import decoder_of
from taskfit.models.lean import LeanPass
from taskfit.models.prefix import Prefix
from taskfit.models.transfer import on_device
from taskfit.models.whole import require_finite
from taskfit.tree import IntArray, TokenTree

# Where transformers says that recurrent layers run without kernels of their own.
KERNELS_LOGGER = "transformers.integrations.hub_kernels"
# Rows of logits in memory at once: 128 x 50,000 words x 4 bytes = 26 MB.
LOGIT_ROWS = 128
# What configurations call the longest sequence. Models without one have no limit: recurrent ones,
# and those whose attention is biased by distance.
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
NO_LIMIT = 2**20  # tokens; a number that can be shown and sent
# What models do to their scores after the head: divide, multiply, cap.
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def longest_sequence(config: PretrainedConfig) -> int:
    """Return the longest sequence that a model was made for (tokens), `NO_LIMIT` if none is named.

    Args:
        config: Of the model.
    """
    settings = config.get_text_config().to_dict()
    return next((int(n) for name in LENGTHS if (n := settings.get(name)) is not None), NO_LIMIT)


class CausalModel(CutModel):
    """A causal LM that reads token trees: hidden states at nodes, log-probabilities of tokens.

    The model object stays transformers' own (with PEFT's layers inside where there is an adapter);
    engines only call its decoder and its LM head.

    Attributes:
        model: The transformers model.
        adapter: Of several on the model, the one that this object computes with; empty: with none;
            None: with whatever is active.
        device: Where it lives.
        lean: What decodes in scoring after `prepare_scoring`, where it knows the model.
        num_tokens_run: Tokens run through the decoder so far, padding included.
        shares_prefixes: Whether what sequences of a tree share runs once.
        refusal: Why they do not, one clause: what keeps the token tree from serving the model.
    """

    shares_prefixes: bool
    refusal: str | None

    def __init__(self, model: PreTrainedModel, *, adapter: str | None = None) -> None:
        """Bind to a model.

        Args:
            model: A causal LM.
            adapter: See the attribute; it must be on the model before the first pass.
        """
        self.model = model
        self.adapter = adapter
        self._adapter_layers: list[LoraLayer] | None = None
        self.device = model.device
        self.num_tokens_run = 0
        self._head = model.get_output_embeddings()
        self._decoder = decoder_of(model)
        self._softcap = self._first_number(CAPS)
        self._logit_scale = (self._first_number(FACTORS) or 1.0) / (
            self._first_number(DIVISORS) or 1.0
        )
        # MiniCPM 3 divides states by how much wider it is than its base.
        width = self._head.weight.shape[1]
        self._logit_scale *= (self._config_number("dim_model_base") or width) / width
        # What a vocabulary is filled up by is no word.
        num_words = self._config_number("unpadded_vocab_size")
        self._num_words = None if num_words is None else int(num_words)
        self.lean = LeanPass(model)
        if model.device.type != "cuda":  # the kernels that it advises to install are for GPUs
            logging.getLogger(KERNELS_LOGGER).setLevel(logging.ERROR)

    @property
    def max_length(self) -> int:
        """Longest sequence that the model was made for (tokens)."""
        return longest_sequence(self.model.config)

    @abstractmethod
    def over(self, model: PreTrainedModel, *, adapter: str | None = None) -> "CausalModel":
        """Return the same engine over this model or a copy of it, without looking at it again.

        Args:
            model: This object's model, or a copy of it.
            adapter: What the new object computes with.
        """

    @abstractmethod
    def encode_prefix(self, ids: IntArray) -> Prefix:
        """Run a prefix once, without gradients or dropout, for use under any number of trees.

        Args:
            ids: Token ids, (P,), P >= 1.
        """

    @abstractmethod
    def extend(self, ids: IntArray, *, prefix: Prefix | None = None) -> tuple[Tensor, Prefix]:
        """Run tokens behind a prefix, to write on from there; the model must be in evaluation mode.

        Args:
            ids: Token ids, (T,), T >= 1.
            prefix: What stands before.

        Returns:
            The last hidden state of the last token, (1, D), and prefix and ids as one prefix.
        """

    @abstractmethod
    def plain_attention(self) -> AbstractContextManager[PreTrainedModel]:
        """Lend the model with transformers' own attention, for padded batches and generation."""

    def hidden(self, tree: TokenTree, nodes: IntArray, *, prefix: Prefix | None = None) -> Tensor:
        """Return the last hidden states at chosen nodes.

        Args:
            tree: The tokens; their depths count from the end of the prefix.
            nodes: Nodes to read, (R,).
            prefix: What stands before the root.

        Returns:
            Hidden states after the final norm, ready for the LM head, (R, D).
        """
        states = self._decode(tree, prefix=prefix)  # (T, D)
        return states.index_select(0, on_device(nodes, self.device))

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the LM head: (R, D) to scores in float32, (R, V)."""
        return self._finish(self._head(hidden)[..., : self._num_words].float())

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
        scores = self.token_scores(hidden, rows, targets)
        normalizers, rounded = [], torch.zeros_like(scores)
        for number, part in enumerate(torch.split(hidden, LOGIT_ROWS)):
            places = rows - number * LOGIT_ROWS
            given = part, places.clamp(0, len(part) - 1), targets
            if torch.is_grad_enabled() and len(hidden) > LOGIT_ROWS:
                found, own = checkpoint(self._log_normalizer, *given, use_reentrant=False)
            else:
                found, own = self._log_normalizer(*given)
            normalizers.append(found)
            rounded = torch.where((places >= 0) & (places < len(part)), own, rounded)
        whole = torch.cat(normalizers)[rows]
        log_probs = scores - whole
        with torch.no_grad():
            # The head's own rounding of a target's score is taken out of its normaliser: with it a
            # log-probability could be above 0. The gradient is that of `log_probs`.
            others = whole + torch.log1p(-(rounded - whole).clamp(max=0).exp())
            exact = -torch.nn.functional.softplus(others - scores)
        return log_probs + (exact - log_probs).detach()

    def compile_layers(self) -> None:
        """Compile the layers in training in place; the first passes then take tens of seconds."""
        for layer in decoder_layers(self._decoder)[self.first_trained :]:
            layer.compile(dynamic=True)

    @property
    def num_layers(self) -> int:
        """Return the number of decoder layers."""
        return len(decoder_layers(self._decoder))

    def prepare_training(self) -> None:
        """Make ready what training runs; call it once adapters are on and lower layers frozen."""

    @property
    def has_training_pass(self) -> bool:
        """Return whether training runs in a pass made for it, instead of the stock decoder."""
        return False

    @property
    def suits_compiling(self) -> bool:
        """Return whether compiling the layers may pay."""
        return self.shares_prefixes and not self.has_training_pass

    def end_training(self) -> None:
        """Give back what only training needs; call it before adapters are taken off."""

    def prepare_scoring(self, *, fold: bool | None = None) -> None:
        """Score from now on, with the lean pass where it knows the model; see `LeanPass.use`."""
        self.freeze_below(0)  # all layers run, whatever was trained

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

    def _log_normalizer(
        self, hidden: Tensor, rows: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the normaliser of rows, (R,), and the head's scores of tokens in them, (Y,)."""
        logits = self.logits(hidden)
        return torch.logsumexp(logits, dim=-1), logits.detach()[rows, targets]

    def _finish(self, scores: Tensor) -> Tensor:
        """Do what models do to their scores after the head; what else they do `_error` shows."""
        scores = scores * self._logit_scale
        return (
            scores if self._softcap is None else torch.tanh(scores / self._softcap) * self._softcap
        )

    def _switch(self) -> None:
        """Let this object's adapter compute; others may share the model with theirs."""
        if self.adapter is None:
            return
        if self._adapter_layers is None:
            self._adapter_layers = adapter_layers(self.model)
        use_adapter(self._adapter_layers, self.adapter)

    def _config_number(self, name: str) -> float | None:
        settings: dict[str, Any] = self.model.config.get_text_config().to_dict()
        value = settings.get(name)
        return None if value is None else float(value)

    def _first_number(self, names: tuple[str, ...]) -> float | None:
        """Return the first of these numbers that the configuration has, or None."""
        return next((n for name in names if (n := self._config_number(name)) is not None), None)

    @torch.no_grad()
    def _error(self, *, prefix_length: int = 0, stem_length: int = 5) -> tuple[float, float]:
        """Compare a branching tree, cut after a prefix, with plain passes of the same model.

        Args:
            prefix_length: Tokens of the tree's stem that are encoded as a prefix.
            stem_length: Tokens before the tree branches.

        Returns:
            The largest difference of a score (standard deviations of scores), and the most that is
            allowed: what differs by more does something unknown to positions, attention or scores.
        """
        vocabulary = self._head.weight.shape[0]
        generator = np.random.default_rng(0)
        stem, *tails = (generator.integers(0, vocabulary, n) for n in (stem_length, 3, 2))
        sequences = [np.concatenate((stem, tail)) for tail in tails]
        tree = TokenTree.build([sequence[prefix_length:] for sequence in sequences])
        leaves = np.array([path[-1] for path in tree.paths])
        with evaluation_mode(self.model):
            prefix = self.encode_prefix(stem[:prefix_length]) if prefix_length else None
            ours = self.logits(self.hidden(tree, leaves, prefix=prefix))  # (2, V)
            with self.plain_attention() as plain:
                inputs = [torch.from_numpy(ids).to(self.device)[None] for ids in sequences]
                theirs = torch.stack(
                    [plain(ids, use_cache=False).logits[0, -1].float() for ids in inputs]
                )
        require_finite(theirs, ["a few tokens", "a few others"])
        scale = (theirs - theirs.mean(dim=-1, keepdim=True)).std() + 1e-6
        tolerance = 1e-2 if self.model.dtype == torch.float32 else 0.5
        return float((ours - theirs).abs().max() / scale), tolerance
