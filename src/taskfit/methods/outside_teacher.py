"""A teacher that is another model: an endpoint, or the shares that some model or people gave.

Legend: N texts, L labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from taskfit.data import Example
from taskfit.errors import DataError, SettingsError
from taskfit.method_settings import DistillSettings, RemoteMethodSettings
from taskfit.methods.method import FloatArray, MethodContext
from taskfit.methods.remote_reader import RemoteReader
from taskfit.remote.words import estimate_words
from taskfit.screen import announce, each_tenth
from taskfit.settings import RunSettings


class OutsideTeacher:
    """Says the distribution over the labels of texts, once, before any step."""

    def __init__(self, context: MethodContext) -> None:
        """Bind to the table's shares, or to the endpoint; nothing is sent yet.

        Raises:
            SettingsError: If settings do not suit such a teacher, or no model is named.
        """
        settings = context.settings.method
        assert isinstance(settings, DistillSettings)
        _check(settings, context.settings)
        self._labels = context.task.label_names
        self._reader: RemoteReader | None = None
        self._num_unparsable = 0
        if settings.teacher == "remote":
            self._reader = RemoteReader(
                context.settings.remote,
                context.task,
                context.demonstrations,
                max_new_tokens=RemoteMethodSettings(name="remote").max_new_tokens,
            )

    def says(self, examples: Sequence[Example]) -> FloatArray:
        """Return the probabilities of the labels of texts; NaN where there is no answer, (N, L).

        Raises:
            DataError: If a text has no shares, or no text has an answer.
            RemoteError: If the endpoint gives none; what it has answered is kept.
        """
        if self._reader is None:
            return np.stack([_shares(example, self._labels) for example in examples])
        waiting = self._reader.estimate(examples)
        if waiting.num_requests:
            announce(f"asking the teacher: {estimate_words(waiting)}")
        count = f"{len(examples):,}"
        advance = each_tenth(
            len(examples), lambda done: announce(f"the teacher has answered {done:,} of {count}")
        )
        found = self._reader.read(examples, advance=advance)
        self._num_unparsable = int((~found.has_answer).sum())
        if self._num_unparsable == len(examples):
            raise DataError(
                f"None of the teacher's {len(examples):,} answers names a label of the task "
                f"({', '.join(self._labels)}). The first is: {found.said[0]!r}. Say in "
                "task.instruction how it is to answer."
            )
        if self._num_unparsable:
            announce(
                f"{self._num_unparsable:,} of {len(examples):,} answers of the teacher name no "
                "label; these texts are left out of training"
            )
        return found.probabilities

    def report(self) -> Mapping[str, Any]:
        """Return what the endpoint was asked, and how many answers named no label."""
        if self._reader is None:
            return {}
        usage = dataclasses.asdict(self._reader.usage)
        return {**usage, "num_unparsable": self._num_unparsable}


def _check(settings: DistillSettings, whole: RunSettings) -> None:
    """Raise where settings are for a teacher that is the model in training."""
    given = {
        "method.loss": (settings.word_loss, "labels"),
        "method.calibration": (settings.calibration, "none"),
        "method.contexts": (settings.contexts, "fixed"),
    }
    wrong = [f"{name}={found}" for name, (found, needed) in given.items() if found != needed]
    if wrong:
        raise SettingsError(
            f"distill with {' and '.join(wrong)}: method.teacher={settings.teacher} is another "
            "model, of which only the labels' probabilities are known. Leave it out."
        )
    if settings.teacher == "remote":
        return
    if not whole.data.soft_labels:
        raise SettingsError(
            "method.teacher=soft_labels learns from the shares in the table: name their columns "
            "with data.soft_labels, such as --set data.soft_labels.good=p_good. `taskfit label` "
            "writes such a table, and the settings with it."
        )
    if whole.data.unlabeled is not None:
        raise SettingsError(
            "method.teacher=soft_labels learns from the shares in the training table, and the "
            "texts of data.unlabeled have none. Leave it out, or label them with `taskfit label`."
        )


def _shares(example: Example, labels: Sequence[str]) -> FloatArray:
    if example.target is None:
        raise DataError(
            f"{example.id} has no shares: method.teacher=soft_labels reads them in the columns of "
            "data.soft_labels. Give a table with these columns."
        )
    return np.array([example.target.get(label, 0.0) for label in labels])
