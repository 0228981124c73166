"""`taskfit ui`: from a file to a winner in the browser."""

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from taskfit.cli.flags import ModelOption, SetOption, nested
from taskfit.cli.screen import Terminal
from taskfit.errors import SettingsError

HOST = "127.0.0.1"


def ui(
    folder: Annotated[
        Path, typer.Option("--folder", help="Where projects and what becomes of them are kept.")
    ] = Path("runs/ui"),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine; 0: a free one.")
    ] = 8321,
    model: ModelOption = None,
    set_: SetOption = None,
) -> None:
    """Open a page on this machine: drop a table, choose a budget, watch, try and take the winner.

    For one person: it listens on 127.0.0.1 only. Ctrl-C ends the page; a comparison goes on in a
    process of its own, and the page finds it again.
    """
    from taskfit.overrides import parse_overrides
    from taskfit.settings_base import merge_settings
    from taskfit.settings_file import settings_from_dict

    base = nested({"model.name": model})
    merge_settings(base, parse_overrides(set_ or ()))
    settings_from_dict(base, asked={})  # what is wrong here is wrong everywhere
    try:
        import uvicorn

        from taskfit.ui.app import make_app
    except ImportError as error:
        raise SettingsError(
            f"The page needs {error.name}, which is not installed: pip install 'taskfit[serve]'."
        ) from error
    from taskfit.ui.guard import key_of
    from taskfit.ui.listen import listen

    console = Terminal()
    app = make_app(folder, base=base)
    with listen(HOST, port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}/?key={key_of(folder)}"
        console.print(f"Open {address}", soft_wrap=True)
        console.print(
            f"Projects: {folder}   Ctrl-C ends the page; a running comparison goes on.",
            soft_wrap=True,
        )
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listener])
    _tell_what_goes_on(folder, console)


def _tell_what_goes_on(folder: Path, console: Terminal) -> None:
    """Say which comparisons are still at work, and how to stop them."""
    from taskfit.ui.project import find_projects
    from taskfit.ui.worker import at_work

    for project in find_projects(folder).values():
        if (process := at_work(project)) is not None:
            console.print(
                f"{project.choices.name}: its comparison goes on (process {process}). `taskfit ui` "
                f"finds it again; to stop it and keep what is finished: kill {process}",
                soft_wrap=True,
            )
