"""From settings to examples: read, check, split, draw, and keep evaluation sets out of training."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from taskfit.data import (
    BUILTIN_NAMES,
    Columns,
    Example,
    Overlap,
    check_labels,
    check_one_label_each,
    check_several_classes,
    draw,
    drop_overlap,
    guess_columns,
    label_names,
    split_validation,
    to_examples,
)
from taskfit.data.overlap import text_key
from taskfit.errors import DataError, SettingsError
from taskfit.runs.sources import check_one_question, read_builtin, read_source
from taskfit.settings import DataSettings, RunSettings
from taskfit.tasks import (
    Task,
    choose_demonstrations,
    load_task,
    override_task,
    task_from_columns,
)

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
        task: What is asked.
        train: Training examples; no text of the other sets is among them.
        validation: Held-out part of the training table.
        demonstrations: Shown in every prompt.
        evaluations: Evaluation sets by name, in domain first.
        overlap: Duplicates found, or None without training data.
        unlabeled: Further texts; no text of the evaluation sets is among them.
        fingerprint: Hash of each set's ids, texts and labels, by name.
    """

    task: Task
    train: list[Example]
    validation: list[Example]
    demonstrations: list[Example]
    evaluations: dict[str, list[Example]]
    overlap: Overlap | None
    unlabeled: list[Example]
    fingerprint: dict[str, str]


def prepare_data(settings: RunSettings) -> PreparedData:
    """Read and split everything that a run needs.

    Raises:
        DataError: If a table cannot be read or does not fit the task.
        SettingsError: If the settings name no data.
    """
    check_one_question(settings)
    settings = settings.resolved()
    data = settings.data
    if data.num_train is not None and data.shots_per_class is not None:
        raise SettingsError("Give data.num_train or data.shots_per_class, not both.")
    task, train, evaluations = _task_and_train(settings)
    task = override_task(task, settings.task, settings.method.shown)
    columns = task_columns(task, data)
    labels = [label.name for label in task.labels]
    share = test_share(data, len(train), has_tests=bool(evaluations))
    if share:
        check_labels(train, labels)
        train, evaluations = _hold_out_test(train, evaluations, data, share)
    evaluations = _all_evaluations(evaluations, columns, labels, data)
    validation: list[Example] = []
    if data.validation is not None:
        validation = read_examples(data.validation, columns, labels, encoding=data.encoding)
    overlap = None
    if train:
        check_labels(train, labels)
        check_several_classes(train)
        held_out = _by_name({"validation": validation} if validation else {}, evaluations)
        train, overlap = drop_overlap(train, held_out)
        if not train:
            raise DataError(
                "Every training example also stands in an evaluation set, so none is left to "
                "train on. Are the same files given as training and evaluation data?"
            )
    if overlap is not None and data.validation is None:
        train, validation, overlap = _hold_out(train, overlap, settings)
    if data.num_train is not None or data.shots_per_class is not None:
        train = draw(
            train,
            num_examples=data.num_train,
            shots_per_class=data.shots_per_class,
            seed=settings.seed,
        )
    demonstrations, train = _demonstrations(task, train, settings)
    unlabeled = _unlabeled(data, columns, {**evaluations, "validation": validation})
    sets = {
        "train": train,
        "validation": validation,
        "demonstrations": demonstrations,
        **({"unlabeled": unlabeled} if unlabeled else {}),
    }
    return PreparedData(
        task=task,
        train=train,
        validation=validation,
        demonstrations=demonstrations,
        evaluations=evaluations,
        overlap=overlap,
        unlabeled=unlabeled,
        fingerprint={
            name: fingerprint(examples) for name, examples in _by_name(sets, evaluations).items()
        },
    )


def task_columns(task: Task, data: DataSettings) -> Columns:
    """Return the columns that a task's tables must have."""
    return Columns(
        text=task.text,
        label=data.label or task.label_column,
        values=dict(task.values),
        shares=data.soft_labels,
        separator=data.label_separator if task.multi_label else None,
        carried=tuple(data.slices),
    )


