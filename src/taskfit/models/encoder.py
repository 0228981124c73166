"""Encoders (BERT and its kin): load them, run them on padded batches, embed texts.

An encoder sees what comes after a token, so its texts share no computation and the token tree has
nothing to offer. They run as padded rectangles of texts of like length. At loading, a padded batch
is compared with plain passes: a model that lets padding leak into its texts is refused.

Legend: N texts, B texts of a batch, T tokens of its longest, D hidden width, L labels.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer as Backend
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from taskfit.errors import DataError, ModelError
from taskfit.models.encoder_pooling import Pooling, pool, read_pooling
from taskfit.models.encoder_weights import (
    EncoderSource,
    load_new_head,
    load_saved_head,
    load_weights,
    locate_encoder,
    refuse_other_kinds,
)
from taskfit.models.evaluation_mode import evaluation_mode
from taskfit.models.load import check_tokenizer
from taskfit.models.packaged import PACKAGED_ENCODERS, explain_failure
from taskfit.tasks.text_encoder import Tokenizer

# The published limit of all-MiniLM-L6-v2; sentence encoders are trained on less than they can take.
EMBED_MAX_LENGTH = 256
# Padded tokens in one forward pass: enough to fill the device.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A row of text columns as token ids.

    Attributes:
        id: The row's id, such as `train.csv:17`.
        ids: Token ids with the model's special tokens, (T,).
        type_ids: 0 for tokens of the first text, 1 for those of the second, (T,).
        target: Share of each label, adding up to 1, (L,); None where it is not known.
        num_tokens_cut: Tokens by which the texts were shortened.
    """

    id: str
    ids: NDArray[np.int64]
    type_ids: NDArray[np.int64]
    target: NDArray[np.float64] | None
    num_tokens_cut: int

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that run."""
        return len(self.ids)


def encode_texts(
    tokenizer: Tokenizer,
    rows: Sequence[Sequence[str]],
    *,
    ids: Sequence[str],
    max_length: int,
    targets: Sequence[NDArray[np.float64] | None] | None = None,
) -> list[EncodedRow]:
    """Tokenize rows of text columns; what is too long loses its end, the longer text first.

    Two columns go in as a pair of texts, as the model's own tokenizer writes pairs; more than two
    are joined by line breaks into one text.

    Args:
        tokenizer: A fast tokenizer; its state is not changed.
        rows: The texts of each row, (N, columns).
        ids: The rows' ids, (N,).
        max_length: Most tokens of a row, special tokens included (tokens).
        targets: Share of each label for each row, (L,), or None where it is not known; (N,).

    Raises:
        DataError: If a row has no token at all.
    """
    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    inputs = [tuple(row) if len(row) == 2 else "\n".join(row) for row in rows]
    encodings = backend.encode_batch(inputs)
    lengths = [len(encoding.ids) for encoding in encodings]
    too_long = [i for i, length in enumerate(lengths) if length > max_length]
    if too_long:
        backend.enable_truncation(max_length, strategy="longest_first")
        shortened = backend.encode_batch([inputs[i] for i in too_long])
        for i, encoding in zip(too_long, shortened, strict=True):
            encodings[i] = encoding
    items = []
    for i, (name, encoding) in enumerate(zip(ids, encodings, strict=True)):
        if not encoding.ids:
            raise DataError(f"{name}: the text {inputs[i]!r} has no tokens. Remove the row.")
        items.append(
            EncodedRow(
                id=name,
                ids=np.array(encoding.ids, dtype=np.int64),
                type_ids=np.array(encoding.type_ids, dtype=np.int64),
                target=None if targets is None else targets[i],
                num_tokens_cut=lengths[i] - len(encoding.ids),
            )
        )
    return items


def plan_padded(
    lengths: Sequence[int], token_budget: int, *, names: Sequence[str]
) -> list[list[int]]:
    """Cut texts into padded batches of like length, longest first.

    Args:
        lengths: Tokens of each text, (N,).
        token_budget: Most tokens of a batch, padding included (tokens).
        names: The texts' names for messages, such as `train.csv:17`.

    Returns:
        For every batch the indices of its texts; every text stands in exactly one batch.

    Raises:
        DataError: If one text alone has more tokens than the budget.
    """
    # Stable, so that texts of one length stay in their order.
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if order and lengths[order[0]] > token_budget:
        raise DataError(
            f"{names[order[0]]} has {lengths[order[0]]} tokens; the token budget is "
            f"{token_budget}. Raise the token budget, or set model.max_length so that long texts "
            "are shortened."
        )
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size = token_budget // lengths[order[start]]
        batches.append(order[start : start + size])
        start += size
    return batches


@dataclass(slots=True)
class LoadedEncoder:
    """An encoder with its tokenizer.

    Attributes:
        model: The transformers model, with or without a classification head.
        tokenizer: A fast tokenizer.
        pooling: How a text's vector is made of its hidden states.
        num_tokens_run: Tokens run through the model so far, padding included.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling = "mean"
    num_tokens_run: int = 0

    @property
    def device(self) -> torch.device:
        """Return where the model lives."""
        return torch.device(self.model.device)

    @property
    def max_length(self) -> int:
        """Return the most tokens of a text that model and tokenizer were made for."""
        limits = [int(self.tokenizer.model_max_length)]
        positions = self.model.config.to_dict().get("max_position_embeddings")
        if positions is not None:
            limits.append(int(positions) - _reserved_positions(self.model))
        return min(limits)

    @property
    def reading(self) -> str:
        """Return what decides, beside weights and length, about a text's vector: for caches."""
        # The mean has no word of its own: it was the only pooling when caches were first filled.
        pooling = "" if self.pooling == "mean" else f" {self.pooling}"
        return f"{self.tokenizer.backend_tokenizer.to_str()}{pooling}"

    def hidden(self, items: Sequence[EncodedRow]) -> tuple[Tensor, Tensor]:
        """Run texts as one padded batch.

        Returns:
            Last hidden states, (B, T, D), and a mask that is True for tokens of the texts, (B, T).
        """
        inputs = self._inputs(items)
        # Not the head's output: the encoder under it, or the model itself where there is no head.
        return self.model.base_model(**inputs).last_hidden_state, inputs["attention_mask"].bool()

    def logits(self, items: Sequence[EncodedRow]) -> Tensor:
        """Run texts as one padded batch through the head: scores in float32, (B, L)."""
        scores: Tensor = self.model(**self._inputs(items)).logits
        return scores.float()

    def _inputs(self, items: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Pad texts on the right to the longest of them, each (B, T)."""

        def padded(rows: list[NDArray[np.int64]], padding: int = 0) -> Tensor:
            tensors = [torch.from_numpy(row) for row in rows]
            return pad_sequence(tensors, batch_first=True, padding_value=padding).to(self.device)

        ids = padded([item.ids for item in items], _pad_id(self.model, self.tokenizer))
        self.num_tokens_run += ids.numel()
        mask = padded([np.ones_like(item.ids) for item in items])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if _takes_type_ids(self.model):
            inputs["token_type_ids"] = padded([item.type_ids for item in items])
        return inputs


@torch.no_grad()
def run_padded(
    encoder: LoadedEncoder,
    items: Sequence[EncodedRow],
    read: Callable[[list[EncodedRow]], Tensor],
    width: int,
    *,
    token_budget: int | None,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Read numbers of every text, without gradients or dropout, (N, width).

    Args:
        encoder: The encoder.
        items: Encoded texts.
        read: Returns the numbers of a batch, (B, width).
        width: How many a text has.
        token_budget: Most tokens of a batch, padding included. None: what fills the device, or the
            longest text.
        advance: Called with the number of texts just finished.

    Raises:
        DataError: If a text has more tokens than the budget.
    """
    result = np.empty((len(items), width), np.float32)
    if not items:
        return result
    lengths, names = [item.num_tokens for item in items], [item.id for item in items]
    usual = BATCH_TOKENS["cuda" if encoder.device.type == "cuda" else "cpu"]
    with evaluation_mode(encoder.model):
        for batch in plan_padded(lengths, token_budget or max(usual, *lengths), names=names):
            result[batch] = read([items[i] for i in batch]).cpu().numpy()
            if advance is not None:
                advance(len(batch))
    return result


def embed_texts(
    encoder: LoadedEncoder,
    texts: Sequence[str],
    *,
    batch_tokens: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Return a vector of length 1 for every text; a product of two is their cosine similarity.

    It is made of the last hidden states as the encoder was trained to (`encoder.pooling`), and
    does not depend on what else is in the batch. Texts above `EMBED_MAX_LENGTH` lose their end.

    Args:
        encoder: Loaded without a head.
        texts: Any number of texts.
        batch_tokens: Most tokens of a batch; see `run_padded`.
        advance: Called with the number of texts just finished.

    Returns:
        In the order of the texts, (N, D).

    Raises:
        DataError: If a text has no tokens, or more than `batch_tokens`.
    """
    names = [f"text {number}" for number in range(1, len(texts) + 1)]
    length = min(EMBED_MAX_LENGTH, encoder.max_length)
    return run_padded(
        encoder,
        encode_texts(encoder.tokenizer, [[t] for t in texts], ids=names, max_length=length),
        lambda batch: pool(*encoder.hidden(batch), encoder.pooling),
        int(encoder.model.config.hidden_size),
        token_budget=batch_tokens,
        advance=advance,
    )


def load_encoder(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_labels: int | None,
    revision: str | None = None,
    head: Literal["new", "saved"] = "new",
    seed: int = 0,
) -> LoadedEncoder:
    """Load an encoder, in evaluation mode.

    Args:
        name: Hub id, local folder or packaged encoder (`minilm`).
        device: Where to put it.
        dtype: Number format of weights and arithmetic.
        num_labels: Width of the classification head; its weights and all others are trainable.
            None: no head, nothing is trainable.
        revision: Branch, tag or commit of a hub model.
        head: new: seeded first weights, even where the checkpoint brings a head; saved: the
            checkpoint's own, to predict with a model that was trained before.
        seed: Seed of a new head.

    Raises:
        ModelError: If it cannot be found or loaded, is no encoder, has no safetensors, lacks
            weights, makes vectors in an unknown way, or lets padding change its results.
    """
    source = EncoderSource(name, locate_encoder(name), revision, dtype)
    pooling: Pooling = "mean"
    try:
        config = AutoConfig.from_pretrained(source.folder, revision=revision)
        refuse_other_kinds(name, config)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, revision=revision)
        if num_labels is None:
            model, _ = load_weights(source, AutoModel, config)
            pooling = read_pooling(source)
        elif head == "saved":
            model = load_saved_head(source, config, num_labels)
        else:
            model = load_new_head(source, config, num_labels, seed=seed)
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise explain_failure(
            name, source.folder, error, kind="encoder", packaged=PACKAGED_ENCODERS
        ) from error
    check_tokenizer(tokenizer, model, name)
    model.requires_grad_(num_labels is not None)
    model.to(device).eval()
    encoder = LoadedEncoder(model, tokenizer, pooling)
    _verify_padding(encoder, has_head=num_labels is not None)
    encoder.num_tokens_run = 0
    return encoder


def _reserved_positions(model: PreTrainedModel) -> int:
    """Return how many positions texts never use: RoBERTa counts on from its padding id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _takes_type_ids(model: PreTrainedModel) -> bool:
    return (
        "token_type_ids" in inspect.signature(model.forward).parameters
        and model.config.to_dict().get("type_vocab_size", 0) > 1
    )


def _pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    # The model's own comes first: RoBERTa derives positions from it.
    for pad_id in (model.config.pad_token_id, tokenizer.pad_token_id):
        if pad_id is not None:
            return int(pad_id)
    return 0


@torch.no_grad()
def _verify_padding(encoder: LoadedEncoder, *, has_head: bool) -> None:
    """Compare a padded batch with plain passes of the same texts.

    Raises:
        ModelError: If the model takes no attention mask, or padding changes what it computes.
    """
    name = type(encoder.model).__name__
    if "attention_mask" not in inspect.signature(encoder.model.forward).parameters:
        raise ModelError(
            f"{name} takes no attention mask, so its results would depend on padding. Use another "
            "encoder."
        )
    vocabulary = encoder.model.get_input_embeddings().weight.shape[0]
    generator = np.random.default_rng(0)
    items = []
    for length in (12, 5):
        ids = generator.integers(0, vocabulary, length)
        ids[ids == _pad_id(encoder.model, encoder.tokenizer)] = vocabulary - 1
        items.append(EncodedRow("check", ids, np.zeros_like(ids), None, 0))

    def read(batch: Sequence[EncodedRow]) -> Tensor:
        states, mask = encoder.hidden(batch)
        scores = encoder.logits(batch) if has_head else states.new_empty(len(batch), 0)
        rows = zip(states.float(), mask, scores.float(), strict=True)
        return torch.cat([torch.cat((s[m].flatten(), score)) for s, m, score in rows])

    together, alone = read(items), torch.cat([read([item]) for item in items])
    error = float((together - alone).abs().max() / (alone.abs().max() + 1e-6))
    tolerance = 1e-3 if encoder.model.dtype == torch.float32 else 0.1
    if not error < tolerance:
        raise ModelError(
            f"{name} lets padding change its results: a text alone and in a batch differ by "
            f"{error:.2g} of the largest value (allowed: {tolerance}). Use another encoder."
        )
