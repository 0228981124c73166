"""Instruction data: conversations to learn from, preference pairs, raw texts.

Five kinds of rows are read (`KINDS`), and become one of three types:

    instruction, chat, completion -> Conversation
    preference                    -> Preference
    text                          -> Raw

The kind is recognised by the names of the columns; `kind` and `columns` override that.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from taskfit.data.instruction_rows import (
    Conversation,
    InstructionRow,
    Preference,
    Raw,
    from_record,
    rows_of,
    to_record,
)
from taskfit.data.messages import LeftOut, Message, RowProblem
from taskfit.data.records import Record, iter_records
from taskfit.data.row_tally import RowTally, check_learned, label_column, unread_columns
from taskfit.errors import DataError, suggestion

__all__ = [
    "KINDS",
    "Conversation",
    "InstructionData",
    "InstructionFormat",
    "InstructionRow",
    "Message",
    "Preference",
    "Raw",
    "from_record",
    "open_instructions",
    "read_instructions",
    "recognise",
    "to_record",
]

# For each kind its fields, and for each field the names that its column usually has. The order of
# kinds is the order in which they are tried. A score is read only from a column that is named.
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "preference": {
        "prompt": ("prompt", "instruction", "question", "conversations", "messages"),
        "input": ("input", "context"),
        "chosen": ("chosen", "preferred", "answer_chosen"),
        "rejected": ("rejected", "dispreferred", "answer_rejected"),
        "history": ("history",),
        "system": ("system", "system_prompt"),
        "score": (),
    },
    "chat": {
        "messages": ("messages", "conversations", "conversation", "dialogue", "chat"),
        "system": ("system", "system_prompt"),
        "score": (),
    },
    "instruction": {
        "instruction": ("instruction",),
        "input": ("input", "context"),
        "output": ("output", "response", "answer"),
        "instances": ("instances",),
        "history": ("history",),
        "system": ("system", "system_prompt"),
        "score": (),
    },
    "completion": {
        "prompt": ("prompt", "question", "query"),
        "input": ("input", "context"),
        "completion": ("completion", "response", "answer", "output"),
        "history": ("history",),
        "system": ("system", "system_prompt"),
        "score": (),
    },
    "text": {"text": ("text", "content", "document"), "score": ()},
}
OPTIONAL = ("input", "history", "system", "instances", "output", "score")
ANSWERS = ("output", "completion")
# Rows in which columns are looked for: the first ones may lack a field by mistake.
LOOKED_AT = 100
TOLD = 5


@dataclass(frozen=True, slots=True)
class InstructionFormat:
    """How the rows of a source are read.

    Attributes:
        kind: A key of `KINDS`.
        columns: The column of each field; fields that the source lacks are left out.
    """

    kind: str
    columns: dict[str, str]

    def describe(self) -> str:
        """Return one line for people."""
        parts = [f if f == c else f"{f} <- {c}" for f, c in self.columns.items()]
        return f"{self.kind} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class InstructionData:
    """The rows of a source.

    Attributes:
        format: How it was read; `kind` tells a completion from a chat.
        rows: In the order of the source.
        notes: What is not read of them, and which were left out, in lines.
    """

    format: InstructionFormat
    rows: list[InstructionRow]
    notes: tuple[str, ...] = ()


def read_instructions(
    source: str,
    *,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    need_answer: bool = True,
    name: str | None = None,
) -> InstructionData:
    """Read instruction data.

    An instruction and its input become one user message, with a blank line between; a history
    stands before it as earlier turns. Lists of instances (self-instruct) become one conversation
    each. In preference pairs that repeat the conversation in both answers, as messages or as texts
    of `Human:` and `Assistant:` (hh-rlhf), the shared turns are the prompt. Where answers are
    needed, conversations with tool calls and rows whose label says no (KTO) or whose weight is 0
    are left out and counted.

    Args:
        source: A .json, .jsonl, .csv, .tsv or .parquet file, also with .gz behind, or a hub id.
        kind: A key of `KINDS`; None: recognised by the columns.
        columns: Column of a field, for fields that are named otherwise.
        encoding: Of text files.
        need_answer: Whether a row without an answer is an error; without, prompts alone are read.
        name: In the rows' ids; None: the file's name.

    Raises:
        DataError: If the source cannot be read, its kind cannot be told, or rows lack fields: all
            such rows are counted, the first few told with their lines.
    """
    found, rows = open_instructions(
        source,
        kind=kind,
        columns=columns,
        encoding=encoding,
        need_answer=need_answer,
        name=name,
    )
    return InstructionData(found, list(rows), tuple(rows.notes()))


def open_instructions(
    source: str,
    *,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8",
    need_answer: bool = True,
    name: str | None = None,
) -> tuple[InstructionFormat, "RowReader"]:
    """Tell a source's format and yield its rows as they are read; see `read_instructions`.

    Rows that lack something raise only when all have been looked at.
    """
    records = iter_records(source, encoding=encoding)
    head = list(itertools.islice(records, LOOKED_AT))
    if not head:
        raise DataError(f"{source} holds no row. Is it the right file?")
    found = recognise(source, head, kind=kind, columns=columns, need_answer=need_answer)
    stem = Path(source).name if name is None else name
    everything = itertools.chain(head, records)
    used = found.columns.values()
    label = None
    if need_answer and found.kind in ("chat", "instruction", "completion"):
        label = label_column((record.values for record in head), used)
    return found, RowReader(
        everything, source, stem, found=found, need_answer=need_answer, label=label
    )


def recognise(
    source: str,
    records: Iterable[Record],
    *,
    kind: str | None = None,
    columns: Mapping[str, str] | None = None,
    need_answer: bool = True,
) -> InstructionFormat:
    """Tell the kind of rows and the column of each field.

    Args:
        source: For messages.
        records: The first rows.
        kind: A key of `KINDS`, or None.
        columns: Column of a field, taken as given.
        need_answer: Whether a source without answers is refused.

    Raises:
        DataError: If no kind fits, or what was given does not.
    """
    names = list(dict.fromkeys(name for record in records for name in record.values))
    given = dict(columns or {})
    _check_given(source, names, kind, given)
    for other in [kind] if kind else KINDS:
        fields = KINDS[other]
        if set(given) - set(fields):
            continue
        chosen = {field: _column(usual, names) for field, usual in fields.items()} | given
        complete = {field: column for field, column in chosen.items() if column is not None}
        if not _lacking(other, complete, need_answer=need_answer):
            return InstructionFormat(other, complete)
    needed = "\n".join(f"  {other}: {_needs(other)}" for other in ([kind] if kind else KINDS))
    raise DataError(
        f"{source} has the columns {', '.join(names)}; none of the kinds of instruction data fits "
        f"them. Each needs:\n{needed}\nGive the kind and which column holds which field (on the "
        "command line: --kind instruction --column instruction=question --column output=reply)."
    )


def _check_given(source: str, names: list[str], kind: str | None, given: dict[str, str]) -> None:
    if kind is not None and kind not in KINDS:
        raise DataError(
            f"The kind {kind!r} is unknown.{suggestion(kind, list(KINDS))} Allowed: "
            f"{', '.join(KINDS)}."
        )
    fields = (
        list(KINDS[kind])
        if kind
        else sorted({field for usual in KINDS.values() for field in usual})
    )
    for field, column in given.items():
        if field not in fields:
            raise DataError(
                f"{field!r} is no field of {'kind ' + kind if kind else 'any kind'}."
                f"{suggestion(field, fields)} Allowed: {', '.join(fields)}."
            )
        if column not in names:
            raise DataError(
                f"{source} has no column {column!r}.{suggestion(column, names)} It has: "
                f"{', '.join(names)}."
            )


def _column(usual: tuple[str, ...], names: list[str]) -> str | None:
    folded = {name.casefold(): name for name in reversed(names)}
    return next((folded[name] for name in usual if name in folded), None)


def _lacking(kind: str, columns: Mapping[str, str], *, need_answer: bool) -> list[str]:
    lacking = [
        field
        for field in KINDS[kind]
        if field not in columns and field not in OPTIONAL and (need_answer or field not in ANSWERS)
    ]
    if kind == "preference" and "prompt" in lacking:
        # Both answers may hold the whole conversation.
        lacking.remove("prompt")
    if kind == "instruction" and need_answer and not {"output", "instances"} & set(columns):
        lacking.append("output")
    return lacking


def _needs(kind: str) -> str:
    if kind == "instruction":
        return "instruction and output (or instances); may have input, history, system"
    if kind == "preference":
        return (
            "chosen and rejected, and prompt where they are no whole chats; may have input, "
            "history, system"
        )
    needed = [field for field in KINDS[kind] if field not in OPTIONAL]
    extra = [field for field in KINDS[kind] if field in OPTIONAL]
    return " and ".join(needed) + (f"; may have {', '.join(extra)}" if extra else "")


class RowReader:
    """The rows of a source, read one by one; afterwards what was not read of them."""

    def __init__(
        self,
        records: Iterable[Record],
        source: str,
        name: str,
        *,
        found: InstructionFormat,
        need_answer: bool,
        label: str | None,
    ) -> None:
        """Bind to records.

        Args:
            records: Of the source.
            source: For messages.
            name: In the rows' ids.
            found: How they are read.
            need_answer: Whether a row without an answer is an error.
            label: The column that says whether an answer is to be learned, if there is one.
        """
        self._records = records
        self._source = source
        self._name = name
        self._found = found
        self._need_answer = need_answer
        self._label = label
        self._tally = RowTally()

    def notes(self) -> list[str]:
        """Return what people should know of the rows that were read, in lines."""
        return self._tally.notes(self._source)

    def __iter__(self) -> Iterator[InstructionRow]:
        """Yield the rows.

        Raises:
            DataError: At the end, if rows lack something, or every one was left out.
        """
        tally = self._tally = RowTally()
        problems: list[str] = []
        count = num_read = 0
        for record in self._records:
            tally.total += 1
            try:
                for row in self._rows(record):
                    num_read += 1
                    yield row
            except LeftOut as why:
                tally.leave_out(str(why))
            except RowProblem as problem:
                count += 1
                if count <= TOLD:
                    problems.append(f"  line {record.line}: {problem}")
        if count:
            raise self._refusal(count, problems)
        if not num_read:
            raise DataError(
                f"{self._source}, read as {self._found.describe()}: none of {tally.total:,} rows "
                f"is left to learn from. Left out: {tally.reasons()}."
            )

    def _rows(self, record: Record) -> Iterator[InstructionRow]:
        """Yield the rows of a record, and count what of it is not read."""
        used, values = self._found.columns, record.values
        if self._need_answer:
            check_learned(values, self._label)
        unread = set(unread_columns(values, used.values(), self._label))
        keys: set[str] = set()
        fields = {field: values.get(column) for field, column in used.items()}
        yield from rows_of(
            *(f"{self._name}:{record.line}", fields, self._found.kind, self._need_answer, keys)
        )
        self._tally.unread.update(sorted(unread | keys))

    def _refusal(self, count: int, problems: list[str]) -> DataError:
        more = f"\n  and {count - TOLD:,} more" if count > TOLD else ""
        return DataError(
            f"{self._source}, read as {self._found.describe()}: {count:,} of "
            f"{self._tally.total:,} rows cannot be used.\n"
            + "\n".join(problems)
            + more
            + "\nMend or remove these rows, or give another kind or other columns."
        )
