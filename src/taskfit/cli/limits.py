"""Amounts with units on the command line: durations and memory, and what a user can afford."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from taskfit.errors import SettingsError

if TYPE_CHECKING:
    from taskfit.report.advice import Limits

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

MaxMemoryOption = Annotated[
    str | None, typer.Option("--max-memory", help="Peak memory you can afford: 500MB, 4GB.")
]
MaxLatencyOption = Annotated[
    str | None, typer.Option("--max-latency", help="Time for one text you can afford: 50ms, 0.2s.")
]
MaxTrainTimeOption = Annotated[
    str | None, typer.Option("--max-train-time", help="Time of a run you can afford: 30s, 10m, 2h.")
]


def parse_limits(
    max_memory: str | None, max_latency: str | None, max_train_time: str | None
) -> "Limits":
    """Return what a user can afford.

    Raises:
        SettingsError: If one of them is no amount.
    """
    memory = parse_bytes("--max-memory", max_memory)
    latency = parse_seconds("--max-latency", max_latency)
    train_time = parse_seconds("--max-train-time", max_train_time)

    from taskfit.report.advice import Limits

    return Limits(
        max_memory_bytes=memory, max_latency_seconds=latency, max_train_seconds=train_time
    )


def parse_seconds(flag: str, text: str | None) -> float | None:
    """Return a duration such as `50ms`, `90s`, `30m` or `2h` in seconds.

    Raises:
        SettingsError: Naming the flag, if the text is none.
    """
    return _parse(flag, text, SECONDS, "90s, 30m, 2h, or 50ms")


def parse_bytes(flag: str, text: str | None) -> int | None:
    """Return an amount of memory such as `500MB` or `4GB` in bytes.

    Raises:
        SettingsError: Naming the flag, if the text is none.
    """
    amount = _parse(flag, text, BYTES, "500MB or 4GB")
    return None if amount is None else int(amount)


def _parse(
    flag: str, text: str | None, units: dict[str, float] | dict[str, int], examples: str
) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]+)", text.strip())
    by_name = {unit.lower(): factor for unit, factor in units.items()}
    factor = by_name.get(match[2].lower()) if match else None
    if match is None or factor is None or float(match[1]) == 0:
        *most, last = units
        raise SettingsError(
            f"{flag} {text}: write a number above 0 and {', '.join(most)} or {last}, such as "
            f"{examples}."
        )
    return float(match[1]) * factor
