"""Encoders (BERT and its kin): load them, run them on padded batches, embed texts.

An encoder sees what comes after a token, so its texts share no computation and the token tree has
nothing to offer. They run as padded rectangles of texts of like length. At loading, a padded batch
is compared with plain passes: a model that lets padding leak into its texts is refused.

Legend: N texts, B texts of a batch, T tokens of its longest, D hidden width, L labels.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from taskfit.errors import ModelError, TaskfitError
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
from taskfit.models.packaged import PACKAGED_ENCODERS, explain_failure, readable
from taskfit.models.padded import EncodedRow, encode_texts, plan_padded
from taskfit.models.whole import require_finite
from taskfit.tasks.shortening import is_asked

# The published limit of all-MiniLM-L6-v2; sentence encoders are trained on less than they can take.
EMBED_MAX_LENGTH = 256
# Padded tokens in one forward pass: enough to fill the device.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


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
    def pad_id(self) -> int:
        """Return the token that texts are padded with."""
        # The model's own comes first: RoBERTa derives positions from it.
        found = (self.model.config.pad_token_id, self.tokenizer.pad_token_id, 0)
        return next(int(pad_id) for pad_id in found if pad_id is not None)

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

        ids = padded([item.ids for item in items], self.pad_id)
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
        NotFiniteError: If numbers are not finite.
    """
    result = np.empty((len(items), width), np.float32)
    if not items:
        return result
    lengths, names = [item.num_tokens for item in items], [item.id for item in items]
    usual = BATCH_TOKENS["cuda" if encoder.device.type == "cuda" else "cpu"]
    with evaluation_mode(encoder.model):
        for batch in plan_padded(lengths, token_budget or max(usual, *lengths), names=names):
            numbers = read([items[i] for i in batch])
            require_finite(numbers, [names[i] for i in batch])
            result[batch] = numbers.cpu().numpy()
            if advance is not None:
                advance(len(batch))
    return result


def embed_texts(
    encoder: LoadedEncoder,
    texts: Sequence[str],
    *,
    batch_tokens: int | None = None,
    allow_control_tokens: bool = False,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Return a vector of length 1 for every text; a product of two is their cosine similarity.

    It is made of the last hidden states as the encoder was trained to (`encoder.pooling`), and
    does not depend on what else is in the batch. Texts above `EMBED_MAX_LENGTH` lose their end.

    Args:
        encoder: Loaded without a head.
        texts: Any number of texts.
        batch_tokens: Most tokens of a batch; see `run_padded`.
        allow_control_tokens: Whether control tokens that stand in texts are read as such.
        advance: Called with the number of texts just finished.

    Returns:
        In the order of the texts, (N, D).

    Raises:
        DataError: If a text has no tokens, or more than `batch_tokens`.
    """
    names = [f"text {number}" for number in range(1, len(texts) + 1)]
    length = min(EMBED_MAX_LENGTH, encoder.max_length)
    rows = encode_texts(
        encoder.tokenizer,
        [[text] for text in texts],
        ids=names,
        max_length=length,
        allow_control_tokens=allow_control_tokens,
    )
    return run_padded(
        encoder,
        rows,
        lambda batch: pool(*encoder.hidden(batch), encoder.pooling),
        int(encoder.model.config.hidden_size),
        token_budget=batch_tokens,
        advance=advance,
    )


def note_long(encoder: LoadedEncoder, texts: Sequence[str], ids: Sequence[str]) -> list[EncodedRow]:
    """Note the texts whose end `embed_texts` leaves out, also where their vectors are kept already.

    Returns those that may be too long, as tokens; none where nobody listens.

    Args:
        encoder: Loaded without a head.
        texts: Any number of texts.
        ids: Of their rows.
    """
    if not is_asked():
        return []
    length = min(EMBED_MAX_LENGTH, encoder.max_length)
    # A token is a byte at least, so that most texts need not be tokenized for this.
    room = length - encoder.tokenizer.num_special_tokens_to_add()
    long = [i for i, text in enumerate(texts) if len(text.encode()) > room]
    if not long:
        return []
    return encode_texts(
        encoder.tokenizer,
        [[texts[i]] for i in long],
        ids=[ids[i] for i in long],
        max_length=length,
    )


def load_encoder(
    name: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    num_labels: int | None,
    seed: int | None = 0,
) -> LoadedEncoder:
    """Load an encoder, in evaluation mode.

    Args:
        name: Hub id, local folder or packaged encoder (`minilm`).
        device: Where to put it.
        dtype: Number format of weights and arithmetic.
        num_labels: Width of the classification head; its weights and all others are trainable.
            None: no head, nothing is trainable.
        seed: Seed of a new head's first weights, even where the checkpoint brings a head. None: the
            checkpoint's own, to predict with a model that was trained before.

    Raises:
        ModelError: If it cannot be found or loaded, is no encoder, lacks weights, makes
            vectors in an unknown way, or lets padding change its results.
    """
    source = EncoderSource(name, locate_encoder(name), dtype)
    pooling: Pooling = "mean"
    try:
        source = replace(source, folder=readable(source.folder)[0])
        config = AutoConfig.from_pretrained(source.folder)
        refuse_other_kinds(name, config)
        tokenizer = AutoTokenizer.from_pretrained(source.folder)
        if num_labels is None:
            model, _ = load_weights(source, AutoModel, config)
            pooling = read_pooling(source)
        elif seed is None:
            model = load_saved_head(source, config, num_labels)
        else:
            model = load_new_head(source, config, num_labels, seed=seed)
    except TaskfitError:
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
        ids[ids == encoder.pad_id] = vocabulary - 1
        items.append(EncodedRow("check", ids, np.zeros_like(ids), None, 0))

    def read(batch: Sequence[EncodedRow]) -> Tensor:
        states, mask = encoder.hidden(batch)
        scores = encoder.logits(batch) if has_head else states.new_empty(len(batch), 0)
        rows = zip(states.float(), mask, scores.float(), strict=True)
        return torch.cat([torch.cat((s[m].flatten(), score)) for s, m, score in rows])

    together, alone = read(items), torch.cat([read([item]) for item in items])
    require_finite(alone[None], ["a few tokens"], what="numbers")
    error = float((together - alone).abs().max() / (alone.abs().max() + 1e-6))
    tolerance = 1e-3 if encoder.model.dtype == torch.float32 else 0.1
    if not error < tolerance:
        raise ModelError(
            f"{name} lets padding change its results: a text alone and in a batch differ by "
            f"{error:.2g} of the largest value (allowed: {tolerance}). Use another encoder."
        )
