"""The rows of a pool: which of them may be labelled, and why the others may not."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.runs.earlier import rows_of_tables
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.seen import Seen, read_seen, text_hash
from taskfit.runs.table_texts import Texts
from taskfit.settings_file import load_run_settings
from taskfit.tasks.questions import Asked

WINDOW = 5_000
# Why a row is left out.
NO_TEXT, UNREADABLE = "without a text", "that cannot be read or scored"
HAS_LABEL, REPEATED = "that have a label already", "that repeat another row"


@dataclass(slots=True)
class Candidates:
    """The rows of a pool that may be labelled, and what is known of the others.

    Attributes:
        rows: Places of the candidates in the table, from 0, ascending, (N,).
        texts: Their texts, several columns joined by line breaks, N of them.
        left_out: Why rows are no candidates -> how many.
        labelled: Texts that have a label: of the pool, then of the run's tables.
        num_rows: Rows of the table.
    """

    rows: NDArray[np.int64]
    texts: list[str]
    left_out: Counter[str] = field(default_factory=Counter)
    labelled: list[str] = field(default_factory=list)
    num_rows: int = 0


def find_candidates(
    texts: Texts,
    *,
    label_columns: Sequence[str],
    seen: Seen,
    unscored: NDArray[np.bool_] | None = None,
    elsewhere: Set[int] = frozenset(),
) -> Candidates:
    """Return the rows of a pool that may be labelled.

    Args:
        texts: The table.
        label_columns: Where labels stand; a row with one of them needs none.
        seen: The texts of the run, whatever side they are on.
        unscored: Whether the run gave a row no answer, one a row; None: there is no run.
        elsewhere: Hashes of texts that are labelled elsewhere.
    """
    found = Candidates(np.empty(0, np.int64), [])
    free = list[tuple[int, str, int]]()
    known, labelled = set[int](), set[int]()
    for row, (example, is_readable) in enumerate(_examples(texts)):
        found.num_rows += 1
        why = NO_TEXT if example.is_blank and is_readable else None
        if why is None and (not is_readable or (unscored is not None and unscored[row])):
            why = UNREADABLE
        if why is None:
            key = text_hash(example)
            side = seen.sides.get(key)
            if side not in (None, "unlabeled"):
                why = f"that the run has in its {side} set"
            elif any((example.columns or {}).get(name, "").strip() for name in label_columns):
                why = HAS_LABEL
                labelled.add(key)
                found.labelled.append(joined(example))
            elif key in elsewhere:
                why = "that stand in another file to label"
            elif key in known:
                why = REPEATED
            known.add(key)
        if why is None:
            free.append((row, joined(example), key))
        else:
            found.left_out[why] += 1
    # The copy with the label may stand behind the one without.
    kept = [(row, text) for row, text, key in free if key not in labelled]
    if len(kept) < len(free):
        found.left_out[REPEATED] += len(free) - len(kept)
    found.rows = np.array([row for row, _ in kept], np.int64)
    found.texts = [text for _, text in kept]
    return found


def joined(example: Example) -> str:
    """Return the texts of an example as one, as sentence encoders read them."""
    return "\n".join(example.texts.values())


def examples_at(texts: Texts, rows: Sequence[int]) -> list[Example]:
    """Return the rows of a table at some places, in their order, with all columns."""
    found: dict[int, Example] = {}
    for number, make in enumerate(texts.windows(WINDOW)):
        start = number * WINDOW
        inside = sorted(row for row in rows if start <= row < start + WINDOW)
        if inside:
            window = make().texts
            found |= {row: window[row - start] for row in inside}
    return [found[row] for row in rows]


def hashes_of(texts: Texts) -> set[int]:
    """Return the hashes of all texts of a table."""
    return {text_hash(example) for example, _ in _examples(texts) if not example.is_blank}


def _examples(texts: Texts) -> Iterator[tuple[Example, bool]]:
    """Yield each row of a table, and whether it can be read."""
    for make in texts.windows(WINDOW):
        window = make()
        yield from zip(
            window.texts,
            (place not in window.errors for place in itertools.count()),
            strict=False,
        )


def labelled_by(run: Path, asked: Asked) -> tuple[list[str], list[str]]:
    """Return the labelled texts of a run, from its tables, and what could not be read."""
    seen = read_seen(run)
    if seen is None:
        return [], ["the run does not tell which texts it learned from"]
    data = load_run_settings(run / SETTINGS_FILE).data
    found, notes = rows_of_tables(seen.tables, asked, data, seen, set())
    return [joined(example) for example in found], notes


def check_candidates(found: Candidates, source: str) -> None:
    """Check that there is something to label.

    Args:
        found: The candidates.
        source: Name of the pool.

    Raises:
        DataError: If there is nothing.
    """
    if len(found.rows):
        return
    told = ", ".join(f"{number:,} {reason}" for reason, number in found.left_out.most_common())
    raise DataError(
        f"{source}: no row is left to label. Of {found.num_rows:,} rows there are {told}. Give a "
        "file with texts that have no label yet; where the column of labels holds something else, "
        "rename it."
    )
