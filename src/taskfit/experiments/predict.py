"""Use a finished run on new files: predict, or evaluate."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from taskfit.data import Example, check_labels, read_table, to_examples
from taskfit.errors import DataError
from taskfit.evaluation import Evaluation
from taskfit.experiments.classifier import Classifier
from taskfit.experiments.predictions import prediction_table, write_predictions
from taskfit.experiments.prepare import task_columns
from taskfit.experiments.records import RunResult
from taskfit.experiments.screen import Screen
from taskfit.files import file_atomic
from taskfit.settings import DataSettings

CHUNK = 5000
WRITERS = (".csv", ".tsv", ".jsonl", ".parquet")


def predict_file(
    folder: Path, source: str, target: Path, *, encoding: str, device: str, screen: Screen
) -> pd.DataFrame:
    """Predict the labels of a file's texts and write them with all probabilities.

    Args:
        folder: A finished run.
        source: File or hub id with the task's text columns; a label column is not needed.
        target: File to write: .csv, .tsv, .jsonl or .parquet.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.

    Raises:
        TaskfitError: If the run, the source or the target's kind does not allow it.
    """
    check_target(target)
    classifier = Classifier.load(folder, device=device)
    examples = _read(classifier, source, encoding=encoding, labelled=False)
    parts = []
    with screen.progress(f"predicting {source}", len(examples)) as advance:
        for start in range(0, len(examples), CHUNK):
            chunk = examples[start : start + CHUNK]
            probabilities = classifier.probabilities(chunk, advance=advance)
            parts.append(prediction_table(chunk, probabilities, classifier.task))
    table = pd.concat(parts, ignore_index=True)
    write_table(table, target)
    return table


def evaluate_file(
    folder: Path, source: str, *, name: str, encoding: str, device: str, screen: Screen
) -> Evaluation:
    """Evaluate a finished run on a labelled file; add it to the run's result and predictions.

    Args:
        folder: A finished run.
        source: File or hub id with the task's columns.
        name: What to call the evaluation set.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    result = RunResult.load(folder)
    classifier = Classifier.load(folder, device=device)
    examples = _read(classifier, source, encoding=encoding, labelled=True)
    with screen.progress(f"evaluating {name}", len(examples)) as advance:
        probabilities = classifier.probabilities(examples, advance=advance)
    evaluation = classifier.evaluate(examples, probabilities)
    write_predictions(folder, name, examples, probabilities, classifier.task)
    result.evaluations[name] = evaluation
    result.save(folder)
    return evaluation


def check_target(target: Path) -> None:
    """Check that predictions can be written to a file of this kind.

    Raises:
        DataError: If not.
    """
    if target.suffix.lower() not in WRITERS:
        raise DataError(
            f"{target}: predictions are written as {', '.join(WRITERS)}; name the file so."
        )


def write_table(table: pd.DataFrame, target: Path) -> None:
    """Write a table in the format that the file's ending names, whole or not at all."""
    kind = target.suffix.lower()
    with file_atomic(target) as path:
        if kind == ".parquet":
            table.to_parquet(path, index=False)
        elif kind == ".jsonl":
            table.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            table.to_csv(path, index=False, sep="\t" if kind == ".tsv" else ",")


def _read(
    classifier: Classifier, source: str, *, encoding: str, labelled: bool
) -> Sequence[Example]:
    columns = task_columns(classifier.task, DataSettings())
    table = read_table(source, encoding=encoding, split="test")
    examples = to_examples(table, columns, source=source, require_labels=labelled)
    if labelled:
        check_labels(examples, classifier.task.label_names)
        return examples
    # A label column in a file to predict may hold anything; it is not looked at.
    return [Example(example.id, example.texts) for example in examples]
