"""Which rows of a training table are held out: for evaluation set `test`, and for validation."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from taskfit.data import Example, Overlap, split_validation
from taskfit.data.overlap import text_key
from taskfit.errors import DataError, SettingsError
from taskfit.settings import DataSettings, RunSettings

# Seed of the split that `data.test_fraction` asks for; it must not depend on the run's.
TEST_SPLIT_SEED = 20140602
TEST_SET = "test"
# From here on a fifth of the table is a test set that tells something (40 texts: +-.15).
ENOUGH_FOR_TEST = 200
AUTO_TEST_FRACTION = 0.2
AUTO_VALIDATION_FRACTION = 0.1
FEWEST_VALIDATION = 50


def share_of_test(
    data: DataSettings, num_rows: int, *, has_tests: bool, goes_on: bool = False
) -> float:
    """Return the share of the training table that becomes the evaluation set `test`.

    Args:
        data: The settings.
        num_rows: Rows that it can be taken from.
        has_tests: Whether there is an evaluation set of a built-in task.
        goes_on: Whether rows of an earlier run are in it already.
    """
    if data.test_fraction != "auto":
        return data.test_fraction
    enough = (num_rows >= ENOUGH_FOR_TEST or goes_on) and not data.tests and not has_tests
    return AUTO_TEST_FRACTION if enough else 0.0


def validation_share(
    settings: RunSettings, num_rows: int, num_labels: int, *, has_tests: bool
) -> float:
    """Return the share of the training table that is held out for validation.

    Fewer than `FEWEST_VALIDATION` choose weights by chance, so they are given back to training,
    unless something that was asked for cannot do without them.

    Args:
        settings: All settings.
        num_rows: Rows of the table.
        num_labels: Labels that occur in it.
        has_tests: Whether there is an evaluation set; else a small table is cross-validated, and
            what that predicts chooses thresholds, too.
    """
    fraction = settings.data.validation_fraction
    if fraction != "auto":
        return fraction
    calibration, training = settings.calibration, settings.training
    needed = (
        calibration.temperature
        or calibration.prediction_sets
        or (
            calibration.thresholds not in ("auto", "none")
            and (has_tests or settings.data.test_fraction != "auto")
        )
        or training.early_stopping is not None
        or settings.search.requested
        or settings.method.is_tuning
    )
    # A run that draws a few rows of a large table has few labels, also for choosing.
    data = settings.data
    drawn = data.num_train or (data.shots_per_class or num_rows) * num_labels
    enough = AUTO_VALIDATION_FRACTION * min(drawn, num_rows) >= FEWEST_VALIDATION
    return AUTO_VALIDATION_FRACTION if needed or enough else 0.0


def hold_out_test(
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


def hold_out_validation(
    train: Sequence[Example],
    overlap: Overlap,
    settings: RunSettings,
    *,
    has_tests: bool,
    num_before: int = 0,
) -> tuple[list[Example], list[Example], Overlap]:
    """Hold out a validation set; a text that stands several times stays on one side.

    Copies of held-out texts leave training and are counted in the overlap. Where a class would be
    lost with them, its held-out texts go back instead.

    Args:
        train: Rows that an earlier run did not have; mostly all.
        overlap: What was found of them so far.
        settings: All settings.
        has_tests: Whether there is an evaluation set.
        num_before: Examples that an earlier run validated on, and this one does again.
    """
    num_labels = len({e.label for e in train})
    share = validation_share(settings, len(train), num_labels, has_tests=has_tests)
    if num_before and settings.data.validation_fraction == "auto":
        share = AUTO_VALIDATION_FRACTION
    rest, held_out = split_validation(
        train,
        fraction=share,
        max_validation=max(0, settings.data.max_validation - num_before),
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
