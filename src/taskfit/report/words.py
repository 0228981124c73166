"""Names, numbers, counts and lists as pages, figures and advice write them."""

from collections.abc import Iterable, Sequence

METRIC_NAMES = {"accuracy": "accuracy", "mcc": "MCC", "macro_f1": "macro F1"}
COST_NAMES = {"train_seconds": "time", "memory_bytes": "memory", "latency_seconds": "latency"}
MEGABYTE = 1e6
MAX_CHARACTERS = 40  # a longer name is cut, or it would leave no room for the picture


def metric_name(metric: str, *, multi_label: bool = False) -> str:
    """Return what a metric is called on axes and in tables."""
    return "exactly right sets of labels" if multi_label else METRIC_NAMES[metric]


def shorten(name: str, length: int = MAX_CHARACTERS) -> str:
    """Return a name of at most so many characters, the last an ellipsis if it was cut."""
    return name if len(name) <= length else name[: length - 1] + "…"


def num(value: float) -> str:
    """Return a score or difference with two digits, never a negative zero."""
    text = f"{value:.2f}"
    return text.lstrip("-") if float(text) == 0 else text


def span(interval: Sequence[float]) -> str:
    """Return an interval in words."""
    return f"{num(interval[0])} to {num(interval[1])}"


def p_value(value: float) -> str:
    """Return a p-value as papers print it."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural where it is not one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def joined(parts: Iterable[str]) -> str:
    """Return a list as English writes it."""
    listed = list(parts)
    if len(listed) < 2:
        return "".join(listed)
    return f"{', '.join(listed[:-1])} and {listed[-1]}"


def format_cost(cost: str, value: float) -> str:
    """Return a cost with its unit: seconds, or bytes."""
    if cost == "memory_bytes":
        return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"
    if value >= 120:
        return f"{value / 60:.1f} min"
    if value < 0.001:
        return "less than 1 ms"
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"
