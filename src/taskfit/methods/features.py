"""Frozen features, kept on disk: a model's last hidden state, or a sentence encoder's embedding.

Legend: N examples, D hidden width.
"""

import hashlib
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from taskfit.data import Example
from taskfit.data.fetch import cache_folder, writing_to_cache
from taskfit.methods.method import Advance, MethodContext, Reading
from taskfit.methods.reading import PrefixCache, read_prompts
from taskfit.methods.tree_method import prompt_encoder, prompts_of
from taskfit.models.causal_model import CausalModel
from taskfit.models.encoder import EMBED_MAX_LENGTH, embed_texts, load_encoder, note_long
from taskfit.models.fingerprint import fingerprint
from taskfit.models.load import resolve_device
from taskfit.models.prefix import Prefix
from taskfit.models.quantize import count_parameters
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tasks.control_tokens import ControlTokens
from taskfit.tree import IntArray, TokenTree

Features = NDArray[np.float32]
T = TypeVar("T")
MODEL = "model"


def feature_encoder(context: MethodContext) -> PromptEncoder | BareEncoder:
    """Return the encoder that `method.prompt` asks for."""
    prompted = prompt_encoder(context, context.task, context.demonstrations)
    if not context.settings.method.reads_bare_text:
        return prompted
    model = context.need_model()
    return BareEncoder(model.tokenizer, context.task, max_length=prompted.max_length)


def prompt_alone(item: EncodedExample, skip: int = 0) -> list[IntArray]:
    """Return what must run to read the last token of a prompt, without its first `skip` tokens."""
    return [item.prompt_ids[skip:]]


def last_hidden(
    model: CausalModel, items: Sequence[EncodedExample], *, prefix: Prefix | None = None
) -> Tensor:
    """Return the last hidden state at the last prompt token of each item, run as one tree, (N, D).

    Args:
        model: The model.
        items: Encoded examples.
        prefix: Keys and values of the tokens that all prompts start with.
    """
    skip = prefix.length if prefix else 0
    tree = TokenTree.build([item.prompt_ids[skip:] for item in items])
    return model.hidden(tree, np.array([path[-1] for path in tree.paths]), prefix=prefix)


