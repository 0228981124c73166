"""Progress, notes and tables on a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from taskfit.runs.records import RunResult
    from taskfit.stats import Evaluation

LINES_PER_RUN = 10


# What is told of a validation beside its loss.
SHOWN = {
    "accuracy": "accuracy",
    "mcc": "MCC",
    "perplexity": "perplexity",
    "reward_accuracy": "reward accuracy",
    "reward_margin": "reward margin",
}


class RichScreen:
    """Shows a run as it goes."""

    def __init__(self, console: Console) -> None:
        """Write to a console."""
        self.console = console
        self._training: Progress | None = None
        self._task = TaskID(0)

    def note(self, text: str) -> None:
        """Show a line."""
        self._print(f"[dim]{escape(text)}[/]")

    def record(self, record: Mapping[str, Any]) -> None:
        """Show a record of the training log."""
        if record["kind"] == "start":
            self._print(
                f"{record['num_train']:,} examples, {record['total_steps']:,} steps; "
                f"{record['num_trainable']:,} of {record['num_parameters']:,} parameters trained; "
                f"{record['num_shortened']:,} texts shortened; longest step "
                f"{record['longest_step_seconds']:.1f} s; loss before training "
                f"{record['loss_before']:.3f}"
            )
        elif record["kind"] == "step":
            self._step(record)
        elif record["kind"] == "validation":
            best = " (kept)" if record["is_kept"] else ""
            shown = [f"{label} {record[key]:.3f}" for key, label in SHOWN.items() if key in record]
            metrics = ", ".join([f"validation loss {record['loss']:.3f}", *shown])
            self._print(f"step {record['step']}: {metrics}{best}")
        else:
            self.note(str(record["text"]))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar over `total` things."""
        if not self.console.is_terminal:
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
        if not self.console.is_terminal:
            # A bar cannot move in a file; a line now and then can be read there.
            if step % max(1, total // LINES_PER_RUN) == 0:
                left = record["seconds"] / step * (total - step)
                self._print(f"step {step}/{total}: {detail}, {left:,.0f} s left")
            return
        if self._training is None:
            self._training = _bar(self.console)
            self._training.start()
            self._task = self._training.add_task("training", total=total, detail="")
        self._training.update(self._task, completed=step, detail=detail)
        if step == total:
            self.close()

    def close(self) -> None:
        """Take the training bar off the screen's hands."""
        if self._training is not None:
            self._training.stop()
            self._training = None

    def _print(self, text: str) -> None:
        (self._training.console if self._training else self.console).print(text, highlight=False)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
        transient=True,
    )


def results_table(results: Sequence["RunResult"]) -> Table:
    """Return a table of runs and evaluation sets."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "set"):
        table.add_column(name)
    for name in ("n", "accuracy", "95 %", "MCC", "F1", "ECE"):
        table.add_column(name, justify="right")
    for result in results:
        for name, evaluation in result.evaluations.items():
            table.add_row(result.name, name, *evaluation_cells(evaluation))
    return table


def baselines_table(result: "RunResult") -> Table | None:
    """Return a run beside its baselines on the same texts, or None where there are none."""
    tables = result.details.get("baselines")
    if not tables:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("set", "what"):
        table.add_column(name)
    for name in ("accuracy", "MCC", "F1", "log loss"):
        table.add_column(name, justify="right")
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
    return [
        f"{evaluation.num_examples:,}",
        f"{evaluation.accuracy:.3f}",
        f"{low:.3f}-{high:.3f}",
        f"{evaluation.mcc:.3f}",
        f"{evaluation.macro_f1:.3f}",
        f"{evaluation.ece:.3f}",
    ]
