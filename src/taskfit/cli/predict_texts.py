"""`taskfit predict` with texts at hand: on the command line, from standard input, to the screen."""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from rich.text import Text

from taskfit.cli.screen import RichScreen, Terminal
from taskfit.errors import DataError, SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from taskfit.runs.predict import Asking, PredictedTable

STANDARD = "-"
FORMATS = ("text", "csv", "tsv", "jsonl")
MAX_LABELS = 5  # of a text, on the screen


def check_places(
    run: Path,
    file: str | None,
    texts: Sequence[str] | None,
    out: str | None,
    form: str | None,
) -> None:
    """Check where texts come from and where predictions go.

    Raises:
        SettingsError: If that is not said, said twice, or --format has nothing to be about.
    """
    if (file is None) == (not texts):
        raise SettingsError(
            "Give a table, -, or texts, and one of them:\n"
            f"  taskfit predict {run} new.csv -o labelled.csv\n"
            f"  taskfit predict {run} - -o -                      texts in, labels out\n"
            f'  taskfit predict {run} --text "a text"'
        )
    if file is not None and out is None:
        raise SettingsError(
            f"Where to? taskfit predict {run} {file} -o labelled.csv (or .tsv, .jsonl, .parquet), "
            "or -o - for standard output."
        )
    if form is None:
        return
    if form not in FORMATS:
        raise SettingsError(f"--format {form}: give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")
    if STANDARD not in (file, out):
        raise SettingsError(
            "--format is about standard input and output (-); files say their format by their "
            "ending. Leave it out."
        )


def predict_at_once(
    run: Path,
    file: str | None,
    texts: Sequence[str],
    out: str | None,
    *,
    form: str | None,
    encoding: str,
    columns: Mapping[str, str],
    quotes: str,
    overwrite: bool,
    **asking: Unpack["Asking"],
) -> None:
    """Predict texts that are read whole, and show or write what comes of it.

    Args:
        run: Folder of a finished run.
        file: A table, or - for standard input; None: `texts` are given.
        texts: From the command line.
        out: A file, or - for standard output; None: the screen.
        form: Of standard input and output, one of `FORMATS`; None: of a table CSV, else text.
        encoding: Of the table.
        columns: See `predict_file`.
        quotes: See `predict_file`.
        overwrite: See `predict_file`.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the texts, the file or the coverage does not allow it.
    """
    from taskfit.data import read_table
    from taskfit.files import refuse_over_input
    from taskfit.runs.predict import check_target, predict_table

    if out is not None and out != STANDARD:
        check_target(Path(out))
        refuse_over_input(Path(out), [file], overwrite=overwrite)
    form = form or ("text" if file in (None, STANDARD) else "csv")
    # What is not a prediction must not stand among them.
    screen = RichScreen(Terminal(stderr=True), shows_progress=file is not None or out is not None)
    make: Callable[[tuple[str, ...]], pd.DataFrame]
    if file is None:
        source, make = "--text", partial(texts_table, texts)
    elif file == STANDARD:
        source, make = "standard input", partial(_standard_input, form, encoding, quotes, screen)
    else:
        source, make = (
            file,
            lambda _: read_table(file, encoding=encoding, split="test", quotes=quotes),
        )
    with screen:
        found = predict_table(run, make, source=source, screen=screen, columns=columns, **asking)
    if out is None:
        _show(found, texts)
    elif out == STANDARD:
        _write(found, form)
    else:
        _save(found, Path(out))
        screen.note(f"{len(found.table) - found.num_errors:,} texts labelled: {out}")
    for line in shortfalls(source, len(found.table), found.num_errors, found.num_shortened):
        screen.note(line)


def shortfalls(name: str, num_rows: int, num_errors: int, num_shortened: int) -> list[str]:
    """Return lines on what did not go as it should: rows without an answer, texts cut short.

    Args:
        name: What the lines call the file.
        num_rows: All rows.
        num_errors: Those without an answer.
        num_shortened: Texts that lost their end.
    """
    from taskfit.runs.predictions import count_errors
    from taskfit.tasks.shortening import shortened_note

    lines = [f"{name}: {count_errors(num_errors)}"] if num_errors else []
    if num_shortened:
        lines.append(shortened_note(name, num_shortened, num_rows - num_errors))
    return lines


