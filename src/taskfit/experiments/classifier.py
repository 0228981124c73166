"""A fitted classifier: what evaluation, prediction and the estimator all score with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from taskfit.data import Example
from taskfit.errors import CheckpointError
from taskfit.evaluation import Evaluation, evaluate_multi_label, evaluate_probabilities
from taskfit.experiments.records import library_versions
from taskfit.files import file_atomic, write_json_atomic
from taskfit.methods.method import Method, MethodContext, MethodState
from taskfit.methods.table import METHODS
from taskfit.models import LoadedModel, load_adapter, load_model
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.tasks import Task, task_from_dict, task_to_dict

FILE = "classifier.json"
ARRAYS = "method.safetensors"
SETTINGS_FILE = "settings.yaml"
ADAPTER = "adapter"
MODEL = "model"
Weights = Literal["none", "lora", "qlora", "full"]
FloatArray = NDArray[np.float64]


class Classifier:
    """A method bound to a task and a model: texts in, probabilities of the labels out.

    Attributes:
        method: The fitted method.
        task: The task.
    """

    def __init__(self, method: Method) -> None:
        """Wrap a method."""
        self.method = method
        self.task: Task = method.task

    @property
    def model_name(self) -> str:
        """Return the model as the user named it, or the method where there is none."""
        model = self.method.context.model
        return self.method.settings.name if model is None else model.name

    def probabilities(
        self, examples: Sequence[Example], *, advance: Callable[[int], None] | None = None
    ) -> FloatArray:
        """Return the probability of every label, (examples, labels); see `Method`."""
        return self.method.probabilities(examples, advance=advance)

    def evaluate(self, examples: Sequence[Example], probabilities: FloatArray) -> Evaluation:
        """Measure probabilities of labelled examples."""
        names = self.task.label_names
        if self.task.multi_label:
            targets = [example.target_vector(names) for example in examples]
            present = np.stack([t for t in targets if t is not None]) > 0
            return evaluate_multi_label(probabilities, present, labels=names)
        gold = np.array([names.index(str(example.label)) for example in examples])
        return evaluate_probabilities(probabilities, gold, labels=names)

    def save(self, folder: Path, *, weights: Weights, extra: dict[str, Any]) -> None:
        """Write everything but the model's weights that prediction needs.

        Args:
            folder: The run's folder, with its settings in it.
            weights: Whether there is an adapter or a whole model beside it.
            extra: More to record, such as the run's name.
        """
        context, state = self.method.context, self.method.state()
        model = context.model
        if state.arrays:
            with file_atomic(folder / ARRAYS) as path:
                save_file({k: np.ascontiguousarray(v) for k, v in state.arrays.items()}, path)
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
            settings = _settings_of(folder, saved, device=device)
            arrays = load_file(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}.") from error
        method = METHODS[settings.method.name]
        model: LoadedModel | None = None
        if method.reads_model(settings.method):
            model = load_fitted_model(settings, folder, weights)
        saved_weights = folder / MODEL if weights == "full" and model is None else None
        fitted = method(MethodContext(settings, task, demonstrations, model, saved=saved_weights))
        fitted.restore(MethodState(values, arrays))
        return cls(fitted)


def load_fitted_model(settings: RunSettings, folder: Path, weights: Weights) -> LoadedModel:
    """Load the model of a run, with the adapter that lies in its folder where there is one."""
    model = load_model(settings.model, quantization=settings.adapter)
    if weights in ("lora", "qlora"):
        load_adapter(model.tree.model, folder / ADAPTER)
        model.tree.model.eval()
    return model


def _settings_of(folder: Path, saved: dict[str, Any], *, device: str) -> RunSettings:
    """Return the run's settings, with the model that prediction takes."""
    settings = load_settings(folder / SETTINGS_FILE)
    changed: dict[str, Any] = {"device": device}
    if saved["dtype"] is not None:
        changed |= {"dtype": saved["dtype"], "name": saved["model"], "revision": saved["revision"]}
    if saved["weights"] == "full" and saved["model"] is not None:
        changed |= {"name": str(folder / MODEL), "revision": None}
    return settings.model_copy(update={"model": settings.model.model_copy(update=changed)})
