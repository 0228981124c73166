"""Labels read from the answers of an endpoint: for `method=remote`, a teacher, and annotation.

Legend: N examples, L labels, S answers drawn for a text.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.fetch import cache_folder
from taskfit.errors import SettingsError
from taskfit.methods.method import Advance, FloatArray
from taskfit.remote import Answer, ChatRequest, RemoteEndpoint, RemoteModel, Usage, label_scores
from taskfit.remote.estimate import Estimate
from taskfit.settings import RemoteSettings
from taskfit.tasks import Task, chat_messages

BoolArray = NDArray[np.bool_]
CACHE = "remote.sqlite"
# How a text's probabilities were read; the empty one is of texts that were not asked about.
LOG_PROBS, ANSWER, SAMPLES, NOT_ASKED = "log-probs", "answer", "samples", ""

Ask = Callable[[Sequence[ChatRequest]], Sequence[Answer | None]]
Answers = list[Answer | None]


@dataclass(frozen=True, slots=True)
class RemoteReadings:
    """What an endpoint's answers say.

    Attributes:
        probabilities: Of the labels; a row of NaN where no answer names one, (N, L).
        read_from: Of each text `LOG_PROBS` (of the answer's first token), `ANSWER` (its text),
            `SAMPLES` (the texts of several), or `NOT_ASKED`.
        said: Of each text its first answer as it came.
    """

    probabilities: FloatArray
    read_from: list[str]
    said: list[str]

    @property
    def has_answer(self) -> BoolArray:
        """Return which texts have probabilities, (N,)."""
        return np.isfinite(self.probabilities[:, 0])

    @property
    def was_asked(self) -> BoolArray:
        """Return which texts have been asked about, (N,)."""
        return np.array([how != NOT_ASKED for how in self.read_from], dtype=bool)


class RemoteReader:
    """Asks an endpoint about texts with a task's prompt as a chat.

    Log-probabilities are read where the endpoint gives them. Else `remote.samples` answers are
    drawn, of which each that names a label counts alike, or the one most probable answer is taken.
    Every answer is stored on disk the moment it arrives, so an interruption costs nothing.

    Attributes:
        client: The endpoint.
    """

    def __init__(
        self,
        settings: RemoteSettings,
        task: Task,
        demonstrations: Sequence[Example],
        *,
        max_new_tokens: int,
    ) -> None:
        """Bind to the endpoint; nothing is sent yet.

        Args:
            settings: The endpoint and how it is asked.
            task: Of one question.
            demonstrations: Labelled examples shown as earlier turns.
            max_new_tokens: Most tokens of an answer.

        Raises:
            SettingsError: If no model is named.
        """
        if settings.model is None:
            raise SettingsError(
                "What asks an endpoint needs the model's name at the endpoint: set remote.model, "
                "and remote.base_url where it is not http://localhost:8000/v1."
            )
        self.client = RemoteModel(endpoint_of(settings))
        self._settings, self._max_new_tokens = settings, max_new_tokens
        self._task, self._demonstrations = _asked_plainly(task), demonstrations
        self._words = [label.words for label in self._task.labels]

    @property
    def usage(self) -> Usage:
        """What was sent so far, and what it cost."""
        return self.client.usage

    def read(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> RemoteReadings:
        """Ask about texts, as far as their answers are not in the cache.

        Args:
            examples: N texts; labels are not looked at.
            advance: Called with the number of texts just answered.

        Raises:
            RemoteError: As `RemoteModel.complete`.
        """
        counted = _Counted(advance, len(examples))

        def ask(share: float) -> Ask:
            return lambda requests: self.client.complete(
                requests, advance=lambda count: counted.add(count * share)
            )

        found = self._read(examples, ask(1.0), ask(1.0 / self._settings.samples))
        counted.rest()
        return found

    def read_known(self, examples: Sequence[Example]) -> RemoteReadings:
        """Return what the answers in the cache say; nothing is sent."""
        return self._read(examples, self.client.known, self.client.known)

    def paid(self, examples: Sequence[Example]) -> Usage:
        """Return what all answers about texts did cost, by whichever command."""
        requests = [self._request(example) for example in examples]
        if self._settings.samples > 1:
            requests += [draw for example in examples for draw in self._draws(example)]
        return self.client.paid(requests)

    def estimate(self, examples: Sequence[Example]) -> Estimate:
        """Reckon what `read` will send, at most.

        Where it is not known yet whether there are log-probabilities, that there are none.
        """
        greedy = [self._request(example) for example in examples]
        if self._settings.samples > 1 and examples:
            known = self.client.known(greedy)
            if known[0] is None or _says_no_log_probs(known[0]):
                greedy, unread = greedy[:1], list(examples)
            else:
                unread = [e for e, a in zip(examples, known, strict=True) if _says_no_log_probs(a)]
            drawn = [request for example in unread for request in self._draws(example)]
            greedy = [*greedy, *drawn]
        return self.client.estimate(greedy)

    def _read(self, examples: Sequence[Example], ask: Ask, draw: Ask) -> RemoteReadings:
        """Read what is answered: the greedy answers, and several draws where these do not do.

        Args:
            examples: N texts.
            ask: Answers greedy requests, None where there is no answer.
            draw: Answers the draws.
        """
        greedy = [self._request(example) for example in examples]
        answers: list[Answers] = [[None] for _ in examples]
        if self._settings.samples == 1 or not greedy:
            answers = [[answer] for answer in ask(greedy)]
            return self._labels(answers)
        # One tells what the endpoint gives, so that others are not asked in vain.
        answers[0] = list(ask(greedy[:1]))
        if not _says_no_log_probs(answers[0][0]):
            answers[1:] = [[answer] for answer in ask(greedy[1:])]
        unread = [i for i, (one,) in enumerate(answers) if one is None or one.top_log_probs is None]
        drawn = iter(draw([request for i in unread for request in self._draws(examples[i])]))
        for i in unread:
            answers[i] = [next(drawn) for _ in range(self._settings.samples)]
        return self._labels(answers)

    def _labels(self, answers: Sequence[Answers]) -> RemoteReadings:
        """Return the labels in the answers to each text; a text lacks one that is not there yet."""
        found = np.full((len(answers), len(self._words)), np.nan)
        read_from, said = [], []
        for row, known in enumerate(answers):
            own = [answer for answer in known if answer is not None]
            if len(own) < len(known):
                read_from.append(NOT_ASKED)
                said.append("")
                continue
            scores = [label_scores(answer, self._words) for answer in own]
            named = [np.exp(one) for one in scores if one is not None]
            if named:
                found[row] = np.mean(named, axis=0)
            how = LOG_PROBS if own[0].top_log_probs else ANSWER
            read_from.append(SAMPLES if len(own) > 1 else how)
            said.append(own[0].text)
        return RemoteReadings(found, read_from, said)

    def _request(self, example: Example) -> ChatRequest:
        messages = chat_messages(self._task, example.texts, self._demonstrations)
        return ChatRequest(messages, max_tokens=self._max_new_tokens)

    def _draws(self, example: Example) -> list[ChatRequest]:
        messages = chat_messages(self._task, example.texts, self._demonstrations)
        temperature = self._settings.temperature
        return [
            ChatRequest(messages, self._max_new_tokens, temperature=temperature, seed=seed)
            for seed in range(self._settings.samples)
        ]


class _Counted:
    """Counts whole texts where their requests are counted in parts."""

    def __init__(self, advance: Advance | None, most: int) -> None:
        self._advance, self._left, self._part = advance, most, 0.0

    def add(self, count: float) -> None:
        # A sum of fifths is a little less than one.
        self._part += count
        whole = min(int(self._part + 1e-6), self._left)
        self._part -= whole
        self._left -= whole
        if self._advance is not None and whole:
            self._advance(whole)

    def rest(self) -> None:
        self.add(self._left)


def endpoint_of(settings: RemoteSettings) -> RemoteEndpoint:
    """Return the endpoint that settings name, with the cache of this user.

    Raises:
        SettingsError: If a value is out of range.
    """
    return RemoteEndpoint(
        base_url=settings.base_url,
        model=settings.model or "",
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
        budget=settings.budget,
        max_requests=settings.max_requests,
    )


def _says_no_log_probs(answer: Answer | None) -> bool:
    """Return whether an answer shows that the endpoint gives none; an empty one shows nothing."""
    return answer is not None and answer.top_log_probs is None and bool(answer.text.strip())


def _asked_plainly(task: Task) -> Task:
    """Return a task whose instruction names the answers, if it has no instruction of its own."""
    if task.template.instruction.strip():
        return task
    return task.with_instruction("Classify the text. Answer with one of: {options}.")
