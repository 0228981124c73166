"""Ways to put the same task to a model: templates and label words to try against each other.

Small changes of wording move in-context accuracy a lot (Lu et al. 2022, arXiv:2104.08786; Sclar et
al. 2024, arXiv:2310.11324), so they are tried and measured, not guessed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field, ValidationError

from taskfit.data import Example
from taskfit.errors import PromptError, TaskfitError
from taskfit.settings import TaskSettings
from taskfit.tasks.encode import PromptEncoder
from taskfit.tasks.entries import Entry, Texts, entry_problems
from taskfit.tasks.task import Task, column_lines, in_a_row, override_task, readable
from taskfit.tasks.template import LABEL, Template, escaped
from taskfit.tasks.text_encoder import Tokenizer
from taskfit.yaml_text import read_yaml

AS_GIVEN = "as given"
SEPARATORS = {"line break": "\n", "empty line": "\n\n", "rule": "\n---\n"}
# Instructions and questions list the labels up to this many of them.
MAX_LISTED = 10
QUOTE = '"'
QUOTES = "\"'`"


@dataclass(frozen=True, slots=True)
class NamedTask:
    """A task with the name it has among its variants.

    Attributes:
        name: Such as `arrow, no instruction, Capitalised`.
        task: The task.
    """

    name: str
    task: Task


@dataclass(frozen=True, slots=True)
class RefusedVariant:
    """A variant that cannot be turned into tokens.

    Attributes:
        name: Its name.
        reason: What the encoder says.
    """

    name: str
    reason: str


class _Wording(Entry):
    name: str | None = None
    instruction: str | None = None
    line: str | None = None
    separator: str | None = None
    label_words: dict[str, Texts] = Field({})


def generate_variants(task: Task) -> list[NamedTask]:
    """Return the task as given and variants of it, always the same ones, without duplicates.

    Line formats with and without an instruction; label words lower, capitalised, in quotes and
    without their leading space; texts in quotes; separators. Variants that would write the same
    prompts and words as an earlier one are left out.
    """
    found = [NamedTask(AS_GIVEN, task)]
    lines, instructions = _lines(task), _instructions(task)
    for line_name, line in lines.items():
        for name, instruction in instructions.items():
            found.append(_variant(task, (line_name, name), line=line, instruction=instruction))
    # An instruction and nothing else but the text; without one it would ask nothing.
    body = _body(task, "")
    for name in ("", "classify"):
        if instructions.get(name):
            changes = {"line": f"{body}\n{{{LABEL}}}", "instruction": instructions[name]}
            one = _variant(task, ("instruction only", name), **changes)
            found.append(NamedTask(one.name, _with_words(one.task, str.strip)))
    for line_name in ("", "label", "arrow", "question"):
        one = _variant(task, (line_name,), line=lines[line_name])
        found += _word_forms(one)
    for name, separator in SEPARATORS.items():
        found.append(_variant(task, (f"separator {name}",), separator=separator))
    return without_duplicates(found)


def without_duplicates(candidates: Sequence[NamedTask]) -> list[NamedTask]:
    """Return the first of all candidates that write the same prompts and words."""
    first: dict[tuple[object, ...], NamedTask] = {}
    for candidate in candidates:
        first.setdefault(wording(candidate.task), candidate)
    return list(first.values())


def with_base(candidates: Sequence[NamedTask], base: Task) -> tuple[list[NamedTask], str]:
    """Return the candidates, the task as given among them, and its name.

    Raises:
        PromptError: If another wording has the name that the task as given would get.
    """
    for one in candidates:
        if wording(one.task) == wording(base):
            return list(candidates), one.name
    if any(one.name == AS_GIVEN for one in candidates):
        raise PromptError(f"A candidate is called {AS_GIVEN!r} and has other words. Rename it.")
    return [NamedTask(AS_GIVEN, base), *candidates], AS_GIVEN


def wording(task: Task) -> tuple[object, ...]:
    """Return what tasks that write the same prompts and label words have in common."""
    template = task.written
    line = template.line if task.num_demonstrations else template.query(_places(task))
    words = tuple((label.name, label.words) for label in task.labels)
    if task.chat:
        # A chat has turns in place of separators, and nothing but the line up to its label.
        asked = template.query(_places(task)).strip()
        stripped = tuple((name, tuple(w.strip() for w in found)) for name, found in words)
        return template.instruction.strip(), asked, stripped
    has_separator = bool(template.instruction) or task.num_demonstrations > 0
    return template.instruction, line, template.separator if has_separator else "", words


def encode_candidates(
    candidates: Sequence[NamedTask],
    tokenizer: Tokenizer,
    demonstrations: Sequence[Example],
    *,
    max_length: int,
) -> tuple[dict[str, PromptEncoder], list[RefusedVariant]]:
    """Bind candidates to a tokenizer.

    Args:
        candidates: Their names differ.
        tokenizer: A fast tokenizer.
        demonstrations: What stands in every prompt.
        max_length: Longest prompt with its completion (tokens).

    Returns:
        Encoders by name, and the candidates that the tokenizer refuses.
    """
    encoders: dict[str, PromptEncoder] = {}
    refused = []
    for one in candidates:
        try:
            encoders[one.name] = PromptEncoder(
                tokenizer, one.task, demonstrations, max_length=max_length, marks_ends=True
            )
        except PromptError as error:
            refused.append(RefusedVariant(one.name, str(error)))
    return encoders, refused


def load_candidates(path: Path, base: Task) -> list[NamedTask]:
    """Read candidates from a YAML list; what one does not give is the base task's.

    Args:
        path: Each entry has any of name, instruction, line, separator and label_words (label ->
            its word or words, leading space included).
        base: The task that they are wordings of.

    Raises:
        PromptError: Listing everything that is wrong with the file.
    """
    data = read_yaml(path, "candidates file", PromptError, list[_Wording])
    if not isinstance(data, list) or not data:
        raise PromptError(
            f"The candidates file {path} needs a list, each entry with any of "
            f"{', '.join(_Wording.model_fields)}."
        )
    problems: list[str] = []
    found: list[NamedTask] = []
    for number, entry in enumerate(data, start=1):
        where = f"candidate {number}"
        try:
            given = _Wording.model_validate(entry)
            where += "" if given.name is None else f" ({given.name})"
            parts = TaskSettings(**given.model_dump(exclude={"name"}))
            found.append(NamedTask(given.name or where, override_task(base, parts, None)))
        except ValidationError as error:
            problems += entry_problems(error, _Wording, where)
        except TaskfitError as error:
            problems.append(f"{where}: {error}")
    problems += _clashes(found)
    if problems:
        raise PromptError(f"{path}:\n" + "\n".join(f"- {problem}" for problem in problems))
    return found


def _clashes(candidates: Sequence[NamedTask]) -> list[str]:
    problems = []
    names: set[str] = set()
    wordings: dict[tuple[object, ...], str] = {}
    for one in candidates:
        if one.name in names:
            problems.append(f"two candidates are called {one.name!r}; names must differ")
        names.add(one.name)
        other = wordings.setdefault(wording(one.task), one.name)
        if other != one.name:
            problems.append(f"{other!r} and {one.name!r} write the same prompts; leave one out")
    return problems


def _variant(task: Task, names: Sequence[str], **changes: str) -> NamedTask:
    """Return a task with other parts of its template."""
    name = ", ".join(filter(None, names)) or AS_GIVEN
    return NamedTask(name, replace(task, template=replace(task.template, **changes)))


def _lines(task: Task) -> dict[str, str]:
    """Return line formats by name; the task's own has none."""
    own, body = task.template.line, _body(task, "")
    end = f"{{{LABEL}}}"
    answer = escaped(readable(task.label_column).capitalize())
    quote_name, requoted = _quote_texts(task.template, task.text)
    return {
        "": own,
        quote_name: requoted,
        "leading space": own if own.startswith(" ") else f" {own}",
        "no leading space": own.lstrip(" "),
        "label": f"{body}\n{answer}:{end}",
        "label, texts quoted": f"{_body(task, QUOTE)}\n{answer}:{end}",
        "dash": f" {body} -{end}",
        "arrow": f"{body}\n=>{end}",
        "question": f"{body}\nQuestion: {escaped(_question(task))}\nAnswer:{end}",
    }