def read_examples(
    source: str, columns: Columns, labels: Sequence[str], *, encoding: str
) -> list[Example]:
    """Read a labelled table and check its labels against the task's."""
    table = read_source(source, encoding=encoding, split="test")
    examples = to_examples(table, columns, source=source)
    check_labels(examples, labels)
    return examples


def _unlabeled(
    data: DataSettings, columns: Columns, held_out: Mapping[str, Sequence[Example]]
) -> list[Example]:
    """Read texts without labels, leaving out those that are evaluated."""
    if data.unlabeled is None:
        return []
    table = read_source(data.unlabeled, encoding=data.encoding)
    found = to_examples(table, columns, source=data.unlabeled, require_labels=False)
    texts, _ = drop_overlap([Example(e.id, e.texts) for e in found], held_out)
    if not texts:
        raise DataError(
            f"{data.unlabeled}: every text also stands in an evaluation set, so none is left to "
            "learn from."
        )
    return texts


def fingerprint(examples: Sequence[Example]) -> str:
    """Return a hash of ids, texts and labels, so that changed data is noticed on resuming."""
    digest = hashlib.sha256()
    for example in examples:
        row: list[object] = [example.id, dict(example.texts), example.label]
        if example.target is not None:
            row.append(dict(example.target))
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()[:16]


def _by_name(
    parts: Mapping[str, list[Example]], evaluations: Mapping[str, list[Example]]
) -> dict[str, list[Example]]:
    """Return all sets by name; an evaluation set may be called like a part, and hides none."""
    named = {
        f"evaluation {name}" if name in parts else name: found
        for name, found in evaluations.items()
    }
    return {**parts, **named}


def _all_evaluations(
    given: Mapping[str, list[Example]],
    columns: Columns,
    labels: Sequence[str],
    data: DataSettings,
) -> dict[str, list[Example]]:
    """Add the sets of `data.tests`, and cut all to at most `data.max_test` examples."""
    evaluations = dict(given)
    for name, source in data.tests.items():
        evaluations[name] = read_examples(source, columns, labels, encoding=data.encoding)
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
        or settings.search.wanted
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
            "there is none. Give --data, or leave it out."
        )
    check_several_classes(train)
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


def _task_and_train(
    settings: RunSettings,
) -> tuple[Task, list[Example], dict[str, list[Example]]]:
    """Return the task before overrides, the training examples, and built-in evaluation sets."""
    data, name = settings.data, settings.task.name
    task = load_task(name) if name is not None else None
    if task is not None and data.text and set(data.text) != set(task.text):
        raise SettingsError(
            f"Task {task.name} reads the columns {', '.join(task.text)}, but --text names "
            f"{', '.join(data.text)}. Leave out --text, or use a task file with these columns."
        )
    if data.train is None:
        if name in BUILTIN_NAMES:
            builtin = read_builtin(str(name), folder=data.folder)
            assert task is not None
            return task, builtin.train, dict(builtin.evaluations)
        if task is not None and data.tests:
            return task, [], {}
        raise SettingsError(
            "No data: give a table with --data FILE (data.train), or a built-in task with --task "
            f"({', '.join(BUILTIN_NAMES)})."
        )
    table = read_source(data.train, encoding=data.encoding)
    if task is None:
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
        return task, examples, {}
    return task, to_examples(table, task_columns(task, data), source=data.train), {}


def _demonstrations(
    task: Task, train: list[Example], settings: RunSettings
) -> tuple[list[Example], list[Example]]:
    """Choose the demonstrations and take them out of the training set."""
    method = settings.method
    if task.num_demonstrations == 0 or not method.shows_demonstrations:
        return [], train
    how = method.chosen_by
    if how is None:
        # They are chosen for each text from the whole training set.
        return [], train
    if not train:
        raise DataError(
            f"{task.num_demonstrations} demonstrations are wanted, but there is no training data "
            "to take them from. Give --data, or set method.num_demonstrations=0."
        )
    chosen = choose_demonstrations(
        train,
        how=how,
        num=task.num_demonstrations,
        labels=[label.name for label in task.labels],
        seed=settings.seed,
    )
    shown = {text_key(example) for example in chosen}
    # A text that stands in the prompt would be answered by copying.
    return chosen, [example for example in train if text_key(example) not in shown]
