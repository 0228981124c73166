"""Runs of several questions about one text: fit, evaluate, predict."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from taskfit.data import Example, read_table
from taskfit.errors import SettingsError
from taskfit.stats import METRICS, Evaluation
from taskfit.runs.classifier import Weights
from taskfit.runs.predict import CHUNK, check_target, write_table
from taskfit.runs.questions.classifier import (
    FILE,
    QuestionClassifier,
    QuestionEvaluation,
    answer_table,
)
from taskfit.runs.questions.data import (
    QuestionData,
    check_trainable,
    prepare_questions,
    read_answered,
    read_texts,
)
from taskfit.runs.fit import Report
from taskfit.runs.records import RunResult
from taskfit.runs.run import model_of
from taskfit.runs.run_folder import check_fingerprint, open_folder
from taskfit.screen import Screen, SilentScreen
from taskfit.runs.settle import mean_words, settle
from taskfit.runs.train_method import train_items
from taskfit.files import file_atomic
from taskfit.methods.question_method import QuestionMethod
from taskfit.models import LoadedModel, resolve_device
from taskfit.settings import RunSettings
from taskfit.tasks.questions import AnsweredExample
from taskfit.training import (
    Checkpoints,
    MemoryAccount,
    TrainingState,
    Validation,
)

# Under this name `result.json` keeps what scores have besides the usual metrics.
LEVELS = "levels"


@dataclass(frozen=True, slots=True)
class FittedQuestions:
    """What `fit_questions` gives back.

    Attributes:
        result: The contents of `result.json`; evaluations are called SET/QUESTION.
        classifier: Ready for prediction.
    """

    result: RunResult
    classifier: QuestionClassifier


@dataclass(frozen=True, slots=True)
class _Run:
    """A run under way: what its stages hand to each other."""

    settings: RunSettings
    folder: Path
    data: QuestionData
    classifier: QuestionClassifier
    memory: MemoryAccount
    screen: Screen


def is_question_run(folder: Path) -> bool:
    """Return whether a folder holds a finished run of questions."""
    return (folder / FILE).is_file()


def fit_questions(
    settings: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    screen: Screen | None = None,
    model: LoadedModel | None = None,
    name: str | None = None,
    report: Report | None = None,
) -> FittedQuestions:
    """Fit one run of a file of questions into a folder.

    Args:
        settings: All settings; `task.name` is the file of questions, `method.name` in_context
            (zero-shot) or label_words.
        folder: The run's folder; must not hold another run.
        resume: Continue the interrupted run in the folder.
        screen: Where progress is shown.
        model: The base model, if the caller has loaded it already; an adapter stays in it.
        name: How tables call the run; None: the method's name.
        report: As for `taskfit.runs.fit.fit`.

    Raises:
        TaskfitError: If settings, questions, data, model or folder do not allow it.
    """
    screen = screen or SilentScreen()
    started = time.perf_counter()
    settings = settings.resolved(questions=True)
    if settings.calibration.temperature or settings.calibration.prediction_sets:
        raise SettingsError("calibration is for tasks of one question; leave it out.")
    if settings.data.slices:
        raise SettingsError("data.slices is for tasks of one question; leave it out.")
    learns = settings.method.name != "in_context"
    open_folder(settings, folder, resume=resume)
    data = prepare_questions(settings)
    notes = [*data.notes, *(check_trainable(data) if learns else ())]
    check_fingerprint(folder, data.fingerprint, resume=resume)
    _tell_about_data(data, notes, screen)
    settings = settle(
        settings,
        folder,
        num_train=len(data.train),
        num_labels=max(len(task.labels) for task in data.questionnaire.tasks.values()),
        mean_words=mean_words([example.bare() for example in data.train]),
        screen=screen,
    )
    memory = MemoryAccount(resolve_device(settings.model.device))
    loaded = model_of(settings, model, memory, screen)
    assert loaded is not None, "both methods of questions read a model"
    method = QuestionMethod(settings, data.questionnaire, loaded)
    classifier = QuestionClassifier(method)
    run = _Run(settings, folder, data, classifier, memory, screen)
    _rehearse(run)
    state, num_trainable = TrainingState(), 0
    weights: Weights = "none"
    if learns:
        # All questions are trained together.
        state, num_trainable = train_items(
            run,
            method,
            method.encoders.encode_answered(data.train),
            objective=lambda: method.objective(data.train),
            rendered=lambda: method.rendered(data.train[0]),
            validate=(lambda: _validate(run)) if data.validation else None,
        )
        weights = settings.adapter.weights
    label = name or settings.method.name
    classifier.save(folder, weights=weights, extra={"method": settings.method.name, "name": label})
    measured = _evaluate_all(run)
    result = _result(run, label, state, measured, num_trainable=num_trainable, started=started)
    result.save(folder)
    if report is not None:
        report(folder)
    Checkpoints(folder / "checkpoints").remove()
    return FittedQuestions(result, classifier)


def evaluate_questions(
    folder: Path, source: str, *, name: str, encoding: str, device: str, screen: Screen
) -> dict[str, Evaluation]:
    """Evaluate a finished run on a labelled file; add it to the run's result and predictions.

    Args:
        folder: A finished run of questions.
        source: File or hub id with the text columns and the labels of at least one question.
        name: What to call the evaluation set.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.

    Returns:
        Question -> metrics, of the questions that have a label there.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    result = RunResult.load(folder)
    classifier = QuestionClassifier.load(folder, device=device)
    questionnaire = classifier.questionnaire
    examples = read_answered(source, questionnaire, encoding=encoding, every_question=False)
    measured = _evaluate(classifier, name, examples, folder, screen)
    result.evaluations.update({key: found.evaluation for key, found in measured.items()})
    result.details.setdefault(LEVELS, {}).update(_levels(measured))
    result.save(folder)
    return {key.removeprefix(f"{name}/"): found.evaluation for key, found in measured.items()}


