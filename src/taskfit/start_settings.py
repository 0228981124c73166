"""The section `start`: what a run goes on from."""

from taskfit.settings_base import Section


class StartSettings(Section):
    """A finished run that this one goes on from; `taskfit fit --from` takes its settings too."""

    run: str | None = None
    """Folder of a finished run. Training starts from its adapter or weights, and its head; a method
    without any is fitted anew. Its classes stay, and a text that it held out is held out again."""
    earlier_rows: bool = True
    """Learn from the training rows of that run, too, where their tables are still found; false:
    from those of `data.train` alone. Not for sft and dpo, which go on with the new rows."""
