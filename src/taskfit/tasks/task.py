"""What is asked of the model: columns, labels with their words, a template, a metric."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from taskfit.errors import PromptError, SettingsError
from taskfit.settings import TaskSettings
from taskfit.tasks.template import LABEL, Template

METRICS = ("accuracy", "mcc", "macro_f1")


@dataclass(frozen=True, slots=True)
class Label:
    """A label and the words that stand for it; their probabilities add up.

    Attributes:
        name: Name in tables of results.
        words: What the model reads and predicts, leading space included; the first one stands in
            demonstrations, and where options are listed.
        description: What it means, where options are listed; may be empty.
    """

    name: str
    words: tuple[str, ...]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """A text classification task.

    Attributes:
        name: Short name.
        version: Raised whenever results are no longer comparable.
        text: Text columns in order.
        label_column: Column of the labels.
        labels: In the order of all score columns.
        values: Values in the table -> label names, where they differ.
        template: How a prompt is written.
        metric: accuracy, mcc or macro_f1; chooses the best checkpoint.
        num_demonstrations: Labelled examples in the prompt.
        chat: Whether the prompt goes through the model's chat template.
        multi_label: Whether a text may have several of the labels, or none.
        levels: Of a score, the numbers of its labels, ascending; empty for others.
        weight: Factor of its loss among several questions.
        allow_control_tokens: Whether control tokens that stand in texts and words are read as such.
        coarse: Coarser label -> the labels that it is made of. An evaluation set in which one
            stands is measured on coarser labels: their probabilities are sums.
        listed: Names of labels in the order in which the prompt lists them as options; those not
            named follow in their own order.
    """

    name: str
    version: int
    text: tuple[str, ...]
    label_column: str
    labels: tuple[Label, ...]
    values: Mapping[str, str]
    template: Template
    metric: str
    num_demonstrations: int
    chat: bool = False
    multi_label: bool = False
    levels: tuple[float, ...] = ()
    weight: float = 1.0
    allow_control_tokens: bool = False
    coarse: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    listed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check what can be checked without a tokenizer; collect all problems.

        Raises:
            PromptError: Listing them.
        """
        problems = self.template.problems(self.text)
        if len(self.labels) < 2:
            problems.append(f"{len(self.labels)} labels; a classifier needs at least two")
        if self.metric not in METRICS:
            problems.append(f"metric {self.metric!r}; allowed are {', '.join(METRICS)}")
        if self.num_demonstrations < 0:
            problems.append(f"num_demonstrations is {self.num_demonstrations}; 0 is the least")
        problems += self._word_problems() + self._value_problems() + self._coarse_problems()
        if problems:
            raise PromptError(f"Task {self.name}: " + "; ".join(problems) + ".")

    def _word_problems(self) -> list[str]:
        problems = []
        seen: dict[str, str] = {}
        for label in self.labels:
            if not label.words:
                problems.append(f"label {label.name!r} has no word")
            for word in label.words:
                if not word.strip():
                    problems.append(f"label {label.name!r} has an empty word {word!r}")
                elif word in seen:
                    problems.append(
                        f"word {word!r} stands for {seen[word]!r} and for {label.name!r}"
                    )
                seen[word] = label.name
        return problems

    def _value_problems(self) -> list[str]:
        names = self.label_names
        problems = [
            f"label {name!r} stands {count} times in labels; name it once, with all its words"
            for name, count in Counter(names).items()
            if count > 1
        ]
        problems += [
            f"listed names {name!r}, which is no label" for name in self.listed if name not in names
        ]
        if len(set(self.listed)) < len(self.listed):
            problems.append("listed names a label twice; an order has each once")
        for value, name in self.values.items():
            if name not in names:
                problems.append(f"value {value!r} stands for {name!r}, which is no label")
            elif value in names and value != name:
                problems.append(f"value {value!r} of label {name!r} is the name of another label")
        return problems

    def _coarse_problems(self) -> list[str]:
        names, problems = self.label_names, []
        if self.coarse and self.multi_label:
            problems.append("coarse labels are for tasks of one label a text")
        for coarse, members in self.coarse.items():
            if coarse in names:
                problems.append(f"the coarse label {coarse!r} is one of the labels, too")
            for member in members:
                if member not in names:
                    problems.append(f"{coarse!r} is made of {member!r}, which is no label")
        made = Counter(member for members in self.coarse.values() for member in members)
        problems += [
            f"label {name!r} is part of several coarse labels"
            for name, count in made.items()
            if count > 1
        ]
        return problems

    def coarsened(self) -> "Task":
        """Return the task of telling apart its coarse labels, and those that are part of none."""
        made = {member: name for name, members in self.coarse.items() for member in members}
        words: dict[str, list[str]] = {}
        for label in self.labels:
            words.setdefault(made.get(label.name, label.name), []).extend(label.words)
        labels = tuple(Label(name, tuple(own)) for name, own in words.items())
        values = {value: made.get(name, name) for value, name in self.values.items()} | made
        return replace(self, labels=labels, values=values, coarse={}, listed=())

    def with_instruction(self, instruction: str) -> "Task":
        """Return the same task with another instruction."""
        return replace(self, template=replace(self.template, instruction=instruction))

    @property
    def tasks(self) -> Mapping[str, "Task"]:
        """Return its questions by name: itself, which needs none."""
        return {"": self}

    @property
    def label_names(self) -> list[str]:
        """Return the labels' names in order."""
        return [label.name for label in self.labels]

    @property
    def names_options(self) -> bool:
        """Return whether the prompt lists the labels as options."""
        return self.template.names_options(self.text)

    @property
    def option_names(self) -> list[str]:
        """Return the labels' names in the order in which they are listed as options."""
        return list(dict.fromkeys([*self.listed, *self.label_names]))

    @property
    def written(self) -> Template:
        """Return the template as prompts are written by it, options listed in their order."""
        if not self.names_options:
            return self.template
        by_name = {label.name: label for label in self.labels}
        options = [by_name[name] for name in self.option_names]
        return self.template.with_options(partial(_list_of, options), self.text)


