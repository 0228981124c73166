"""Progress, notes and tables on a terminal."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, ConsoleOptions, Group, JustifyMethod, RenderableType
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from taskfit.runs.records import RunResult
    from taskfit.stats import Evaluation

LINES_PER_RUN = 10
# Columns of a file, and of what is broken by hand in one.
FILE_WIDTH, PAGE_WIDTH = 10_000, 100
# Escape is the one that matters: it moves, colours and clears.
PICTURES = {c: 0x2400 + c for c in range(32) if chr(c) not in "\t\n"} | {127: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# Confusions of two labels that are shown of each evaluation set.
MOST_MISTAKES = 5
# Letters of the longest stage of the quickstart.
STAGE_WIDTH = 10
# What is told of a validation beside its loss.
SHOWN = {
    "accuracy": "accuracy",
    "mcc": "MCC",
    "perplexity": "perplexity",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin",
}


class Terminal(Console):
    """Prints what it is given: brackets, colons and control characters of texts are shown.

    A file or pipe has lines as long as they come, unless COLUMNS says otherwise.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - those of `Console`
        """Write to standard output, unless told otherwise."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)
        if not self.is_terminal and "width" not in options and "COLUMNS" not in os.environ:
            self.width = FILE_WIDTH

    @property
    def page_width(self) -> int:
        """Return how wide a text that is broken by hand may be (characters)."""
        return min(self.width, PAGE_WIDTH)

    @property
    def moves(self) -> bool:
        """Return whether a line can be written over, as bars are."""
        return self.is_terminal and not self.is_dumb_terminal

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render anything; what in it would steer the terminal is shown instead."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)


def shown(text: str) -> str:
    """Return a text with its control characters, but for line breaks and tabs, made visible."""
    return text.translate(PICTURES)


def plain_table(*columns: str) -> Table:
    """Return a table without lines; a column named with a `>` in front stands to the right.

    What is too wide for the terminal goes on in the next line, and nothing is cut off.
    """
    table = Table(box=None, pad_edge=False)
    for name in columns:
        justify: JustifyMethod = "right" if name[:1] == ">" else "left"
        table.add_column(name.removeprefix(">"), justify=justify, overflow="fold")
    return table


class RichScreen:
    """Shows a run as it goes, or several; gives the terminal back where a `with` ends."""

    def __init__(self, console: Terminal | None = None, *, shows_progress: bool = True) -> None:
        """Write to a terminal or file; of a text or two, nobody waits for a bar."""
        self.console = Terminal() if console is None else console
        self._shows_progress = shows_progress
        self._live: Progress | Live | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Show a line."""
        self.console.print(Text(text, style="dim"))

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record of the training log."""
        if record["kind"] == "start":
            self.console.print(
                f"{record['num_train']:,} examples, {record['total_steps']:,} steps; "
                f"{record['num_trainable']:,} of {record['num_parameters']:,} parameters trained; "
                f"{record['num_shortened']:,} texts shortened; longest step "
                f"{record['longest_step_seconds']:.1f} s; loss of the longest batch before "
                f"training {record['loss_before']:.3f}"
            )
        elif record["kind"] == "step":
            self._step(record)
        elif record["kind"] == "validation":
            best = " (kept)" if record["is_kept"] else ""
            shown = [f"{label} {record[key]:.3f}" for key, label in SHOWN.items() if key in record]
            metrics = ", ".join([f"validation loss {record['loss']:.3f}", *shown])
            self.console.print(f"step {record['step']}: {metrics}{best}")
        else:
            self.note(str(record["text"]))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar over `total` things."""
        if not (self.console.moves and self._shows_progress):
            if self._shows_progress:
                self.note(f"{label}: {total:,}")
            yield lambda _: None
            return
        with _bar(self.console) as bar:
            task = bar.add_task(label, total=total, detail="")
            yield lambda count: bar.advance(task, count)

    def _step(self, record: Mapping[str, Any]) -> None:
        detail = (
            f"loss {record['loss']:.3f} lr {record['learning_rate']:.1e} "
            f"{record['tokens_per_second']:,.0f} tok/s {record['memory_bytes'] / 1e9:.1f} GB"
        )
        step, total = record["step"], record["total_steps"]
        if not self.console.moves:
            # A bar cannot move in a file; a line now and then can be read there.
            if step % max(1, total // LINES_PER_RUN) == 0:
                left = record["seconds"] / step * (total - step)
                self.console.print(f"step {step}/{total}: {detail}, {left:,.0f} s left")
            return
        if not isinstance(self._live, Progress):
            self._live = _bar(self.console)
            self._live.start()
            self._task = self._live.add_task("training", total=total, detail="")
        self._live.update(self._task, completed=step, detail=detail)
        if step == total:
            self.close()

    def update(self, lines: Sequence[str]) -> None:
        """Show a line for each of several workers, in place of the former ones."""
        if not self.console.moves:
            return
        if not isinstance(self._live, Live):
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        self._live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)))

    def close(self) -> None:
        """Take bars and lines of workers off the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class StagesScreen(RichScreen):
    """Shows bars on a terminal while a stage goes on, and a sentence when it is done."""

    def note(self, text: str) -> None:
        """Show nothing: the sentence of the stage says what matters."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Move the bar of training on."""
        if record["kind"] == "step" and self.console.moves:
            super().record(record)

    def tell(self, stage: str, text: str) -> None:
        """Show what came of a stage, its later lines below the first."""
        self.close()
        line = Table.grid(padding=(0, 1))
        line.add_column(width=STAGE_WIDTH, no_wrap=True, style="bold")
        line.add_column(overflow="fold")
        line.add_row(stage, text)
        self.console.print(line)


