"""`taskfit audit`: which labels of a table are probably wrong, and a corrected table."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from taskfit.cli.flags import (
    ConfigOption,
    DataOption,
    LabelOption,
    MethodOption,
    MethodsOption,
    ModelOption,
    SeedOption,
    SetOption,
    TableArgument,
    TaskOption,
    TestOption,
    TextOption,
    data_flags,
    one_method,
    read_settings,
)
from taskfit.cli.new_run import refuse_without_model
from taskfit.cli.screen import RichScreen, Terminal, plain_table
from taskfit.cli.stopped import tell_of_audit, told_when_stopped
from taskfit.errors import SettingsError
from taskfit.labels.audit_method import DEFAULT_METHOD

if TYPE_CHECKING:
    from taskfit.labels.audit import Audit
    from taskfit.settings import RunSettings

AUDITS = Path("audits")
MOST_SHOWN = 5
SHOWN_CHARACTERS = 70
HELP = """Find labels that are probably wrong, and apply what you decide about them.

\b
taskfit audit tickets.csv --text body --label queue --out audits/tickets
   leaves audit.html to read, and audit.csv to work through: into its column
   `decision` write keep, remove, relabel (to the suggested label) or a label's name
taskfit audit tickets.csv --apply audits/tickets/audit.csv -o corrected.csv
   writes the table as decided; never over the input

Labels are judged by fits that have not seen the text (5 folds), by default logistic regressions on
features of the model and of a sentence encoder; --method takes any other. Beside them: copies with
different labels, texts that stand in an evaluation set (--test NAME=FILE), labels that look the
same, small classes, control tokens, encodings gone wrong, empty and overlong texts.
"""


def audit(
    table: TableArgument = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    test: TestOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the audit, else audits/NAME-OF-TABLE; with --apply the new table.",
        ),
    ] = None,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="audit.csv with decisions; writes -o FILE.")
    ] = None,
    new_labels: Annotated[
        bool, typer.Option("--new-labels", help="With --apply: decisions may name new labels.")
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Lose decisions in --out, or with --apply the file -o."),
    ] = False,
    seed: SeedOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    methods: MethodsOption = None,
) -> None:
    """Find labels that are probably wrong, and apply what is decided about them."""
    given = one_method("audit", method, methods)
    if apply is None and new_labels:
        raise SettingsError("--new-labels goes with --apply DECISIONS.csv.")
    flags = data_flags(
        table=table,
        data=data,
        text=text,
        label=label,
        task=task,
        model=model,
        test=test,
        others={"seed": seed, **_method_flags(given, config, set_ or ())},
    )
    settings = read_settings(config, flags, set_)
    if settings.data.train is None and settings.task.name is None:
        raise SettingsError(
            "No table: taskfit audit mine.csv, with --text and --label where columns are not plain."
        )
    if apply is not None:
        _apply(settings, apply, out, new_labels=new_labels, overwrite=overwrite)
        return
    refuse_without_model(settings)
    source = settings.data.train or settings.task.name or ""
    folder = out or AUDITS / (Path(source).name.split(".")[0].split(":")[0] or "audit")
    _audit(settings, folder, overwrite=overwrite)


def _method_flags(
    given: str | None, config: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """Return the method as flags: what is given, else the audit's own, unless settings name one."""
    if given is not None:
        return {"method.name": given}
    if config is not None or any(one.startswith(("method.name=", "method=")) for one in overrides):
        return {}
    return {f"method.{name}": value for name, value in DEFAULT_METHOD.items()}


def _audit(settings: "RunSettings", folder: Path, *, overwrite: bool) -> None:
    from taskfit.labels.audit import audit as run_audit

    with told_when_stopped(lambda: tell_of_audit(folder)), RichScreen() as screen:
        found = run_audit(settings, folder, screen=screen, overwrite=overwrite)
    console = screen.console
    _show(found, console)
    source = settings.data.train
    console.print(
        f"\nTo read:         {folder / 'audit.html'}\nTo work through: {folder / 'audit.csv'}",
        soft_wrap=True,
    )
    if source is not None and len(found.findings):
        apply = ["taskfit", "audit", source, "--apply", str(folder / "audit.csv")]
        read = settings.data.model_dump(include={"encoding", "quotes"}, exclude_defaults=True)
        for key, value in read.items():
            apply += ["--set", f"data.{key}={value}"]
        console.print(f"Then: {shlex.join(apply)} -o corrected.csv", soft_wrap=True)


def _show(found: "Audit", console: Terminal) -> None:
    """Print how much was found of each kind, and the worst of it."""
    from taskfit.labels.audit_findings import KINDS
    from taskfit.report.words import shorten

    counts = plain_table("what", ">found")
    for kind, (heading, _) in KINDS.items():
        counts.add_row(heading, f"{found.counts[kind]:,}")
    console.print(f"\n{found.num_rows:,} rows, {len(found.labels)} labels")
    console.print(counts)
    for kind, (heading, _) in KINDS.items():
        rows = found.findings[found.findings["kind"] == kind].head(MOST_SHOWN)
        if not len(rows):
            continue
        console.print(f"\n{heading}", style="bold")
        table = plain_table("row", "label", "suggested", ">p", "what")
        for row in rows.to_dict("records"):
            what = shorten(" ".join(row["text"].split()), SHOWN_CHARACTERS) or row["note"]
            if row["note"] and row["text"]:
                what = f"{what} ({row['note']})"
            table.add_row(row["id"], row["label"], row["suggested"], row["probability"], what)
        console.print(table)


def _apply(
    settings: "RunSettings",
    decisions: Path,
    out: Path | None,
    *,
    new_labels: bool,
    overwrite: bool,
) -> None:
    if out is None:
        raise SettingsError(f"Where to? taskfit audit TABLE --apply {decisions} -o corrected.csv")
    from taskfit.labels.audit_apply import apply_decisions

    done = apply_decisions(settings, decisions, out, new_labels=new_labels, overwrite=overwrite)
    console = Terminal()
    console.print(
        f"{out}: {done.num_rows:,} rows; {done.num_removed:,} removed, {done.num_relabelled:,} "
        "with another label.",
        soft_wrap=True,
    )
    console.print(f"Next: taskfit fit {shlex.quote(str(out))}", soft_wrap=True)
