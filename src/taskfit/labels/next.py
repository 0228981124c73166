"""Write the texts of a pool that are to be labelled next, by a finished run or without one.

Legend: n texts by their places among those that may be labelled, M width of the embeddings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import pandas as pd

from taskfit.curate.embed import Embedder, Vectors
from taskfit.data.columns import check_present
from taskfit.data.guess import LABEL_NAMES, guess_text
from taskfit.errors import DataError, SettingsError
from taskfit.files import refuse_over_input
from taskfit.labels.next_choice import MOST_LOOKED_AT, Choice, Chosen, choose_next
from taskfit.labels.next_rows import (
    Candidates,
    check_candidates,
    examples_at,
    find_candidates,
    hashes_of,
    labelled_by,
)
from taskfit.labels.next_strategies import IntArray, Pool
from taskfit.labels.next_table import Known, next_table, read_known, suggestions
from taskfit.lock import only_one_at_a_time
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.load import saved_asked
from taskfit.runs.partial import write_table
from taskfit.runs.predict import check_target, predict_parts
from taskfit.runs.predictor import Asking
from taskfit.runs.rows import task_columns
from taskfit.runs.seen import Seen, read_seen
from taskfit.runs.table_texts import GivenFile
from taskfit.screen import Screen
from taskfit.settings_file import load_run_settings
from taskfit.tasks import Task, task_from_columns
from taskfit.tasks.questions import Asked

FEATURES = "minilm"
NO_FEATURES = "none"
# Fewer texts than this are embedded before anybody asks how far it is.
FEW = 200
# Labels of a task whose labels nobody has named yet.
UNKNOWN = ("one", "another")


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A table of texts that may be labelled.

    Attributes:
        source: File or hub id.
        columns: Column of the run's task -> column of the table, where it has another name.
        text: Without a run: its text columns; else guessed.
        label: Without a run: where labels will stand; else `label`, or what the table has so named.
        encoding: Of the file.
        quotes: Of a CSV or TSV file; see `data.quotes`.
        others: Files whose texts are labelled elsewhere, and not to be given again.
    """

    source: str
    columns: Mapping[str, str] = field(default_factory=dict)
    text: Sequence[str] = ()
    label: str | None = None
    encoding: str = "utf-8"
    quotes: str = "auto"
    others: Sequence[str] = ()

    def given(self, source: str | None = None) -> GivenFile:
        """Return the table, or another file that is read in the same way."""
        return GivenFile(source or self.source, encoding=self.encoding, quotes=self.quotes)


@dataclass(frozen=True, slots=True)
class Targets:
    """Files that are written.

    Attributes:
        chosen: Texts to label: .csv, .tsv, .jsonl or .parquet.
        random: Where those that were drawn at random go; None: among the others.
        overwrite: Whether files that are there already may be replaced.
    """

    chosen: Path
    random: Path | None = None
    overwrite: bool = False

    def check(self, pool: PoolFile) -> None:
        """Check that nothing is lost.

        Raises:
            TaskfitError: If a file cannot be called so, or is there already: it may hold labels.
        """
        targets = [self.chosen, *([self.random] if self.random else [])]
        if self.random is not None and self.random.resolve() == self.chosen.resolve():
            raise SettingsError(f"-o and --random-out are both {self.chosen}; give two files.")
        for target in targets:
            check_target(target)
            # Not even with --overwrite: the pool is the only copy of what it holds.
            refuse_over_input(target, [pool.source, *pool.others], overwrite=None)
            if target.exists() and not self.overwrite:
                raise SettingsError(
                    f"{target} is there already, and may hold labels by now. Give another name "
                    "with -o, or --overwrite to replace it."
                )


@dataclass(frozen=True, slots=True)
class NextTexts:
    """What `next_texts` did.

    Attributes:
        num_rows: Rows of the pool.
        num_candidates: Those of them that may be labelled.
        num_written: Texts that were written.
        num_random: Those of them that were drawn at random.
        left_out: Why rows could not be chosen -> how many.
        suggested: Question -> how often each label is suggested.
        text: Text columns of what was written.
        label_columns: Question -> where its labels will stand.
    """

    num_rows: int
    num_candidates: int
    num_written: int
    num_random: int
    left_out: Mapping[str, int]
    suggested: Mapping[str, Mapping[str, int]]
    text: Sequence[str]
    label_columns: Mapping[str, str]


