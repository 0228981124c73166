"""Sets that are measured after a run: which of their texts it knows, and what they are called."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from taskfit.data import Example
from taskfit.runs.asked import AskedQuestion
from taskfit.runs.predictions import prediction_table
from taskfit.runs.seen import LEARNED, read_seen


def seen_note(
    folder: Path, examples: Sequence[Example], *, name: str, learns: bool = True
) -> str | None:
    """Say how many of these texts the run has learned from; None where it is none.

    Runs of earlier versions have not kept which texts they were.

    Args:
        folder: The run's folder.
        examples: What is measured.
        name: Of the set.
        learns: Whether the method learns from more than the demonstrations in its prompt.
    """
    seen = read_seen(folder)
    if seen is None or not examples:
        return None
    sides = [seen.side(example) for example in examples]
    trained = sum(side in (LEARNED if learns else ("demonstrations",)) for side in sides)
    chosen = sum(side == "validation" for side in sides)
    if not (trained or chosen):
        return None
    parts = [f"{trained:,} of {len(sides):,} texts of {name} were trained on"]
    parts += [f"{chosen:,} chose or calibrated the model"] if chosen else []
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
