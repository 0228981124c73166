"""A fitted classifier: what evaluation, prediction and the estimator all score with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.files import file_atomic, write_json_atomic
from taskfit.methods.method import Method, MethodContext, MethodState, Reading
from taskfit.methods.table import label_method
from taskfit.runs.asked import AskedQuestion, Calibration
from taskfit.runs.bases import Found, blended_places
from taskfit.runs.blending import PREFIX, Blend, restore_blend
from taskfit.runs.coarse import as_measured
from taskfit.runs.records import QUESTIONS_FILE, library_versions
from taskfit.runs.saved import (
    MODEL,
    Weights,
    check_arrays,
    explain_arrays,
    load_fitted_model,
    saved_run,
    settings_for_prediction,
)
from taskfit.settings import RunSettings
from taskfit.stats import Evaluation
from taskfit.tasks import Task, task_from_dict, task_to_dict
from taskfit.tasks.question_files import questionnaire_from_dict, questionnaire_to_dict
from taskfit.tasks.questions import Asked, Questionnaire

if TYPE_CHECKING:
    from taskfit.models.load import LoadedModel
    from taskfit.runs.shared_bases import SharedBases

FILE = "classifier.json"
ARRAYS = "method.safetensors"
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

    def with_thresholds(self, values: FloatArray | None) -> "Classifier":
        """Return the same with other thresholds.

        Args:
            values: Of a task of one question with several labels a text, see `Calibration`; None:
                one half for all labels, whatever is asked.
        """
        changed = {
            name: replace(question.calibration, thresholds=values)
            for name, question in self.questions.items()
        }
        return Classifier(self.method, calibrations=changed, blend=self.blend)

    def in_given_order(self) -> "Classifier":
        """Return the same model, its prompts' options in the given order alone."""
        context = self.method.context
        single = context.settings.method.model_copy(update={"option_orders": 1})
        settings = context.settings.model_copy(update={"method": single})
        method = type(self.method)(replace(context, settings=settings))
        method.restore(self.method.state())
        kept = {name: question.calibration for name, question in self.questions.items()}
        return Classifier(method, calibrations=kept)

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

    def readings(self, examples: Sequence[Example]) -> list[Reading]:
        """Return texts as all parts that have a weight read them; see `Method.readings`."""
        if self.blend is None:
            return self.method.readings(examples)
        sources = (self.method, *self.blend.probes)
        used = [s for s, weight in zip(sources, self.blend.weights, strict=True) if weight]
        return [one for source in used for one in source.readings(examples)]

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
    ) -> Iterator[tuple[AskedQuestion, Sequence[Example], FloatArray]]:
        """Give each question the examples that have a label of it, with their probabilities.

        Questions without any label are left out; one whose examples have coarser labels is asked
        about these (`taskfit.runs.coarse`).

        Args:
            examples: N texts.
            probabilities: Of the labels of all questions, (N, L).
        """
        for name, question in self.questions.items():
            own = [example.of(name) for example in examples]
            rows = [i for i, example in enumerate(own) if example.label is not None]
            if rows:
                part = np.ascontiguousarray(probabilities[:, question.columns][rows])
                yield as_measured(question, [own[i] for i in rows], part)

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
                "marks_ends": context.marks_ends,
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

    @staticmethod
    def saved_asked(folder: Path) -> Asked:
        """Return what a finished run asks, without loading anything else.

        Raises:
            CheckpointError: If the folder holds no finished run.
        """
        with saved_run(folder, _file_of(folder)) as saved:
            return _asked_from_dict(saved)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str = "auto",
        model: "LoadedModel | None" = None,
        allow_other_base: bool = False,
        bases: "SharedBases | None" = None,
    ) -> "Classifier":
        """Load the classifier of a finished run.

        Args:
            folder: The run's folder.
            device: Where to put it; see `model.device`.
            model: What reads texts in place of the run's own model. Then the method stands alone,
                without the probes that it is averaged with.
            allow_other_base: Whether a base will do that is not the one of the run.
            bases: Models in memory that runs share; None: the run has its own.

        Raises:
            CheckpointError: If the folder holds no finished run, or part of it is missing, or its
                base is not there or another one.
        """
        file = _file_of(folder)
        is_given = model is not None
        with saved_run(folder, file) as plain:
            saved = _with_defaults(plain)
            asked = _asked_from_dict(saved)
            demonstrations = [Example(**entry) for entry in saved["demonstrations"]]
            weights, values = saved["weights"], saved["state"]
            settings, found = settings_for_prediction(
                folder, saved, device=device, allow_other_base=allow_other_base or is_given
            )
            arrays = load_file(folder / ARRAYS) if (folder / ARRAYS).is_file() else {}
            kept = saved["calibration"] if "questions" in saved else {"": saved["calibration"]}
            calibrations = {name: _calibration_of(name, one, arrays) for name, one in kept.items()}
            check_arrays(arrays, folder / ARRAYS)
            blended = _blend_of(saved.get("blend"), arrays, found)
        method = label_method(settings.method.name)
        if settings.method.reads_model and not is_given:
            model = load_fitted_model(settings, folder, weights, bases=bases)
            model.tree.prepare_scoring()
        saved_weights = folder / MODEL if weights == "full" and model is None else None
        context = MethodContext(
            settings,
            asked,
            demonstrations,
            model,
            saved=saved_weights,
            marks_ends=bool(saved["marks_ends"]),
        )
        fitted = method(context)
        with explain_arrays(folder / ARRAYS, settings.method.name):
            fitted.restore(MethodState(values, arrays))
            blend = None if blended is None or is_given else restore_blend(context, blended)
        return cls(fitted, calibrations=calibrations, blend=blend)


