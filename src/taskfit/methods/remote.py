"""A model behind an OpenAI-compatible endpoint, asked with the task's prompt as a chat."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskfit.data import Example
from taskfit.data.fetch import cache_folder
from taskfit.errors import SettingsError
from taskfit.method_settings import RemoteMethodSettings
from taskfit.methods.method import Advance, FloatArray, Method, MethodContext
from taskfit.remote import ChatRequest, RemoteEndpoint, RemoteModel, label_scores
from taskfit.tasks import Task, chat_messages

CACHE = "remote.sqlite"


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
        settings = context.settings.remote
        if settings.model is None:
            raise SettingsError(
                "method remote needs the model's name at the endpoint: set remote.model, and "
                "remote.base_url where it is not http://localhost:8000/v1."
            )
        self.client = RemoteModel(
            RemoteEndpoint(
                base_url=settings.base_url,
                model=settings.model,
                # Local servers mostly want no key; others say so themselves.
                api_key_variable=(
                    settings.api_key_variable if settings.api_key_variable in os.environ else None
                ),
                requests_per_minute=settings.requests_per_minute,
                max_retries=settings.max_retries,
                timeout_seconds=settings.timeout_seconds,
                concurrency=settings.concurrency,
                cache=cache_folder() / CACHE,
                price_per_million_input=settings.input_price,
                price_per_million_output=settings.output_price,
            )
        )
        self._task = _asked_plainly(self.task)
        self._words = [label.words for label in self._task.labels]
        self._num_unparsable = 0

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> FloatArray:
        """Return label probabilities, (N, L); a row of NaN where the answer names no label."""
        requests = [
            ChatRequest(
                chat_messages(self._task, example.texts, self.context.demonstrations),
                max_tokens=self.settings.max_new_tokens,
            )
            for example in examples
        ]
        result = np.full((len(examples), len(self._words)), np.nan)
        for row, answer in enumerate(self.client.complete(requests, advance=advance)):
            scores = label_scores(answer, self._words)
            if scores is not None:
                result[row] = np.exp(scores)
        self._num_unparsable += int(np.isnan(result[:, 0]).sum())
        return result

    def dry_run(self, examples: Sequence[Example]) -> None:
        """Ask for a few examples; the answers are in the cache afterwards."""
        self.probabilities(examples)
        self._num_unparsable = 0

    def report(self) -> Mapping[str, Any]:
        """Return requests, tokens and cost, and how many answers named no label."""
        return {**dataclasses.asdict(self.client.usage), "num_unparsable": self._num_unparsable}


def _asked_plainly(task: Task) -> Task:
    """Return a task whose instruction names the answers, if it has no instruction of its own."""
    if task.template.instruction.strip():
        return task
    return task.with_instruction("Classify the text. Answer with one of: {options}.")
