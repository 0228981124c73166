"""A fitted questionnaire: texts in, probabilities of every question's options out.

Legend: N examples, L_q options of question q.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from taskfit.data import Example
from taskfit.errors import CheckpointError
from taskfit.files import write_json_atomic
from taskfit.methods.method import Advance
from taskfit.methods.question_method import QuestionMethod
from taskfit.runs.classifier import MODEL, SETTINGS_FILE, Weights, load_fitted_model
from taskfit.runs.records import QUESTIONS_FILE, library_versions
from taskfit.settings_file import settings_from_dict
from taskfit.stats import Evaluation, evaluate_probabilities
from taskfit.tasks.question_files import questionnaire_from_dict, questionnaire_to_dict
from taskfit.tasks.questions import AnsweredExample, Question, Questionnaire

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LevelMetrics:
    """How far a score is off.

    Attributes:
        mean_absolute_error: Mean distance of the expected level from the gold one (levels).
        quadratic_kappa: Cohen's kappa of the most probable level, weighted by squared distance in
            rank (Cohen 1968); 0 where it is undefined.
    """

    mean_absolute_error: float
    quadratic_kappa: float


@dataclass(frozen=True, slots=True)
class QuestionEvaluation:
    """A question measured on the examples that have a label of it.

    Attributes:
        evaluation: The usual metrics.
        levels: For a score, how far it is off; None for other kinds.
        examples: Those examples.
        probabilities: Theirs, (N, L_q).
    """

    evaluation: Evaluation
    levels: LevelMetrics | None
    examples: list[Example]
    probabilities: FloatArray


class QuestionClassifier:
    """A questionnaire bound to a model.

    Attributes:
        method: The fitted method.
        questionnaire: The questions.
    """

    def __init__(self, method: QuestionMethod) -> None:
        """Wrap a method."""
        self.method = method
        self.questionnaire: Questionnaire = method.questionnaire

    def with_options(self, options: Mapping[str, Sequence[str]]) -> "QuestionClassifier":
        """Return the same model asked the same questions, some of them over other options.

        Args:
            options: Question -> names of its options.

        Raises:
            PromptError: If there is no such question, or its options cannot be these.
        """
        if not options:
            return self
        changed = self.questionnaire.with_options(options)
        return QuestionClassifier(QuestionMethod(self.method.settings, changed, self.method.model))

    def probabilities(
        self, examples: Sequence[Example], *, advance: Advance | None = None
    ) -> dict[str, FloatArray]:
        """Return the probability of every option, question -> (N, L_q); rows sum to 1."""
        return self.method.probabilities(examples, advance=advance)

    def evaluate(
        self, examples: Sequence[AnsweredExample], probabilities: Mapping[str, FloatArray]
    ) -> dict[str, QuestionEvaluation]:
        """Measure every question on the examples that have a label of it.

        Questions without any label are left out.
        """
        found = {}
        for question in self.questionnaire.questions:
            rows = [i for i, example in enumerate(examples) if question.name in example.answers]
            if not rows:
                continue
            names, own = question.option_names, probabilities[question.name][rows]
            gold = np.array([names.index(examples[i].answers[question.name]) for i in rows])
            found[question.name] = QuestionEvaluation(
                evaluation=evaluate_probabilities(own, gold, labels=names),
                levels=level_metrics(own, gold, question) if question.kind == "score" else None,
                examples=[examples[i].example(question.name) for i in rows],
                probabilities=own,
            )
        return found

    def save(self, folder: Path, *, weights: Weights, extra: Mapping[str, Any]) -> None:
        """Write all that prediction needs besides the weights trained.

        Args:
            folder: The run's folder.
            weights: Whether there is an adapter or a whole model beside it.
            extra: More to record, such as the run's name.
        """
        model, settings = self.method.model, self.method.settings
        dtype = str(model.tree.model.dtype).removeprefix("torch.")
        used = {"name": model.name, "revision": model.revision, "dtype": dtype}
        settings = settings.model_copy(update={"model": settings.model.model_copy(update=used)})
        write_json_atomic(
            folder / QUESTIONS_FILE,
            {
                **extra,
                "weights": weights,
                "questions": questionnaire_to_dict(self.questionnaire),
                "settings": settings.model_dump(mode="json"),
                "versions": library_versions(),
            },
        )

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto") -> "QuestionClassifier":
        """Load the classifier of a finished run of questions.

        Args:
            folder: The run's folder.
            device: Where to put it; see `model.device`.

        Raises:
            CheckpointError: If the folder holds no finished run of questions.
        """
        path = folder / QUESTIONS_FILE
        if not path.is_file():
            hint = (
                f" If it was interrupted, continue with `taskfit fit --resume {folder}`."
                if (folder / SETTINGS_FILE).is_file()
                else " Give the folder that `taskfit fit --out` made."
            )
            raise CheckpointError(
                f"{folder} holds no finished run of questions: no {QUESTIONS_FILE} in it.{hint}"
            )
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))
            questionnaire = questionnaire_from_dict(saved["questions"])
            settings, weights = settings_from_dict(saved["settings"], asked={}), saved["weights"]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error!r}.") from error
        changed: dict[str, Any] = {"device": device}
        if weights == "full":
            changed |= {"name": str(folder / MODEL), "revision": None}
        own = settings.model.model_copy(update=changed)
        settings = settings.model_copy(update={"model": own})
        model = load_fitted_model(settings, folder, weights)
        return cls(QuestionMethod(settings, questionnaire, model))


def level_metrics(
    probabilities: FloatArray, gold: NDArray[np.int64], question: Question
) -> LevelMetrics:
    """Measure a score.

    Args:
        probabilities: Of the levels, (N, L_q).
        gold: Indices of the right levels, (N,).
        question: The score.
    """
    levels, predicted = np.array(question.levels), probabilities.argmax(axis=1)
    kappa = 0.0
    if len(np.union1d(gold, predicted)) > 1:
        ranks = np.arange(len(levels))
        kappa = float(cohen_kappa_score(gold, predicted, labels=ranks, weights="quadratic"))
    error = np.abs(probabilities @ levels - levels[gold]).mean()
    return LevelMetrics(mean_absolute_error=float(error), quadratic_kappa=kappa)


def answer_table(
    questionnaire: Questionnaire,
    examples: Sequence[Example] | Sequence[AnsweredExample],
    probabilities: Mapping[str, FloatArray],
) -> pd.DataFrame:
    """Return one row an example.

    Columns: id, texts, and for each question gold where known, predicted, of a score the expected
    level, and p_QUESTION_OPTION each.
    """
    columns: dict[str, Sequence[object]] = {"id": [example.id for example in examples]}
    for name in questionnaire.text:
        columns[name] = [example.texts[name] for example in examples]
    for question in questionnaire.questions:
        name, names = question.name, question.option_names
        found = probabilities[name]
        gold = [e.answers.get(name) if isinstance(e, AnsweredExample) else None for e in examples]
        if any(label is not None for label in gold):
            columns[f"gold_{name}"] = gold
        columns[f"predicted_{name}"] = [names[i] for i in found.argmax(axis=1)]
        if question.kind == "score":
            columns[f"expected_{name}"] = (found @ np.array(question.levels)).tolist()
        for index, option in enumerate(names):
            columns[f"p_{name}_{option}"] = found[:, index].tolist()
    return pd.DataFrame(columns)
