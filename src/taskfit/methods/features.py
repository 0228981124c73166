"""Frozen features, kept on disk: a model's last hidden state, or a sentence encoder's embedding.

Legend: N examples, D hidden width.
"""

import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from taskfit.data import Example
from taskfit.data.fetch import cache_folder
from taskfit.methods.method import Advance, MethodContext
from taskfit.methods.reading import PrefixCache, run_in_trees
from taskfit.methods.tree_method import prompt_encoder
from taskfit.models.adapters import adapters_off
from taskfit.models.attention import KeyValueCache
from taskfit.models.encoder import embed_texts, load_encoder
from taskfit.models.fingerprint import fingerprint
from taskfit.models.load import resolve_device
from taskfit.models.quantize import count_parameters
from taskfit.models.tree_model import TreeModel
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tree import TokenTree
from taskfit.tree.build import IntArray

Features = NDArray[np.float32]


def feature_encoder(context: MethodContext) -> PromptEncoder | BareEncoder:
    """Return the encoder that `method.prompt` asks for."""
    prompted = prompt_encoder(context, context.task, context.demonstrations)
    if not context.settings.method.reads_bare_text:
        return prompted
    model = context.need_model()
    return BareEncoder(model.tokenizer, context.task, max_length=prompted.max_length)


def prompts_of(items: Sequence[EncodedExample], *, skip: int = 0) -> list[IntArray]:
    """Return what must run to read the last token of each prompt."""
    return [item.prompt_ids[skip:] for item in items]


def last_hidden(
    model: TreeModel, items: Sequence[EncodedExample], *, prefix: KeyValueCache | None = None
) -> Tensor:
    """Return the last hidden state at the last prompt token of each item, run as one tree, (N, D).

    Args:
        model: The model.
        items: Encoded examples.
        prefix: Keys and values of the tokens that all prompts start with.
    """
    tree = TokenTree.build(prompts_of(items, skip=prefix.length if prefix else 0))
    nodes, rows = np.unique([path[-1] for path in tree.paths], return_inverse=True)
    hidden = model.hidden(tree, nodes, prefix=prefix)
    return hidden[torch.from_numpy(rows).to(hidden.device)]


class CachedFeatures:
    """What readers of features share: each text of a model is read once, whatever the run."""

    def __init__(self, cache: "FeatureCache", model: PreTrainedModel, width: int) -> None:
        """Keep features of `width` numbers, which `model` computes, in `cache`."""
        self._cache = cache
        self._width = width
        self._cached: dict[bytes, float] = {}
        self._keeps = True
        self.num_parameters = count_parameters(model)

    def keep_no_more(self) -> None:
        """Leave the cache as it is: texts that a fitted run predicts are nobody's to keep."""
        self._keeps = False

    @property
    def cached_seconds(self) -> float:
        """Return the seconds that reading took once for what came from the cache since."""
        return sum(self._cached.values())

    def _read(
        self,
        keys: Sequence[bytes],
        compute: Callable[[list[int]], Features],
        advance: Advance | None,
    ) -> Features:
        """Return the features of texts, (N, D).

        Args:
            keys: What decides each text's features, (N,).
            compute: Returns those of the texts at some places, and advances for each.
            advance: Called with the number of texts that came from the cache.
        """
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
        if missing:
            started = time.perf_counter()
            result[missing] = compute(missing)
            seconds = (time.perf_counter() - started) / len(missing)
            if self._keeps:
                self._cache.save([keys[i] for i in missing], result[missing], seconds=seconds)
                # This run has paid for them.
                self._cached |= {keys[i]: 0.0 for i in missing}
        return result


