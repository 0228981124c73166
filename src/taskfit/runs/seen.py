"""Which texts a run used for what, so that a run that goes on from it keeps them on their side.

What weights have learned from tells nothing as a test, and a test text that is trained on is lost.
Texts are kept as hashes, so that it is known of a text whatever became of its table.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from taskfit.data import BUILTIN_NAMES, Example
from taskfit.data.overlap import text_key
from taskfit.errors import CheckpointError
from taskfit.files import file_atomic
from taskfit.runs.file_names import TEXTS_FILE
from taskfit.settings import DataSettings, RunSettings

TABLES = "tables"
# Sets of which a method learns.
LEARNED = ("train", "demonstrations", "unlabeled")


@dataclass(frozen=True, slots=True)
class Table:
    """A table that training rows of a run came from.

    Attributes:
        source: As the user named it; a built-in task by its name.
        path: Where it lies, whatever the working directory; of what is no file the same as source.
        label: Its label column as it was named, or None.
        encoding: Its text encoding.
        quotes: How marks at the start of its fields are read.
    """

    source: str
    path: str
    label: str | None
    encoding: str
    quotes: str = "auto"

    @property
    def is_builtin(self) -> bool:
        """Return whether it is the training set of a built-in task."""
        return self.path in BUILTIN_NAMES


@dataclass(frozen=True, slots=True)
class Seen:
    """The texts of a run, and of those that it goes on from.

    Attributes:
        sides: Hash of a text -> name of the set that it stood in.
        labels: Hash of a text -> hashes of the labels that it had.
        tables: What training rows came from, latest first.
    """

    sides: Mapping[int, str] = field(default_factory=dict)
    labels: Mapping[int, set[int]] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()

    def side(self, example: Example) -> str | None:
        """Return the set that a text stood in; None: it is new."""
        return self.sides.get(text_hash(example)) if self.sides else None

    def learned(self, example: Example) -> bool:
        """Return whether a text was learned from."""
        return self.side(example) in LEARNED

    def is_relabelled(self, example: Example) -> bool:
        """Return whether a text had a label, and never the one it has now."""
        if not self.labels:
            return False
        before = self.labels.get(text_hash(example), set()) - {_hash([None])}
        return bool(before) and _label_hash(example) not in before


def text_hash(example: Example) -> int:
    """Return a hash of an example's texts, the same for texts that count as the same."""
    return _hash(list(text_key(example)))


def _label_hash(example: Example) -> int:
    more = [dict(found) for found in (example.target, example.answers) if found is not None]
    return _hash([example.label, *more])


def _hash(value: Sequence[object]) -> int:
    digest = hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def tables_of(settings: RunSettings) -> tuple[Table, ...]:
    """Return the table that a run's settings name, if they name one."""
    data = settings.data
    if data.train is not None:
        return (_table(data.train, data),)
    name = settings.task.name
    return (_table(name, data),) if name in BUILTIN_NAMES and name is not None else ()


def _table(source: str, data: DataSettings) -> Table:
    file = Path(source).expanduser()
    path = str(file.resolve()) if file.is_file() else source
    return Table(source, path, data.label, data.encoding, data.quotes)


def seen_in(
    sets: Mapping[str, Iterable[Example]], tables: tuple[Table, ...], before: Seen | None = None
) -> Seen:
    """Return the texts of a run's sets, and what earlier runs knew of others.

    Args:
        sets: Examples by set; where a text stands in several, the first counts.
        tables: What the training rows came from.
        before: Of the run that this one goes on from.
    """
    sides: dict[int, str] = {}
    labels: dict[int, set[int]] = defaultdict(set)
    for name, examples in sets.items():
        for example in examples:
            text = text_hash(example)
            sides.setdefault(text, name)
            labels[text].add(_label_hash(example))
    if before is None:
        return Seen(sides, dict(labels), tables)
    own = {table.path for table in tables}
    return Seen(
        {**before.sides, **sides},
        {**before.labels, **labels},
        (*tables, *(table for table in before.tables if table.path not in own)),
    )


def write_seen(folder: Path, seen: Seen) -> None:
    """Write down the texts of a run in its folder."""
    rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for text, name in seen.sides.items():
        rows[name].extend((text, label) for label in sorted(seen.labels[text]))
    arrays = {name: np.array(found, np.int64) for name, found in rows.items()}
    told = json.dumps([asdict(table) for table in seen.tables], ensure_ascii=False)
    with file_atomic(folder / TEXTS_FILE) as path:
        save_file(arrays, path, metadata={TABLES: told})


def read_seen(folder: Path) -> Seen | None:
    """Return the texts of a run; None where an earlier version did not write them down.

    Raises:
        CheckpointError: If they cannot be read.
    """
    path = folder / TEXTS_FILE
    if not path.is_file():
        return None
    sides: dict[int, str] = {}
    labels: dict[int, set[int]] = defaultdict(set)
    try:
        with safe_open(path, framework="numpy") as file:
            tables = json.loads(file.metadata()[TABLES])
            for name in file.keys():  # noqa: SIM118 - no mapping
                for text, label in file.get_tensor(name).tolist():
                    sides[text] = name
                    labels[text].add(label)
        return Seen(sides, dict(labels), tuple(Table(**table) for table in tables))
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
