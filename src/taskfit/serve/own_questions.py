"""The questions that a run was fitted to: how they are known again, and answered."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import TaskfitError, suggestion
from taskfit.methods.method import Reading
from taskfit.methods.reading import static_start
from taskfit.runs.asked import AskedQuestion
from taskfit.runs.classifier import Classifier
from taskfit.serve.work import Content, Option, Question, RequestError, Text
from taskfit.tasks import BareEncoder, EncodedExample, PromptEncoder
from taskfit.tasks.questions import Question as RunQuestion
from taskfit.tasks.questions import Questionnaire
from taskfit.tasks.shortening import noting_shortened
from taskfit.tree import common_prefix_length, unique_tokens

NOUL = ("true", "false")
# Labels of a question of two that are its yes and its no.
YES_NO = ({"yes", "no"}, {"true", "false"})
Probabilities = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Match:
    """A request's question that is one of a run's own.

    Attributes:
        question: The run's name for it.
        labels: Option as it was asked -> the run's label.
    """

    question: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ReadTexts:
    """Texts that are checked.

    Attributes:
        examples: The texts, with ids that no other request's have.
        num_tokens: Tokens to run beyond what is cached.
        num_total: Tokens of all prompts, each once.
    """

    examples: tuple[Example, ...]
    num_tokens: int
    num_total: int


class OwnQuestions:
    """Answers the questions that a run was fitted to, as `taskfit predict` does.

    Attributes:
        cards: Name -> question, as clients ask it.
        columns: Text columns.
    """

    def __init__(self, classifier: Classifier) -> None:
        """Bind to a fitted classifier."""
        self._classifier = classifier
        self.columns = tuple(classifier.asked.text)
        self._questions = {
            name or question.task.label_column: question
            for name, question in classifier.questions.items()
        }
        own = classifier.asked.questions if isinstance(classifier.asked, Questionnaire) else ()
        asked = {question.name: question for question in own}
        self.cards = {
            name: _card(question, asked.get(name)) for name, question in self._questions.items()
        }
        self._counted = itertools.count(1)
        self._static: dict[int, int] = {}

    @property
    def multi_label(self) -> bool:
        """Return whether a text may have several labels."""
        return any(question.task.multi_label for question in self._questions.values())

    @property
    def thresholds(self) -> dict[str, float]:
        """Return from which probability on labels are given, where a text may have several."""
        if not self.multi_label:
            return {}
        only = self._classifier.only
        return dict(zip(only.task.label_names, only.thresholds.tolist(), strict=True))

    def match(self, name: str, question: Question) -> Match | None:
        """Return which of the run's questions this is, by its options and words; None: none.

        Args:
            name: What the request calls it; tells questions apart that are alike.
            question: As it is asked.
        """
        found = {}
        for own, card in self.cards.items():
            words = question.instructions.strip()
            labels = _labels(question, self._questions[own])
            if labels is not None and words in ("", card.instructions):
                found[own] = Match(own, labels)
        if len(found) == 1:
            return next(iter(found.values()))
        return found.get(name)

    def texts_of(self, state: Content) -> Text:
        """Return a state as the run's text.

        Raises:
            RequestError: 422 if it does not have the run's columns.
        """
        if isinstance(state, str) or (
            isinstance(state, Mapping) and all(isinstance(v, str) for v in state.values())
        ):
            return state
        raise RequestError(
            422,
            f"This question is the run's own, which is asked about {self._needed()}; the state is "
            "other JSON. Send it so, or ask in other words.",
            where=("state",),
        )

    def read(
        self, texts: Sequence[Text], *, shorten: bool, where: tuple[str | int, ...] = ("texts",)
    ) -> ReadTexts:
        """Check texts and count their tokens.

        Args:
            texts: At least one.
            shorten: Whether one that is too long may lose its end.
            where: Path of the texts in the request.

        Raises:
            RequestError: 422 for a text that the run cannot read.
        """
        places = [(*where, i) if where == ("texts",) else where for i in range(len(texts))]
        examples = tuple(self._example(text, at) for text, at in zip(texts, places, strict=True))
        with noting_shortened() as cut:
            try:
                readings = self._classifier.readings(examples)
            except TaskfitError as error:
                raise RequestError(422, str(error), where=where) from error
        if cut and not shorten:
            first = next(i for i, example in enumerate(examples) if example.id in cut)
            raise _too_long(examples[first].id, readings, places[first])
        return ReadTexts(examples, *self._count(readings))

    def probabilities(self, examples: Sequence[Example]) -> tuple[list[Probabilities], set[str]]:
        """Return question -> label -> probability of each text, and the ids of shortened ones."""
        with noting_shortened() as cut:
            found = self._classifier.probabilities(examples)  # (N, L)
        return [self._by_question(row) for row in found], cut

    def first_prompt(self, examples: Sequence[Example]) -> tuple[list[int], int, int]:
        """Return the ids of a text's prompt, and where its own part starts and ends in them."""
        for reading in self._classifier.readings(examples[:1]):
            if reading.encoder is not None and isinstance(item := reading.items[0], EncodedExample):
                return item.prompt_ids.tolist(), *part_of_text(reading.encoder, item)
        return [], 0, 0

    def decode(self, token: int) -> str:
        """Return a token's characters."""
        tokenizer = self._classifier.method.tokenizer
        assert tokenizer is not None
        return str(tokenizer.decode([token]))

    @property
    def max_length(self) -> int:
        """Return the most tokens of a prompt with its text; 0: nothing counts them."""
        readings = self._classifier.readings([Example("", dict.fromkeys(self.columns, "a"))])
        return min((reading.max_length for reading in readings), default=0)

    def _by_question(self, row: NDArray[np.float64]) -> Probabilities:
        return {
            name: dict(zip(question.task.label_names, row[question.columns].tolist(), strict=True))
            for name, question in self._questions.items()
        }

    def _example(self, text: Text, where: tuple[str | int, ...]) -> Example:
        given = {self.columns[0]: text} if isinstance(text, str) else dict(text)
        names = ", ".join(map(repr, given))
        if isinstance(text, str) and len(self.columns) > 1:
            raise RequestError(422, f"A text of this run is {self._needed()}.", where=where)
        for name in self.columns:
            if name not in given:
                raise RequestError(
                    422,
                    f"The text has no column {name!r}; it has {names or 'none'}. A text of this "
                    f"run is {self._needed()}.",
                    where=where,
                )
        for name in given:
            if name not in self.columns:
                raise RequestError(
                    422,
                    f"The text has a column {name!r} that the run does not read."
                    f"{suggestion(name, self.columns)} A text of this run is {self._needed()}.",
                    where=where,
                )
        example = Example(
            f"text {next(self._counted)}", {name: given[name] for name in self.columns}
        )
        if example.is_blank:
            raise RequestError(422, "There is no text in it.", where=where)
        return example

    def _needed(self) -> str:
        columns = ", ".join(map(repr, self.columns))
        if len(self.columns) == 1:
            return f"a string, or an object with the column {columns}"
        return f"an object with the columns {columns}"

    def _count(self, readings: Sequence[Reading]) -> tuple[int, int]:
        """Return the tokens that run beyond cached prefixes, and those of all prompts."""
        run = static = 0
        for reading in readings:
            prompts = [item for item in reading.items if isinstance(item, EncodedExample)]
            skip = self._static_length(reading)
            static += skip
            if prompts:
                run += unique_tokens([item.prompt_ids[skip:] for item in prompts])
                run += sum(len(ids) - 1 for item in prompts for ids in item.completions)
            else:
                run += sum(item.num_tokens for item in reading.items)
        return run, run + static

    def _static_length(self, reading: Reading) -> int:
        encoder = reading.encoder
        if encoder is None:
            return 0
        if id(encoder) not in self._static:  # lives as long as the run
            self._static[id(encoder)] = len(static_start(encoder))
        return self._static[id(encoder)]