class FeatureReader(CachedFeatures):
    """Reads a causal model's features of texts."""

    def __init__(self, context: MethodContext, *, cache: Path | None = None) -> None:
        """Bind to the context's model and encoder.

        Args:
            context: Model, task and demonstrations.
            cache: Folder of the cache; None: the user's cache folder.
        """
        self._model = context.need_model()
        self._encoder = feature_encoder(context)
        self._budget = context.settings.training.score_token_budget
        self._prefixes = PrefixCache(self._model.tree, self._encoder)
        model = self._model.tree.model
        width = int(model.get_output_embeddings().weight.shape[1])
        super().__init__(FeatureCache(cache, fingerprint(model)), model, width)

    def features(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Features:
        """Return the features of texts in float32, (N, D)."""
        items = self._encoder.encode(examples)
        return self._read(
            [_key(item.prompt_ids.tobytes()) for item in items],
            lambda missing: self._compute([items[i] for i in missing], advance),
            advance,
        )

    def _compute(self, items: Sequence[EncodedExample], advance: Advance | None) -> Features:
        """Run the model as it was before training, whatever has been trained in it since."""
        with adapters_off(self._model.tree.model):
            return self._run(items, advance)

    def _run(self, items: Sequence[EncodedExample], advance: Advance | None) -> Features:
        prefix = self._prefixes.shared_by(items)
        result = np.empty((len(items), self._width), np.float32)

        def read(chosen: list[int]) -> None:
            hidden = last_hidden(self._model.tree, [items[i] for i in chosen], prefix=prefix)
            result[chosen] = hidden.float().cpu().numpy()
            if advance is not None:
                advance(len(chosen))

        run_in_trees(
            self._model.tree,
            [[ids] for ids in prompts_of(items, skip=prefix.length if prefix else 0)],
            read,
            token_budget=self._budget,
            names=[item.id for item in items],
        )
        return result


class EncoderFeatures(CachedFeatures):
    """Embeds texts with a sentence encoder; columns of text are joined by line breaks."""

    def __init__(self, context: MethodContext, name: str, *, cache: Path | None = None) -> None:
        """Load an encoder.

        Args:
            context: Task and device.
            name: Packaged encoder, hub id or folder.
            cache: Folder of the cache; None: the user's cache folder.

        Raises:
            ModelError: If it cannot be had.
        """
        device = resolve_device(context.settings.model.device)
        self._encoder = load_encoder(name, device=device, dtype=torch.float32, num_labels=None)
        self._columns = context.task.text
        model = self._encoder.model
        # Rows of this cache have the text as key, not token ids.
        beside = f" {self._encoder.max_length} {self._encoder.reading}"
        found = FeatureCache(cache, fingerprint(model, beside=beside))
        super().__init__(found, model, int(model.config.hidden_size))

    def features(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Features:
        """Return embeddings of length 1 in float32, (N, D)."""
        texts = ["\n".join(e.texts[name] for name in self._columns) for e in examples]
        return self._read(
            [_key(text.encode()) for text in texts],
            lambda missing: embed_texts(
                self._encoder, [texts[i] for i in missing], advance=advance
            ),
            advance,
        )


class FeatureCache:
    """Features on disk, one SQLite file a model, one row a prompt or text.

    With each are the seconds that it took: what a run reads here is a cost of its method all the
    same, though another run has paid it.
    """

    def __init__(self, folder: Path | None, model: str) -> None:
        """Open the file of a model.

        Args:
            folder: Where it lies; None: in the user's cache folder.
            model: The model's fingerprint.
        """
        self.path = (folder or cache_folder() / "features") / f"{model}.sqlite"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._open()) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS timed_features "
                "(prompt BLOB PRIMARY KEY, row BLOB NOT NULL, seconds REAL NOT NULL)"
            )

    def load(self, keys: Sequence[bytes]) -> list[tuple[Features, float] | None]:
        """Return the stored features of prompts with their seconds, None where there are none."""
        query = "SELECT row, seconds FROM timed_features WHERE prompt = ?"
        with closing(self._open()) as database:
            rows = [database.execute(query, (key,)).fetchone() for key in keys]
        return [
            None if row is None else (np.frombuffer(row[0], np.float32), float(row[1]))
            for row in rows
        ]

    def save(self, keys: Sequence[bytes], features: Features, *, seconds: float) -> None:
        """Store features, all of them or none; `seconds` is what each took."""
        with closing(self._open()) as database, database:
            database.executemany(
                "INSERT OR REPLACE INTO timed_features VALUES (?, ?, ?)",
                [(key, row.tobytes(), seconds) for key, row in zip(keys, features, strict=True)],
            )

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=60)


def _key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
