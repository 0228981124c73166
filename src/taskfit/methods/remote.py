"""A model behind an OpenAI-compatible endpoint, asked with the task's prompt as a chat."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from taskfit.data import Example
from taskfit.method_settings import RemoteMethodSettings
from taskfit.methods.method import Advance, FloatArray, Method, MethodContext
from taskfit.methods.remote_reader import RemoteReader


class Remote(Method):
    """Reads labels from log-probabilities of the answer's first token, or from its text.

    Every answer is stored on disk the moment it arrives, so an interruption costs nothing.
    """

    learns = False
    settings: RemoteMethodSettings

    def __init__(self, context: MethodContext) -> None:
        """Bind to the endpoint; nothing is sent yet.

        Raises:
            SettingsError: If no model is named.
        """
        super().__init__(context)
        self.reader = RemoteReader(
            context.settings.remote,
            self.task,
            context.demonstrations,
            max_new_tokens=self.settings.max_new_tokens,
        )
        self._num_unparsable = 0

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return label probabilities, (N, L); a row of NaN where the answer names no label."""
        found = self.reader.read(examples, advance=advance)
        self._num_unparsable += int((~found.has_answer).sum())
        return found.probabilities

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Ask for a few examples; the answers are in the cache afterwards."""
        self.probabilities(examples)
        self._num_unparsable = 0

    def report(self) -> Mapping[str, Any]:
        """Return requests, tokens and cost, and how many answers named no label."""
        return {
            **dataclasses.asdict(self.reader.usage),
            "num_unparsable": self._num_unparsable,
        }
