"""Answers of several runs to the same examples, each file of predictions read once.

Legend: R runs, M contenders, D draws, N examples, L labels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from taskfit.report.finished_run import FinishedRun
from taskfit.report.variants import Contender
from taskfit.stats.arrays import FloatArray, IntArray
from taskfit.stats.comparison import Comparison, compare_methods


@dataclass(frozen=True, slots=True, eq=False)
class RunAnswers:
    """What some runs answered on one evaluation set.

    Attributes:
        runs: R.
        ids, texts: Of the examples, N.
        labels: L, over all runs, in the order of the first.
        classes: What an answer may be, see `Predictions`; the labels where a text has one.
        gold: Right answers by index, (N,).
        predicted: Answers by index, -1 for none, (R, N).
        probabilities: Of labels, NaN without an answer, (R, N, L).
        evaluated: Whether the run was evaluated on the example, (R, N).
    """

    runs: list[FinishedRun]
    ids: list[str]
    texts: list[str]
    labels: list[str]
    classes: list[str]
    gold: IntArray
    predicted: IntArray
    probabilities: FloatArray
    evaluated: NDArray[np.bool_]

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether each answer is right, (R, N)."""
        return np.equal(self.predicted, self.gold)

    def of(self, runs: Sequence[FinishedRun]) -> "RunAnswers":
        """Return the answers of some runs, at least one, to the examples that all of them saw."""
        place = {run.folder: row for row, run in enumerate(self.runs)}
        rows = np.array([place[run.folder] for run in runs])
        kept = np.flatnonzero(self.evaluated[rows].all(axis=0))
        cells = np.ix_(rows, kept)
        return RunAnswers(
            runs=list(runs),
            ids=[self.ids[i] for i in kept],
            texts=[self.texts[i] for i in kept],
            labels=self.labels,
            classes=self.classes,
            gold=self.gold[kept],
            predicted=self.predicted[cells],
            probabilities=self.probabilities[cells],
            evaluated=self.evaluated[cells],
        )


def read_answers(runs: Sequence[FinishedRun], evaluation: str) -> RunAnswers:
    """Read what runs answered on an evaluation set, over the examples that any of them saw.

    Raises:
        CheckpointError: If a file of predictions is missing or cannot be read.
    """
    found = [run.predictions(evaluation) for run in runs]
    labels = _union(run.result.evaluations[evaluation].labels for run in runs)
    classes = _union([labels, *(one.classes for one in found)])
    ids = _union(one.ids for one in found)
    column = {name: place for place, name in enumerate(ids)}
    index = {name: place for place, name in enumerate(classes)}
    texts, gold = [""] * len(ids), np.full(len(ids), -1)
    predicted = np.full((len(runs), len(ids)), -1)
    probabilities = np.full((*predicted.shape, len(labels)), np.nan)
    evaluated = np.zeros(predicted.shape, bool)
    # Files are laid from the last to the first, so that texts and gold are those of the first.
    for row, one in reversed(list(enumerate(found))):
        at = np.array([column[name] for name in one.ids], np.int64)
        # -1, no answer, is the last place and stays -1.
        place = np.array([*(index[name] for name in one.classes), -1])
        for name, text in zip(one.ids, one.texts, strict=True):
            texts[column[name]] = text
        gold[at], predicted[row, at], evaluated[row, at] = place[one.gold], place[one.predicted], 1
        own = runs[row].result.evaluations[evaluation].labels
        # A label that this run does not know has no probability, unless there is no answer at all.
        spread = np.where(np.isnan(one.probabilities).all(axis=1, keepdims=True), np.nan, 0.0)
        spread = np.repeat(spread, len(labels), axis=1)
        spread[:, [labels.index(name) for name in own]] = one.probabilities
        probabilities[row, at] = spread
    return RunAnswers(
        list(runs), ids, texts, labels, classes, gold, predicted, probabilities, evaluated
    )


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(chain.from_iterable(lists)))


@dataclass(frozen=True, eq=False)
class AlignedPredictions:
    """Candidates side by side on some evaluation sets.

    Attributes:
        contenders: M.
        draws: The draws that are compared, D.
        ids: Of the examples, N.
        predicted: Answers by index, -1 for none, (M, D, N).
        gold: (N,).
        metric: accuracy, mcc or macro_f1.
    """

    contenders: list[Contender]
    draws: list[int]
    ids: list[str]
    predicted: IntArray
    gold: IntArray
    metric: str

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Return whether each answer is right, (M, D, N)."""
        return np.equal(self.predicted, self.gold)

    @cached_property
    def comparison(self) -> Comparison:
        """Return scores and differences of all contenders."""
        names = [contender.name for contender in self.contenders]
        return compare_methods(self.predicted, self.gold, methods=names, metric=self.metric)


def align(
    contenders: Sequence[Contender], answers: Sequence[RunAnswers], *, metric: str
) -> AlignedPredictions:
    """Lay the answers of contenders side by side.

    Compared are the draws that all share; one that sees no labels repeats its answers. Where
    they share none, it is the draw that most have, without the contenders that lack it.

    Args:
        contenders: At least one.
        answers: Those of all runs on each evaluation set.
        metric: The metric of a comparison.
    """
    seeing = [c for c in contenders if c.size] or list(contenders)
    shared = set.intersection(*(set(c.runs) for c in seeing))
    if not shared:
        every = sorted(set().union(*(c.runs for c in seeing)))
        shared = {max(every, key=lambda seed: sum(seed in c.runs for c in seeing))}
    draws = sorted(shared)
    kept = [c for c in contenders if c.size == 0 or shared <= set(c.runs)]
    parts = [one.of([c.runs.get(draw, c.first) for c in kept for draw in draws]) for one in answers]
    shape = (len(kept), len(draws), -1)
    return AlignedPredictions(
        contenders=kept,
        draws=draws,
        ids=[name for part in parts for name in part.ids],
        predicted=np.concatenate([part.predicted.reshape(shape) for part in parts], axis=2),
        gold=np.concatenate([part.gold for part in parts]),
        metric=metric,
    )
