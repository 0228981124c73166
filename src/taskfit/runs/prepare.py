"""From settings to examples: read, check, split, draw, and keep evaluation sets out of training."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from taskfit.data import (
    BUILTIN_NAMES,
    Example,
    Overlap,
    check_labels,
    check_one_label_each,
    check_several_classes,
    draw,
    drop_overlap,
    guess_columns,
    guess_note,
    label_names,
    split_validation,
    to_examples,
)
from taskfit.data.overlap import text_key
from taskfit.errors import DataError, SettingsError
from taskfit.runs.data_notes import answer_notes, lost_classes_note, unseparated_note
from taskfit.runs.rows import (
    fingerprint,
    labelled_examples,
    read_test,
    settings_questionnaire,
    text_examples,
)
from taskfit.runs.sources import check_labels_task, read_builtin, read_source
from taskfit.settings import DataSettings, RunSettings
from taskfit.tasks import (
    Task,
    choose_demonstrations,
    load_task,
    override_task,
    task_from_columns,
)
from taskfit.tasks.question_files import is_questionnaire, questionnaire_to_dict
from taskfit.tasks.questions import Asked, Questionnaire

# Seed of the split that `data.test_fraction` asks for; it must not depend on the run's.
TEST_SPLIT_SEED = 20140602
TEST_SET = "test"
# From here on a fifth of the table is a test set that tells something (40 texts: +-.15).
ENOUGH_FOR_TEST = 200
AUTO_TEST_FRACTION = 0.2
AUTO_VALIDATION_FRACTION = 0.1
FEWEST_VALIDATION = 50


@dataclass(frozen=True, slots=True)
class PreparedData:
    """A task with its examples.

    Attributes:
        asked: The task of one question, or several questions.
        train: Training examples; no text of the other sets is among them.
        validation: Held-out part of the training table.
        demonstrations: Shown in every prompt.
        evaluations: Evaluation sets by name, in domain first.
        overlap: Duplicates found, or None without training data.
        unlabeled: Further texts; no text of the evaluation sets is among them.
        fingerprint: Hash of each set's ids, texts and labels, by name, and of several questions.
        notes: What people should know about them.
    """

    asked: Asked
    train: list[Example]
    validation: list[Example]
    demonstrations: list[Example]
    evaluations: dict[str, list[Example]]
    overlap: Overlap | None
    unlabeled: list[Example]
    fingerprint: dict[str, str]
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """Return the task of one question."""
        assert isinstance(self.asked, Task), "several questions for what serves one"
        return self.asked


def prepare_data(settings: RunSettings, *, several: bool = False) -> PreparedData:
    """Read and split everything that a run needs.

    Args:
        settings: All settings.
        several: Whether the task may have several questions.

    Raises:
        DataError: If a table cannot be read or does not fit the task.
        SettingsError: If the settings name no data.
    """
    check_labels_task(settings, several=several)
    settings = settings.resolved(questions=is_questionnaire(settings.task.name))
    data = settings.data
    if data.num_train is not None and data.shots_per_class is not None:
        raise SettingsError("Give data.num_train or data.shots_per_class, not both.")
    asked, read, evaluations, guessed = _asked_and_train(settings)
    if read and isinstance(asked, Task):
        check_several_classes(read)
    train = [example for example in read if example.answers != {}]
    num_answered = len(train)
    share = test_share(data, len(train), has_tests=bool(evaluations))
    if share:
        train, evaluations = _hold_out_test(train, evaluations, data, share)
    evaluations = _all_evaluations(evaluations, asked, data)
    validation: list[Example] = []
    if data.validation is not None:
        validation = read_test(data.validation, asked, data)
    overlap = None
    if train:
        held_out = sets_by_name({"validation": validation} if validation else {}, evaluations)
        train, overlap = drop_overlap(train, held_out)
        if not train:
            raise DataError(
                "Every training example also stands in an evaluation set, so none is left to "
                "train on. Are the same files given as training and evaluation data?"
            )
    if overlap is not None and data.validation is None:
        train, validation, overlap = _hold_out(train, overlap, settings)
    whole = train
    if data.num_train is not None or data.shots_per_class is not None:
        drawn = {"num_examples": data.num_train, "shots_per_class": data.shots_per_class}
        train = draw(train, **drawn, seed=settings.seed)
    told = [*guessed, *unseparated_note(asked, read, data), *lost_classes_note(whole, train)]
    demonstrations, train = _demonstrations(asked, train, settings)
    unlabeled = _unlabeled(asked, data, {**evaluations, "validation": validation})
    sets = {
        "train": train,
        "validation": validation,
        "demonstrations": demonstrations,
        **({"unlabeled": unlabeled} if unlabeled else {}),
    }
    hashes = {name: fingerprint(found) for name, found in sets_by_name(sets, evaluations).items()}
    if isinstance(asked, Questionnaire):
        shown = json.dumps(questionnaire_to_dict(asked), ensure_ascii=False)
        hashes["questions"] = hashlib.sha256(shown.encode()).hexdigest()[:16]
    return PreparedData(
        asked=asked,
        train=train,
        validation=validation,
        demonstrations=demonstrations,
        evaluations=evaluations,
        overlap=overlap,
        unlabeled=unlabeled,
        fingerprint=hashes,
        notes=(*told, *answer_notes(asked, len(read) - num_answered, evaluations)),
    )


def _unlabeled(
    asked: Asked, data: DataSettings, held_out: Mapping[str, Sequence[Example]]
) -> list[Example]:
    """Read texts without labels, leaving out those that are evaluated."""
    if data.unlabeled is None:
        return []
    table = read_source(data.unlabeled, encoding=data.encoding)
    found = text_examples(table, asked, source=data.unlabeled)
    texts, _ = drop_overlap(found, held_out)
    if not texts:
        raise DataError(
            f"{data.unlabeled}: every text also stands in an evaluation set, so none is left to "
            "learn from."
        )
    return texts


def sets_by_name(
    parts: Mapping[str, list[Example]], evaluations: Mapping[str, list[Example]]
) -> dict[str, list[Example]]:
    """Return all sets by name; an evaluation set may be called like a part, and hides none."""
    named = {
        f"evaluation {name}" if name in parts else name: found
        for name, found in evaluations.items()
    }
    return {**parts, **named}


def _all_evaluations(
    given: Mapping[str, list[Example]], asked: Asked, data: DataSettings
) -> dict[str, list[Example]]:
    """Add the sets of `data.tests`, and cut all to at most `data.max_test` examples."""
    evaluations = dict(given)
    for name, source in data.tests.items():
        evaluations[name] = read_test(source, asked, data, every_question=False)
    for name, examples in evaluations.items():
        if data.max_test is not None and data.max_test < len(examples):
            evaluations[name] = draw(
                examples, num_examples=data.max_test, shots_per_class=None, seed=0
            )
    return evaluations


def test_share(data: DataSettings, num_rows: int, *, has_tests: bool) -> float:
    """Return the share of the training table that becomes the evaluation set `test`."""
    if data.test_fraction != "auto":
        return data.test_fraction
    enough = num_rows >= ENOUGH_FOR_TEST and not data.tests and not has_tests
    return AUTO_TEST_FRACTION if enough else 0.0


def validation_share(settings: RunSettings, num_rows: int, num_labels: int) -> float:
    """Return the share of the training table that is held out for validation.

    Fewer than `FEWEST_VALIDATION` choose weights by chance, so they are given back to training,
    unless something that was asked for cannot do without them.
    """
    fraction = settings.data.validation_fraction
    if fraction != "auto":
        return fraction
    calibration, training = settings.calibration, settings.training
    needed = (
        calibration.temperature
        or calibration.prediction_sets
        or training.early_stopping is not None
        or settings.search.requested
        or settings.method.is_tuning
    )
    # A run that draws a few rows of a large table has few labels, also for choosing.
    data = settings.data
    drawn = data.num_train or (data.shots_per_class or num_rows) * num_labels
    enough = AUTO_VALIDATION_FRACTION * min(drawn, num_rows) >= FEWEST_VALIDATION
    return AUTO_VALIDATION_FRACTION if needed or enough else 0.0


def _hold_out_test(
    train: Sequence[Example],
    evaluations: Mapping[str, list[Example]],
    data: DataSettings,
    share: float,
) -> tuple[list[Example], dict[str, list[Example]]]:
    """Take the evaluation set `test` out of the training table; return what is left, and all sets.

    All copies of a text go to the same side, so that none has to be dropped. Where a class would
    be lost to training with them, its texts stay there.
    """
    if TEST_SET in {*evaluations, *data.tests}:
        raise SettingsError(
            f"data.test_fraction={share:g} makes an evaluation set called "
            f"`{TEST_SET}`, but there is one of this name already. Leave data.test_fraction out, "
            "or give the other one another name (data.tests)."
        )
    if not train:
        raise SettingsError(
            f"data.test_fraction={share:g} is a share of the training table, but "
            "there is none. Give a table, or leave it out."
        )
    rest, held_out = split_validation(
        train, fraction=share, max_validation=len(train), seed=TEST_SPLIT_SEED
    )
    keys = _keys_to_hold_out(rest, held_out)
    test = [example for example in train if text_key(example) in keys]
    if not test:
        raise DataError(
            f"data.test_fraction={share:g} of {len(train)} training examples leaves "
            "no example for the evaluation set. Give more data, a larger share, or a test file "
            "with --test NAME=FILE."
        )
    left = [example for example in train if text_key(example) not in keys]
    return left, {TEST_SET: test, **evaluations}


def _keys_to_hold_out(rest: Sequence[Example], held_out: Sequence[Example]) -> set[tuple[str, ...]]:
    """Return the texts to hold out with all their copies, so that every class keeps a text."""
    keys = {text_key(example) for example in held_out}
    safe = {example.label for example in rest if text_key(example) not in keys}
    return keys - {text_key(example) for example in rest if example.label not in safe}


def _hold_out(
    train: Sequence[Example], overlap: Overlap, settings: RunSettings
) -> tuple[list[Example], list[Example], Overlap]:
    """Hold out a validation set; a text that stands several times stays on one side.

    Copies of held-out texts leave training and are counted in the overlap. Where a class would be
    lost with them, its held-out texts go back instead.
    """
    rest, held_out = split_validation(
        train,
        fraction=validation_share(settings, len(train), len({e.label for e in train})),
        max_validation=settings.data.max_validation,
        seed=settings.seed,
    )
    keys = _keys_to_hold_out(rest, held_out)
    validation = [example for example in held_out if text_key(example) in keys]
    copies = [example.id for example in rest if text_key(example) in keys]
    if copies:
        overlap = replace(
            overlap,
            num_dropped=overlap.num_dropped + len(copies),
            dropped_by_set={**overlap.dropped_by_set, "validation": len(copies)},
            dropped_ids=(*overlap.dropped_ids, *copies)[:5],
        )
    return [example for example in train if text_key(example) not in keys], validation, overlap


def _named(settings: RunSettings) -> Asked | None:
    """Return the task that the settings name, with what they replace; None: they name none."""
    data, name = settings.data, settings.task.name
    if name is None:
        return None
    if is_questionnaire(name):
        return settings_questionnaire(settings)
    task = load_task(name)
    if data.text and set(data.text) != set(task.text):
        raise SettingsError(
            f"Task {task.name} reads the columns {', '.join(task.text)}, but --text names "
            f"{', '.join(data.text)}. Leave out --text, or use a task file with these columns."
        )
    return override_task(task, settings.task, settings.method.shown)


def _asked_and_train(
    settings: RunSettings,
) -> tuple[Asked, list[Example], dict[str, list[Example]], list[str]]:
    """Return what is asked, the training examples, built-in evaluation sets, and notes."""
    data, name = settings.data, settings.task.name
    asked = _named(settings)
    if data.train is None:
        if name in BUILTIN_NAMES:
            builtin = read_builtin(str(name), folder=data.folder)
            assert isinstance(asked, Task)
            check_labels(builtin.train, asked.label_names)
            return asked, builtin.train, dict(builtin.evaluations), []
        if asked is not None and data.tests:
            return asked, [], {}, []
        raise SettingsError(
            "No data: give a table, such as `taskfit fit mine.csv` (data.train), or a built-in "
            f"task with --task ({', '.join(BUILTIN_NAMES)})."
        )
    table = read_source(data.train, encoding=data.encoding)
    if asked is None:
        columns = guess_columns(
            table,
            text=data.text,
            label=data.label,
            shares=data.soft_labels,
            separator=data.label_separator if settings.task.multi_label else None,
        )
        columns = replace(columns, carried=tuple(data.slices))
        examples = to_examples(table, columns, source=data.train)
        check_several_classes(examples)
        if not settings.task.multi_label:
            check_one_label_each(examples, data.label_separator)
        task = task_from_columns(
            name="custom",
            text=columns.text,
            label_column=columns.label or "label",
            labels=label_names(examples),
        )
        asked = override_task(task, settings.task, settings.method.shown)
        note = None if data.text else guess_note(columns, table)
        return asked, examples, {}, [note] if note else []
    return asked, labelled_examples(table, asked, data, source=data.train), {}, []


def _demonstrations(
    asked: Asked, train: list[Example], settings: RunSettings
) -> tuple[list[Example], list[Example]]:
    """Choose the demonstrations and take them out of the training set."""
    method = settings.method
    if asked.num_demonstrations == 0 or not method.shows_demonstrations:
        return [], train
    how = method.chosen_by
    if how is None:
        # They are chosen for each text from the whole training set.
        return [], train
    if not train:
        raise DataError(
            f"{asked.num_demonstrations} demonstrations are asked for, but there is no training "
            "data to take them from. Give a table, or set method.num_demonstrations=0."
        )
    chosen = choose_demonstrations(
        train,
        how=how,
        num=asked.num_demonstrations,
        labels=[label for task in asked.tasks.values() for label in task.label_names],
        seed=settings.seed,
    )
    shown = {text_key(example) for example in chosen}
    # A text that stands in the prompt would be answered by copying.
    return chosen, [example for example in train if text_key(example) not in shown]
