"""The exceptions that users meet: each names what was found, what is allowed and what to do.

The command line prints the message of a `TaskfitError` without a traceback and exits with code 2.
Everything else is our own mistake and keeps its traceback.
"""


class TaskfitError(ValueError):
    """Base of all errors that the user can mend."""


class SettingsError(TaskfitError):
    """A setting is unknown, of the wrong kind, or contradicts another."""


class DataError(TaskfitError):
    """A table cannot be read or does not hold what the task needs."""


class PromptError(TaskfitError):
    """A template or label word cannot be turned into tokens honestly."""


class ModelError(TaskfitError):
    """A model cannot be found, loaded, or served by the token tree."""


class CheckpointError(TaskfitError):
    """A run folder cannot be written, read, or resumed as asked."""


class TrainingError(TaskfitError):
    """Training cannot go on: a loss that is not finite, or memory that does not suffice."""