def next_texts(
    pool: PoolFile,
    targets: Targets,
    count: int,
    *,
    choice: Choice,
    run: Path | None = None,
    features: str = FEATURES,
    screen: Screen,
    **asking: Unpack[Asking],
) -> NextTexts:
    """Write the texts of a pool that are to be labelled next, in the order to label them in.

    Rows come out with all their columns, an empty label column, what the run suggests, why each was
    chosen, and which were drawn at random. Predictions are kept beside the target until it is
    whole, embeddings in the cache; the same call goes on from both.

    Args:
        pool: The texts.
        targets: Where they go.
        count: How many.
        choice: How they are chosen.
        run: A finished run; None: there is none yet, and a strategy must do without.
        features: Sentence encoder that says which texts differ (`minilm`, a hub id, a folder), or
            `none`.
        screen: Where progress is shown.
        asking: See `Asking`.

    Raises:
        TaskfitError: If run, pool, targets or choice do not allow it.
    """
    _check_request(pool, targets, count, choice, features)
    if run is None:
        choice.check_without_model()
    with only_one_at_a_time(targets.chosen, beside=True):
        asked, label_columns = _asked(pool, run)
        if choice.balance and (len(asked.tasks) > 1 or _is_multi_label(asked)):
            raise SettingsError("--balance is for runs of one question with one label a text.")
        elsewhere = _elsewhere(pool, asked)  # before predictions, which take long
        partial, known = None, Known()
        if run is None:
            texts = pool.given().texts(asked, pool.columns)
        else:
            partial, texts = predict_parts(
                run, pool.given(), targets.chosen, screen=screen, columns=pool.columns, **asking
            )
            known = read_known(partial, asked.tasks)
        found = find_candidates(
            texts,
            label_columns=list(label_columns.values()),
            seen=(None if run is None else read_seen(run)) or Seen(),
            unscored=known.unscored,
            elsewhere=elsewhere,
        )
        check_candidates(found, pool.source)
        source = _Source(found, known, run, asked, features)
        chosen = _choose(source, count, choice, screen)
        rows = found.rows[chosen.places]
        examples = examples_at(texts, rows.tolist())
        table = next_table(
            examples, rows, chosen, known, label_columns=label_columns, why=choice.how.why
        )
        _write(table, chosen, targets)
        if partial is not None:
            partial.discard()
    return NextTexts(
        found.num_rows,
        len(found.rows),
        len(table),
        int(chosen.is_random.sum()),
        dict(found.left_out),
        suggestions(table, known),
        asked.text,
        label_columns,
    )


def _check_request(
    pool: PoolFile, targets: Targets, count: int, choice: Choice, features: str
) -> None:
    """Check what can be checked before anything is read; see `next_texts`.

    Raises:
        TaskfitError: If it does not go together.
    """
    if count < 1:
        raise SettingsError(f"-n {count}: give how many texts to label, at least 1.")
    if features == NO_FEATURES and choice.how.reads_vectors:
        raise SettingsError(
            f"--strategy {choice.strategy} compares texts by their embeddings: --features none is "
            "for random, least_confidence, margin and entropy."
        )
    targets.check(pool)
    num_random = choice.num_random(count)
    if targets.random is not None and not 0 < num_random < count:
        raise SettingsError(
            f"--random-out parts the texts drawn at random from the others, but of {count} they "
            f"are {num_random} (--random-share {choice.random_share:g}), so one of the two files "
            "would be empty. Give a higher -n, another --random-share, or no --random-out."
        )


def _write(table: pd.DataFrame, chosen: Chosen, targets: Targets) -> None:
    if targets.random is None:
        write_table(table, targets.chosen)
        return
    write_table(table[chosen.is_random], targets.random)
    write_table(table[~chosen.is_random], targets.chosen)


