"""From settings to examples: read, check, split, draw, and keep evaluation sets out of training."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from taskfit.data import (
    Example,
    Overlap,
    check_several_classes,
    draw,
    drop_overlap,
)
from taskfit.data.overlap import text_key
from taskfit.errors import DataError, SettingsError, TaskfitError
from taskfit.runs.data_notes import answer_notes, lost_classes_note, unseparated_note
from taskfit.runs.earlier import VALIDATION, Earlier, Kept, find_earlier
from taskfit.runs.hold_out import TEST_SET, hold_out_test, hold_out_validation, share_of_test
from taskfit.runs.origin import Origin
from taskfit.runs.rows import (
    fingerprint,
    read_test,
    text_examples,
)
from taskfit.runs.seen import Seen, seen_in, tables_of
from taskfit.runs.sources import check_labels_task, read_source
from taskfit.runs.training_table import asked_and_train
from taskfit.settings import REST, DataSettings, RunSettings
from taskfit.tasks import (
    Task,
    choose_demonstrations,
)
from taskfit.tasks.question_files import is_questionnaire, questionnaire_to_dict
from taskfit.tasks.questions import Asked, Questionnaire


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

    @property
    def sets(self) -> dict[str, list[Example]]:
        """Return all sets by name."""
        parts = {
            "train": self.train,
            VALIDATION: self.validation,
            "demonstrations": self.demonstrations,
            **({"unlabeled": self.unlabeled} if self.unlabeled else {}),
        }
        return sets_by_name(parts, self.evaluations)


def prepare_data(
    settings: RunSettings, *, several: bool = False, origin: Origin | None = None
) -> PreparedData:
    """Read and split everything that a run needs.

    Args:
        settings: All settings.
        several: Whether the task may have several questions.
        origin: The finished run that this one goes on from.

    Raises:
        DataError: If a table cannot be read or does not fit the task.
        SettingsError: If the settings name no data.
    """
    check_labels_task(settings, several=several)
    settings = settings.resolved(questions=is_questionnaire(settings.task.name))
    data = settings.data
    if data.num_train is not None and data.shots_per_class is not None:
        raise SettingsError("Give data.num_train or data.shots_per_class, not both.")
    asked, read, evaluations, guessed = asked_and_train(settings, origin)
    earlier = Earlier()
    if origin is not None:
        earlier = find_earlier(settings, asked, read, origin)
        read, evaluations = [*read, *earlier.rows], {**earlier.evaluations, **evaluations}
    if read and isinstance(asked, Task) and (origin is None or origin.weights is None):
        check_several_classes(read)
    answered = [example for example in read if example.answers != {}]
    rows = earlier.kept(answered, keeps_test=TEST_SET not in data.tests)
    rows, evaluations = _with_test(rows, evaluations, data)
    evaluations = _all_evaluations(evaluations, asked, data, guessed)
    validation: list[Example] = []
    if data.validation is not None:
        validation = read_test(data.validation, asked, data, notes=guessed)
    train, validation, overlap = _split(rows, validation, evaluations, settings, earlier)
    whole = train
    if data.num_train is not None or data.shots_per_class is not None:
        drawn = {"num_examples": data.num_train, "shots_per_class": data.shots_per_class}
        train = draw(train, **drawn, seed=settings.seed)
    demonstrations, train = take_demonstrations(asked, train, settings, origin)
    if data.unlabeled == REST:
        unlabeled = _rest(whole, [*demonstrations, *train])
    else:
        unlabeled = _unlabeled(asked, data, {**evaluations, "validation": validation})
    found = PreparedData(
        asked=asked,
        train=train,
        validation=validation,
        demonstrations=demonstrations,
        evaluations=evaluations,
        overlap=overlap,
        unlabeled=unlabeled,
        fingerprint={},
        notes=(
            *guessed,
            *earlier.notes,
            *earlier.learned_tests({**evaluations, VALIDATION: validation}),
            *unseparated_note(asked, read, data),
            *lost_classes_note(whole, [*demonstrations, *train]),
            *answer_notes(asked, len(read) - len(answered), evaluations),
            *_left_out(rows),
        ),
    )
    hashes = {name: fingerprint(examples) for name, examples in found.sets.items()}
    if isinstance(asked, Questionnaire):
        shown = json.dumps(questionnaire_to_dict(asked), ensure_ascii=False)
        hashes["questions"] = hashlib.sha256(shown.encode()).hexdigest()[:16]
    return replace(found, fingerprint=hashes)


def with_seen(origin: Origin) -> Origin:
    """Return a run with its texts, which it did not write down if an earlier version fitted it.

    Then they are those of its data, where these are unchanged; else none is known.
    """
    if origin.seen is not None:
        return origin
    seen = Seen()
    with suppress(TaskfitError):
        data = prepare_data(origin.settings, several=True)
        if data.fingerprint == origin.fingerprint:
            seen = seen_in(data.sets, tables_of(origin.settings))
    return replace(origin, seen=seen)


def _with_test(
    rows: Kept, evaluations: dict[str, list[Example]], data: DataSettings
) -> tuple[Kept, dict[str, list[Example]]]:
    """Hold the evaluation set `test` out of new rows; what was in it before is in it again."""
    fresh, goes_on = rows.fresh, bool(rows.learned or rows.test)
    share = share_of_test(data, len(fresh), has_tests=bool(evaluations), goes_on=bool(rows.test))
    if share and not (goes_on and share * len(fresh) < 1):
        fresh, evaluations = hold_out_test(fresh, evaluations, data, share)
    if rows.test:
        evaluations = {TEST_SET: [*rows.test, *evaluations.pop(TEST_SET, [])], **evaluations}
    return replace(rows, fresh=fresh), evaluations


def _split(
    rows: Kept,
    validation: list[Example],
    evaluations: Mapping[str, list[Example]],
    settings: RunSettings,
    earlier: Earlier,
) -> tuple[list[Example], list[Example], Overlap | None]:
    """Return training and validation examples, and the texts that stand in several sets.

    Raises:
        DataError: If no training example is left.
    """
    train = [*rows.learned, *rows.validation, *rows.fresh]
    if not train:
        return [], validation, None
    held_out = sets_by_name({VALIDATION: validation} if validation else {}, evaluations)
    train, overlap = drop_overlap(train, held_out)
    if not train:
        raise DataError(
            "Every training example also stands in an evaluation set, so none is left to "
            "train on. Are the same files given as training and evaluation data?"
        )
    if settings.data.validation is not None:
        return train, validation, overlap
    rows = earlier.kept(train)
    fresh, validation, overlap = hold_out_validation(
        *(rows.fresh, overlap, settings),
        has_tests=bool(evaluations),
        num_before=len(rows.validation),
    )
    return [*rows.learned, *fresh], [*rows.validation, *validation], overlap


def _left_out(rows: Kept) -> list[str]:
    """Say which rows are not trained on since an earlier run was measured on them."""
    if not rows.left_out:
        return []
    return [
        f"left out {len(rows.left_out):,} rows that stood in an evaluation set of the run that "
        f"this one goes on from (first: {rows.left_out[0].id})"
    ]


def _unlabeled(
    asked: Asked, data: DataSettings, held_out: Mapping[str, Sequence[Example]]
) -> list[Example]:
    """Read texts without labels, leaving out those that are evaluated."""
    if data.unlabeled is None:
        return []
    table = read_source(data.unlabeled, encoding=data.encoding, quotes=data.quotes)
    found = text_examples(table, asked, source=data.unlabeled)
    texts, _ = drop_overlap(found, held_out)
    if not texts:
        raise DataError(
            f"{data.unlabeled}: every text also stands in an evaluation set, so none is left to "
            "learn from."
        )
    return texts


def _rest(whole: Sequence[Example], drawn: Sequence[Example]) -> list[Example]:
    """Return the training texts that were not drawn, without their labels.

    Raises:
        SettingsError: If there are none.
    """
    texts = {text_key(example) for example in drawn}
    rest = [replace(e, label=None, target=None) for e in whole if text_key(e) not in texts]
    if not rest:
        raise SettingsError(
            "data.unlabeled=rest is what a draw leaves of the training table, and here it leaves "
            "nothing. Set data.num_train or data.shots_per_class to less, or name a file of texts."
        )
    return rest


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
    given: Mapping[str, list[Example]], asked: Asked, data: DataSettings, notes: list[str]
) -> dict[str, list[Example]]:
    """Add the sets of `data.tests`, and cut all to at most `data.max_test` examples.

    What people should know about how they were read is added to `notes`.
    """
    evaluations = dict(given)
    for name, source in data.tests.items():
        evaluations[name] = read_test(source, asked, data, every_question=False, notes=notes)
    for name, examples in evaluations.items():
        if data.max_test is not None and data.max_test < len(examples):
            evaluations[name] = draw(
                examples, num_examples=data.max_test, shots_per_class=None, seed=0
            )
    return evaluations


def take_demonstrations(
    asked: Asked, train: list[Example], settings: RunSettings, origin: Origin | None = None
) -> tuple[list[Example], list[Example]]:
    """Choose the demonstrations and take them out of the training set.

    Behind weights that go on in training stand those that stood there before.
    """
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
    chosen = _shown_before(asked, settings, origin) or choose_demonstrations(
        train,
        how=how,
        num=asked.num_demonstrations,
        labels=[label for task in asked.tasks.values() for label in task.label_names],
        seed=settings.seed,
    )
    shown = {text_key(example) for example in chosen}
    # A text that stands in the prompt would be answered by copying.
    return chosen, [example for example in train if text_key(example) not in shown]


def _shown_before(asked: Asked, settings: RunSettings, origin: Origin | None) -> list[Example]:
    """Return the demonstrations that weights were trained behind; none where others are due."""
    if origin is None or origin.weights is None:
        return []
    found, known = origin.demonstrations, {n for t in asked.tasks.values() for n in t.label_names}
    is_same = len(found) == asked.num_demonstrations and {d.label for d in found} <= known
    return (
        found if is_same and settings.method.chosen_by == origin.settings.method.chosen_by else []
    )
