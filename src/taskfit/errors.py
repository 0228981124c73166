"""The exceptions that users meet: each names what was found, what is allowed and what to do.

The command line prints the message of a `TaskfitError` without a traceback and exits with code 2.
Everything else is our own mistake and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class TaskfitError(ValueError):
    """Base of all errors that the user can mend."""


class SettingsError(TaskfitError):
    """A setting is unknown, of the wrong kind, or contradicts another."""


class DataError(TaskfitError):
    """A table cannot be read or does not hold what the task needs."""


class PromptError(TaskfitError):
    """A template or label word cannot be turned into tokens honestly."""


class ModelError(TaskfitError):
    """A model cannot be found, loaded, or run."""


class CheckpointError(TaskfitError):
    """A run folder cannot be written, read, or resumed as asked."""


class WriteError(CheckpointError):
    """The system does not write: the disk is full, there is no permission, a file is in the way."""


class TrainingError(TaskfitError):
    """Training cannot go on: a loss that is not finite, or memory that does not suffice."""


def close_match(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one is nearest to, whatever its case, if any is."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1)
    return folded[close[0]] if close else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for a misspelt name, or nothing."""
    close = close_match(name, known)
    return f" Did you mean {close}?" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
