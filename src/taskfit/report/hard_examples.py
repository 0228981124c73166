"""Examples that most methods get wrong, and those where they are sure that the label is wrong.

Every method counts once, however many runs it has; its runs are averaged first.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.report.evidence import FinishedRun
from taskfit.report.systems import Answers, AnswerStore, System

Array = NDArray[Any]
NUM_SHOWN = 10
NO_ANSWER, NO_LABEL = "no answer", "no label"
COLUMNS = (
    "evaluation",
    "id",
    "text",
    "gold",
    "wrong_methods",
    "num_methods",
    "wrong_runs",
    "num_runs",
    "answers",
    "gold_probability",
)
SUSPECT_COLUMNS = ("answer", "answer_probability")


def hard_examples(
    systems: Sequence[System], evaluation: str, store: AnswerStore, *, num: int = NUM_SHOWN
) -> pd.DataFrame:
    """Return the examples that most runs of most methods get wrong, the hardest first.

    A method has an example wrong if more than half of its runs do; listed is what more than half
    of the methods have wrong. Equals are ordered by the mean probability of the gold label.
    """
    found = _gather(systems, evaluation, store)
    if found is None:
        return pd.DataFrame(columns=[*COLUMNS])
    answers, owners = found
    shares = _by_system(1.0 - answers.correct.astype(np.float64), owners)  # (M, N)
    wrong = (shares > 0.5).sum(axis=0)
    gold = _gold_probability(answers, owners)
    order = np.lexsort((np.nan_to_num(gold), -shares.mean(axis=0), -wrong))
    places = [int(i) for i in order if wrong[i] > len(shares) / 2][:num]
    return pd.DataFrame(
        [_row(answers, evaluation, i, wrong, len(shares), gold) for i in places],
        columns=[*COLUMNS],
    )


def suspected_label_errors(
    systems: Sequence[System], evaluation: str, store: AnswerStore, *, num: int = NUM_SHOWN
) -> pd.DataFrame:
    """Return the examples to which methods together give another label with most confidence.

    Their mean probabilities are what an ensemble of them would answer; where it is surely not the
    gold label, the label may be wrong (Northcutt, Jiang and Chuang 2021, with an ensemble in
    place of cross-validation). Methods that answer the same to every text have no part in it.
    """
    empty = pd.DataFrame(columns=[*COLUMNS, *SUSPECT_COLUMNS])
    found = _gather(systems, evaluation, store)
    if found is None or not len(found[0].gold_index):
        return empty
    answers, owners = found
    varying = np.array([len(np.unique(row)) > 1 for row in answers.predicted])
    if not varying.any():
        return empty
    filled = np.nan_to_num(answers.probabilities[varying])
    kept = [owner for owner, used in zip(owners, varying, strict=True) if used]
    mean = _by_system(filled, kept).mean(axis=0)  # (N, L)
    answer = mean.argmax(axis=1)
    sure = np.where(answer == answers.gold_index, -1.0, mean.max(axis=1))
    shares = _by_system(1.0 - answers.correct.astype(np.float64), owners)
    wrong = (shares > 0.5).sum(axis=0)
    gold = _gold_probability(answers, owners)
    places = [int(i) for i in np.argsort(-sure, kind="stable") if sure[i] > 0][:num]
    rows = [
        {
            **_row(answers, evaluation, i, wrong, len(shares), gold),
            "answer": answers.labels[answer[i]],
            "answer_probability": float(sure[i]),
        }
        for i in places
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *SUSPECT_COLUMNS])


def _gather(
    systems: Sequence[System], evaluation: str, store: AnswerStore
) -> tuple[Answers, list[str]] | None:
    """Return the answers of all runs, and the name of the system that each is of."""
    runs: list[FinishedRun] = []
    owners: list[str] = []
    for system in systems:
        own = [run for run in system.runs if evaluation in run.result.evaluations]
        runs += own
        owners += [system.name] * len(own)
    if not runs:
        return None
    answers = store.of(runs, evaluation)
    return (answers, owners) if answers.ids else None


def _by_system(values: Array, owners: Sequence[str]) -> Array:
    """Return means over the runs of each system, (M, ...) from (R, ...)."""
    names = list(dict.fromkeys(owners))
    place = np.array([names.index(owner) for owner in owners])
    return np.stack([values[place == i].mean(axis=0) for i in range(len(names))])


def _gold_probability(answers: Answers, owners: Sequence[str]) -> Array:
    """Return the mean probability of the gold label, NaN where labels may be several, (N,)."""
    if not len(answers.gold_index):
        return np.full(len(answers.ids), np.nan)
    own = answers.probabilities[:, np.arange(len(answers.ids)), answers.gold_index]  # (R, N)
    # No answer gives the right label nothing.
    return np.asarray(_by_system(np.nan_to_num(own), owners).mean(axis=0))


def _row(
    answers: Answers, evaluation: str, i: int, wrong: Array, num_methods: int, gold: Array
) -> dict[str, object]:
    words = (NO_ANSWER if word is None else word or NO_LABEL for word in answers.words[:, i])
    counts = Counter(words)
    return {
        "evaluation": evaluation,
        "id": answers.ids[i],
        "text": answers.texts[i],
        "gold": answers.gold[i],
        "wrong_methods": int(wrong[i]),
        "num_methods": num_methods,
        "wrong_runs": int((~answers.correct[:, i]).sum()),
        "num_runs": len(answers.correct),
        "answers": ", ".join(f"{word} {count}" for word, count in counts.most_common()),
        "gold_probability": float(gold[i]),
    }