def _asked(pool: PoolFile, run: Path | None) -> tuple[Asked, dict[str, str]]:
    """Return what is asked, and question -> the column of its labels.

    Raises:
        TaskfitError: If the run cannot be read, or it is not clear which columns are text.
    """
    if run is not None:
        asked = saved_asked(run)
        if isinstance(asked, Task):
            data = load_run_settings(run / SETTINGS_FILE).data
            return asked, {"": str(task_columns(asked, data).label)}
        return asked, {question.name: question.label_column for question in asked.questions}
    present = pool.given().open(()).columns
    named = [name for name in present if name.casefold() in LABEL_NAMES and name not in pool.text]
    label = pool.label or (named[0] if named else LABEL_NAMES[0])
    text = tuple(pool.text) or tuple(guess_text([name for name in present if name != label]))
    check_present([pool.columns.get(name, name) for name in text], present, pool.source)
    if label in text:
        raise SettingsError(
            f"--text and --label both name {label}: labels need a column of their own, which the "
            "pool need not have."
        )
    task = task_from_columns(name="pool", text=text, label_column=label, labels=UNKNOWN)
    return task, {"": label}


def _is_multi_label(asked: Asked) -> bool:
    return any(task.multi_label for task in asked.tasks.values())


def _elsewhere(pool: PoolFile, asked: Asked) -> set[int]:
    """Return the hashes of texts that are labelled elsewhere.

    Raises:
        DataError: If a file of them cannot be read.
    """
    found = set[int]()
    for other in pool.others:
        given = pool.given(other)
        present = given.open(()).columns
        # What this command wrote before has the run's names for columns, not the pool's.
        columns = {own: name for own, name in pool.columns.items() if name in present}
        found |= hashes_of(given.texts(asked, columns))
    return found


@dataclass(frozen=True, slots=True)
class _Source:
    """What texts are chosen from.

    Attributes:
        found: The candidates.
        known: What the run says of all rows.
        run: Its folder; None: there is none.
        asked: What is asked.
        features: Sentence encoder, or `none`.
    """

    found: Candidates
    known: Known
    run: Path | None
    asked: Asked
    features: str


def _choose(source: _Source, count: int, choice: Choice, screen: Screen) -> Chosen:
    """Return the texts that are to be labelled.

    Raises:
        DataError: If all are near duplicates of labelled ones.
    """
    found, known = source.found, source.known
    labelled, embed = None, None
    if source.features != NO_FEATURES and choice.compares(count):
        of_texts = _embedding(source.features, screen)
        own, notes = list(found.labelled), list[str]()
        if source.run is not None:
            more, notes = labelled_by(source.run, source.asked)
            own += more
        for note in notes:
            screen.note(f"{note}; texts near to those that are labelled already may be chosen")
        labelled = of_texts(own[:MOST_LOOKED_AT]) if own else None

        def embed(places: IntArray) -> Vectors:
            return of_texts([found.texts[place] for place in places])

    probabilities = None if known.probabilities is None else known.probabilities[found.rows]
    pool = Pool(
        len(found.rows),
        probabilities,
        labelled=labelled,
        questions=known.questions,
        multi_label=known.multi_label,
    )
    chosen = choose_next(pool, count, choice, embed=embed)
    if not len(chosen.places):
        raise DataError(
            f"All {pool.size:,} texts that may be labelled are near duplicates of labelled ones. "
            "Give a higher --near, or a --random-share."
        )
    return chosen


def _embedding(features: str, screen: Screen) -> Callable[[Sequence[str]], Vectors]:
    """Return what embeds texts, (n, M), each once, with what it shows of it."""
    embedder = Embedder(features)

    def embed(texts: Sequence[str]) -> Vectors:
        if len(texts) < FEW:
            return embedder.embed(texts, advance=lambda _: None)
        with screen.progress("comparing texts", len(texts)) as advance:
            return embedder.embed(texts, advance=advance)

    return embed
