"""Prompts to answer: rows of instruction data of which every one comes out again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from taskfit.data.cells import text_of
from taskfit.data.instruction_rows import InstructionRow, Raw, rows_of
from taskfit.data.instructions import LOOKED_AT, TOLD, InstructionFormat, recognise
from taskfit.data.messages import RowProblem
from taskfit.data.records import iter_records
from taskfit.data.row_tally import RowTally, unread_columns
from taskfit.errors import DataError


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A row of a source of prompts, of which every one comes out again.

    Attributes:
        id: Where it stands.
        row: What is asked; None: nothing can be.
        error: Why not; empty where it can.
        others: Its other columns, those that are part of neither prompt nor answer.
    """

    id: str
    row: InstructionRow | None
    error: str
    others: Mapping[str, str]


def read_prompts(
    source: str,
    *,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
) -> tuple[InstructionFormat, list[PromptRow], list[str]]:
    """Read the prompts of a source; answers are not needed.

    Args:
        source: See `read_instructions`.
        kind: See `read_instructions`.
        columns: See `read_instructions`.
        encoding: Of text files.

    Returns:
        How the rows were read; all of them in order, those too that cannot be asked; and what is
        not read of them, in lines.

    Raises:
        DataError: If the source cannot be read, its kind cannot be told, or no row can be asked.
    """
    records = list(iter_records(source, encoding=encoding))
    if not records:
        raise DataError(f"{source} holds no row. Is it the right file?")
    found = recognise(source, records[:LOOKED_AT], kind=kind, columns=columns, need_answer=False)
    # What neither prompt nor reference shows is kept beside them.
    shown = {c for field, c in found.columns.items() if field not in ("score", "rejected")}
    name = Path(source).name
    names = dict.fromkeys(column for record in records for column in record.values)
    prompts, tally = list[PromptRow](), RowTally()
    for record in records:
        place = f"{name}:{record.line}"
        others = {c: text_of(record.values.get(c)) for c in names if c not in shown}
        values = {field: record.values.get(column) for field, column in found.columns.items()}
        unread = set(unread_columns(record.values, shown, None))
        try:
            rows = list(rows_of(place, values, found.kind, need_answer=False, unread=unread))
        except RowProblem as problem:
            prompts.append(PromptRow(place, None, str(problem), others))
            continue
        tally.unread.update(sorted(unread))
        for row in rows:
            error = "" if _says_something(row) else "the row has no text"
            prompts.append(PromptRow(row.id, None if error else row, error, others))
    if all(prompt.row is None for prompt in prompts):
        told = "\n".join(f"  {prompt.id}: {prompt.error}" for prompt in prompts[:TOLD])
        raise DataError(
            f"{source}, read as {found.describe()}: none of {len(prompts):,} rows can be asked.\n"
            f"{told}\nMend the rows, or give another kind or other columns."
        )
    return found, prompts, tally.notes(source)


def _says_something(row: InstructionRow) -> bool:
    if isinstance(row, Raw):
        return bool(row.text.strip())
    return any(message.content.strip() for message in row.prompt if message.role != "system")
