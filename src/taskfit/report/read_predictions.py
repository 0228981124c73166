"""What a finished run predicted, read back from its folder.

Legend: N examples, L labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from taskfit.data import Example
from taskfit.methods.calibration import FloatArray
from taskfit.stats import Reliability, reliability


@dataclass(frozen=True, slots=True)
class KeptPredictions:
    """Predictions of one evaluation set, or of one question there.

    Attributes:
        examples: Its labelled texts.
        probabilities: Of each label, (N, L); a row of NaN is no answer.
        labels: Their names.
    """

    examples: list[Example]
    probabilities: FloatArray
    labels: Sequence[str]

    @property
    def reliability(self) -> Reliability:
        """Return how often answers of each confidence are right."""
        answered = ~np.isnan(self.probabilities).any(axis=1)
        place = {label: index for index, label in enumerate(self.labels)}
        gold = np.array([place[str(example.label)] for example in self.examples], np.int64)
        return reliability(self.probabilities[answered], gold[answered])


def read_predictions(
    folder: Path, name: str, labels: Sequence[str], *, question: str | None = None
) -> KeptPredictions:
    """Read the predictions of an evaluation set.

    Args:
        folder: The run's folder.
        name: Of the evaluation set.
        labels: Names of the labels.
        question: Which of several questions; None: the only one.
    """
    table = pd.read_parquet(folder / "predictions" / f"{name}.parquet")
    ending = "" if question is None else f"_{question}"
    # Texts, and what was carried along with them, stand between the id and our first column.
    ours = [c for c in table.columns if c in ("gold", "predicted") or c.startswith("gold_")]
    own = table.columns[1 : table.columns.get_loc(ours[0])]
    table = table[table[f"gold{ending}"].notna()]
    examples = [
        Example(str(row["id"]), {c: str(row[c]) for c in own}, str(row[f"gold{ending}"]))
        for row in table.to_dict("records")
    ]
    # By name, since a text column may be called `p_...` too.
    prefix = "p_" if question is None else f"p_{question}_"
    probabilities = table[[f"{prefix}{label}" for label in labels]].to_numpy(np.float64)
    return KeptPredictions(examples, probabilities, labels)
