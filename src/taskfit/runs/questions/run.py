"""A run of several questions about one text."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from taskfit.data import Example
from taskfit.data.examples import mean_words
from taskfit.errors import SettingsError
from taskfit.files import file_atomic
from taskfit.methods.method import Advance
from taskfit.methods.question_method import QuestionMethod
from taskfit.models.load import LoadedModel
from taskfit.runs.kind import Measured, RunKind, Size
from taskfit.runs.labels import metrics_by_set
from taskfit.runs.measure_run import time_of_one_text
from taskfit.runs.questions.classifier import (
    FloatArray,
    QuestionClassifier,
    QuestionEvaluation,
    answer_table,
)
from taskfit.runs.questions.data import QuestionData, check_trainable, prepare_questions
from taskfit.runs.run import base_model, evaluation_sets, longest_texts
from taskfit.runs.train_method import train_items
from taskfit.screen import Screen
from taskfit.stats import METRICS
from taskfit.tasks.questions import AnsweredExample
from taskfit.training.checkpoint import TrainingState
from taskfit.training.distributed import divided, is_main
from taskfit.training.loop import Validation
from taskfit.training.trackers import Trackers

# Under this name `result.json` keeps what scores have besides the usual metrics.
LEVELS = "levels"


class QuestionRun(RunKind[QuestionClassifier]):
    """A run of several questions.

    Attributes:
        data: Its questions and examples.
    """

    data: QuestionData

    def read(self) -> Mapping[str, str]:
        """Read questions and data; return their hashes."""
        calibration = self.settings.calibration
        if calibration.temperature or calibration.prediction_sets:
            raise SettingsError("calibration is for tasks of one question; leave it out.")
        if self.settings.data.slices:
            raise SettingsError("data.slices is for tasks of one question; leave it out.")
        self.data = prepare_questions(self.settings)
        return self.data.fingerprint

    def tell(self) -> None:
        """Say what the data are, and check that every question can be learned."""
        notes = [*self.data.notes, *(check_trainable(self.data) if self.trains else ())]
        _tell_about_data(self.data, notes, self.screen)

    @property
    def trains(self) -> bool:
        """Return whether label words are trained."""
        return self.settings.method.name != "in_context"

    def size(self) -> Size:
        """Return how many texts there are, and the labels of the question with most of them."""
        num_labels = max(len(task.labels) for task in self.data.questionnaire.tasks.values())
        texts = [example.bare() for example in self.data.train]
        return Size(len(texts), num_labels, mean_words(texts))

    def load(self, model: LoadedModel | None) -> None:
        """Load the model, and make the method."""
        loaded = base_model(self.settings, model, self.memory, self.screen)
        method = QuestionMethod(self.settings, self.data.questionnaire, loaded)
        self.fitted = QuestionClassifier(method)

    def start(self, *, resume: bool) -> None:
        """Answer the longest few texts, so that what will fail fails now."""
        longest = [example.bare() for example in longest_texts(self.data)]
        self.fitted.probabilities(longest)
        self.memory.stage("forward")

    def train(self, trackers: Trackers) -> tuple[TrainingState, int]:
        """Train all questions together."""
        if not self.trains:
            return TrainingState(), 0
        method, data = self.method, self.data
        return train_items(
            self,
            method,
            method.encoders.encode_answered(data.train),
            objective=lambda: method.objective(data.train),
            rendered=lambda: method.rendered(data.train[0]),
            validate=self._validate if data.validation else None,
            trackers=trackers,
        )

    def save(self) -> None:
        """Write the classifier."""
        extra = {"method": self.settings.method.name, "name": self.name}
        self.fitted.save(self.folder, weights=self.weights, extra=extra)

    def measure(self, *, baselines: bool) -> Measured:
        """Measure every set; the validation set serves where there is none."""
        sets = evaluation_sets(self.data, self.screen)
        measured: dict[str, QuestionEvaluation] = {}
        seconds: dict[str, float] = {}
        for name, examples in sets.items():
            found, seconds[name] = evaluate_set(
                self.fitted, name, examples, self.folder, self.screen
            )
            measured |= found
        questionnaire = self.data.questionnaire
        details = {
            "questions": questionnaire.names,
            "metric": questionnaire.metric,
            LEVELS: levels_of(measured),
        }
        evaluations = {name: found.evaluation for name, found in measured.items()}
        return Measured(evaluations, metrics_by_set(evaluations), seconds, details)

    @property
    def method(self) -> QuestionMethod:
        """Return the method."""
        return self.fitted.method

    @property
    def model_name(self) -> str:
        """Return the model as the user named it."""
        return self.method.model.name

    @property
    def task_name(self) -> str:
        """Return name and version of the questions."""
        return f"{self.data.questionnaire.name} v{self.data.questionnaire.version}"

    @property
    def num_train(self) -> int:
        """Return the training examples whose labels were seen."""
        return len(self.data.train) if self.trains else 0

    def latency(self) -> float | None:
        """Return the median seconds to answer all questions about one text by itself."""
        texts = [
            example.bare()
            for examples in evaluation_sets(self.data).values()
            for example in examples
        ]
        return time_of_one_text(self.fitted.probabilities, texts)

    def _validate(self) -> Validation:
        """Measure all questions on the validation set; the score is the mean of their metrics."""
        self.method.weights_changed()
        examples, questionnaire = self.data.validation, self.data.questionnaire
        found = self.fitted.evaluate(examples, divided_answers(self.fitted, examples))
        values = {
            metric: {name: float(getattr(f.evaluation, metric)) for name, f in found.items()}
            for metric in METRICS
        }
        means = {metric: float(np.mean(list(each.values()))) for metric, each in values.items()}
        metric = questionnaire.metric
        own = {f"{name}/{metric}": value for name, value in values[metric].items()}
        weights = {question.name: question.weight for question in questionnaire.questions}
        # An example's loss is a sum over its questions, in training and here.
        losses = [
            weights[name] * f.evaluation.log_loss * f.evaluation.num_examples
            for name, f in found.items()
        ]
        return Validation(sum(losses) / len(examples), {**means, **own})


def evaluate_set(
    classifier: QuestionClassifier,
    name: str,
    examples: Sequence[AnsweredExample],
    folder: Path,
    screen: Screen,
) -> tuple[dict[str, QuestionEvaluation], float]:
    """Evaluate a set and write its predictions.

    Returns:
        SET/QUESTION -> what was measured, and the seconds that predicting took.
    """
    started = time.perf_counter()
    with screen.progress(f"evaluating {name}", len(examples)) as advance:
        probabilities = divided_answers(classifier, examples, advance=advance)
    seconds = time.perf_counter() - started
    if is_main():
        with file_atomic(folder / "predictions" / f"{name}.parquet") as path:
            table = answer_table(classifier.questionnaire, examples, probabilities)
            table.to_parquet(path, index=False)
    measured = classifier.evaluate(examples, probabilities)
    return {f"{name}/{question}": found for question, found in measured.items()}, seconds


def divided_answers(
    classifier: QuestionClassifier,
    examples: Sequence[AnsweredExample],
    *,
    advance: Advance | None = None,
) -> dict[str, FloatArray]:
    """Return the probability of every option, each process answering its share of the texts."""
    texts: list[Example] = [example.bare() for example in examples]
    sizes = {q.name: len(q.option_names) for q in classifier.questionnaire.questions}

    def side_by_side(part: Sequence[Example]) -> FloatArray:
        found = classifier.probabilities(part, advance=advance)
        return np.concatenate([found[name] for name in sizes], axis=1)

    ends = np.cumsum(list(sizes.values()))[:-1]
    parts = np.split(divided(side_by_side, texts), ends, axis=1)
    return dict(zip(sizes, parts, strict=True))


def levels_of(measured: Mapping[str, QuestionEvaluation]) -> dict[str, dict[str, float]]:
    """Return how far scores are off, by SET/QUESTION."""
    return {
        name: dataclasses.asdict(found.levels)
        for name, found in measured.items()
        if found.levels is not None
    }


def _tell_about_data(data: QuestionData, notes: Sequence[str], screen: Screen) -> None:
    sets = ", ".join(f"{name} {len(found):,}" for name, found in data.evaluations.items())
    screen.note(
        f"questions {data.questionnaire.name} ({', '.join(data.questionnaire.names)}): "
        f"{len(data.train):,} training, {len(data.validation):,} validation examples; "
        f"test sets: {sets or 'none'}"
    )
    for note in notes:
        screen.note(note)
