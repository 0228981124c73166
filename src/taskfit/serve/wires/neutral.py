"""Fields of other projects' requests that are not served: harmless, neutral, or refused by name."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from taskfit.serve.work import RequestError


def refuse_other_than(
    neutral: Mapping[str, Sequence[Any]], extra: Mapping[str, Any], *, harmless: Collection[str]
) -> None:
    """Refuse what would change an answer and is not served.

    Args:
        neutral: Field -> the values of it that ask for nothing.
        extra: Fields of a request that its schema here does not have.
        harmless: Fields that change no answer whatever they are.

    Raises:
        RequestError: 422 that names the field.
    """
    for name, value in extra.items():
        if name in harmless:
            continue
        if name not in neutral:
            raise RequestError(422, f"{name!r} is not a field of this request.", where=(name,))
        # True equals 1 in Python, not in JSON.
        if not any(value == one and type(value) is type(one) for one in neutral[name]):
            raise RequestError(422, f"{name!r} is not served here; leave it out.", where=(name,))