def _bar(console: Terminal) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        console=console,
        transient=True,
    )


def results_table(results: Sequence["RunResult"]) -> Table:
    """Return a table of runs and evaluation sets."""
    table = plain_table("run", "set", ">n", ">accuracy", ">95 %", ">MCC", ">F1", ">ECE")
    for result in results:
        for name, evaluation in result.evaluations.items():
            table.add_row(result.name, name, *evaluation_cells(evaluation))
    return table


def baselines_table(result: "RunResult") -> Table | None:
    """Return a run beside its baselines on the same texts, or None where there are none."""
    tables = result.details.get("baselines")
    if not tables:
        return None
    table = plain_table("set", "what", ">accuracy", ">MCC", ">F1", ">log loss")
    for test_set, rows in tables.items():
        best = max(row["mcc"] for row in rows)
        for row in rows:
            values = [f"{row[key]:.3f}" for key in ("accuracy", "mcc", "macro_f1", "log_loss")]
            style = "bold" if row["mcc"] == best else ""
            table.add_row(test_set, row["name"], *values, style=style)
    return table


def evaluation_cells(evaluation: "Evaluation") -> list[str]:
    """Return the numbers of an evaluation as text."""
    low, high = evaluation.intervals["accuracy"]
    rest = [f"{value:.3f}" for value in (evaluation.mcc, evaluation.macro_f1, evaluation.ece)]
    accuracy = [f"{evaluation.accuracy:.3f}", f"{low:.3f}-{high:.3f}"]
    return [f"{evaluation.num_examples:,}", *accuracy, *rest]


def mistakes_table(result: "RunResult") -> Table | None:
    """Return the most frequent confusions on the evaluation sets; None where there are none."""
    table = plain_table("set", "right label", "answer", ">times", ">of its texts")
    for name, evaluation in result.evaluations.items():
        if evaluation.multi_label:
            continue
        counts, labels = evaluation.confusion_matrix, evaluation.labels
        found = [
            (count, sum(row), labels[gold], labels[said])
            for gold, row in enumerate(counts)
            for said, count in enumerate(row)
            if count and gold != said
        ]
        for count, total, gold, said in sorted(found, reverse=True)[:MOST_MISTAKES]:
            table.add_row(name, Text(gold), Text(said), f"{count:,}", f"{count / total:.0%}")
    return table if table.row_count else None
