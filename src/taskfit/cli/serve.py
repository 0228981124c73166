"""`taskfit serve`: finished runs behind HTTP."""

import functools
import ipaddress
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.cli.flags import AllowOtherBaseOption, DeviceOption
from taskfit.cli.screen import Terminal
from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.serve.work import Engine

API_KEY_VARIABLE = "TASKFIT_API_KEY"
LOG_LEVELS = ("debug", "info", "warning", "error")


def serve(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]RUN...", help="Folders of finished runs."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A base model to serve as it is, alone or beside the runs."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; 0.0.0.0: on all networks.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0: any free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", envvar=API_KEY_VARIABLE, help="What clients must send; better set there."
        ),
    ] = None,
    max_queue: Annotated[
        int, typer.Option("--max-queue", help="Requests that wait or run; more get a 429.")
    ] = 512,
    max_tokens_per_batch: Annotated[
        int, typer.Option("--max-tokens-per-batch", help="Tokens that are scored together.")
    ] = 4096,
    max_delay_ms: Annotated[
        float, typer.Option("--max-delay-ms", help="How long a request may wait for company.")
    ] = 0.0,
    max_body: Annotated[
        int, typer.Option("--max-body", help="Bytes of a request; more get a 413.")
    ] = 2_097_152,
    max_texts: Annotated[
        int, typer.Option("--max-texts", help="Texts of a request; more get a 422.")
    ] = 256,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", help="Tokens of a request; more get a 422.")
    ] = 16_384,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds until a request is given up with a 504.")
    ] = 60.0,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds to finish in after the order to stop.")
    ] = 30.0,
    option_orders: Annotated[
        int,
        typer.Option(
            "--option-orders",
            min=1,
            help="Of questions that nothing was fitted to: orders of the options to average over.",
        ),
    ] = 1,
    device: DeviceOption = "auto",
    allow_other_base: AllowOtherBaseOption = False,
    log: Annotated[
        str, typer.Option("--log", help="debug, info (a line a request), warning or error.")
    ] = "info",
    ray: Annotated[
        bool, typer.Option("--ray", help="Serve from replicas on a Ray cluster, new or given.")
    ] = False,
    ray_address: Annotated[
        str | None, typer.Option("--ray-address", help="Address of the Ray cluster, or auto.")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option("--replicas", help="Of --ray: how many; default 2.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option("--max-replicas", help="Of --ray: so many under load.")
    ] = None,
) -> None:
    """Serve finished runs over HTTP, and a page to try them at /."""
    folders = named_runs(runs or ())
    if not folders and model is None:
        raise SettingsError("Give a finished run: taskfit serve RUN, or a model: --model NAME.")
    if log not in LOG_LEVELS:
        raise SettingsError(f"--log is {log!r}; give one of {', '.join(LOG_LEVELS)}.")
    if api_key is not None and not api_key.strip():
        raise SettingsError("The API key is empty; give one, or leave it out.")
    use_ray = ray or ray_address is not None
    if not use_ray and (replicas is not None or max_replicas is not None):
        raise SettingsError("--replicas and --max-replicas are for --ray.")
    if is_package_missing():
        raise SettingsError("Serving needs more packages: pip install 'taskfit[serve]'")

    from taskfit.serve.app import create_app
    from taskfit.serve.limits import Limits
    from taskfit.serve.server import bind, log_to_stderr, run_server

    limits = Limits(
        max_queue=max_queue,
        max_tokens_per_batch=max_tokens_per_batch,
        max_delay_ms=max_delay_ms,
        max_body=max_body,
        max_texts=max_texts,
        max_tokens=max_tokens,
        timeout=timeout,
        grace=grace,
    )
    console = Terminal()
    if api_key is None and not is_loopback(host):
        Terminal(stderr=True).print(
            f"note: whoever reaches {host} can ask this server; set {API_KEY_VARIABLE} to a key "
            "of your choice to be asked for it.",
            style="yellow",
            soft_wrap=True,
        )
    make = functools.partial(
        load,
        folders,
        model,
        device=device,
        allow_other_base=allow_other_base,
        option_orders=option_orders,
    )
    with bind(host, port) as held:
        log_to_stderr(log)
        shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
        base = f"http://{f'[{shown}]' if ':' in shown else shown}:{held.getsockname()[1]}"
        if use_ray:
            from taskfit.serve.cluster import Replicas, create_cluster_app

            least = 2 if replicas is None else replicas
            asked = Replicas(least=least, most=max_replicas, address=ray_address)
            app = create_cluster_app(make, limits, api_key=api_key, replicas=asked)
            told = f"{base}   documentation: {base}/docs   {least} replicas on Ray"
            started = functools.partial(console.print, told, soft_wrap=True)
        else:
            # In a thread that ends: OpenMP's threads wait for each other much longer where two
            # threads of Python have had work for them, this one and the one that scores.
            with ThreadPoolExecutor(1) as loading:
                engine = loading.submit(make).result()
            app = create_app(lambda: engine, limits, api_key=api_key)
            has_key = api_key is not None
            started = functools.partial(tell, console, engine, base=base, has_key=has_key)
        run_server(app, held, limits=limits, started=started)


def named_runs(given: Sequence[str]) -> dict[str, Path]:
    """Return the folders of runs by the names that requests call them by.

    Args:
        given: FOLDER, which is called by its last part, or NAME=FOLDER.

    Raises:
        SettingsError: If a folder is not there, or a name stands twice.
    """
    found: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        # A folder may have such a sign in its own name.
        if not equals or Path(one).is_dir():
            name, folder = Path(one).resolve().name, one
        path = Path(folder)
        if not name or "/" in name:
            raise SettingsError(f"{one}: a name is one word without /; give NAME=FOLDER.")
        if name in found:
            raise SettingsError(
                f"Two runs are called {name}: {found[name]} and {path}. Give one another name: "
                f"{name}-2={path}"
            )
        if not path.is_dir():
            raise SettingsError(f"There is no folder {path}; give the folder of a finished run.")
        found[name] = path
    return found


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load(
    folders: Mapping[str, Path],
    model: str | None,
    *,
    device: str,
    allow_other_base: bool,
    option_orders: int = 1,
) -> "Engine":
    """Return the engine that serves runs and a base; say what people should know of it."""
    from taskfit.serve.engine import load_engine

    engine = load_engine(
        folders,
        base=model,
        device=device,
        allow_other_base=allow_other_base,
        option_orders=option_orders,
    )
    for note in engine.notes:
        Terminal(stderr=True).print(f"note: {note}", style="yellow", soft_wrap=True)
    return engine


def is_package_missing() -> bool:
    """Return whether a package of the extra `serve` is not installed."""
    from importlib.util import find_spec

    return any(find_spec(name) is None for name in ("fastapi", "prometheus_client", "uvicorn"))


def tell(console: Terminal, engine: "Engine", *, base: str, has_key: bool) -> None:
    """Say where the server is, what it serves, and how to ask it."""
    from taskfit.serve.documentation import curl
    from taskfit.serve.wires import EXAMPLES

    cards = engine.models()
    width = max(len(card.name) for card in cards)
    lines = [f"  {card.name:<{width}}  {card.description}" for card in cards]
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if has_key else ""
    asked = next(
        ((path, body) for path, example in EXAMPLES.items() if (body := example(cards))), None
    )
    command = f"\n\n{curl(base, *asked)}{key}" if asked else ""
    console.print(
        f"{base}   page: {base}/   documentation: {base}/docs\n" + "\n".join(lines) + command,
        soft_wrap=True,
    )