def predict_questions(
    folder: Path,
    source: str,
    target: Path,
    *,
    options: Mapping[str, Sequence[str]] | None = None,
    encoding: str,
    device: str,
    screen: Screen,
) -> pd.DataFrame:
    """Answer all questions about a file's texts and write them with all probabilities.

    Args:
        folder: A finished run of questions.
        source: File or hub id with the text columns; labels are not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        options: Question -> names of its options, where they are not those of the run.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.

    Returns:
        What was written; see `answer_table`.

    Raises:
        TaskfitError: If the run, the source, an option or the target's kind does not allow it.
    """
    check_target(target)
    classifier = QuestionClassifier.load(folder, device=device).with_options(options or {})
    questionnaire = classifier.questionnaire
    table = read_table(source, encoding=encoding, split="test")
    examples = read_texts(table, questionnaire, source=source)
    parts = []
    with screen.progress(f"answering {source}", len(examples)) as advance:
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            probabilities = classifier.probabilities(chunk, advance=advance)
            parts.append(answer_table(questionnaire, chunk, probabilities))
    answers = pd.concat(parts, ignore_index=True)
    write_table(answers, target)
    return answers


def parse_options(entries: Sequence[str]) -> dict[str, list[str]]:
    """Read options from the command line, each `QUESTION=a,b,c`.

    Raises:
        SettingsError: If an entry is not written so, or a question stands twice.
    """
    options: dict[str, list[str]] = {}
    for entry in entries:
        question, equals, names = entry.partition("=")
        found = [name.strip() for name in names.split(",")]
        if not equals or not question.strip() or not all(found):
            raise SettingsError(f"--options {entry}: write it as QUESTION=a,b,c.")
        if question.strip() in options:
            raise SettingsError(f"--options names {question.strip()} twice; name it once.")
        options[question.strip()] = found
    return options


