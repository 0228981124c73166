"""Evaluate a finished run on another labelled file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from taskfit.data import Example, read_table
from taskfit.errors import DataError, suggestion
from taskfit.runs.classifier import Classifier
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.known_texts import free_name, seen_note
from taskfit.runs.load import load_classifier
from taskfit.runs.measured import LEVELS, MeasuredSets
from taskfit.runs.predictions import checked_set_name, count_errors, renaming_note
from taskfit.runs.predictor import answers_of
from taskfit.runs.records import RunResult
from taskfit.runs.rows import advice_on_columns, labelled_rows
from taskfit.runs.run_folder import run_lock
from taskfit.runs.slices import GOLD, group_examples
from taskfit.runs.table_texts import named_columns, other_columns
from taskfit.runs.thresholds import RECORD, threshold_sentence
from taskfit.screen import Screen
from taskfit.settings import DataSettings
from taskfit.settings_file import load_run_settings
from taskfit.stats import Evaluation


def evaluate_file(
    folder: Path,
    source: str,
    *,
    name: str,
    encoding: str,
    device: str,
    screen: Screen,
    by: Sequence[str] = (),
    columns: Mapping[str, str] = MappingProxyType({}),
    quotes: str = "auto",
    allow_other_base: bool = False,
) -> dict[str, Evaluation]:
    """Evaluate a finished run on a labelled file; add it to the run's result and predictions.

    Every row of the file stands in the predictions, with all its columns. One without any text has
    no answer, says so in a column `error`, and is not measured.

    Args:
        folder: A finished run of one question or several.
        source: File or hub id with the task's columns; of several questions at least one label.
        name: What to call the evaluation set; another set of this name keeps it, and the new one
            gets a number behind it.
        encoding: Of the source.
        device: See `model.device`.
        screen: Where progress is shown.
        by: Columns of the file to cut the metrics up by, `gold` being the right label.
        columns: See `predict_file`; of texts and labels.
        quotes: See `predict_file`.
        allow_other_base: Whether a base will do that is not the one of the run.

    Returns:
        Metrics by set; SET/QUESTION where there are several.

    Raises:
        TaskfitError: If the run or the source does not allow it.
    """
    checked_set_name(name)
    with run_lock(folder, resume=True):
        classifier = load_classifier(folder, device=device, allow_other_base=allow_other_base)
        asked = classifier.asked
        table = read_table(source, encoding=encoding, split="test", quotes=quotes)
        labels = [task.label_column for task in asked.tasks.values()]
        table = named_columns(table, columns, [*asked.text, *labels], source, screen)
        _check_carried(table, [c for c in by if c != GOLD], source)
        kept = DataSettings(
            slices=other_columns(table, asked.text),
            label_separator=load_run_settings(folder / SETTINGS_FILE).data.label_separator,
        )
        advice = advice_on_columns(asked.text)
        examples = labelled_rows(table, asked, kept, source=source, advice=advice)
        taken, name = name, free_name(folder, name, examples, classifier.questions)
        if name != taken:
            screen.note(
                f"another set was evaluated as {taken}; this one is called {name} (--name gives it "
                "another name)"
            )
        learns = classifier.method.learns or classifier.method.settings.retrieves
        if note := seen_note(folder, examples, name=name, learns=learns):
            screen.note(note)
        return _measure(folder, classifier, name, examples, screen, by)


def _measure(
    folder: Path,
    classifier: Classifier,
    name: str,
    examples: Sequence[Example],
    screen: Screen,
    by: Sequence[str],
) -> dict[str, Evaluation]:
    result = RunResult.load(folder)
    group_examples(name, examples, by)
    if note := renaming_note(examples, classifier.asked.tasks):
        screen.note(note)
    with screen.progress(f"evaluating {name}", len(examples)) as advance:
        probabilities, shortened = answers_of(classifier, examples, advance)
    if blank := sum(example.is_blank for example in examples):
        screen.note(f"{name}: {count_errors(blank)}; not measured")
    found = MeasuredSets()
    found.add(
        *(classifier, name, examples, probabilities, folder, screen), by=by, shortened=shortened
    )
    for line in found.shortened:
        screen.note(line)
    for key, records in (("coverage", found.coverage), (LEVELS, found.levels)):
        if records:
            result.details.setdefault(key, {}).update(records)
    for key, record in found.thresholds.items():
        screen.note(threshold_sentence(key, record))
        result.details[RECORD].setdefault("sets", {})[key] = record
    result.evaluations.update(found.evaluations)
    result.save(folder)
    return found.evaluations


def _check_carried(table: pd.DataFrame, carried: Sequence[str], source: str) -> None:
    present = [str(name) for name in table.columns]
    for name in carried:
        if name not in present:
            raise DataError(
                f"{source} has no column {name!r} to cut the metrics up by; it has: "
                f"{', '.join(present)}; and {GOLD} is the right label."
                f"{suggestion(name, [*present, GOLD])}"
            )