def _list_of(options: Sequence[Label], last: str) -> str:
    """Return options as a prompt lists them: in a row, or each on a line with what it means."""
    words = [option.words[0].strip() if option.words else "" for option in options]
    if not any(option.description for option in options):
        return in_a_row(words, last)
    return "\n".join(
        f"- {word}: {option.description}" if option.description else f"- {word}"
        for word, option in zip(words, options, strict=True)
    )


def in_a_row(words: Sequence[str], last: str) -> str:
    """Return `a`, `a or b`, `a, b or c`; without a word before the last one `a, b, c`."""
    if not last:
        return ", ".join(words)
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def readable(name: str) -> str:
    """Turn a column or label name into words: `card_payment-fee` to `card payment fee`."""
    return re.sub(r"[_\-\s]+", " ", name).strip() or name


def column_lines(text: Sequence[str], quote: str = "") -> list[str]:
    """Return a line of a template for each text column, with the column's name in front."""
    return [f"{readable(name).capitalize()}: {quote}{{{name}}}{quote}" for name in text]


def default_words(names: Sequence[str]) -> dict[str, str]:
    """Return the word that stands for each label that names none, leading space included."""
    words = [readable(name) for name in names]
    # `top_up` and `top-up` read the same; then every label stands for itself.
    if len(set(words)) < len(set(names)):
        words = list(names)
    return {name: f" {word}" for name, word in zip(names, words, strict=True)}


def task_from_columns(
    *, name: str, text: Sequence[str], label_column: str, labels: Sequence[str]
) -> Task:
    """Make a task from the names in a table: a line for each text column, then the label."""
    for column in (*text, label_column):
        if "{" in column or "}" in column:
            raise PromptError(f"The column name {column!r} has braces in it. Rename the column.")
    if LABEL in text:
        raise PromptError(
            "A text column cannot be called 'label', because {label} in a template is where the "
            f"label stands; the label column may ({label_column!r} is it here). Rename the column."
        )
    lines = [*column_lines(text), f"{readable(label_column).capitalize()}:{{label}}"]
    words = default_words(labels)
    return Task(
        name=name,
        version=1,
        text=tuple(text),
        label_column=label_column,
        labels=tuple(Label(name, (words[name],)) for name in labels),
        values={},
        template=Template(instruction="", line="\n".join(lines), separator="\n\n"),
        metric="accuracy",
        num_demonstrations=min(len(labels), 4),
    )


def with_labels(task: Task, names: Sequence[str]) -> Task:
    """Return a task with further labels behind its own, each with its name as its word."""
    taken = {word for label in task.labels for word in label.words}
    added = []
    for name in names:
        word = f" {readable(name)}"
        word = f" {name}" if word in taken else word
        taken.add(word)
        added.append(Label(name, (word,)))
    return replace(task, labels=(*task.labels, *added))


def override_task(task: Task, settings: TaskSettings, num_demonstrations: int | None) -> Task:
    """Replace parts of a task by what the settings give.

    Raises:
        SettingsError: If a label in `label_words` is not the task's.
        PromptError: If the result is not a sound task.
    """
    names = task.label_names
    unknown = [name for name in settings.label_words if name not in names]
    if unknown:
        raise SettingsError(
            f"task.label_words names {', '.join(map(repr, unknown))}; the labels of task "
            f"{task.name} are {', '.join(names)}."
        )
    given = {
        name: (words,) if isinstance(words, str) else tuple(words)
        for name, words in settings.label_words.items()
    }
    wording = settings.model_dump(include={"instruction", "line", "separator"}, exclude_none=True)
    return replace(
        task,
        labels=tuple(replace(one, words=given.get(one.name, one.words)) for one in task.labels),
        template=replace(task.template, **wording),
        chat=task.chat or settings.chat,
        multi_label=task.multi_label or settings.multi_label,
        allow_control_tokens=task.allow_control_tokens or settings.allow_control_tokens,
        num_demonstrations=(
            task.num_demonstrations if num_demonstrations is None else num_demonstrations
        ),
    )
