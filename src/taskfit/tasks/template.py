"""How a prompt is written: an instruction, one line format, a separator.

The same line format serves demonstrations and query, so they cannot drift apart. It is parsed, not
formatted: braces in a user's texts mean nothing.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from taskfit.errors import close_match

LABEL = "label"
# Where the options are listed: `a, b, c`, or with a word before the last one, `a, b or c`.
OPTIONS = re.compile(r"options(?::(?P<last>[^{}]*))?")


def escaped(text: str) -> str:
    """Return text for a template's line, where braces mean themselves."""
    return text.replace("{", "{{").replace("}", "}}")


@dataclass(frozen=True, slots=True)
class Template:
    """The format of a prompt.

    Attributes:
        instruction: Stands first; may be empty.
        line: Format of one example, such as ` {sentence} -{label}`; `{{` and `}}` are braces.
            The query ends where `{label}` stands; what follows it shows in demonstrations only.
        separator: Stands between instruction, demonstrations and query.

    In instruction and line, `{options}` is where the options are listed, `{options:or}` the same
    with that word before the last one. Until `with_options` has written them there, such a template
    makes no prompt.
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
        named = [name for name in fields if name != LABEL and not _lists(name, columns)]
        if not named:
            problems.append(
                f"the line {self.line!r} names no text column; name at least one of "
                + ", ".join(f"{{{name}}}" for name in columns)
            )
        for name in named:
            if name not in columns:
                close = close_match(name, columns)
                hint = f", did you mean {{{close}}}?" if close else ""
                problems.append(
                    f"the line {self.line!r} names {{{name}}}, which is no text column "
                    f"({', '.join(columns)}){hint}"
                )
        return problems

    def names_options(self, columns: Sequence[str]) -> bool:
        """Return whether options are listed somewhere; a text column called `options` is none."""
        in_line = any(is_field and _lists(name, columns) for name, is_field in self.parts())
        return in_line or bool(_places(self.instruction))

    def with_options(self, write: Callable[[str], str], columns: Sequence[str]) -> "Template":
        """Return the template with the options written where they are listed.

        Args:
            write: Takes the word before the last option, which may be empty; returns the list.
            columns: The task's text columns, which a place in the line may be called by, too.
        """
        line = "".join(
            escaped(write(_word_before_last(value)))
            if is_field and _lists(value, columns)
            else f"{{{value}}}"
            if is_field
            else escaped(value)
            for value, is_field in self.parts()
        )
        instruction, last = "", 0
        for match in _places(self.instruction):
            instruction += self.instruction[last : match.start()] + write(match["last"] or "")
            last = match.end()
        return replace(self, instruction=instruction + self.instruction[last:], line=line)

    def query(self, texts: Mapping[str, str]) -> str:
        """Return the line up to where the label stands."""
        written = []
        for value, is_field in self.parts():
            if is_field and value == LABEL:
                break
            written.append(texts[value] if is_field else value)
        return "".join(written)

    def after_label(self) -> str:
        """Return what follows every label in a prompt with demonstrations, up to the next text."""
        parts = self.parts()
        place = parts.index((LABEL, True))
        following = "".join(static for static, _ in takewhile(_is_static, parts[place + 1 :]))
        if any(is_field for _, is_field in parts[place + 1 :]):
            return following
        opening = "".join(static for static, _ in takewhile(_is_static, parts))
        return following + self.separator + opening

    def demonstration(self, texts: Mapping[str, str], word: str) -> str:
        """Return the whole line with the label's word in its place."""
        return "".join(
            (word if value == LABEL else texts[value]) if is_field else value
            for value, is_field in self.parts()
        )


def _places(instruction: str) -> list[re.Match[str]]:
    """Return the places of an instruction, in which all other braces mean themselves."""
    return list(re.finditer(rf"\{{{OPTIONS.pattern}\}}", instruction))


def _lists(name: str, columns: Sequence[str]) -> bool:
    return name not in columns and OPTIONS.fullmatch(name) is not None


def _word_before_last(name: str) -> str:
    found = OPTIONS.fullmatch(name)
    return "" if found is None else found["last"] or ""


def _is_static(piece: tuple[str, bool]) -> bool:
    return not piece[1]
