"""A fitted classifier: what evaluation, prediction and the estimator all score with."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from taskfit.data import Example
from taskfit.errors import CheckpointError, SettingsError, TaskfitError
from taskfit.files import file_atomic, write_json_atomic
from taskfit.methods.majority import target_matrix
from taskfit.methods.method import Method, MethodContext, MethodState
from taskfit.methods.table import label_method
from taskfit.runs.blending import PREFIX, Blend, restore_blend
from taskfit.runs.records import library_versions
from taskfit.settings import RunSettings
from taskfit.settings_file import load_run_settings
from taskfit.stats import Evaluation, evaluate_multi_label, evaluate_probabilities
from taskfit.stats.conformal import class_thresholds, prediction_sets, threshold
from taskfit.stats.temperature import apply_temperature
from taskfit.tasks import Task, task_from_dict, task_to_dict

if TYPE_CHECKING:
    from taskfit.models.load import LoadedModel

FILE = "classifier.json"
ARRAYS = "method.safetensors"
SETTINGS_FILE = "settings.yaml"
ADAPTER = "adapter"
MODEL = "model"
Weights = Literal["none", "lora", "qlora", "full"]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
# Their names in the file of the method's arrays.
SCORES, SCORE_LABELS = "calibration.scores", "calibration.score_labels"


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What held-out examples say about a fitted method; see `taskfit.stats`.

    Attributes:
        temperature: Divides the log-probabilities; 1 changes nothing.
        scores: Conformal scores of the n held-out examples in rising order, (n,), or None.
        score_labels: Indices of their right labels, (n,), or None.
    """

    temperature: float = 1.0
    scores: FloatArray | None = None
    score_labels: IntArray | None = None


