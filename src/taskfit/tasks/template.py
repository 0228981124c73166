"""How a prompt is written: an instruction, one line format, a separator.

The same line format serves demonstrations and query, so they cannot drift apart. It is parsed, not
formatted: braces in a user's texts mean nothing.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from taskfit.data import Example
from taskfit.errors import PromptError

if TYPE_CHECKING:
    from taskfit.tasks.task import Task
    from taskfit.tasks.text_encoder import Tokenizer

LABEL = "label"


@dataclass(frozen=True, slots=True)
class Template:
    """The format of a prompt.

    Attributes:
        instruction: Stands first; may be empty.
        line: Format of one example, such as ` {sentence} -{label}`; `{{` and `}}` are braces.
            The query ends where `{label}` stands; what follows it shows in demonstrations only.
        separator: Stands between instruction, demonstrations and query.
    """

    instruction: str
    line: str
    separator: str = "\n"

    def parts(self) -> list[tuple[str, bool]]:
        """Return the line as (text, False) and (column name, True) pieces."""
        pieces: list[tuple[str, bool]] = []
        position = 0
        for match in re.finditer(r"\{\{|\}\}|\{([^{}]*)\}", self.line):
            pieces.append((self.line[position : match.start()], False))
            if match.group(1) is None:
                pieces.append((match.group(0)[0], False))
            else:
                pieces.append((match.group(1), True))
            position = match.end()
        pieces.append((self.line[position:], False))
        return [piece for piece in pieces if piece[0] or piece[1]]

    def problems(self, columns: Sequence[str]) -> list[str]:
        """Return what is wrong with the line, given the task's text columns."""
        fields = [name for name, is_field in self.parts() if is_field]
        problems = []
        if fields.count(LABEL) != 1:
            problems.append(
                f"the line {self.line!r} has {fields.count(LABEL)} places for {{label}}; "
                "it needs exactly one"
            )
        named = [name for name in fields if name != LABEL]
        if not named:
            problems.append(
                f"the line {self.line!r} names no text column; name at least one of "
                + ", ".join(f"{{{name}}}" for name in columns)
            )
        for name in named:
            if name not in columns:
                close = difflib.get_close_matches(name, columns, n=1)
                hint = f", did you mean {{{close[0]}}}?" if close else ""
                problems.append(
                    f"the line {self.line!r} names {{{name}}}, which is no text column "
                    f"({', '.join(columns)}){hint}"
                )
        return problems

    def query(self, texts: Mapping[str, str]) -> str:
        """Return the line up to where the label stands."""
        written = []
        for value, is_field in self.parts():
            if is_field and value == LABEL:
                break
            written.append(texts[value] if is_field else value)
        return "".join(written)

    def demonstration(self, texts: Mapping[str, str], word: str) -> str:
        """Return the whole line with the label's word in its place."""
        return "".join(
            (word if value == LABEL else texts[value]) if is_field else value
            for value, is_field in self.parts()
        )


def render_prompt(task: "Task", texts: Mapping[str, str], demonstrations: Sequence[Example]) -> str:
    """Return the prompt of a query: instruction, demonstrations, and the line up to its label."""
    return prompt_head(task, demonstrations) + task.template.query(texts)


def prompt_head(task: "Task", demonstrations: Sequence[Example]) -> str:
    """Return what stands before the query, the same for all queries."""
    template = task.template
    words = {label.name: label.words[0] for label in task.labels}
    pieces = [template.instruction] if template.instruction else []
    pieces.extend(template.demonstration(d.texts, words[str(d.label)]) for d in demonstrations)
    return "".join(piece + template.separator for piece in pieces)


def chat_prompt(
    task: "Task",
    texts: Mapping[str, str],
    demonstrations: Sequence[Example],
    tokenizer: "Tokenizer",
) -> str:
    """Return the same prompt as a chat: system, turns of user and assistant, and the query.

    The answer then starts a turn, so label words lose their leading space. Chat templates that
    know no system turn get the instruction at the head of the first user's turn.

    Raises:
        PromptError: If the tokenizer has no chat template, or it refuses turns like these.
    """
    if not tokenizer.chat_template:
        raise PromptError(
            "task.chat is set, but this model has no chat template. Use an instruction-tuned "
            "model, or leave out task.chat."
        )
    messages = chat_messages(task, texts, demonstrations)

    def render(turns: list[dict[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    try:
        if messages[0]["role"] != "system":
            return render(messages)
        try:
            return render(messages)
        except TemplateError:
            system, query, *others = messages
            content = f"{system['content']}\n\n{query['content']}"
            return render([{"role": "user", "content": content}, *others])
    except TemplateError as error:
        raise PromptError(
            f"The model's chat template refuses this task: {error}. Leave out task.chat."
        ) from error


def chat_messages(
    task: "Task", texts: Mapping[str, str], demonstrations: Sequence[Example]
) -> list[dict[str, str]]:
    """Return the prompt as turns: system (if there is an instruction), user and assistant, user."""
    words = {label.name: label.words[0].strip() for label in task.labels}
    messages = []
    if task.template.instruction.strip():
        messages.append({"role": "system", "content": task.template.instruction.strip()})
    for shown in demonstrations:
        messages.append({"role": "user", "content": task.template.query(shown.texts).strip()})
        messages.append({"role": "assistant", "content": words[str(shown.label)]})
    messages.append({"role": "user", "content": task.template.query(texts).strip()})
    return messages
