"""Examples that most methods get wrong, and those where they are sure that the label is wrong.

Every method counts once, however many runs it has; its runs are averaged first. Legend: R runs,
M methods, N examples, L labels.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.report.aligned import RunAnswers
from taskfit.report.evidence import Evidence

Array = NDArray[Any]
NUM_SHOWN = 10
NO_ANSWER, NO_LABEL = "no answer", "no label"


def hard_examples(evidence: Evidence, evaluation: str, *, num: int = NUM_SHOWN) -> pd.DataFrame:
    """Return the examples that most runs of most methods get wrong, the hardest first.

    A method has an example wrong if more than half of its runs do; listed is what more than half
    of the methods have wrong. Equals are ordered by the mean probability of the gold label.
    """
    answers, owners = _answers(evidence, evaluation)
    table = _table(answers, owners, evaluation, single=not evidence.multi_label)
    shares = _by_method(1.0 - answers.correct, owners).mean(axis=0)
    wrong, gold = table["wrong_methods"], table["gold_probability"]
    order = np.lexsort((gold.fillna(0.0), -shares, -wrong))
    table = table.iloc[order]
    return _listed(table[table["wrong_methods"] > table["num_methods"] / 2], answers, num)


def suspected_label_errors(
    evidence: Evidence, evaluation: str, *, num: int = NUM_SHOWN
) -> pd.DataFrame:
    """Return the examples to which methods together give another label with most confidence.

    Their mean probabilities are what an ensemble of them would answer; where it is surely not the
    gold label, the label may be wrong (Northcutt, Jiang and Chuang 2021, with an ensemble in
    place of cross-validation). Methods that answer the same to every text have no part in it.
    """
    answers, owners = _answers(evidence, evaluation)
    varying = np.array([len(np.unique(row)) > 1 for row in answers.predicted])
    table = _table(answers, owners, evaluation, single=not evidence.multi_label)
    if evidence.multi_label or not varying.any():
        return table.assign(answer="", answer_probability=0.0).head(0)
    kept = [owner for owner, used in zip(owners, varying, strict=True) if used]
    mean = _by_method(np.nan_to_num(answers.probabilities[varying]), kept).mean(axis=0)  # (N, L)
    answer = mean.argmax(axis=1)
    table["answer"] = np.array(answers.labels)[answer]
    table["answer_probability"] = mean.max(axis=1)
    suspected = table[(answer != answers.gold) & (table["answer_probability"] > 0)]
    order = np.argsort(-suspected["answer_probability"], kind="stable")
    return _listed(suspected.iloc[order], answers, num)


def _answers(evidence: Evidence, evaluation: str) -> tuple[RunAnswers, list[str]]:
    """Return the answers of all runs, and the method variant that each is of."""
    pairs = [
        (variant.name, run)
        for variant in evidence.variants
        for run in variant.runs
        if evaluation in run.result.evaluations
    ]
    found = evidence.answers[evaluation].of([run for _, run in pairs])
    return found, [name for name, _ in pairs]


def _by_method(values: Array, owners: Sequence[str]) -> Array:
    """Return means over the runs of each method, (M, ...) from (R, ...)."""
    names = np.array(owners)
    return np.stack([values[names == name].mean(axis=0) for name in dict.fromkeys(owners)])


def _table(
    answers: RunAnswers, owners: Sequence[str], evaluation: str, *, single: bool
) -> pd.DataFrame:
    """Return a row for every example; the probability of gold only with a single label a text."""
    shares = _by_method(1.0 - answers.correct, owners)  # (M, N)
    gold = np.full(len(answers.ids), np.nan)
    if single:
        own = answers.probabilities[:, np.arange(len(answers.ids)), answers.gold]  # (R, N)
        # No answer gives the right label nothing.
        gold = _by_method(np.nan_to_num(own), owners).mean(axis=0)
    columns = {
        "evaluation": evaluation,
        "id": answers.ids,
        "text": answers.texts,
        "gold": [answers.classes[place] for place in answers.gold],
        "wrong_methods": (shares > 0.5).sum(axis=0),
        "num_methods": len(shares),
        "wrong_runs": (~answers.correct).sum(axis=0),
        "num_runs": len(answers.runs),
        "answers": "",  # of those that are listed
        "gold_probability": gold,
    }
    return pd.DataFrame(columns)


def _listed(table: pd.DataFrame, answers: RunAnswers, num: int) -> pd.DataFrame:
    """Return the first rows, with how often each answer was given."""
    words = np.array([*(name or NO_LABEL for name in answers.classes), NO_ANSWER], object)
    table = table.head(num)
    counts = [Counter(words[answers.predicted[:, i]]).most_common() for i in table.index]
    found = [", ".join(f"{word} {number}" for word, number in one) for one in counts]
    return table.assign(answers=found)