def _instructions(task: Task) -> dict[str, str]:
    """Return instructions by name; the task's own has none."""
    found = {"": task.template.instruction, "no instruction": ""}
    if len(task.labels) <= MAX_LISTED:
        what = in_a_row([readable(column) for column in task.text], "and")
        found["classify"] = f"Classify the {what} as {in_a_row(_bare_words(task), 'or')}."
        quoted = [f'"{word}"' for word in _bare_words(task)]
        found["classify quoted"] = f"Classify the {what} as {in_a_row(quoted, 'or')}."
    return found


def _word_forms(one: NamedTask) -> list[NamedTask]:
    """Return the same line with other forms of the label words."""
    task = one.task
    forms = {
        "words lower": _with_words(task, str.lower),
        "words Capitalised": _with_words(task, _capitalised),
        "words without space": _with_words(task, str.lstrip),
        "words with space": _with_words(task, _spaced),
    }
    pieces = task.template.parts()
    place = pieces.index((LABEL, True))
    before, after = _written(pieces[:place]), _written(pieces[place + 1 :])
    if before and before[-1] in QUOTES and after[:1] == before[-1]:
        bare = f"{before[:-1].rstrip(' ')}{{{LABEL}}}{after[1:]}"
        forms["words not quoted"] = _with_words(_variant(task, (), line=bare).task, _spaced)
    else:
        quoted = f'{before.rstrip(" ")} "{{{LABEL}}}"{after}'
        forms["words quoted"] = _with_words(_variant(task, (), line=quoted).task, str.strip)
    prefix = "" if one.name == AS_GIVEN else f"{one.name}, "
    return [NamedTask(prefix + name, changed) for name, changed in forms.items()]