class Classifier:
    """A method bound to a task and a model: texts in, probabilities of the labels out.

    Attributes:
        method: The fitted method.
        task: The task.
        calibration: What corrects its probabilities.
        blend: A probe that they are averaged with, or None.
    """

    def __init__(
        self,
        method: Method,
        *,
        calibration: Calibration | None = None,
        blend: Blend | None = None,
    ) -> None:
        """Wrap a method."""
        self.method = method
        self.task: Task = method.task
        self.calibration = calibration or Calibration()
        self.blend = blend

    @property
    def model_name(self) -> str:
        """Return the model as the user named it, or the method where there is none."""
        model = self.method.context.model
        return self.method.settings.name if model is None else model.name

    def probabilities(
        self, examples: Sequence[Example], *, advance: Callable[[int], None] | None = None
    ) -> FloatArray:
        """Return the probability of every label, blended and calibrated, (N, L); see `Method`."""
        return self.combined(self.parts(examples, advance=advance))

    def parts(
        self, examples: Sequence[Example], *, advance: Callable[[int], None] | None = None
    ) -> list[FloatArray | None]:
        """Return the probabilities of the method and of each probe, (N, L); None: weight 0."""
        if self.blend is None:
            return [self.method.probabilities(examples, advance=advance)]
        sources = (self.method, *self.blend.probes)
        told = [advance, *(None for _ in self.blend.probes)]
        return [
            source.probabilities(examples, advance=tell) if weight else None
            for source, tell, weight in zip(sources, told, self.blend.weights, strict=True)
        ]

    def combined(self, parts: Sequence[FloatArray | None]) -> FloatArray:
        """Return what `parts` gives, blended and calibrated, (N, L)."""
        if self.blend is None:
            (found,) = parts
            assert found is not None, "the only part has all of the weight"
        else:
            found = self.blend.mean(parts)
        return apply_temperature(
            found, self.calibration.temperature, multi_label=self.task.multi_label
        )

    def prediction_sets(
        self, probabilities: FloatArray, coverage: float, *, per_class: bool = False
    ) -> BoolArray:
        """Return the labels of each set that holds the right one with a chosen probability.

        Args:
            probabilities: As `probabilities` returns them, (N, L).
            coverage: The probability, over texts like the held-out ones.
            per_class: Whether it is to hold for the texts of every label, and not only for all.

        Returns:
            Which labels are in each set, (N, L).

        Raises:
            SettingsError: If the run keeps no held-out scores, or too few for the coverage.
        """
        limit = self.set_limit(coverage, per_class=per_class)
        return prediction_sets(probabilities, limit)

    def set_limit(self, coverage: float, *, per_class: bool = False) -> float | FloatArray:
        """Return up to which score labels are in a set; see `prediction_sets`."""
        scores, labels = self.calibration.scores, self.calibration.score_labels
        if self.task.multi_label:
            raise SettingsError(
                "Prediction sets are for tasks in which a text has one label; here it may have "
                "several (task.multi_label). Leave out the coverage."
            )
        if scores is None or labels is None:
            raise SettingsError(
                "This run kept no held-out scores, which prediction sets need. Fit it with "
                "--set calibration.prediction_sets=true and a validation set."
            )
        if per_class:
            num_labels = len(self.task.label_names)
            return class_thresholds(scores, labels, coverage, num_labels=num_labels)
        return threshold(scores, coverage)

    def gold(self, examples: Sequence[Example]) -> IntArray:
        """Return the indices of the right labels of labelled examples, (N,)."""
        places = {name: place for place, name in enumerate(self.task.label_names)}
        return np.array([places[str(example.label)] for example in examples], np.int64)

    def present(self, examples: Sequence[Example]) -> BoolArray:
        """Return which labels hold of labelled examples with several labels, (N, L)."""
        targets = [example.target_vector(self.task.label_names) for example in examples]
        return np.stack([target for target in targets if target is not None]) > 0

    def losses(self, examples: Sequence[Example], probabilities: FloatArray) -> FloatArray:
        """Return the Brier score of each labelled example, lower is better, (N,).

        A proper score (Gneiting & Raftery 2007, section 3.1) that, unlike the log loss, a single
        confident mistake cannot decide. No answer counts as undecided.
        """
        targets = target_matrix(examples, self.task.label_names)
        even = 0.5 if self.task.multi_label else 1 / len(self.task.label_names)
        found = np.nan_to_num(probabilities, nan=even)
        return np.asarray(((found - targets) ** 2).sum(axis=1))

    def evaluate(self, examples: Sequence[Example], probabilities: FloatArray) -> Evaluation:
        """Measure probabilities of labelled examples."""
        names = self.task.label_names
        if self.task.multi_label:
            return evaluate_multi_label(probabilities, self.present(examples), labels=names)
        return evaluate_probabilities(probabilities, self.gold(examples), labels=names)

    def save(self, folder: Path, *, weights: Weights, extra: dict[str, Any]) -> None:
        """Write everything but the model's weights that prediction needs.

        Args:
            folder: The run's folder, with its settings in it.
            weights: Whether there is an adapter or a whole model beside it.
            extra: More to record, such as the run's name.
        """
        context, state = self.method.context, self.method.state()
        model = context.model
        arrays = dict(state.arrays)
        blend = None if self.blend is None else self.blend.state()
        if blend is not None:
            arrays |= blend.arrays
        if self.calibration.scores is not None and self.calibration.score_labels is not None:
            arrays[SCORES] = self.calibration.scores
            arrays[SCORE_LABELS] = self.calibration.score_labels
        if arrays:
            with file_atomic(folder / ARRAYS) as path:
                save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
        write_json_atomic(
            folder / FILE,
            {
                **extra,
                "weights": weights,
                "model": None if model is None else model.name,
                "revision": None if model is None else model.revision,
                "dtype": (
                    None if model is None else str(model.tree.model.dtype).removeprefix("torch.")
                ),
                "task": task_to_dict(self.task),
                "demonstrations": [
                    {"id": d.id, "texts": dict(d.texts), "label": d.label}
                    for d in context.demonstrations
                ],
                "state": dict(state.values),
                "blend": None if blend is None else dict(blend.values),
                "calibration": {
                    "temperature": self.calibration.temperature,
                    "prediction_sets": SCORES in arrays,
                },
                "versions": library_versions(),
            },
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> "Classifier":
        """Load the classifier of a finished run.

        Args:
            folder: The run's folder.
            device: Where to put it; see `model.device`.

        Raises:
            CheckpointError: If the folder holds no finished run, or part of it is missing.
        """
        path = folder / FILE
        if not path.is_file():
            hint = (
                f" It was interrupted: continue with `taskfit fit --resume {folder}`."
                if (folder / SETTINGS_FILE).is_file()
                else " Give the folder that `taskfit fit --out` made."
            )
            raise CheckpointError(f"{folder} holds no finished run: no {FILE} in it.{hint}")
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            task = task_from_dict(saved["task"])
            demonstrations = [Example(**entry) for entry in saved["demonstrations"]]
            weights, values = saved["weights"], saved["state"]
            settings = settings_for_prediction(folder, saved, device=device)
            arrays = load_file(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
            # Runs from before there was calibration have no such entry.
            kept = saved.get("calibration", {"temperature": 1.0, "prediction_sets": False})
            calibration = _calibration_of(kept, arrays)
            blended = _blend_of(saved.get("blend"), arrays)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}.") from error
        method = label_method(settings.method.name)
        model: LoadedModel | None = None
        if settings.method.reads_model:
            model = load_fitted_model(settings, folder, weights)
        saved_weights = folder / MODEL if weights == "full" and model is None else None
        context = MethodContext(settings, task, demonstrations, model, saved=saved_weights)
        fitted = method(context)
        fitted.restore(MethodState(values, arrays))
        blend = None if blended is None else restore_blend(context, blended)
        return cls(fitted, calibration=calibration, blend=blend)


def _blend_of(values: dict[str, Any] | None, arrays: dict[str, NDArray[Any]]) -> MethodState | None:
    """Return the state of a run's blend, and take its arrays from those of the method."""
    if values is None:
        return None
    names = [name for name in arrays if name.startswith(PREFIX)]
    return MethodState(values, {name: arrays.pop(name) for name in names})


def _calibration_of(kept: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Calibration:
    """Return the calibration of a run, and take its arrays from those of the method."""
    if not kept["prediction_sets"]:
        return Calibration(float(kept["temperature"]))
    return Calibration(float(kept["temperature"]), arrays.pop(SCORES), arrays.pop(SCORE_LABELS))


def load_fitted_model(settings: RunSettings, folder: Path, weights: Weights) -> "LoadedModel":
    """Load the model of a run, with the adapter that lies in its folder where there is one.

    Raises:
        TaskfitError: If the model cannot be had, or files of the run were damaged.
    """
    from taskfit.models.adapters import load_adapter
    from taskfit.models.load import load_model
    from taskfit.models.out_of_memory import is_out_of_memory

    try:
        model = load_model(settings.model, quantization=settings.adapter)
        if weights in ("lora", "qlora"):
            load_adapter(model.tree.model, folder / ADAPTER)
            model.tree.model.eval()
    except TaskfitError:
        raise
    except (KeyError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The model of the run in {folder} cannot be loaded: {first_line} Its files were "
            "changed or copied in part, or its base model is another one now."
        ) from error
    return model


def settings_for_prediction(folder: Path, saved: dict[str, Any], *, device: str) -> RunSettings:
    """Return the run's settings, with the model that prediction takes."""
    settings = load_run_settings(folder / SETTINGS_FILE)
    changed: dict[str, Any] = {"device": device}
    if saved["dtype"] is not None:
        changed |= {"dtype": saved["dtype"], "name": saved["model"], "revision": saved["revision"]}
    if saved["weights"] == "full" and saved["model"] is not None:
        changed |= {"name": str(folder / MODEL), "revision": None}
    return settings.model_copy(update={"model": settings.model.model_copy(update=changed)})
