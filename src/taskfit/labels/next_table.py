"""The table of texts to label next: what a run suggests, why each was chosen, an empty label.

Legend: L labels, k chosen texts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.label_cells import SEVERAL
from taskfit.errors import DataError
from taskfit.labels.next_choice import Chosen
from taskfit.labels.next_strategies import ONE_QUESTION
from taskfit.runs.partial import PartialPredictions
from taskfit.runs.predictions import names_beside
from taskfit.tasks import Task

FloatArray = NDArray[np.float64]
WHY, DRAWN = "why", "drawn"
RANDOM, CHOSEN = "random", "strategy"
SUGGESTED, PROBABILITY = "suggested", "probability"


@dataclass(frozen=True, slots=True)
class Known:
    """What a run says of a pool; nothing where there is no run.

    Attributes:
        probabilities: Of the labels of all questions, a row of the pool each, (rows, L); None
            without a run.
        questions: Question -> which labels are its own.
        multi_label: Whether a text may have several labels.
        labels: Question -> its labels, in the order of their probabilities.
        answers: Question -> the label that each row gets; None where there is none.
    """

    probabilities: FloatArray | None = None
    questions: Mapping[str, slice] = field(default_factory=lambda: ONE_QUESTION)
    multi_label: bool = False
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    answers: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    @property
    def unscored(self) -> NDArray[np.bool_] | None:
        """Return which rows have no answer; None without a run."""
        if self.probabilities is None:
            return None
        return np.asarray(np.isnan(self.probabilities).any(axis=1))

    def certainty(self, question: str, rows: NDArray[np.int64]) -> FloatArray:
        """Return the probability of the answers to rows by their places, (k,).

        Of several labels it is that of all being right, were they independent; a run's thresholds
        may give a label that is less likely than not.
        """
        assert self.probabilities is not None, "no run, no probabilities"
        own = self.probabilities[rows, self.questions[question]]
        if not self.multi_label:
            return np.asarray(own.max(axis=1))
        # A label's name may hold the mark that stands between several.
        named = [f"{SEVERAL}{self.answers[question][row] or ''}{SEVERAL}" for row in rows]
        given = [[f"{SEVERAL}{x}{SEVERAL}" in one for x in self.labels[question]] for one in named]
        return np.asarray(np.where(given, own, 1 - own).prod(axis=1))


def read_known(partial: PartialPredictions, tasks: Mapping[str, Task]) -> Known:
    """Return what finished predictions say of a pool.

    Args:
        partial: Its predictions.
        tasks: Question -> what is asked.
    """
    questions, answers, columns, start = {}, {}, list[str](), 0
    for name, task in tasks.items():
        end = f"_{name}" if name else ""
        columns += [f"p{end}_{label}" for label in task.label_names]
        questions[name] = slice(start, start := start + len(task.labels))
        answers[name] = list(partial.values(f"predicted{end}"))
    probabilities = partial.table(columns).to_numpy(np.float64)
    multi_label = any(task.multi_label for task in tasks.values())
    labels = {name: task.label_names for name, task in tasks.items()}
    return Known(probabilities, questions, multi_label, labels, answers)


def next_table(
    examples: Sequence[Example],
    rows: NDArray[np.int64],
    chosen: Chosen,
    known: Known,
    *,
    label_columns: Mapping[str, str],
    why: str,
) -> pd.DataFrame:
    """Return the chosen texts as a table to label.

    Args:
        examples: Texts in the order to label them in, with the columns of their table, k of them.
        rows: Their places in the pool, (k,).
        chosen: As they were chosen.
        known: What the run says.
        label_columns: Question -> where its labels will stand.
        why: What is said of texts that the strategy chose.

    Raises:
        DataError: If labels would stand in a column that is ours.
    """
    ours: dict[str, Sequence[object]] = {}
    for name, answers in known.answers.items():
        end = f"_{name}" if name else ""
        ours[f"{SUGGESTED}{end}"] = [answers[row] for row in rows]
        ours[f"{PROBABILITY}{end}"] = known.certainty(name, rows).round(4).tolist()
    ours[WHY] = [RANDOM if drawn else why for drawn in chosen.is_random]
    ours[DRAWN] = [RANDOM if drawn else CHOSEN for drawn in chosen.is_random]
    for column in label_columns.values():
        if column in ours:
            raise DataError(
                f"The label column is called {column!r}, as is a column that says how texts were "
                "chosen. Rename it in the tables of the run, or give another --label."
            )
    carried = list(examples[0].columns or ())
    renamed = names_beside([*examples[0].texts, *carried], ours.keys())
    columns: dict[str, Sequence[object]] = {}
    for text in examples[0].texts:
        columns[renamed.get(text, text)] = [example.texts[text] for example in examples]
    for label in label_columns.values():
        columns[label] = [""] * len(examples)
    for column in carried:
        if column not in columns:
            values = [(example.columns or {}).get(column) for example in examples]
            columns[renamed.get(column, column)] = values
    return pd.DataFrame({**columns, **ours})


def suggestions(table: pd.DataFrame, known: Known) -> dict[str, dict[str, int]]:
    """Return how often each label is suggested, by question."""
    return {
        name: dict(Counter(table[f"{SUGGESTED}_{name}" if name else SUGGESTED]).most_common())
        for name in known.answers
    }
