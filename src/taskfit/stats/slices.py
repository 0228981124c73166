"""Metrics of parts of an evaluation set: a slice is what has the same values in some columns.

Legend: N examples, L labels, S slices.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from taskfit.stats.arrays import BoolArray, FloatArray, IntArray
from taskfit.stats.metrics import binomial_interval, macro_f1_from_counts

FEWEST = 30
WIDEST = 0.2
RULE = f"uncertain: fewer than {FEWEST} examples, or an interval wider than {WIDEST:g}"
CROSS = " x "


@dataclass(frozen=True, slots=True)
class Slice:
    """Metrics of one slice, in the order of the columns of `slices.csv`.

    Attributes:
        by: The columns, joined by ` x `.
        value: Their values, joined alike.
        num_examples: Examples in it.
        accuracy: Share of right answers; no answer is wrong.
        accuracy_low: Lower end of the accuracy's 95 % interval (Wilson 1927).
        accuracy_high: Its upper end.
        macro_f1: F1 averaged over the classes that occur in the slice, in gold or predictions; of
            several labels a text, over all labels.
        is_uncertain: Whether the slice is too small to say much; see `RULE`.
    """

    by: str
    value: str
    num_examples: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    is_uncertain: bool


def slice_classes(
    columns: Mapping[str, Sequence[str]], probabilities: FloatArray, gold: IntArray
) -> list[Slice]:
    """Measure the slices of answers with one label a text.

    Args:
        columns: Column -> its value of each example; every column by itself, then all crossed.
        probabilities: (N, L), rows of NaN where there is no answer.
        gold: Indices of the right labels, (N,).
    """
    num_labels = probabilities.shape[1]
    unanswered = np.isnan(probabilities).any(axis=1)
    # No answer is one more class, which is never the right one.
    predicted = np.where(unanswered, num_labels, np.nan_to_num(probabilities).argmax(axis=1))

    def macro_f1(rows: IntArray) -> float:
        hits = gold[rows][gold[rows] == predicted[rows]]
        counts = [
            np.bincount(found, minlength=num_labels + 1)[None, :num_labels].astype(np.float64)
            for found in (hits, gold[rows], predicted[rows])
        ]
        return float(macro_f1_from_counts(*counts)[0])

    return _slices(columns, predicted == gold, macro_f1)


def slice_label_sets(
    columns: Mapping[str, Sequence[str]], predicted: BoolArray, present: BoolArray
) -> list[Slice]:
    """Measure the slices of answers with several labels a text.

    Args:
        columns: As for `slice_classes`.
        predicted: Which labels were answered, (N, L).
        present: Which labels hold, (N, L).
    """
    return _slices(
        columns,
        (predicted == present).all(axis=1),
        lambda rows: _mean_f1(predicted[rows], present[rows]),
    )


def group_rows(columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, IntArray]]:
    """Return the examples of every slice: joined columns -> joined values -> places.

    Columns stand each by themselves, then all of them crossed where there are several. A column
    with the same value everywhere is a slice too.
    """
    names = list(columns)
    groupings = [[name] for name in names] + ([names] if len(names) > 1 else [])
    found: dict[str, dict[str, IntArray]] = {}
    for chosen in groupings:
        places: dict[tuple[str, ...], list[int]] = {}
        for place, values in enumerate(zip(*(columns[name] for name in chosen), strict=True)):
            places.setdefault(values, []).append(place)
        found[CROSS.join(chosen)] = {
            CROSS.join(values): np.array(places[values]) for values in sorted(places)
        }
    return found


def _mean_f1(predicted: BoolArray, present: BoolArray) -> float:
    """Return F1 averaged over labels, 0 for one that occurs on neither side; both (N, L)."""
    hits, both = (predicted & present).sum(axis=0), predicted.sum(axis=0) + present.sum(axis=0)
    return float((2 * hits / np.maximum(both, 1)).mean())


def _slices(
    columns: Mapping[str, Sequence[str]], right: BoolArray, macro_f1: Callable[[IntArray], float]
) -> list[Slice]:
    slices = []
    for by, groups in group_rows(columns).items():
        for value, rows in groups.items():
            hits, count = int(right[rows].sum()), len(rows)
            low, high = binomial_interval(hits, count, method="wilson")
            slices.append(
                Slice(
                    by=by,
                    value=value,
                    num_examples=count,
                    accuracy=hits / count,
                    accuracy_low=low,
                    accuracy_high=high,
                    macro_f1=macro_f1(rows),
                    is_uncertain=count < FEWEST or high - low > WIDEST,
                )
            )
    return slices
