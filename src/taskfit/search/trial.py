"""One trial of a search: fit, watch the validations, leave the model as it was.

Legend: N validation examples, L labels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.methods.method import Method, MethodContext, TrainedMethod
from taskfit.methods.table import label_method
from taskfit.models.load import resolve_device
from taskfit.runs.classifier import Classifier
from taskfit.runs.prepare import PreparedData
from taskfit.runs.run import Run
from taskfit.runs.shared_model import SharedModel
from taskfit.runs.train_method import train_method
from taskfit.screen import SilentScreen
from taskfit.search.records import State
from taskfit.settings import RunSettings
from taskfit.stats import Evaluation
from taskfit.training.memory import MemoryAccount
from taskfit.training.trackers import Trackers

FloatArray = NDArray[np.float64]
# Told the number of a validation and its score; returns whether the trial shall end there.
ShouldStop = Callable[[int, float], bool]


class StopTrial(Exception):
    """Ends a training in the middle; the work done so far is in `TrialOutcome`."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """What a trial showed on the validation set; without arguments, one that failed.

    Attributes:
        state: finished, pruned (ended early), or failed.
        score: The task's metric of the weights that the run would end with.
        log_loss: Their mean loss (nats).
        step: Their step; 0 without training.
        num_validations: Validations seen.
        predicted: Their answers by label index, N; -1: none. Empty for several labels a text.
    """

    state: State = "failed"
    score: float | None = None
    log_loss: float | None = None
    step: int = 0
    num_validations: int = 0
    predicted: tuple[int, ...] = ()


def run_trial(
    settings: RunSettings,
    data: PreparedData,
    folder: Path,
    shared: SharedModel,
    *,
    should_stop: ShouldStop,
) -> TrialOutcome:
    """Fit with the settings of a trial and score the validation set, nothing else.

    The folder gets `metrics.jsonl`; no weights, checkpoints or predictions.

    Args:
        settings: The trial's settings.
        data: Must have a validation set; evaluation sets are not looked at.
        folder: The trial's folder.
        shared: The base model, which is put back in any case.
        should_stop: Asked after every validation but the last.

    Raises:
        TaskfitError: As a run with these settings would.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = replace(data, evaluations={})
    # Compiling pays for long runs, and would stay in the model.
    model = settings.model.model_copy(update={"compile": "off"})
    last = settings.training.model_copy(update={"keep": "last"})
    keeps_best = settings.training.keep == "best"
    settings = settings.model_copy(update={"model": model, "training": last})
    method: Method | None = None
    try:
        method = label_method(settings.method.name)(
            MethodContext(settings, data.task, data.demonstrations, shared.model)
        )
        classifier = _Remembering(method)
        watch = _Watch(data, classifier, should_stop, keeps_best=keeps_best)
        method.prepare(data.train, data.validation)
        if not isinstance(method, TrainedMethod):
            probabilities = classifier.probabilities(data.validation)
            found = classifier.evaluate(data.validation, probabilities)[""]
            return watch.outcome_of(getattr(found, data.task.metric), found.log_loss, step=0)
        memory = MemoryAccount(resolve_device(settings.model.device))
        run = Run(
            settings=settings,
            folder=folder,
            data=data,
            classifier=classifier,
            memory=memory,
            screen=watch,
        )
        try:
            train_method(run, method, trackers=Trackers({}), save=False)
        except StopTrial:
            return replace(watch.outcome, state="pruned")
        return watch.outcome
    finally:
        shared.restore(method)


class _Remembering(Classifier):
    """A classifier that remembers what it was last measured on.

    Attributes:
        predicted: Answers by label index, N; -1: none. Empty for several labels a text.
    """

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.predicted: tuple[int, ...] = ()

    def evaluate(
        self, examples: Sequence[Example], probabilities: FloatArray
    ) -> dict[str, Evaluation]:
        """Measure probabilities, (N, L), and remember the answers."""
        if not self.task.multi_label:
            best = np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1)
            best[np.isnan(probabilities[:, 0])] = -1
            self.predicted = tuple(best.tolist())
        return super().evaluate(examples, probabilities)


class _Watch(SilentScreen):
    """Sees the records of a training, keeps the validation that counts, and ends it if told to.

    Attributes:
        outcome: The validation that counts so far.
    """

    def __init__(
        self,
        data: PreparedData,
        classifier: _Remembering,
        should_stop: ShouldStop,
        *,
        keeps_best: bool,
    ) -> None:
        self._metric = data.task.metric
        self._classifier = classifier
        self._should_stop = should_stop
        self._keeps_best = keeps_best
        self._total_steps = 0
        self._num_validations = 0
        self._best = float("-inf")
        self.outcome = TrialOutcome()

    def outcome_of(self, score: float, log_loss: float, *, step: int) -> TrialOutcome:
        """Return the outcome that the classifier's last measurement is."""
        count = max(1, self._num_validations)
        return TrialOutcome("finished", score, log_loss, step, count, self._classifier.predicted)

    def record(self, record: Mapping[str, Any]) -> None:
        """Take a record of the training log.

        Raises:
            StopTrial: If it shall end here.
        """
        if record["kind"] in ("start", "step"):
            self._total_steps = record["total_steps"]
        if record["kind"] != "validation" or record["step"] == 0:
            return  # what a trial starts from is none of its doing
        self._num_validations += 1
        score = float(record[self._metric])
        if not self._keeps_best or score > self._best:
            self._best = score
            self.outcome = self.outcome_of(score, float(record["loss"]), step=record["step"])
        self.outcome = replace(self.outcome, num_validations=self._num_validations)
        is_last = record["step"] >= self._total_steps
        # What is finished costs nothing more, so it is kept.
        if self._should_stop(self._num_validations, self._best) and not is_last:
            raise StopTrial
