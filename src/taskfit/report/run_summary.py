"""What a run's page says first: is it better than what is free, and which classes are weak."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskfit.report.words import count, joined, metric_name, num, span
from taskfit.runs.baselines import MISLEADING
from taskfit.stats import Evaluation
from taskfit.stats.per_class import ClassRow

# A class is weak where its F1 is so much below the mean of all.
WEAK = 0.1
NUM_WEAK = 3


def first_sentence(
    name: str,
    evaluation: Evaluation,
    rows: Sequence[ClassRow],
    baselines: Sequence[Mapping[str, Any]],
    metric: str,
) -> str:
    """Return whether a run is better than guessing, TF-IDF and the probes, and what it is weak at.

    Better and worse is what lies outside the 95 % interval of the run's own score.

    Args:
        name: Of the evaluation set.
        evaluation: Of the run on it.
        rows: As `class_rows` returns them.
        baselines: Rows of the record, the run's own last; empty where none was measured.
        metric: The task's.
    """
    shares = [row.num_gold / evaluation.num_examples for row in rows]
    if metric == "accuracy" and not evaluation.multi_label and max(shares) >= MISLEADING:
        metric = "mcc"
    shown = metric_name(metric, multi_label=evaluation.multi_label and metric == "accuracy")
    others = {_words_for(row["name"]): float(row[metric]) for row in baselines[:-1]}
    if not others and not evaluation.multi_label and metric != "macro_f1":
        others["guessing"] = 0.0 if metric == "mcc" else max(shares)
    low, high = evaluation.intervals[metric]
    verdicts: dict[str, list[str]] = {"better than": [], "level with": [], "worse than": []}
    for other, score in others.items():
        if other:
            place = "better than" if score < low else "worse than" if score > high else "level with"
            verdicts[place].append(f"{other} ({num(score)})")
    said = joined(f"{verdict} {joined(names)}" for verdict, names in verdicts.items() if names)
    about = f"{shown} {num(getattr(evaluation, metric))} (95 % interval {span((low, high))}) on "
    about += f"{count(evaluation.num_examples, 'text')} of {name}"
    sentence = f"{said}: {about}" if said else about
    return f"{sentence[0].upper()}{sentence[1:]}; {_weak_classes(rows)}."


def _words_for(baseline: str) -> str:
    """Return what a row of the record is called in a sentence; nothing for parts of the run."""
    if baseline.startswith("probe on "):
        return f"the {baseline}"
    return {"majority": "guessing", "tfidf": "TF-IDF"}.get(baseline, "")


def _weak_classes(rows: Sequence[ClassRow]) -> str:
    known = [row for row in rows if row.recall is not None]
    least = float(np.mean([row.f1 for row in known])) - WEAK if known else 0.0
    weak = [row for row in known if row.f1 < least][:NUM_WEAK]
    if not weak:
        return "no class is far behind the others"
    return f"weak on {joined(_weakness(row) for row in weak)}"


def _weakness(row: ClassRow) -> str:
    if row.precision is not None and row.recall is not None and row.precision < row.recall:
        return f"{row.name} ({num(row.precision)} of those it calls so are)"
    return f"{row.name} (it finds {num(row.recall or 0.0)} of them)"
