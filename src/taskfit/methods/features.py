"""Frozen features: the last hidden state at a text's last token, kept on disk.

Legend: N examples, D hidden width.
"""

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskfit.data import Example
from taskfit.data.fetch import cache_folder
from taskfit.methods.method import Advance, MethodContext
from taskfit.methods.reading import PrefixCache, run_in_trees
from taskfit.methods.tree_method import prompt_encoder
from taskfit.models import KeyValueCache, LoadedModel, TreeModel
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tree import TokenTree
from taskfit.tree.build import IntArray

Features = NDArray[np.float32]
# Numbers of each weight that the fingerprint of a model looks at.
SAMPLED = 64


def feature_encoder(context: MethodContext) -> PromptEncoder | BareEncoder:
    """Return the encoder that `method.prompt` asks for."""
    prompted = prompt_encoder(context, context.task, context.demonstrations)
    if context.settings.method.prompt:
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


class FeatureReader:
    """Reads features of texts, each text of a model only once."""

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
        self._cache = FeatureCache((cache or cache_folder() / "features"), self._model)
        self._spared: dict[bytes, float] = {}
        self._keeps = True

    def keep_no_more(self) -> None:
        """Leave the cache as it is: texts that a fitted run predicts are nobody's to keep."""
        self._keeps = False

    @property
    def spared_seconds(self) -> float:
        """Return the seconds that reading took once for what came from the cache since."""
        return sum(self._spared.values())

    def features(self, examples: Sequence[Example], *, advance: Advance | None = None) -> Features:
        """Return the features of texts in float32, (N, D)."""
        items = self._encoder.encode(examples)
        keys = [_key(item) for item in items]
        found: list[Features | None] = []
        for key, stored in zip(keys, self._cache.load(keys), strict=True):
            found.append(None if stored is None else stored[0])
            if stored is not None:
                self._spared.setdefault(key, stored[1])
        missing = [i for i, row in enumerate(found) if row is None]
        if advance is not None:
            advance(len(items) - len(missing))
        if missing:
            started = time.perf_counter()
            computed = self._compute([items[i] for i in missing], advance)
            seconds = (time.perf_counter() - started) / len(missing)
            for place, row in zip(missing, computed, strict=True):
                found[place] = row
            if self._keeps:
                self._cache.save([keys[i] for i in missing], computed, seconds=seconds)
                # This run has paid for them.
                self._spared |= {keys[i]: 0.0 for i in missing}
        return np.stack([row for row in found if row is not None])

    def _compute(self, items: Sequence[EncodedExample], advance: Advance | None) -> Features:
        prefix = self._prefixes.shared_by(items)
        width = self._model.tree.model.get_output_embeddings().weight.shape[1]
        result = np.empty((len(items), width), np.float32)

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


class FeatureCache:
    """Features on disk, one SQLite file a model, one row a prompt.

    With each are the seconds that it took: what a run reads here is a cost of its method all the
    same, though another run has paid it.
    """

    def __init__(self, folder: Path, model: LoadedModel) -> None:
        """Open the file of a model: its weights decide, not its name."""
        self.path = folder / f"{_fingerprint(model.tree)}.sqlite"
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


def _key(item: EncodedExample) -> bytes:
    return hashlib.sha256(item.prompt_ids.tobytes()).digest()


def _fingerprint(model: TreeModel) -> str:
    digest = hashlib.sha256(str(model.model.dtype).encode())
    for name, parameter in model.model.named_parameters():
        step = max(1, parameter.numel() // SAMPLED)
        sample = parameter.detach().reshape(-1)[::step][:SAMPLED].float().cpu().numpy()
        digest.update(name.encode() + str(tuple(parameter.shape)).encode() + sample.tobytes())
    return digest.hexdigest()[:24]
