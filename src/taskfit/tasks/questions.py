"""Several questions about one text: choices, yes or no, and scores on ordered levels.

Every question compiles to an ordinary `Task`, so that one encoder serves all. The prompts of all
questions about a text start with the same instruction and the same text; in a token tree they are
branches of one trunk.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal, get_args

from taskfit.errors import PromptError, suggestion
from taskfit.tasks.task import METRICS, Label, Task, column_lines, default_words
from taskfit.tasks.template import LABEL, Template, escaped

Kind = Literal["choice", "yes_no", "score"]
KINDS: tuple[Kind, ...] = get_args(Kind)
YES_NO = ("yes", "no")
LEAST_LEVELS, MOST_LEVELS = 2, 10
SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class Option:
    """An answer to a question.

    Attributes:
        name: Name in tables of results.
        words: What the model predicts, leading space included; their probabilities add up. The
            first one stands in the prompt.
        description: What it means, for the prompt; may be empty.
        number: Level of a score; None for other kinds.
        values: Values in the label column that mean it, besides its name.
    """

    name: str
    words: tuple[str, ...]
    description: str = ""
    number: float | None = None
    values: tuple[str, ...] = ()


# What tables write for yes and no; a task file may list other values instead.
DEFAULT_YES_NO = (
    Option("yes", (" yes",), values=("Yes", "YES", "true", "True", "TRUE", "1")),
    Option("no", (" no",), values=("No", "NO", "false", "False", "FALSE", "0")),
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a text.

    Attributes:
        name: Short name, for results and columns.
        ask: The question's words.
        kind: choice, yes_no or score.
        label_column: Column of its labels.
        options: Its answers; levels of a score in ascending order.
        weight: Factor of its loss in training.
    """

    name: str
    ask: str
    kind: Kind
    label_column: str
    options: tuple[Option, ...]
    weight: float = 1.0

    @property
    def option_names(self) -> list[str]:
        """Return the options' names in order."""
        return [option.name for option in self.options]

    @property
    def values(self) -> dict[str, str]:
        """Return values of the label column -> names of options, where they differ."""
        return {value: option.name for option in self.options for value in option.values}

    @property
    def levels(self) -> list[float]:
        """Return the numbers of a score's levels in order; of other kinds, nothing."""
        return [option.number for option in self.options if option.number is not None]

    @property
    def output_columns(self) -> list[str]:
        """Return the columns that it has in a table of predictions."""
        expected = [f"expected_{self.name}"] if self.kind == "score" else []
        shares = [f"p_{self.name}_{name}" for name in self.option_names]
        return [f"gold_{self.name}", f"predicted_{self.name}", *expected, *shares]

    def problems(self) -> list[str]:
        """Return what is wrong with it, beyond what its task checks."""
        problems = []
        if not re.fullmatch(r"[\w\-. ]*\w[\w\-. ]*", self.name):
            problems.append(
                "its name may have letters, digits, spaces, '_', '-' and '.' only, since files and "
                "columns are called by it"
            )
        if not self.ask.strip():
            problems.append("ask is empty; it needs the question's words")
        if self.kind not in KINDS:
            problems.append(f"kind {self.kind!r}; allowed are {', '.join(KINDS)}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            problems.append(f"weight is {self.weight}; it must be above 0")
        stands_for: dict[str, str] = {}
        for option in self.options:
            for value in option.values:
                other = stands_for.setdefault(value, option.name)
                if other != option.name:
                    problems.append(f"value {value!r} stands for {other!r} and for {option.name!r}")
        if self.kind == "yes_no" and sorted(self.option_names) != sorted(YES_NO):
            problems.append(
                f"the options of yes_no are 'yes' and 'no', not "
                f"{', '.join(map(repr, self.option_names))}; use kind: choice for others"
            )
        return problems + (self._level_problems() if self.kind == "score" else [])

    def _level_problems(self) -> list[str]:
        problems = []
        if not LEAST_LEVELS <= len(self.options) <= MOST_LEVELS:
            problems.append(
                f"{len(self.options)} levels; a score has {LEAST_LEVELS} to {MOST_LEVELS}"
            )
        without = [option.name for option in self.options if option.number is None]
        if without:
            problems.append(
                f"level {', '.join(map(repr, without))} has no number; give `number`, or name the "
                "level by one"
            )
        levels = self.levels
        if not all(map(math.isfinite, levels)):
            problems.append("the number of a level must be finite")
        if any(after <= before for before, after in pairwise(levels)):
            shown = ", ".join(f"{level:g}" for level in levels)
            problems.append(f"levels stand in ascending order, each number once, not as {shown}")
        return problems


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """Several questions about one text.

    Attributes:
        name: Short name.
        version: Raised whenever results are no longer comparable.
        text: Text columns in order.
        questions: In the order of all results.
        instruction: Stands first in every prompt; may be empty.
        metric: accuracy, mcc or macro_f1; its mean over questions chooses the best checkpoint.
        chat: Whether prompts go through the model's chat template.
        allow_control_tokens: Whether control tokens that stand in texts and words are read as such.
    """

    name: str
    version: int
    text: tuple[str, ...]
    questions: tuple[Question, ...]
    instruction: str = ""
    metric: str = "accuracy"
    chat: bool = False
    allow_control_tokens: bool = False
    num_demonstrations: ClassVar[int] = 0

    def __post_init__(self) -> None:
        """Check what can be checked without a tokenizer; collect all problems.

        Raises:
            PromptError: Listing them.
        """
        problems = self._column_problems()
        if self.metric not in METRICS:
            problems.append(f"metric {self.metric!r}; allowed are {', '.join(METRICS)}")
        if not self.questions:
            problems.append("there is no question")
        for name, count in Counter(question.name for question in self.questions).items():
            if count > 1:
                problems.append(f"{count} questions are called {name!r}; name each differently")
        for question in self.questions:
            found = question.problems()
            if question.label_column in self.text:
                found.append(
                    f"its label column {question.label_column!r} is a text column too, so the "
                    "prompt would hold the answer"
                )
            found += self._task_problems(question)
            problems += [f"question {question.name!r}: {problem}" for problem in found]
        if problems:
            raise PromptError(f"Questions {self.name}: " + "; ".join(problems) + ".")

    def _column_problems(self) -> list[str]:
        problems = [] if self.text else ["text names no column"]
        for column in self.text:
            if not _is_sound(column):
                problems.append(
                    f"a text column cannot be called {column!r} (braces, or the name 'label', mean "
                    "something else in a template); rename the column"
                )
        columns = [
            "id",
            *self.text,
            *(column for question in self.questions for column in question.output_columns),
        ]
        problems += [
            f"{count} columns of the predictions would be called {name!r}; rename a text column, "
            "a question or an option"
            for name, count in Counter(columns).items()
            if count > 1
        ]
        return problems

    def _task_problems(self, question: Question) -> list[str]:
        # What is wrong with columns or metric is wrong once, not in every question.
        text = tuple(column for column in self.text if _is_sound(column)) or ("text",)
        try:
            self._task(question, text=text, metric=METRICS[0])
        except PromptError as error:
            return [str(error).removeprefix(f"Task {self.name}/{question.name}: ").rstrip(".")]
        return []

    @property
    def names(self) -> list[str]:
        """Return the questions' names in order."""
        return [question.name for question in self.questions]

    @property
    def tasks(self) -> dict[str, Task]:
        """Return every question as a task, by name, in order."""
        return {question.name: self.task(question) for question in self.questions}

    def task(self, question: Question) -> Task:
        """Return a question as an ordinary task.

        Raises:
            PromptError: If it is not a sound one.
        """
        return self._task(question, text=self.text, metric=self.metric)

    def _task(self, question: Question, *, text: tuple[str, ...], metric: str) -> Task:
        return Task(
            name=f"{self.name}/{question.name}",
            version=self.version,
            text=text,
            label_column=question.label_column,
            labels=tuple(
                Label(option.name, option.words, option.description.strip())
                for option in question.options
            ),
            values=question.values,
            template=Template(self.instruction, _line(question, text), SEPARATOR),
            metric=metric,
            num_demonstrations=0,
            chat=self.chat,
            levels=tuple(question.levels) if question.kind == "score" else (),
            weight=question.weight,
            allow_control_tokens=self.allow_control_tokens,
        )

    def with_options(self, options: Mapping[str, Sequence[str]]) -> "Questionnaire":
        """Return the same questions, some of them over other options.

        Args:
            options: Question -> names of its options.

        Raises:
            PromptError: If there is no such question, or its options cannot be these.
        """
        for name in options:
            if name not in self.names:
                raise PromptError(
                    f"There is no question {name!r}; the questions are {', '.join(self.names)}."
                    f"{suggestion(name, self.names)}"
                )
        changed = tuple(
            with_options(question, options[question.name]) if question.name in options else question
            for question in self.questions
        )
        return replace(self, questions=changed)


# What a run asks about a text: one question or several, by name in `tasks`.
Asked = Task | Questionnaire


def with_options(question: Question, names: Sequence[str]) -> Question:
    """Return the same question over other options, for answers that were not trained.

    An option that the question has already keeps its words, description and values.

    Args:
        question: A choice, or a score; its levels are then named by their numbers.
        names: The options.

    Raises:
        PromptError: If the question is yes_no, or a level is no number.
    """
    names = [name.strip() for name in names]
    if question.kind == "yes_no":
        raise PromptError(
            f"Question {question.name} is answered by yes or no; only the options of choice and "
            "score can be named anew."
        )
    known = {option.name: option for option in question.options}
    words = default_words(names)
    options = []
    for name in names:
        number = level_number(name) if question.kind == "score" else None
        if name in known:
            options.append(known[name])
        elif question.kind == "score" and number is None:
            raise PromptError(
                f"Question {question.name} is a score; name its new levels by their numbers, such "
                f"as 1,2,3; {name!r} is none."
            )
        else:
            options.append(Option(name, (words[name],), number=number))
    return replace(question, options=tuple(options))


def level_number(name: str) -> float | None:
    """Return the number that a level is named by, if any."""
    try:
        return float(name)
    except ValueError:
        return None


def _line(question: Question, text: Sequence[str]) -> str:
    """Write the line: the texts first, as in all questions, then what is asked."""
    lines = [*column_lines(text), f"Question: {escaped(question.ask.strip())}"]
    described = any(option.description.strip() for option in question.options)
    # With the colon, a text column that is called `options` is not meant.
    lines += ["Options:", "{options:}"] if described else ["Options: {options:}"]
    lines.append("Answer:{label}")
    return "\n".join(lines)


def _is_sound(column: str) -> bool:
    """Whether a template can name a text column."""
    return not ("{" in column or "}" in column or column == LABEL)
