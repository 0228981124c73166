"""What a run is held against: baselines on the same held-out texts, and warnings in words.

A tuned model that a bag of words beats, that says one class to everything, or that was stopped
while it still learned looks like any other in a table of its own numbers.

Legend: N examples, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import TaskfitError
from taskfit.method_settings import method_settings
from taskfit.methods.majority import Majority
from taskfit.methods.method import Method, MethodContext
from taskfit.methods.tfidf import Tfidf
from taskfit.settings import RunSettings
from taskfit.stats import Evaluation
from taskfit.stats.per_class import class_rows, hardly_found
from taskfit.tasks.questions import Asked

FloatArray = NDArray[np.float64]
# Probabilities of texts, (N, L).
Predict = Callable[[Sequence[Example]], FloatArray]

BASELINES: dict[str, type[Method]] = {"majority": Majority, "tfidf": Tfidf}
# The row of a run itself without its thresholds of several labels a text.
FROM_HALF = "this run, labels from 0.5"
METRICS = ("accuracy", "mcc", "macro_f1", "log_loss")
# Shares of the steps whose losses are compared to tell whether a training still learned.
EARLIER, LATER = (0.5, 0.75), (0.75, 1.0)
STILL_FALLING = 0.8
# From this share of one class on, accuracy says little.
MISLEADING = 0.8
MOST_NAMED = 3
# Below this share of the loss of guessing there is little left to learn.
LEARNED = 0.3


def fit_baselines(
    settings: RunSettings, asked: Asked, train: Sequence[Example]
) -> dict[str, Predict]:
    """Fit the baselines on labelled texts, one a question; what cannot be fitted is left out."""
    fitted: dict[str, Predict] = {}
    for name, kind in BASELINES.items():
        own = settings.model_copy(update={"method": method_settings(name)})
        baselines = []
        try:
            for question, task in asked.tasks.items():
                baseline = kind(MethodContext(own, task, (), None))
                answered = [example.of(question) for example in train]
                baseline.prepare([e for e in answered if e.label is not None], ())
                baselines.append(baseline)
        except TaskfitError:  # such as texts without a word
            continue
        fitted[name] = partial(_side_by_side, baselines)
    return fitted


def _side_by_side(baselines: Sequence[Method], examples: Sequence[Example]) -> FloatArray:
    """Return the probabilities of the labels of all questions, (N, L)."""
    return np.concatenate([baseline.probabilities(examples) for baseline in baselines], axis=1)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table at a run's end.

    Attributes:
        name: majority, tfidf, the probe, the tuned model alone, or this run.
        metrics: Accuracy, MCC, macro F1 and log loss on one evaluation set.
    """

    name: str
    metrics: Mapping[str, float]


def row_of(name: str, evaluation: Evaluation) -> Row:
    """Return the row of an evaluation."""
    values = (evaluation.accuracy, evaluation.mcc, evaluation.macro_f1, evaluation.log_loss)
    return Row(name, dict(zip(METRICS, values, strict=True)))


def to_plain(tables: Mapping[str, Sequence[Row]]) -> dict[str, list[dict[str, Any]]]:
    """Return tables by evaluation set as JSON values, for `result.json`."""
    return {
        name: [{"name": row.name, **row.metrics} for row in rows] for name, rows in tables.items()
    }


def warnings_of(
    rows: Sequence[Row],
    evaluation: Evaluation,
    *,
    test_set: str,
    losses: Sequence[float],
    guessing: float,
) -> list[str]:
    """Return what a user should know before using a run, each with what to do.

    Args:
        rows: The table of one evaluation set, this run last.
        evaluation: This run's, on that set.
        test_set: Name of the set.
        losses: Of the training steps, in order; empty without training.
        guessing: Loss of guessing among all classes (nats).
    """
    found = []
    run, others = rows[-1], [row for row in rows[:-1] if row.name != FROM_HALF]
    better = max(others, key=lambda row: row.metrics["mcc"], default=None)
    if better is not None and better.metrics["mcc"] > run.metrics["mcc"]:
        gap = better.metrics["mcc"] - run.metrics["mcc"]
        found.append(
            f"{better.name} is better than this run on {test_set} (MCC "
            f"{better.metrics['mcc']:.3f} against {run.metrics['mcc']:.3f}"
            f"{', by less than chance may do' if gap < _noise(evaluation) else ''}). "
            "`taskfit compare` measures methods side by side, with intervals; more labels or a "
            "larger model (--model) may turn it."
        )
    if (label := _only_answer(evaluation)) is not None:
        found.append(
            f"the run says {label!r} to all {evaluation.num_examples:,} texts of {test_set}. "
            "Label more texts of the other classes, or set method.class_weights=balanced."
        )
    if not evaluation.multi_label:
        there = np.asarray(evaluation.confusion_matrix).sum(axis=1)
        share, most = there.max() / max(1, there.sum()), evaluation.labels[int(there.argmax())]
        if share >= MISLEADING:
            found.append(
                f"{share:.0%} of {test_set} are {most!r}, so accuracy says little; read MCC or F1."
            )
    if not has_converged(losses, guessing=guessing):
        found.append(
            "the training loss was still falling at the end. Train longer: --set "
            "training.epochs=N, twice those of settings.yaml."
        )
    return found


def missed_labels(evaluation: Evaluation, test_set: str) -> list[str]:
    """Return what a user should know of labels that are next to never found, if there are any.

    Args:
        evaluation: The run's, on a set.
        test_set: Name of the set.
    """
    missed = hardly_found(class_rows(evaluation))
    if not missed or _only_answer(evaluation) is not None:  # which is told of the whole run
        return []
    each = [
        f"{row.recall:.0%} of the {row.num_gold:,} that are {row.name!r}"
        for row in missed[:MOST_NAMED]
    ]
    more = len(missed) - len(each)
    others = f", as little of {more} other label{'s' * (more > 1)}" if more else ""
    return [
        f"of the texts of {test_set} the run finds {', '.join(each)}{others}. Where that matters "
        "more than accuracy: method.class_weights=balanced, or more texts that have the label."
    ]


def _only_answer(evaluation: Evaluation) -> str | None:
    """Return the label that all texts got although some have others; None: there is none."""
    if evaluation.multi_label:
        return None
    said, there = (np.asarray(evaluation.confusion_matrix).sum(axis=axis) for axis in (0, 1))
    if np.count_nonzero(said) != 1 or np.count_nonzero(there) < 2:
        return None
    return evaluation.labels[int(said.argmax())]


def _noise(evaluation: Evaluation) -> float:
    """Return half the width of the 95 % interval of the MCC; about what chance does."""
    low, high = evaluation.intervals["mcc"]
    return (high - low) / 2


def has_converged(losses: Sequence[float], *, guessing: float) -> bool:
    """Return False if the loss fell clearly over the last half of training and is not small yet.

    Args:
        losses: Mean loss of each step (nats).
        guessing: Loss of guessing among all classes (nats).
    """
    if len(losses) < 8:
        return len(losses) == 0 or fmean(losses) < LEARNED * guessing
    before, last = (
        fmean(losses[int(low * len(losses)) : int(high * len(losses))])
        for low, high in (EARLIER, LATER)
    )
    return last < LEARNED * guessing or last > STILL_FALLING * before
