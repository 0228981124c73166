"""A fitted classifier: what evaluation, prediction and the estimator all score with."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from taskfit.data import Example
from taskfit.errors import CheckpointError, SettingsError, TaskfitError
from taskfit.files import file_atomic, write_json_atomic
from taskfit.methods.method import Method, MethodContext, MethodState
from taskfit.methods.table import label_method
from taskfit.runs.asked import AskedQuestion, Calibration
from taskfit.runs.blending import PREFIX, Blend, restore_blend
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.records import QUESTIONS_FILE, library_versions
from taskfit.settings import RunSettings
from taskfit.settings_base import check_device
from taskfit.settings_file import load_run_settings, settings_from_dict
from taskfit.stats import Evaluation
from taskfit.tasks import Task, task_from_dict, task_to_dict
from taskfit.tasks.question_files import questionnaire_from_dict, questionnaire_to_dict
from taskfit.tasks.questions import Asked, Questionnaire

if TYPE_CHECKING:
    from taskfit.models.load import LoadedModel

FILE = "classifier.json"
ARRAYS = "method.safetensors"
ADAPTER = "adapter"
MODEL = "model"
Weights = Literal["none", "lora", "qlora", "full"]
FloatArray = NDArray[np.float64]


class Classifier:
    """A method bound to a task and a model: texts in, probabilities of the labels out.

    The labels of several questions stand side by side.

    Attributes:
        method: The fitted method.
        asked: The task of one question, or several questions.
        questions: What the probabilities mean, by question; one without a name for the usual task.
        blend: A probe that they are averaged with, or None.
    """

    def __init__(
        self,
        method: Method,
        *,
        calibrations: Mapping[str, Calibration] = MappingProxyType({}),
        blend: Blend | None = None,
    ) -> None:
        """Wrap a method.

        Args:
            method: The method.
            calibrations: What corrects the probabilities, by question.
            blend: A probe that they are averaged with.
        """
        self.method = method
        self.asked = method.context.asked
        self.blend = blend
        self.questions: dict[str, AskedQuestion] = {}
        start = 0
        for name, task in self.asked.tasks.items():
            own = slice(start, start := start + len(task.labels))
            calibration = calibrations.get(name, Calibration())
            self.questions[name] = AskedQuestion(name, task, own, calibration)

    @property
    def only(self) -> AskedQuestion:
        """Return the question of a task of one."""
        (question,) = self.questions.values()
        return question

    @property
    def task(self) -> Task:
        """Return the task of one question."""
        return self.method.task

    def with_options(self, options: Mapping[str, Sequence[str]]) -> "Classifier":
        """Return the same model asked the same questions, some of them over other options.

        What corrected the probabilities of those says nothing about the new ones.

        Args:
            options: Question -> names of its options.

        Raises:
            PromptError: If there is no such question, or its options cannot be these.
            SettingsError: If there is one question, whose labels are part of the task.
        """
        if not options:
            return self
        if not isinstance(self.asked, Questionnaire):
            raise SettingsError("--options is for runs of several questions; this one has one.")
        context = replace(self.method.context, asked=self.asked.with_options(options))
        kept = {name: q.calibration for name, q in self.questions.items() if name not in options}
        return Classifier(type(self.method)(context), calibrations=kept)

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
        return self.at_temperature(found)

    def at_temperature(self, probabilities: FloatArray) -> FloatArray:
        """Return probabilities at the temperature of each question, (N, L)."""
        return np.concatenate(
            [q.calibrated(probabilities[:, q.columns]) for q in self.questions.values()], axis=1
        )

    def by_question(
        self, examples: Sequence[Example], probabilities: FloatArray
    ) -> Iterator[tuple[AskedQuestion, list[Example], FloatArray]]:
        """Give each question the examples that have a label of it, with their probabilities.

        Questions without any label are left out.

        Args:
            examples: N texts.
            probabilities: Of the labels of all questions, (N, L).
        """
        for name, question in self.questions.items():
            own = [example.of(name) for example in examples]
            rows = [i for i, example in enumerate(own) if example.label is not None]
            if rows:
                part = np.ascontiguousarray(probabilities[:, question.columns][rows])
                yield question, [own[i] for i in rows], part

    def evaluate(
        self, examples: Sequence[Example], probabilities: FloatArray
    ) -> dict[str, Evaluation]:
        """Measure probabilities of labelled examples, (N, L); return metrics by question."""
        found = self.by_question(examples, probabilities)
        return {question.name: question.evaluate(own, part) for question, own, part in found}

    def save(self, folder: Path, *, weights: Weights, extra: dict[str, Any]) -> None:
        """Write everything but the model's weights that prediction needs.

        Args:
            folder: The run's folder, with its settings in it.
            weights: Whether there is an adapter or a whole model beside it.
            extra: More to record, such as the run's name.
        """
        context, state = self.method.context, self.method.state()
        model, blend = context.model, None if self.blend is None else self.blend.state()
        arrays = {**state.arrays, **({} if blend is None else blend.arrays)}
        calibrations = {}
        for name, question in self.questions.items():
            calibrations[name], own = _calibration_state(question)
            arrays |= own
        if arrays:
            with file_atomic(folder / ARRAYS) as path:
                save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
        several = isinstance(self.asked, Questionnaire)
        dtype = None if model is None else str(model.tree.model.dtype).removeprefix("torch.")
        write_json_atomic(
            folder / (QUESTIONS_FILE if several else FILE),
            {
                **extra,
                "weights": weights,
                "model": None if model is None else model.name,
                "revision": None if model is None else model.revision,
                "dtype": dtype,
                **_asked_to_dict(self.asked, context.settings),
                "demonstrations": [
                    {"id": d.id, "texts": dict(d.texts), "label": d.label}
                    for d in context.demonstrations
                ],
                "state": dict(state.values),
                "blend": None if blend is None else dict(blend.values),
                "calibration": calibrations if several else calibrations[""],
                "versions": library_versions(),
            },
        )

    @classmethod
    def load(
        cls, folder: Path, *, device: str = "auto", model: "LoadedModel | None" = None
    ) -> "Classifier":
        """Load the classifier of a finished run.

        Args:
            folder: The run's folder.
            device: Where to put it; see `model.device`.
            model: What reads texts in place of the run's own model. Then the method stands alone,
                without the probes that it is averaged with.

        Raises:
            CheckpointError: If the folder holds no finished run, or part of it is missing.
        """
        file = QUESTIONS_FILE if (folder / QUESTIONS_FILE).is_file() else FILE
        with saved_run(folder, file) as plain:
            saved = _with_defaults(plain)
            asked = _asked_from_dict(saved)
            demonstrations = [Example(**entry) for entry in saved["demonstrations"]]
            weights, values = saved["weights"], saved["state"]
            settings = settings_for_prediction(folder, saved, device=device)
            arrays = load_file(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
            kept = saved["calibration"] if "questions" in saved else {"": saved["calibration"]}
            calibrations = {name: _calibration_of(name, one, arrays) for name, one in kept.items()}
            blended = _blend_of(saved.get("blend"), arrays)
        method = label_method(settings.method.name)
        is_given = model is not None
        if settings.method.reads_model and not is_given:
            model = load_fitted_model(settings, folder, weights)
        saved_weights = folder / MODEL if weights == "full" and model is None else None
        context = MethodContext(settings, asked, demonstrations, model, saved=saved_weights)
        fitted = method(context)
        fitted.restore(MethodState(values, arrays))
        blend = None if blended is None or is_given else restore_blend(context, blended)
        return cls(fitted, calibrations=calibrations, blend=blend)


def _asked_to_dict(asked: Asked, settings: RunSettings) -> dict[str, Any]:
    if isinstance(asked, Task):
        return {"task": task_to_dict(asked)}
    settings_dict = settings.model_dump(mode="json")
    return {"questions": questionnaire_to_dict(asked), "settings": settings_dict}


def _asked_from_dict(saved: Mapping[str, Any]) -> Asked:
    if "questions" in saved:
        return questionnaire_from_dict(saved["questions"])
    return task_from_dict(saved["task"])


def _with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Add what runs of earlier versions do not hold."""
    if "questions" not in saved:
        # From before there was calibration.
        return {"calibration": {"temperature": 1.0, "prediction_sets": False}, **saved}
    # Questions had no state, and their model stood in the settings alone.
    model = saved["settings"]["model"]
    own = {"model": model["name"], "revision": model["revision"], "dtype": model["dtype"]}
    return {**own, "demonstrations": [], "state": {}, "calibration": {}, **saved}