def _file_of(folder: Path) -> str:
    return QUESTIONS_FILE if (folder / QUESTIONS_FILE).is_file() else FILE


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
    # Label words that start one another were scored without their ends.
    saved = {"marks_ends": False, **saved}
    if "questions" not in saved:
        # From before there was calibration.
        return {"calibration": {"temperature": 1.0, "prediction_sets": False}, **saved}
    # Questions had no state, and their model stood in the settings alone.
    model = saved["settings"]["model"]
    own = {"model": model["name"], "revision": model["revision"], "dtype": model["dtype"]}
    return {**own, "demonstrations": [], "state": {}, "calibration": {}, **saved}


def _blend_of(
    values: dict[str, Any] | None, arrays: dict[str, NDArray[Any]], found: Mapping[str, Found]
) -> MethodState | None:
    """Return the state of a run's blend, and take its arrays from those of the method."""
    if values is None:
        return None
    values = {**values, "features": blended_places(tuple(values["features"]), found)}
    names = [name for name in arrays if name.startswith(PREFIX)]
    return MethodState(values, {name: arrays.pop(name) for name in names})


def _calibration_state(question: AskedQuestion) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what is saved of a question's calibration: values, and arrays by name."""
    own, arrays = question.calibration, dict[str, NDArray[Any]]()
    if own.scores is not None and own.score_labels is not None:
        names = _score_names(question.name)
        arrays = dict(zip(names, (own.scores, own.score_labels), strict=True))
    values: dict[str, Any] = {"temperature": own.temperature, "prediction_sets": bool(arrays)}
    if own.thresholds is not None:
        by_label = zip(question.task.label_names, own.thresholds.tolist(), strict=True)
        values["thresholds"] = dict(by_label)
    return values, arrays


def _calibration_of(
    name: str, kept: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> Calibration:
    """Return the calibration of a question, and take its arrays from those of the method."""
    names = _score_names(name) if kept["prediction_sets"] else ()
    # From before there were thresholds, and where none was chosen.
    thresholds = kept.get("thresholds")
    if thresholds is not None:
        thresholds = np.array(list(thresholds.values()), np.float64)
    found = Calibration(float(kept["temperature"]), *(arrays.pop(one) for one in names))
    return replace(found, thresholds=thresholds)


def _score_names(question: str) -> tuple[str, str]:
    """Return the names of a question's scores and their labels in the file of arrays."""
    ending = f".{question}" if question else ""
    return f"calibration.scores{ending}", f"calibration.score_labels{ending}"
