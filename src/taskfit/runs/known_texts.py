"""Which texts a run has learned from, kept as hashes, so that measuring on them again is told.

Two texts are the same if they agree but for case and white space, as in `drop_overlap`.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.overlap import text_key
from taskfit.files import file_atomic
from taskfit.runs.asked import AskedQuestion
from taskfit.runs.file_names import TEXTS_FILE
from taskfit.runs.predictions import prediction_table

Hashes = NDArray[np.uint64]


def save_texts(folder: Path, *, train: Sequence[Example], validation: Sequence[Example]) -> None:
    """Write the hashes of what was trained on, and of what chose or calibrated the model."""
    with file_atomic(folder / TEXTS_FILE) as path:
        np.savez(path, train=_hashes(train), validation=_hashes(validation))


def seen_note(folder: Path, examples: Sequence[Example], *, name: str) -> str | None:
    """Say how many of these texts the run has learned from; None where it is none.

    Runs of earlier versions have not kept which texts they were.

    Args:
        folder: The run's folder.
        examples: What is measured.
        name: Of the set.
    """
    if not (folder / TEXTS_FILE).is_file():
        return None
    with np.load(folder / TEXTS_FILE) as kept:
        found = _hashes(examples)
        trained = np.isin(found, kept["train"])
        chosen = np.isin(found, kept["validation"]) & ~trained
    parts = [f"{trained.sum():,} of {len(found):,} texts of {name} were trained on"]
    parts += [f"{chosen.sum():,} chose or calibrated the model"] if chosen.any() else []
    if not (trained.any() or chosen.any()):
        return None
    return f"{', '.join(parts)}: what is measured on them says little about new texts"


def free_name(
    folder: Path,
    name: str,
    examples: Sequence[Example],
    questions: dict[str, AskedQuestion],
) -> str:
    """Return a name under which no other set of texts was evaluated: the one given, if it may be.

    Args:
        folder: The run's folder.
        name: As asked for.
        examples: Of the set.
        questions: What is asked about them.
    """
    unknown = np.full((len(examples), sum(len(q.task.labels) for q in questions.values())), np.nan)
    own = prediction_table(examples, unknown, questions)
    number, found = 1, name
    while (path := folder / "predictions" / f"{found}.parquet").is_file():
        if _is_same(pd.read_parquet(path), own, questions):
            break
        number += 1
        found = f"{name}-{number}"
    return found


def _is_same(kept: pd.DataFrame, own: pd.DataFrame, questions: dict[str, AskedQuestion]) -> bool:
    """Whether two tables of predictions are about the same texts with the same labels."""
    golds = [f"gold{question.ending}" for question in questions.values()]
    asked = next(iter(questions.values())).task.text
    compared = [c for c in own.columns if c in asked or c in golds or c.startswith("text_")]
    if len(kept) != len(own) or not set(compared) <= set(kept.columns):
        return False
    return all(kept[column].tolist() == own[column].tolist() for column in compared)


def _hashes(examples: Sequence[Example]) -> Hashes:
    digests = (
        hashlib.blake2b("\x1f".join(text_key(example)).encode(), digest_size=8).digest()
        for example in examples
    )
    return np.frombuffer(b"".join(digests), np.uint64)
