"""Pools and tests of `next.py`, with the features of their texts, read once and kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defaults_data import READERS, Row
from taskfit.data import Example
from taskfit.data.overlap import text_key
from taskfit.files import file_atomic
from taskfit.methods.features import feature_reader
from taskfit.methods.method import MethodContext
from taskfit.models.load import load_model
from taskfit.settings import RunSettings
from taskfit.tasks import task_from_columns

MAX_POOL, MAX_TEST = 5_000, 1_500
# The same pool and test for every seed; what differs is what is labelled.
DRAW = 20180101


@dataclass(frozen=True, slots=True)
class Simulated:
    """A data set whose labels are known, and handed out when they are asked for.

    Attributes:
        labels: Names, in alphabetical order.
        pool: Features of its texts, (N, D), those of the probe.
        pool_labels: Place of each one's label in `labels`, (N,).
        vectors: Sentence embeddings of the pool's texts, of length 1, (N, M).
        test: Features of the test texts, (T, D).
        test_labels: (T,).
    """

    labels: list[str]
    pool: NDArray[np.float32]
    pool_labels: NDArray[np.int64]
    vectors: NDArray[np.float32]
    test: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def load_simulated(name: str, data: Path, work: Path, *, features: str) -> Simulated:
    """Return a data set with its features, from `work` if they are there.

    Args:
        name: In `READERS`.
        data: The folder that TASKFIT_DATA names.
        work: Where features are kept.
        features: As `method.features`: minilm, or both (with those of the packaged model).
    """
    columns, pool, test = READERS[name](data)
    known = {tuple(row[c] for c in columns) for row in test}
    pool = _distinct([row for row in pool if tuple(row[c] for c in columns) not in known], columns)
    generator = np.random.default_rng(DRAW)
    pool = [pool[i] for i in generator.permutation(len(pool))[:MAX_POOL]]
    test = [test[i] for i in generator.permutation(len(test))[:MAX_TEST]]
    labels = sorted({row["label"] for row in pool})
    place = {label: i for i, label in enumerate(labels)}
    path = work / f"{name}-{features}.npz"
    if not path.is_file():
        arrays = _read(columns, labels, pool, test, features)
        with file_atomic(path) as scratch, scratch.open("wb") as file:
            np.savez(file, **arrays)
    found = np.load(path)
    return Simulated(
        labels,
        found["pool"],
        np.array([place[row["label"]] for row in pool]),
        found["vectors"],
        found["test"],
        np.array([place[row["label"]] for row in test]),
    )


def _distinct(rows: list[Row], columns: list[str]) -> list[Row]:
    """Return rows whose texts differ; of equal ones the first, as `taskfit next` does."""
    kept = {text_key(Example("", {c: row[c] for c in columns})): row for row in rows[::-1]}
    return list(kept.values())[::-1]


def _read(
    columns: list[str], labels: list[str], pool: list[Row], test: list[Row], features: str
) -> dict[str, NDArray[np.float32]]:
    settings = RunSettings.model_validate({"method": {"name": "probe", "features": features}})
    task = task_from_columns(
        name="simulated", text=tuple(columns), label_column="label", labels=labels
    )
    loaded = (
        load_model(settings.model, quantization=settings.adapter) if features == "both" else None
    )
    context = MethodContext(settings, task, [], loaded)
    encoder = feature_reader(context, "minilm")
    found = {}
    for part, rows in (("pool", pool), ("test", test)):
        examples = [
            Example(f"{part}:{i}", {c: row[c] for c in columns}) for i, row in enumerate(rows)
        ]
        own = [encoder.features(examples)]
        if part == "pool":
            found["vectors"] = own[0]
        if features == "both":
            own.insert(0, feature_reader(context, "model").features(examples))
        found[part] = np.hstack(own)
    return found
