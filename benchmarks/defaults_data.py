"""The tables of `defaults.py`, as users would bring them: text columns, a label, nothing else.

Read from the folder that TASKFIT_DATA names; `sentiment` is the packaged one. A set is cut into a
pool that training tables are drawn from and a test set of at most `MAX_TEST` rows, both by fixed
seeds, so that every method and size sees the same test texts.
"""

import csv
import gzip
import io
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from taskfit.data import load_builtin

MAX_TEST = 500
Row = dict[str, str]


@dataclass(frozen=True, slots=True)
class Table:
    """One data set.

    Attributes:
        columns: Names of the text columns.
        pool: Rows that training tables are drawn from.
        test: Rows of the test set.
    """

    columns: list[str]
    pool: list[Row]
    test: list[Row]

    @property
    def labels(self) -> list[str]:
        """Return the labels in alphabetical order."""
        return sorted({row["label"] for row in self.pool})

    def draw(self, size: int, *, seed: int) -> list[Row]:
        """Draw a training table, stratified; larger tables of a seed contain the smaller ones."""
        return [self.pool[i] for i in _stratified(self.pool, seed=seed)[:size]]


def load_table(name: str, folder: Path) -> Table:
    """Read a data set by its name in `READERS`."""
    columns, pool, test = READERS[name](folder)
    seen = {tuple(row[c] for c in columns) for row in test}
    pool = [row for row in pool if tuple(row[c] for c in columns) not in seen]
    chosen = _stratified(test, seed=20140602)[:MAX_TEST]
    return Table(columns, pool, [test[i] for i in sorted(chosen)])


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Write rows as a user's CSV file; return its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_peer_data(folder: Path, table: Table, rows: Sequence[Row]) -> None:
    """Write training rows and test set as `peer_data.read_data` reads them.

    The texts of a pair stand one after the other: peers read one text.
    """
    folder.mkdir()
    for name, some in (("train", rows), ("test_test", table.test)):
        texts = [" ".join(row[column] for column in table.columns) for row in some]
        lines = [
            json.dumps({"id": str(i), "text": text, "label": row["label"], "prompt": text}) + "\n"
            for i, (text, row) in enumerate(zip(texts, some, strict=True))
        ]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    described = {"task": None, "text_column": "text", "label_column": "label", "question": None}
    described |= {"labels": table.labels, "words": table.labels, "tests": ["test"]}
    (folder / "task.json").write_text(json.dumps(described), encoding="utf-8")


def _stratified(rows: list[Row], *, seed: int) -> list[int]:
    """Return a seeded order of which every prefix has nearly the classes' shares."""
    generator = np.random.default_rng(seed)
    members: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        members[row["label"]].append(index)
    places = []
    for label in sorted(members):
        shuffled = generator.permutation(members[label])
        offset = generator.random()
        places += [((j + offset) / len(shuffled), int(i)) for j, i in enumerate(shuffled)]
    return [index for _, index in sorted(places)]


