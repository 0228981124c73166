"""A finished run with what is asked of it: texts in, rows of predictions out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.errors import DataError, ModelError, PromptError, SettingsError
from taskfit.methods.method import Advance
from taskfit.models.identity import describe_model
from taskfit.runs.classifier import Classifier
from taskfit.runs.load import load_classifier
from taskfit.runs.predictions import ERROR, SHORTENED, prediction_table
from taskfit.runs.table_texts import Rows
from taskfit.runs.thresholds import with_given_thresholds
from taskfit.screen import Screen
from taskfit.stats.conformal import prediction_sets
from taskfit.tasks.shortening import noting_shortened

FloatArray = NDArray[np.float64]
# What is wrong with a text, and not with the run, the machine or an endpoint.
OF_A_TEXT = (DataError, PromptError, ModelError)
# So many texts that cannot be scored, and none before them that can: it is not for the texts.
PATIENCE = 8


class Asking(TypedDict, total=False):
    """What is asked of a run beside the texts; all may be left out.

    Attributes:
        device: See `model.device`.
        options: Several questions: question -> names of its options, where they are others.
        coverage: Adds sets of labels that hold the right one with this probability; None: none.
        per_class: Whether the coverage is to hold for the texts of every label.
        abstain_below: Leaves answers out whose probability is lower; None: gives all.
        thresholds: Several labels a text: label -> from which probability on it is given, in place
            of the run's own; that without a name is for all others.
        allow_other_base: Whether a base will do that is not the one of the run.
        only_predictions: Whether id, texts and predictions are written alone.
    """

    device: str
    options: Mapping[str, Sequence[str]] | None
    coverage: float | None
    per_class: bool
    abstain_below: float | None
    thresholds: Mapping[str, float] | None
    allow_other_base: bool
    only_predictions: bool


def describe_asking(**asking: Unpack[Asking]) -> str:
    """Return what predictions hang on beside run, texts and base."""
    described = (
        f"{dict(asking.get('options') or {})}, coverage {asking.get('coverage')}, "
        f"per class {asking.get('per_class', False)}, "
        f"only predictions {asking.get('only_predictions', False)}"
    )
    if (threshold := asking.get("abstain_below")) is not None:
        described += f", abstain below {threshold}"
    if thresholds := asking.get("thresholds"):
        described += f", thresholds {dict(sorted(thresholds.items()))}"
    return described


def left_out(**asking: Unpack[Asking]) -> tuple[str, ...]:
    """Return the columns that are no predictions, where these are asked for alone."""
    return (SHORTENED, ERROR) if asking.get("only_predictions") else ()


class Predictor:
    """A finished run with what is asked of it: texts in, rows of predictions out."""

    def __init__(
        self,
        folder: Path,
        *,
        screen: Screen | None = None,
        device: str = "auto",
        options: Mapping[str, Sequence[str]] | None = None,
        coverage: float | None = None,
        per_class: bool = False,
        abstain_below: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        allow_other_base: bool = False,
        only_predictions: bool = False,
    ) -> None:
        """Load the run of a folder; see `Asking`.

        A screen is told what people should know of its model, and once of what reads the texts.

        Raises:
            TaskfitError: If the run does not allow it.
        """
        if abstain_below is not None and not 0 < abstain_below <= 1:
            raise SettingsError(
                f"--abstain-below {abstain_below:g}: give a probability above 0, at most 1, such "
                "as 0.8."
            )
        found = load_classifier(folder, device=device, allow_other_base=allow_other_base)
        model = found.method.context.model
        self._screen = screen
        if screen is not None and model is not None:
            for note in model.notes:
                screen.note(note)
        self._classifier = found.with_options(options or {})
        if thresholds:
            self._classifier = with_given_thresholds(self._classifier, thresholds)
        self.questions = self._classifier.questions
        several = [q.task for q in self.questions.values() if q.task.multi_label]
        if several and abstain_below is not None:
            raise SettingsError(
                "--abstain-below is for texts with one label; here a text has each label by "
                "itself, with a probability of its own."
            )
        self._abstain_below, self._allow_other_base = abstain_below, allow_other_base
        self.limits = {}
        if coverage is not None:
            self.limits = {
                name: question.set_limit(coverage, per_class=per_class)
                for name, question in self.questions.items()
            }
        self._num_scored = self._num_failed = 0

    def describe_base(self) -> str:
        """Return what predictions hang on beside the run, which has a base of its own."""
        model = self._classifier.method.context.model
        if model is None or not self._allow_other_base:
            return ""
        return f", base {describe_model(model.name, model.revision)}"

    def answer(self, rows: Rows, advance: Advance) -> pd.DataFrame:
        """Return a row for each text; see `prediction_table`.

        A text that cannot be scored costs no other its answer: it is looked for, and its row says
        why.

        Raises:
            TaskfitError: If none of many can be scored, so that it is not for the texts.
        """
        errors = dict(rows.errors)
        counted = _Counted(advance, len(rows.texts))
        with noting_shortened() as shortened:
            found = self._scored(rows.texts, errors, counted)
        counted.rest()
        self._tell_stock_pass()
        sets = {
            name: prediction_sets(found[:, self.questions[name].columns], limit)
            for name, limit in self.limits.items()
        }
        return prediction_table(
            rows.texts,
            found,
            self.questions,
            sets=sets,
            abstain_below=self._abstain_below,
            shortened=shortened,
            errors=errors,
            keeps_id=True,
        )

    def _tell_stock_pass(self) -> None:
        """Say once what reads the texts, where it is not the fast pass."""
        model = self._classifier.method.context.model
        if self._screen is None or model is None:
            return
        if (note := model.tree.lean.stock_note()) is not None:
            self._screen.note(note)
            self._screen = None

    def _scored(
        self, texts: Sequence[Example], errors: dict[int, str], advance: Advance
    ) -> FloatArray:
        """Return the probabilities of all labels, (N, L), NaN in rows without an answer.

        Args:
            texts: N texts; those that are blank or have an error are not scored.
            errors: Place of a text -> why it has no answer; gets what is found out.
            advance: Counts those that are scored.
        """
        found = np.full((len(texts), num_labels(self._classifier)), np.nan)
        waiting = [[i for i in range(len(texts)) if i not in errors and not texts[i].is_blank]]
        error: Exception | None = None
        while waiting:
            part = waiting.pop()
            if not part:
                continue
            asked = [texts[i] for i in part]
            try:
                found[part] = self._classifier.probabilities(asked, advance=advance)
                self._num_scored += len(part)
            except OF_A_TEXT as reason:
                error = reason
                if len(part) == 1:
                    self._num_failed += 1
                    if not self._num_scored and self._num_failed >= PATIENCE:
                        raise
                    errors[part[0]] = str(reason)
                elif self._num_scored:
                    half = len(part) // 2
                    waiting += [part[half:], part[:half]]
                else:
                    # Some from all over tell whether it is for the texts.
                    some = part[:: -(-len(part) // PATIENCE)]
                    waiting += [sorted(set(part) - set(some)), *([i] for i in some)]
        if error is not None and not self._num_scored:
            raise error
        return found


def answers_of(
    classifier: Classifier, examples: Sequence[Example], advance: Advance
) -> tuple[FloatArray, set[str]]:
    """Return the probabilities of all rows, and the ids of those whose texts were shortened.

    Rows without any text have no answer: NaN for every label, (N, L).
    """
    asked = [i for i, example in enumerate(examples) if not example.is_blank]
    found = np.full((len(examples), num_labels(classifier)), np.nan)
    with noting_shortened() as shortened:
        if asked:
            found[asked] = classifier.probabilities([examples[i] for i in asked], advance=advance)
    advance(len(examples) - len(asked))
    return found, shortened


def num_labels(classifier: Classifier) -> int:
    """Return how many labels all questions have together."""
    return max(int(question.columns.stop) for question in classifier.questions.values())


class _Counted:
    """Counts texts, each once however often some of them are tried."""

    def __init__(self, advance: Advance, most: int) -> None:
        self._advance, self._left = advance, most

    def __call__(self, count: int) -> None:
        count = min(count, self._left)
        self._left -= count
        self._advance(count)

    def rest(self) -> None:
        """Count those that were not."""
        self(self._left)