@contextmanager
def saved_run(
    folder: Path,
    file: str,
    *,
    what: str = "finished run",
    hint: str = "Give the folder that `taskfit fit --out` made.",
) -> Iterator[dict[str, Any]]:
    """Lend what a finished run wrote in a JSON file; what is missing or wrong in it is one message.

    Args:
        folder: The run's folder.
        file: Name of the file.
        what: What the folder should hold.
        hint: What to do where there is no run at all.

    Raises:
        CheckpointError: If the file is not there, or does not hold what is read from it.
    """
    path = folder / file
    if not path.is_file():
        if (folder / SETTINGS_FILE).is_file():
            hint = f"If it was interrupted, continue with `taskfit fit --resume {folder}`."
        raise CheckpointError(f"{folder} holds no {what}: no {file} in it. {hint}")
    try:
        yield json.loads(path.read_text(encoding="utf-8"))
    except TaskfitError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}.") from error


def _blend_of(values: dict[str, Any] | None, arrays: dict[str, NDArray[Any]]) -> MethodState | None:
    """Return the state of a run's blend, and take its arrays from those of the method."""
    if values is None:
        return None
    names = [name for name in arrays if name.startswith(PREFIX)]
    return MethodState(values, {name: arrays.pop(name) for name in names})


def _calibration_state(question: AskedQuestion) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what is saved of a question's calibration: values, and arrays by name."""
    own, arrays = question.calibration, dict[str, NDArray[Any]]()
    if own.scores is not None and own.score_labels is not None:
        names = _score_names(question.name)
        arrays = dict(zip(names, (own.scores, own.score_labels), strict=True))
    return {"temperature": own.temperature, "prediction_sets": bool(arrays)}, arrays


def _calibration_of(
    name: str, kept: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> Calibration:
    """Return the calibration of a question, and take its arrays from those of the method."""
    names = _score_names(name) if kept["prediction_sets"] else ()
    return Calibration(float(kept["temperature"]), *(arrays.pop(one) for one in names))


def _score_names(question: str) -> tuple[str, str]:
    """Return the names of a question's scores and their labels in the file of arrays."""
    ending = f".{question}" if question else ""
    return f"calibration.scores{ending}", f"calibration.score_labels{ending}"


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
    """Return the run's settings, with the model that prediction takes.

    Raises:
        SettingsError: If a device cannot be called so, also for methods without a model.
    """
    check_device(device)
    if "settings" in saved:  # several questions have theirs beside them
        settings = settings_from_dict(saved["settings"], asked={})
    else:
        settings = load_run_settings(folder / SETTINGS_FILE)
    changed: dict[str, Any] = {"device": device}
    if saved["dtype"] is not None:
        changed |= {"dtype": saved["dtype"], "name": saved["model"], "revision": saved["revision"]}
    if saved["weights"] == "full" and saved["model"] is not None:
        changed |= {"name": str(folder / MODEL), "revision": None}
    return settings.model_copy(update={"model": settings.model.model_copy(update=changed)})
