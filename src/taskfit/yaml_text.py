"""Read YAML as version 1.2 has it, and texts as they are written: 010, 12:30, yes and null too.

A word without quotes is a number, a truth value or nothing only where one belongs; what belongs
where is said by the types of the settings, or of a file's entries.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from taskfit.errors import TaskfitError

NULL = re.compile(r"null|Null|NULL|~|")
TRUE, FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
# More digits than any setting has are read as a real number, which Python does without limit.
INTEGERS = (
    (re.compile(r"[-+]?[0-9][0-9_]{0,99}"), 10),
    (re.compile(r"0x[0-9a-fA-F]{1,99}"), 16),
    (re.compile(r"0o[0-7]{1,99}"), 8),
)
REAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
# Whatever a type says what belongs somewhere, or several of them that may.
Kind = Any


class Word(str):
    """A scalar without quotes, which may stand for something else than the text that it is."""

    __slots__ = ()

    def meant(self) -> Any:  # noqa: ANN401 - any scalar
        """Return what YAML 1.2 takes it for."""
        if NULL.fullmatch(self):
            return None
        if self in (*TRUE, *FALSE):
            return self in TRUE
        for pattern, base in INTEGERS:
            if pattern.fullmatch(self):
                return int(self.replace("_", ""), base)
        if REAL.fullmatch(self):
            return float(self)
        if found := NOT_FINITE.fullmatch(self):
            return float(f"{found[1]}{found[2]}")
        return str(self)


@dataclass(frozen=True, slots=True)
class ReadBy:
    """Beside a type: what reads a value of it, where that depends on more than the type.

    Attributes:
        read: Called with the value and the outermost section or entry that it stands in.
    """

    read: Callable[[Any, type[BaseModel]], Any]


class _Words(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """Part of a loader: scalars without quotes stay as `Word`; a key must not stand twice."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:  # noqa: ANN401 - PyYAML's
        if kind is yaml.ScalarNode and implicit[0] and value != "<<":
            return "!word"
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: ANN401
        seen: dict[str, Any] = {}
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if key.value != "<<" and (first := seen.setdefault(key.value, key)) is not key:
                raise yaml.constructor.ConstructorError(
                    f"the key {key.value!r} stands twice, first there:",
                    first.start_mark,
                    "and again",
                    key.start_mark,
                )
        return super().construct_mapping(node, deep=deep)


class _Loader(_Words, yaml.SafeLoader):
    """Reads slowly, and shows the line in which an error is."""


# Where PyYAML was built with libyaml, as its wheels are, that reads ten times as fast.
class _FastLoader(_Words, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads the same fast."""


class _Dumper(yaml.SafeDumper):
    """Puts texts with one of Unicode's own line breaks into quotes that keep it."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = '"' if any(c in data for c in "\x85\u2028\u2029") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _loader in (_Loader, _FastLoader):
    _loader.add_constructor("!word", lambda _, node: Word(node.value))


def parse_yaml(text: str, kind: Kind = Any) -> Any:  # noqa: ANN401 - whatever the text holds
    """Return what a YAML text holds.

    Args:
        text: The text.
        kind: The type of what it holds, see `as_kind`.

    Raises:
        yaml.YAMLError: If it is no YAML.
    """
    return as_kind(parse_words(text), kind)


def parse_words(text: str) -> Any:  # noqa: ANN401 - whatever the text holds
    """Return what a YAML text holds, with every scalar without quotes as a `Word`.

    Raises:
        yaml.YAMLError: If it is no YAML.
    """
    try:
        return yaml.load(text, Loader=_FastLoader)
    except yaml.YAMLError:
        return yaml.load(text, Loader=_Loader)


def read_yaml(
    path: Path,
    what: str,
    error_type: type[TaskfitError],
    kind: Kind = Any,
) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return what a YAML file holds.

    Args:
        path: The file, in UTF-8.
        what: What it is, for messages, such as `task file`.
        error_type: Raised if there is no such file, it cannot be read, or it is no YAML.
        kind: The type of what it holds, see `as_kind`.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8-sig"), kind)
    except FileNotFoundError as error:
        raise error_type(f"There is no {what} {path}.") from error
    except OSError as error:
        raise error_type(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise error_type(
            f"The {what} {path} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    except yaml.YAMLError as error:
        raise error_type(f"The {what} {path} is not YAML: {error}") from error


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Return a YAML text that `parse_yaml` and every other reader reads as the same again."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def as_kind(value: Any, kind: Kind, whole: type[BaseModel] | None = None) -> Any:  # noqa: ANN401
    """Return a value in which every `Word` is a text where a text belongs, else what it means.

    Nothing is checked: a value of another kind stays as it is.

    Args:
        value: Of a loaded document.
        kind: A type, or several as `members` returns them: settings, entries, dictionaries, lists,
            `Any`.
        whole: The outermost section or entry that the value stands in, if it stands in one.
    """
    kinds = members(kind)
    if isinstance(value, Word):
        return _word(value, kinds)
    models = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
    whole = whole or next(iter(models), None)
    reader = next((one.read for one in kinds if isinstance(one, ReadBy)), None)
    if reader is not None and whole is not None:
        return reader(value, whole)
    if isinstance(value, Mapping):
        own = _keys(kinds)
        return {
            as_kind(key, own): as_kind(one, inside(kinds, key), whole) for key, one in value.items()
        }
    if isinstance(value, list):
        return [as_kind(one, _items(kinds), whole) for one in value]
    return value


def members(kind: Kind) -> tuple[Any, ...]:
    """Return the types of which one may stand somewhere, with what is said beside them."""
    if isinstance(kind, tuple):
        return kind
    if isinstance(kind, FieldInfo):
        return (*members(kind.annotation), *kind.metadata)
    origin: Any = get_origin(kind)
    if origin is Annotated:
        first, *beside = get_args(kind)
        return (*members(first), *beside)
    if origin in (Union, UnionType):
        return tuple(one for part in get_args(kind) for one in members(part))
    return (kind,)


def inside(kind: Kind, key: object) -> tuple[Any, ...]:
    """Return the types of what may stand behind a key; none where the key is not known."""
    found: list[Any] = []
    for one in members(kind):
        if isinstance(one, type) and issubclass(one, BaseModel):
            found += members(one.model_fields.get(str(key), ()))
        elif is_typeddict(one):
            found += members(get_type_hints(one, include_extras=True).get(str(key), ()))
        elif get_origin(one) in (dict, Mapping):
            found += members(get_args(one)[1])
    return tuple(found)


def _keys(kinds: Sequence[Any]) -> tuple[Any, ...]:
    """Return the types of the keys of a dictionary: texts, unless it says otherwise."""
    own = [get_args(one)[0] for one in kinds if get_origin(one) in (dict, Mapping)]
    return members(own[0]) if own else (str,)


def _items(kinds: Sequence[Any]) -> tuple[Any, ...]:
    """Return the types of the entries of a list."""
    lists = [one for one in kinds if get_origin(one) in (list, tuple, Sequence)]
    return tuple(one for part in lists for one in members(get_args(part)[0]))


def _word(word: Word, kinds: tuple[Any, ...]) -> Any:  # noqa: ANN401 - any scalar
    meant = word.meant()
    if not kinds or Any in kinds or (meant is None and (NoneType in kinds or word == "")):
        return meant
    choices = [choice for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    if str(word) in choices:
        return str(word)
    if type(meant) in kinds or (str not in kinds and (choices or {bool, int, float} & {*kinds})):
        return meant
    # A word where a list belongs is one of a list's; where a section does, a wrong one to be told.
    return str(word) if str in kinds else as_kind(word, _items(kinds) or str)