def texts_table(texts: Sequence[str], columns: tuple[str, ...]) -> "pd.DataFrame":
    """Return texts of the command line as a table.

    Args:
        texts: Of a task of one text column as they are; of several `COLUMN=TEXT`, a text for every
            column and then those of the next row.
        columns: The task's text columns.

    Raises:
        DataError: If a text does not say its column, or a row has not all of them.
    """
    import pandas as pd

    from taskfit.data.cells import sound

    texts = [sound(text, f"--text {place}") for place, text in enumerate(texts, start=1)]
    if len(columns) == 1:
        return pd.DataFrame({columns[0]: list(texts)}, index=range(1, len(texts) + 1), dtype=str)
    by_column: dict[str, list[str]] = {name: [] for name in columns}
    example = " ".join(f'--text "{name}=..."' for name in columns)
    for text in texts:
        name, equals, rest = text.partition("=")
        if not equals or name.strip() not in by_column:
            raise DataError(
                f"--text {text!r}: this task reads {', '.join(columns)}; write {example}"
            )
        by_column[name.strip()].append(rest)
    if len({len(found) for found in by_column.values()}) > 1:
        counts = ", ".join(f"{len(found)} of {name}" for name, found in by_column.items())
        raise DataError(f"--text: every row needs each column, but there are {counts}: {example}")
    rows = len(by_column[columns[0]])
    return pd.DataFrame(by_column, index=range(1, rows + 1), dtype=str)


def _standard_input(
    form: str, encoding: str, quotes: str, screen: RichScreen, columns: tuple[str, ...]
) -> "pd.DataFrame":
    """Read standard input to its end.

    Raises:
        DataError: If it is not in this format or encoding.
    """
    import pandas as pd

    from taskfit.data import parse_table
    from taskfit.data.contents import true_kind
    from taskfit.data.sources import decode_lines

    if sys.stdin.isatty():
        screen.note("reading from the keyboard; Ctrl-D ends it")
    raw = io.BytesIO(sys.stdin.buffer.read())
    kind = true_kind(raw, "standard input", ".txt" if form == "text" else f".{form}")
    if kind not in (".txt", *(f".{name}" for name in FORMATS)):
        raise DataError(f"standard input is a {kind} file; give it by its name instead of -.")
    raw.seek(0)
    lines = list(decode_lines(raw, "standard input", encoding))
    if form != "text":
        return parse_table(lines, kind=f".{form}", source="standard input", quotes=quotes)
    if len(columns) > 1:
        raise DataError(
            f"This task reads {', '.join(columns)}, and a line is one text. Give --format csv or "
            "jsonl with these columns."
        )
    texts = {line: text.rstrip("\r\n") for line, text in lines}
    if not any(text.strip() for text in texts.values()):
        raise DataError("Standard input holds no text.")
    return pd.DataFrame({columns[0]: list(texts.values())}, index=list(texts), dtype=str)


def _show(found: "PredictedTable", texts: Sequence[str]) -> None:
    """Print each text of the command line with its answers and their probabilities."""
    console = Terminal()
    answers = {name: list(found.answers(name)) for name in found.labels}
    for row in range(len(found.table)):
        if len(found.table) > 1:
            text = texts[row] if len(texts) == len(found.table) else f"row {row + 1}"
            console.print(Text(text, style="dim"), no_wrap=True, overflow="ellipsis")
        for name, by_row in answers.items():
            label, probabilities = by_row[row]
            if all(p != p for p in probabilities.values()):
                probabilities = {}
            line = Text(f"{name}: " if name else "")
            line.append("no answer" if label is None else label or "none of them", style="bold")
            ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])
            shown = ", ".join(f"{name} {p:.3f}" for name, p in ranked[:MAX_LABELS])
            more = f", {len(ranked) - MAX_LABELS} more" if len(ranked) > MAX_LABELS else ""
            line.append(f"   {shown}{more}")
            console.print(line)


def _write(found: "PredictedTable", form: str) -> None:
    """Write predictions to standard output, in UTF-8 where it is no terminal.

    As lines of text each is label, probability and text between tabs; of several questions a label
    and a probability each.
    """
    from taskfit.runs.partial import write_text_table

    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # A pipe is a file, and files are UTF-8 whatever the terminal can show.
        sys.stdout.reconfigure(encoding="utf-8")
    if form != "text":
        write_text_table(found.table, sys.stdout, kind=f".{form}")
        return
    answers = [list(found.answers(name)) for name in found.labels]
    texts = found.table.iloc[:, 1]  # behind the id
    for row, text in enumerate(texts):
        cells = []
        for by_row in answers:
            label, probabilities = by_row[row]
            best = max(probabilities.values())
            cells += [label or "", "" if label is None else f"{best:.4f}"]
        sys.stdout.write("\t".join([*cells, " ".join(str(text).split())]) + "\n")


def _save(found: "PredictedTable", path: Path) -> None:
    from taskfit.files import file_atomic
    from taskfit.runs.partial import write_text_table

    kind = path.suffix.lower()
    with file_atomic(path) as scratch:
        if kind == ".parquet":
            found.table.to_parquet(scratch, index=False)
            return
        with scratch.open("w", encoding="utf-8", newline="") as file:
            write_text_table(found.table, file, kind=kind)