def _result(
    run: _Run,
    name: str,
    state: TrainingState,
    measured: Mapping[str, QuestionEvaluation],
    *,
    num_trainable: int,
    started: float,
) -> RunResult:
    settings, questionnaire, method = run.settings, run.data.questionnaire, run.classifier.method
    learns = settings.method.name != "in_context"
    return RunResult(
        name=name,
        method=settings.method.name,
        weights=settings.adapter.weights if learns else "none",
        model=method.model.name,
        task=f"{questionnaire.name} v{questionnaire.version}",
        num_train=len(run.data.train) if learns else 0,
        num_demonstrations=0,
        seed=settings.seed,
        evaluations={key: found.evaluation for key, found in measured.items()},
        duration_seconds=time.perf_counter() - started,
        training_seconds=state.seconds,
        peak_memory_bytes=sum(run.memory.by_stage.values()),
        memory_by_stage=run.memory.by_stage,
        tokens={"unique": state.num_tokens, "padded": state.num_padded_tokens},
        num_parameters=method.num_parameters,
        num_trainable=num_trainable,
        best_step=state.best_step,
        details={
            "questions": questionnaire.names,
            "metric": questionnaire.metric,
            LEVELS: _levels(measured),
        },
    )


def _tell_about_data(data: QuestionData, notes: Sequence[str], screen: Screen) -> None:
    sets = ", ".join(f"{name} {len(found):,}" for name, found in data.evaluations.items())
    screen.note(
        f"questions {data.questionnaire.name} ({', '.join(data.questionnaire.names)}): "
        f"{len(data.train):,} training, {len(data.validation):,} validation examples; "
        f"test sets: {sets or 'none'}"
    )
    for note in notes:
        screen.note(note)


def _rehearse(run: _Run) -> None:
    """Answer the longest few examples, so that what will fail fails now."""
    sets = [*run.data.evaluations.values(), run.data.validation, run.data.train]
    longest = sorted(
        (example.bare() for examples in sets for example in examples),
        key=lambda example: -sum(map(len, example.texts.values())),
    )[:8]
    run.classifier.probabilities(longest)
    run.memory.stage("forward")


def _validate(run: _Run) -> Validation:
    """Measure all questions on the validation set; the score is the mean of their metrics."""
    run.classifier.method.weights_changed()
    examples, questionnaire = run.data.validation, run.data.questionnaire
    probabilities = run.classifier.probabilities([example.bare() for example in examples])
    found = run.classifier.evaluate(examples, probabilities)
    values = {
        metric: {name: float(getattr(f.evaluation, metric)) for name, f in found.items()}
        for metric in METRICS
    }
    means = {metric: float(np.mean(list(each.values()))) for metric, each in values.items()}
    own = {f"{name}/{questionnaire.metric}": v for name, v in values[questionnaire.metric].items()}
    weights = {question.name: question.weight for question in questionnaire.questions}
    # An example's loss is a sum over its questions, in training and here.
    losses = [
        weights[name] * f.evaluation.log_loss * f.evaluation.num_examples
        for name, f in found.items()
    ]
    return Validation(sum(losses) / len(examples), {**means, **own})


def _evaluate_all(run: _Run) -> dict[str, QuestionEvaluation]:
    """Evaluate every set; the validation set serves where there is none."""
    sets = run.data.evaluations or (
        {"validation": run.data.validation} if run.data.validation else {}
    )
    if not sets:
        run.screen.note(
            "no evaluation set: give one with --test NAME=FILE, or raise data.validation_fraction"
        )
    measured: dict[str, QuestionEvaluation] = {}
    for name, examples in sets.items():
        measured |= _evaluate(run.classifier, name, examples, run.folder, run.screen)
    return measured


def _evaluate(
    classifier: QuestionClassifier,
    name: str,
    examples: Sequence[AnsweredExample],
    folder: Path,
    screen: Screen,
) -> dict[str, QuestionEvaluation]:
    """Evaluate a set, write its predictions; return SET/QUESTION -> what was measured."""
    texts: list[Example] = [example.bare() for example in examples]
    with screen.progress(f"evaluating {name}", len(examples)) as advance:
        probabilities = classifier.probabilities(texts, advance=advance)
    with file_atomic(folder / "predictions" / f"{name}.parquet") as path:
        table = answer_table(classifier.questionnaire, examples, probabilities)
        table.to_parquet(path, index=False)
    measured = classifier.evaluate(examples, probabilities)
    return {f"{name}/{question}": found for question, found in measured.items()}


def _levels(measured: Mapping[str, QuestionEvaluation]) -> dict[str, dict[str, float]]:
    return {
        name: dataclasses.asdict(found.levels)
        for name, found in measured.items()
        if found.levels is not None
    }