class CachedFeatures(ABC):
    """Reads features of texts, each text of a model once, whatever the run."""

    def __init__(self, name: str, model: PreTrainedModel, width: int) -> None:
        """Keep features of `width` numbers, which `model` computes, under its fingerprint."""
        self._cache = FeatureCache(cache_folder() / "features", name)
        self._width = width
        self._cached: dict[bytes, float] = {}
        self._keeps = True
        self.num_parameters = count_parameters(model)

    @abstractmethod
    def features(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Features:
        """Return the features of texts in float32, (N, D)."""

    @abstractmethod
    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return texts as they are read; see `Method.readings`."""

    def keep_no_more(self) -> None:
        """Leave the cache as it is: texts that a fitted run predicts are nobody's to keep."""
        self._keeps = False

    @property
    def cached_seconds(self) -> float:
        """Return the seconds that reading took once for what came from the cache since."""
        return sum(self._cached.values())

    def _read(
        self,
        texts: Sequence[T],
        content: Callable[[T], bytes],
        compute: Callable[[list[T]], Features],
        advance: Advance | None,
    ) -> Features:
        """Return the features of texts, (N, D).

        Args:
            texts: In any form.
            content: Returns what decides a text's features.
            compute: Returns the features of some texts, and advances for each.
            advance: Called with the number of texts that came from the cache.
        """
        keys = [hashlib.sha256(content(text)).digest() for text in texts]
        result = np.empty((len(keys), self._width), np.float32)
        missing = []
        for place, stored in enumerate(self._cache.load(keys)):
            if stored is None:
                missing.append(place)
            else:
                result[place] = stored[0]
                self._cached.setdefault(keys[place], stored[1])
        if advance is not None:
            advance(len(keys) - len(missing))
        if missing and self._keeps:
            self._cache.make()  # what cannot be written is told before the work
        if missing:
            started = time.perf_counter()
            result[missing] = compute([texts[i] for i in missing])
            seconds = (time.perf_counter() - started) / len(missing)
            if self._keeps:
                self._cache.save([keys[i] for i in missing], result[missing], seconds=seconds)
                # This run has paid for them.
                self._cached |= {keys[i]: 0.0 for i in missing}
        return result


class FeatureReader(CachedFeatures):
    """Reads a causal model's features: its last hidden state."""

    def __init__(self, context: MethodContext) -> None:
        """Bind to the context's model and encoder."""
        tree = context.need_model().tree
        self._encoder = feature_encoder(context)
        self._budget = context.settings.training.score_token_budget
        self._prefixes = PrefixCache(tree, self._encoder)
        width = int(tree.model.get_output_embeddings().weight.shape[1])
        super().__init__(fingerprint(tree.model), tree.model, width)

    def features(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Features:
        """Return the last hidden states of prompts, of the model as it was before training."""
        tree = self._prefixes.model

        def compute(items: list[EncodedExample]) -> Features:
            # Whatever has been trained in it since.
            with tree.lean.untuned():
                return read_prompts(
                    self._prefixes,
                    items,
                    np.empty((len(items), self._width), np.float32),
                    sequences=prompt_alone,
                    read=lambda found, prefix: last_hidden(tree, found, prefix=prefix),
                    token_budget=self._budget,
                    advance=advance,
                )

        items = self._encoder.encode(examples)
        # Instruction, demonstrations and the cut of long texts are all in the tokens themselves.
        return self._read(items, lambda item: item.prompt_ids.tobytes(), compute, advance)

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return the prompts."""
        return [prompts_of(self._encoder, examples)]


class EncoderFeatures(CachedFeatures):
    """Embeds texts with a sentence encoder; columns of text are joined by line breaks."""

    def __init__(self, context: MethodContext, name: str) -> None:
        """Load an encoder.

        Args:
            context: Task and device.
            name: Packaged encoder, hub id or folder.

        Raises:
            ModelError: If it cannot be had.
        """
        device = resolve_device(context.settings.model.device)
        self._encoder = load_encoder(name, device=device, dtype=torch.float32, num_labels=None)
        self._columns = context.task.text
        self._allows = context.task.allow_control_tokens
        self._control = ControlTokens(self._encoder.tokenizer.backend_tokenizer)
        model = self._encoder.model
        # Rows of this cache have the text as key, not token ids.
        beside = f" {self._encoder.max_length} {self._encoder.reading}"
        super().__init__(fingerprint(model, beside=beside), model, int(model.config.hidden_size))

    def features(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Features:
        """Return embeddings of length 1."""
        texts = self._joined(examples)
        note_long(self._encoder, texts, [example.id for example in examples])
        return self._read(
            texts,
            self._content,
            lambda texts: embed_texts(
                self._encoder, texts, allow_control_tokens=self._allows, advance=advance
            ),
            advance,
        )

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return the texts that may be too long, as the encoder reads them."""
        names = [example.id for example in examples]
        long = note_long(self._encoder, self._joined(examples), names)
        return [Reading(long, min(EMBED_MAX_LENGTH, self._encoder.max_length))]

    def _joined(self, examples: Sequence[Example]) -> list[str]:
        return ["\n".join(e.texts[name] for name in self._columns) for e in examples]

    def _content(self, text: str) -> bytes:
        """Return a text as a key: shielded, for the two ways of reading control tokens differ."""
        return (text if self._allows else self._control.shield(text)).encode()


def feature_reader(context: MethodContext, name: str) -> CachedFeatures:
    """Return what reads the features of `model`, or of an encoder by its name.

    Raises:
        ModelError: If there is no such encoder.
    """
    return FeatureReader(context) if name == MODEL else EncoderFeatures(context, name)


class FeatureCache:
    """Features on disk, one SQLite file a model, one row a prompt or text.

    With each are the seconds that it took: what a run reads here is a cost of its method all the
    same, though another run has paid it.
    """

    def __init__(self, folder: Path, model: str) -> None:
        """Name the file of a model in a folder, under the model's fingerprint."""
        self.path = folder / f"{model}.sqlite"

    def make(self) -> None:
        """Make the file, unless it is there: a run that only predicts needs no place to write.

        Raises:
            WriteError: If it cannot be written.
        """
        with writing_to_cache(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._open()) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS timed_features "
                    "(prompt BLOB PRIMARY KEY, row BLOB NOT NULL, seconds REAL NOT NULL)"
                )

    def load(self, keys: Sequence[bytes]) -> list[tuple[Features, float] | None]:
        """Return the stored features of prompts with their seconds, None where there are none."""
        if not os.path.isfile(self.path):
            return [None] * len(keys)
        query = "SELECT row, seconds FROM timed_features WHERE prompt = ?"
        with writing_to_cache(self.path), closing(self._open()) as database:
            made = "SELECT 1 FROM sqlite_master WHERE name = 'timed_features'"
            if database.execute(made).fetchone() is None:
                return [None] * len(keys)
            rows = [database.execute(query, (key,)).fetchone() for key in keys]
        return [
            None if row is None else (np.frombuffer(row[0], np.float32), float(row[1]))
            for row in rows
        ]

    def save(self, keys: Sequence[bytes], features: Features, *, seconds: float = 0) -> None:
        """Store features, all of them or none; `seconds` is what each took.

        Raises:
            WriteError: If the file cannot be written.
        """
        self.make()
        with writing_to_cache(self.path), closing(self._open()) as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO timed_features VALUES (?, ?, ?)",
                [(key, row.tobytes(), seconds) for key, row in zip(keys, features, strict=True)],
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)
