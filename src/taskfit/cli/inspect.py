"""`taskfit inspect`: look at a task before any training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import (
    ConfigOption,
    DataOption,
    LabelOption,
    MethodOption,
    MethodsOption,
    ModelOption,
    SetOption,
    TableArgument,
    TaskOption,
    TextOption,
    data_flags,
    one_method,
    read_settings,
    table_of,
)
from taskfit.cli.new_run import refuse_without_model
from taskfit.cli.screen import RichScreen, Terminal
from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.settings import RunSettings

# Orders that a finished run is asked in where no number is given.
ORDERS = 6


def inspect(
    table: TableArgument = None,
    data: DataOption = None,
    text: TextOption = None,
    label: LabelOption = None,
    task: TaskOption = None,
    model: ModelOption = None,
    method: MethodOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    methods: MethodsOption = None,
    orders: Annotated[
        int | None,
        typer.Option(
            "--orders",
            min=2,
            help="Also ask the model about 100 texts behind up to so many orders of the options.",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="Try orders of the options on this finished run."),
    ] = None,
) -> None:
    """Check a task before any training: prompt, label words, duplicates, lengths, savings."""
    if run is not None:
        given = {"--text": text, "--label": label, "--task": task, "--model": model}
        given |= {"--method": method, "--methods": methods, "--config": config, "--set": set_}
        if wrong := [name for name, value in given.items() if value]:
            raise SettingsError(
                f"{', '.join(wrong)}: a finished run (--run) has its own. Leave it out."
            )
        _ask_run(run, table_of(table, data), orders or ORDERS)
        return
    others = {"method.name": one_method("inspect", method, methods)}
    flags = data_flags(
        table=table, data=data, text=text, label=label, task=task, model=model, others=others
    )
    settings = read_settings(config, flags, set_)
    refuse_without_model(settings)
    if orders is None:
        _show(settings)
        return

    from taskfit.runs.option_order import inspect_orders
    from taskfit.tasks.question_files import is_questionnaire

    if not is_questionnaire(settings.task.name):
        _show(settings)
    from taskfit.cli.inspect_view import show_orders

    with RichScreen(console := Terminal()) as screen:
        found = inspect_orders(settings, count=orders, screen=screen)
    show_orders(found, console)


def _show(settings: "RunSettings") -> None:
    from taskfit.cli.inspect_view import show_inspection
    from taskfit.runs.inspection import inspect_task

    show_inspection(inspect_task(settings), Terminal())


def _ask_run(run: Path, source: str | None, orders: int) -> None:
    from taskfit.cli.inspect_view import show_orders
    from taskfit.runs.option_order import inspect_run_orders

    with RichScreen(console := Terminal()) as screen:
        found = inspect_run_orders(run, source, count=orders, screen=screen)
    show_orders(found, console)