def _with_words(task: Task, change: Callable[[str], str]) -> Task:
    """Return the task with changed words, or as it is where changed words would clash."""
    labels = tuple(
        replace(label, words=tuple(dict.fromkeys(map(change, label.words))))
        for label in task.labels
    )
    words = [word for label in labels for word in label.words]
    if len(set(words)) < len(words):
        return task
    return replace(task, labels=labels)


def _spaced(word: str) -> str:
    return " " + word.lstrip()


def _capitalised(word: str) -> str:
    """Raise the first letter and leave the rest: ` eBay` to ` EBay`."""
    bare = word.lstrip()
    return word[: len(word) - len(bare)] + bare[:1].upper() + bare[1:]


def _body(task: Task, quote: str) -> str:
    """Return the text columns as they stand before the label, the only one without its name."""
    if len(task.text) == 1:
        return f"{quote}{{{task.text[0]}}}{quote}"
    return "\n".join(column_lines(task.text, quote))


def _written(pieces: Sequence[tuple[str, bool]]) -> str:
    """Return a template's text of some of its parts; the inverse of `Template.parts`."""
    return "".join(f"{{{value}}}" if is_field else escaped(value) for value, is_field in pieces)


def _quote_texts(template: Template, columns: Sequence[str]) -> tuple[str, str]:
    """Return a name and the line with quotes around its texts, or without where they are there."""
    pieces = template.parts()
    fields = [i for i, (value, is_field) in enumerate(pieces) if is_field and value in columns]

    def edge(index: int, side: int) -> str:
        value, is_field = pieces[index] if 0 <= index < len(pieces) else ("", True)
        return "" if is_field else value[side:][:1]

    quoted = [i for i in fields if edge(i - 1, -1) and edge(i - 1, -1) == edge(i + 1, 0)]
    quoted = [i for i in quoted if edge(i - 1, -1) in QUOTES]
    if not quoted:
        marked = [
            f'"{_written([piece])}"' if i in fields else _written([piece])
            for i, piece in enumerate(pieces)
        ]
        return "texts quoted", "".join(marked)
    for i in quoted:
        pieces[i - 1] = (pieces[i - 1][0][:-1], False)
        pieces[i + 1] = (pieces[i + 1][0][1:], False)
    return "texts not quoted", _written(pieces)


def _question(task: Task) -> str:
    if len(task.labels) > MAX_LISTED:
        return f"Which {readable(task.label_column)} is it?"
    return f"Is it {in_a_row(_bare_words(task), 'or')}?"


def _bare_words(task: Task) -> list[str]:
    return [label.words[0].strip() for label in task.labels]


def _places(task: Task) -> dict[str, str]:
    """Return a stand-in for every text that no template holds."""
    return {name: f"\0{name}\0" for name in task.text}