def _text(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8")


def _split(rows: list[Row], *, num_test: int) -> tuple[list[Row], list[Row]]:
    order = _stratified(rows, seed=7)
    held = set(order[:num_test])
    return [r for i, r in enumerate(rows) if i not in held], [rows[i] for i in sorted(held)]


Parts = tuple[list[str], list[Row], list[Row]]


def _ag_news(folder: Path) -> Parts:
    lines = _text(folder / "ag_news/train_part_10k.tsv.gz").split("\n")
    pool = [
        dict(zip(("text", "label"), line.rsplit("\t", 1), strict=True)) for line in lines if line
    ]
    names = _text(folder / "ag_news/classes.txt").split()
    table = csv.reader(io.StringIO(_text(folder / "ag_news/test.csv.gz")))
    return ["text"], pool, [{"text": row[2], "label": names[int(row[0]) - 1]} for row in table]


def _sms(folder: Path) -> Parts:
    lines = _text(folder / "sms_spam/SMSSpamCollection.gz").split("\n")
    rows = [
        dict(zip(("label", "text"), line.split("\t", 1), strict=True)) for line in lines if line
    ]
    return ["text"], *_split(rows, num_test=1500)


def _banking77(folder: Path) -> Parts:
    def read(name: str) -> list[Row]:
        found = csv.DictReader(io.StringIO(_text(folder / "banking77" / name)))
        return [{"text": row["text"], "label": row["category"]} for row in found]

    return ["text"], read("train.csv.gz"), read("test.csv")


def _cola(folder: Path) -> Parts:
    def read(name: str) -> list[Row]:
        rows = [line.split("\t") for line in _text(folder / "cola" / name).split("\n") if line]
        names = {"1": "acceptable", "0": "unacceptable"}
        return [{"text": row[3], "label": names[row[1]]} for row in rows]

    return ["text"], read("in_domain_train.tsv"), read("in_domain_dev.tsv")


def _sst2(folder: Path) -> Parts:
    def read(name: str) -> list[Row]:
        lines = _text(folder / "sst2" / name).split("\n")[1:]
        rows = [line.rsplit("\t", 1) for line in lines if line]
        names = {"1": "positive", "0": "negative"}
        return [{"text": text.strip(), "label": names[label]} for text, label in rows]

    return ["text"], read("train.tsv.gz"), read("test.tsv")


def _cr(folder: Path) -> Parts:
    rows = []
    for name, label in (("custrev.pos", "positive"), ("custrev.neg", "negative")):
        data = (folder / "cr" / name).read_bytes().decode("latin-1")
        rows += [{"text": t.strip(), "label": label} for t in data.split("\n") if t.strip()]
    return ["text"], *_split(rows, num_test=1000)


def _rte(folder: Path) -> Parts:
    lines = [json.loads(x) for x in _text(folder / "rte/train.jsonl.gz").split("\n") if x]
    pool = [
        {"premise": r["sentence_1"], "hypothesis": r["sentence_2"], "label": r["label"]}
        for r in lines
    ]
    rows = [line.split("\t") for line in _text(folder / "rte/glue_dev.tsv").split("\n")[1:] if line]
    test = [{"premise": r[1], "hypothesis": r[2], "label": r[3]} for r in rows]
    return ["premise", "hypothesis"], pool, test


def _pairs(data: str) -> list[Row]:
    rows = json.loads(data).values()
    return [{"premise": r["text_a"], "hypothesis": r["text_b"], "label": r["label"]} for r in rows]


def _snli(folder: Path) -> Parts:
    pool = _pairs(_text(folder / "snli/powerfulpromptft_train.json.gz"))
    test = _pairs(_text(folder / "snli/powerfulpromptft_dev.json"))
    return ["premise", "hypothesis"], pool, test


def _imdb(folder: Path) -> Parts:
    def read(name: str) -> list[Row]:
        lines = _text(folder / "imdb" / name).split("\n")[1:]
        rows = [line.split("\t", 1) for line in lines if line.strip()]
        return [{"text": text.strip(), "label": label.lower()} for label, text in rows]

    return ["text"], read("cad_orig_train.tsv.gz"), read("cad_orig_test.tsv.gz")


def _sentiment(_folder: Path) -> Parts:
    found = load_builtin("sentiment", folder=None)

    def rows(examples: list) -> list[Row]:  # type: ignore[type-arg]
        return [{"text": e.texts["text"], "label": str(e.label)} for e in examples]

    return ["text"], rows(found.train), rows(found.evaluations["movies"])


READERS: dict[str, Callable[[Path], Parts]] = {
    "ag_news": _ag_news,
    "sms_spam": _sms,
    "banking77": _banking77,
    "cola": _cola,
    "sst2": _sst2,
    "cr": _cr,
    "rte": _rte,
    "snli": _snli,
    "imdb": _imdb,
    "sentiment": _sentiment,
}
