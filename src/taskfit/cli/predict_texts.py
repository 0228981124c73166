"""`taskfit predict` with texts at hand: on the command line, from standard input, to the screen."""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from rich.text import Text

from taskfit.cli.screen import RichScreen, Terminal
from taskfit.cli.stopped import tell_of_file, told_when_stopped
from taskfit.errors import SettingsError
from taskfit.screen import drop_standard_output

if TYPE_CHECKING:
    from taskfit.runs.predict import PredictedTable, Shortfalls
    from taskfit.runs.predictor import Asking
    from taskfit.runs.table_texts import GivenTable

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


def predict_texts(
    run: Path, texts: Sequence[str], out: str | None, *, form: str, **asking: Unpack["Asking"]
) -> None:
    """Predict texts of the command line, and show or write what comes of it.

    Args:
        run: Folder of a finished run.
        texts: See `texts_table`.
        out: A file, or - for standard output; None: the screen.
        form: Of standard output, one of `FORMATS`.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the texts, the file or the coverage does not allow it.
    """
    from taskfit.cli.given import GivenTexts
    from taskfit.runs.predict import Shortfalls, predict_windows

    given = GivenTexts(texts)
    if out is not None:
        predict_given(run, given, out, form=form, columns={}, **asking)
        return
    # What is not a prediction must not stand among them.
    screen, shortfalls = RichScreen(Terminal(stderr=True), shows_progress=False), Shortfalls()
    for found in predict_windows(run, given, screen=screen, **asking):
        _show(found, texts)
        shortfalls.add_all(found.shortfalls)
    for line in shortfall_lines(given.name, shortfalls):
        screen.note(line)


def predict_given(
    run: Path,
    given: "GivenTable",
    out: str,
    *,
    form: str,
    columns: Mapping[str, str],
    **asking: Unpack["Asking"],
) -> None:
    """Predict texts that come from standard input, or go to standard output.

    Args:
        run: Folder of a finished run.
        given: The texts.
        out: A file, or - for standard output.
        form: Of standard output, one of `FORMATS`.
        columns: See `predict_file`.
        asking: See `Asking`.

    Raises:
        TaskfitError: If the run, the texts, the file or the coverage does not allow it.
    """
    from taskfit.runs.predict import Shortfalls, predict_into, predict_windows

    is_shown = out == STANDARD and sys.stdout.isatty()
    screen = RichScreen(Terminal(stderr=True), shows_progress=not is_shown)
    shortfalls = Shortfalls()
    with screen:
        if out == STANDARD:
            try:
                for found in predict_windows(run, given, screen=screen, columns=columns, **asking):
                    _write(found, form, is_first=not shortfalls.num_rows)
                    shortfalls.add_all(found.shortfalls)
            except BrokenPipeError:
                drop_standard_output()  # who reads, such as `head`, has enough
                return
        else:
            target = Path(out)
            with told_when_stopped(lambda: tell_of_file(target)):
                shortfalls = predict_into(
                    run, given, target, screen=screen, columns=columns, **asking
                ).shortfalls
            labelled = shortfalls.num_rows - shortfalls.num_errors
            screen.note(f"{labelled:,} texts labelled: {out}")
    for line in shortfall_lines(given.name, shortfalls):
        screen.note(line)


def shortfall_lines(name: str, found: "Shortfalls") -> list[str]:
    """Return lines on what did not go as it should: rows without an answer, texts cut short.

    Args:
        name: What the lines call the file.
        found: What there is.
    """
    from taskfit.runs.predictions import count_errors
    from taskfit.tasks.shortening import shortened_note

    lines = []
    if num_blank := found.num_errors - found.num_failed:
        lines.append(f"{name}: {count_errors(num_blank)}")
    if found.num_failed:
        lines.append(
            f"{name}: {found.num_failed:,} row{'s' * (found.num_failed != 1)} that could not be "
            f"read or scored, marked in the column error; the first: {found.first_failure}"
        )
    if found.num_shortened:
        num_texts = found.num_rows - found.num_errors
        lines.append(shortened_note(name, found.num_shortened, num_texts))
    return lines


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
            missing = "abstained" if probabilities else "no answer"
            line.append(missing if label is None else label or "none of them", style="bold")
            ranked = sorted(probabilities.items(), key=lambda pair: -pair[1])
            shown = ", ".join(f"{name} {p:.3f}" for name, p in ranked[:MAX_LABELS])
            more = f", {len(ranked) - MAX_LABELS} more" if len(ranked) > MAX_LABELS else ""
            line.append(f"   {shown}{more}")
            console.print(line)


def _write(found: "PredictedTable", form: str, *, is_first: bool) -> None:
    """Write predictions to standard output, in UTF-8 where it is no terminal.

    As lines of text each is label, probability and text between tabs; of several questions a label
    and a probability each.
    """
    from taskfit.runs.partial import write_text_table

    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # A pipe is a file, and files are UTF-8 whatever the terminal can show.
        sys.stdout.reconfigure(encoding="utf-8")
    if form != "text":
        write_text_table(found.table, sys.stdout, kind=f".{form}", header=is_first)
        sys.stdout.flush()
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
    sys.stdout.flush()
