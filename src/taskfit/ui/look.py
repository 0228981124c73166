"""What a table holds, before anything is fitted: columns, labels, duplicates, the prompt."""

from collections.abc import Sequence
from typing import Any

from taskfit.data.guess import guess_columns, guess_note
from taskfit.data.tables import notes_of, read_table
from taskfit.errors import DataError, SettingsError
from taskfit.runs.inspection import inspect_task
from taskfit.ui.project import Project

PREVIEW = 5  # rows
CELL_CHARACTERS = 300
MOST_LABELS = 40  # bars


def look_at_columns(project: Project) -> dict[str, Any]:
    """Return columns and first rows of a table, and which hold text and label; records a guess.

    What was chosen before stays; where the columns' names do not tell, both are left open.

    Raises:
        DataError: If the table cannot be read.
    """
    chosen = project.choices
    table = read_table(str(project.folder / chosen.table))
    text, label, notes = chosen.text, chosen.label, notes_of(table)
    if not (text and label):
        try:
            guess = guess_columns(table, text=list(text), label=label or None)
        except DataError:
            notes.append("The names of the columns do not tell text and label: choose both.")
        else:
            text, label = guess.text, guess.label or ""
            project.choose(text=text, label=label)
            if (note := guess_note(guess, table)) is not None:
                notes.append(f"Guessed: {note.partition(';')[0]}.")
    head = table.head(PREVIEW)
    return {
        "columns": [str(name) for name in table.columns],
        "rows": len(table),
        "preview": [[str(cell)[:CELL_CHARACTERS] for cell in row] for row in head.to_numpy()],
        "text": list(text),
        "label": label,
        "notes": notes,
        "name": chosen.name,
        "test_name": chosen.test_name,
    }


def choose_columns(project: Project, text: Sequence[str], label: str) -> None:
    """Record which columns hold text and label.

    Raises:
        TaskfitError: If there are none, one is both, or the table does not have them.
    """
    if not text or not label or label in text:
        raise SettingsError("Choose at least one text column, and another for the label.")
    table = read_table(str(project.folder / project.choices.table))
    guess_columns(table, text=text, label=label)
    project.choose(text=tuple(text), label=label)


def look_at_task(project: Project) -> dict[str, Any]:
    """Return what `taskfit inspect` tells of a project's table, labels counted over all its rows.

    Raises:
        TaskfitError: If the table does not fit a task, or its model cannot be had.
    """
    chosen = project.choices
    found = inspect_task(project.settings())
    checkup = found.checkup
    table = read_table(str(project.folder / chosen.table))
    counts = table[chosen.label].str.strip().value_counts()
    labels = [{"name": str(k) or "(no label)", "count": int(v)} for k, v in counts.items()]
    words = {report.label: list(report.tokens) for report in checkup.words}
    return {
        "labels": labels[:MOST_LABELS],
        "num_labels": len(counts),
        "sets": found.num_examples,
        "notes": [project.in_words(note) for note in found.notes],
        "overlap": None if found.overlap is None else found.overlap.sentence,
        "is_clean": found.overlap is None
        or not (found.overlap.num_dropped or found.overlap.num_repeated),
        "advice": list(checkup.advice),
        "prompt": [{"text": t.text, "answer": t.is_completion} for t in checkup.prompt],
        "words": [{"label": k, "tokens": v} for k, v in list(words.items())[:MOST_LABELS]],
        "lengths": checkup.lengths,
        "max_length": checkup.max_length,
        "num_shortened": checkup.num_shortened,
        "model": found.model,
    }
