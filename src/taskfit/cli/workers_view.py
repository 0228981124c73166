"""Several workers on one terminal: a line each at the bottom, notes above."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text


class WorkersView:
    """Shows what every worker does on a terminal, below what else is written to its console."""

    def __init__(self, console: Console) -> None:
        """Write to a console."""
        self.console = console
        self._live: Live | None = None

    def update(self, lines: Sequence[str]) -> None:
        """Show a line a worker, in place of the former ones."""
        if not self.console.is_terminal:
            return
        if self._live is None:
            self._live = Live(console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        self._live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in lines)))

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None