def part_of_text(encoder: PromptEncoder | BareEncoder, item: EncodedExample) -> tuple[int, int]:
    """Return where what is not the same in all prompts of an encoder starts and ends in one."""
    first, other = (one.prompt_ids for one in encoder.content_free(["a", "0"]))
    start = common_prefix_length(first, other)
    behind = common_prefix_length(first[::-1], other[::-1])
    return start, max(start, len(item.prompt_ids) - behind)


def _too_long(name: str, readings: Sequence[Reading], where: tuple[str | int, ...]) -> RequestError:
    for reading in readings:
        for item in reading.items:
            if item.id == name and item.num_tokens_cut:
                found = item.num_tokens + item.num_tokens_cut
                return too_long(found, reading.max_length, where)
    raise AssertionError("a shortened text is in no reading")


def too_long(found: int, allowed: int, where: Sequence[str | int]) -> RequestError:
    """Return the error of a text that does not fit."""
    return RequestError(
        422,
        f"The text is too long: {found} tokens with its prompt, and at most {allowed} are read. "
        "Send less, or allow it to be shortened.",
        where=where,
    )


def _card(question: AskedQuestion, asked: RunQuestion | None) -> Question:
    names = question.task.label_names
    if asked is None:
        words = question.task.written.instruction.strip()
        return Question("choice", words, tuple(Option(name) for name in names))
    if asked.kind == "yes_no":
        meanings = {option.name: option.description for option in asked.options}
        options = tuple(
            Option(name, meanings[label]) for name, label in zip(NOUL, ("yes", "no"), strict=True)
        )
        return Question("noul", asked.ask.strip(), options)
    if asked.kind == "score":
        levels = tuple(
            Option(str(place), option.description or option.name)
            for place, option in enumerate(asked.options)
        )
        return Question("score", asked.ask.strip(), levels)
    options = tuple(Option(option.name, option.description) for option in asked.options)
    return Question("choice", asked.ask.strip(), options)


def _labels(question: Question, own: AskedQuestion) -> dict[str, str] | None:
    """Return option -> label where a question's options are those of a run's question."""
    labels, names = own.task.label_names, [option.name for option in question.options]
    if sorted(names) == sorted(labels):
        return dict(zip(names, names, strict=True))
    folded = {label.casefold(): label for label in labels}
    if question.kind == "noul" and len(labels) == 2:
        for pair in YES_NO:
            if set(folded) == pair:
                yes, no = ("yes", "no") if "yes" in pair else NOUL
                return {"true": folded[yes], "false": folded[no]}
    if question.kind == "score" and len(names) == len(labels):
        told = [option.description.strip() for option in question.options]
        numbers = [f"{level:g}" for level in own.task.levels]
        if told == labels or (numbers and (told == numbers or not any(told))):
            return dict(zip(names, labels, strict=True))
    return None
