"""How long to train where the settings leave it open."""

import math

import pytest

from taskfit.settings import RunSettings, TrainingSettings
from taskfit.settings_file import load_settings
from taskfit.training.length import MIN_STEPS, sees_texts_again, settle_length


def length_of(
    num_train: int, *, labels: int = 4, words: float = 20, **overrides: str
) -> tuple[float, int]:
    settings = load_settings(
        overrides=[f"{k.replace('__', '.')}={v}" for k, v in overrides.items()]
    )
    found, _ = settle_length(
        settings.resolved(), num_train=num_train, num_labels=labels, mean_words=words
    )
    return found.training.epochs, found.training.batch_size


@pytest.mark.parametrize("num_train", [64, 100, 176, 256, 500])
def test_few_labels_get_enough_steps_by_more_epochs(num_train: int) -> None:
    epochs, size = length_of(num_train)
    steps = epochs * math.ceil(num_train / size)
    assert MIN_STEPS <= steps <= 1.5 * (MIN_STEPS + 16) or epochs == 20


def test_steps_never_fall_as_labels_or_classes_grow() -> None:
    def steps(num_train: int, labels: int) -> float:
        epochs, size = length_of(num_train, labels=labels)
        return epochs * math.ceil(num_train / size)

    by_size = [steps(n, 2) for n in (16, 64, 1024, 4000, 20000, 200000)]
    assert by_size == sorted(by_size)
    assert steps(616, 77) > steps(616, 2)


def test_many_labels_are_seen_once_and_few_are_not_seen_for_ever() -> None:
    assert length_of(10**6)[0] == 1
    assert length_of(4)[0] <= 20


@pytest.mark.parametrize("num_train", [4001, 6001, 8027, 11999])
def test_thousands_of_labels_are_seen_as_many_times_as_the_rule_wants_or_more(
    num_train: int,
) -> None:
    assert length_of(num_train)[0] * num_train >= 3 * 4000


def test_what_is_given_stays_and_is_not_explained() -> None:
    assert length_of(64, training__epochs="2.5", training__batch_size="4") == (2.5, 4)
    settings = load_settings(overrides=["training.epochs=2"]).resolved()
    _, reason = settle_length(settings, num_train=64, num_labels=2, mean_words=9)
    assert reason == ""


def test_the_reason_names_steps_and_the_setting() -> None:
    settings = RunSettings().resolved()
    settled, reason = settle_length(settings, num_train=64, num_labels=2, mean_words=9)
    assert "80 steps of 16 texts, each seen 20 times" in reason
    assert "training.epochs" in reason
    assert (settled.training.epochs, settled.training.batch_size) == (20, 16)


def test_a_limit_on_steps_is_named_instead_of_the_rule_where_it_is_lower() -> None:
    for limit, said in ((12, "12 steps of 16 texts, as training.max_steps says"), (90, "20 times")):
        settings = load_settings(overrides=[f"training.max_steps={limit}"]).resolved()
        _, reason = settle_length(settings, num_train=64, num_labels=2, mean_words=9)
        assert said in reason
        assert ("rule" in reason) == (limit > 80)


def test_long_texts_take_smaller_batches() -> None:
    assert length_of(256, words=400)[1] < length_of(256, words=20)[1]


def test_instruction_tuning_stays_at_one_epoch() -> None:
    assert length_of(64, labels=0, method__name="sft") == (1.0, 16)


def test_a_last_batch_that_is_not_full_is_no_second_epoch() -> None:
    training = TrainingSettings.model_validate({"batch_size": 16, "epochs": 1})
    assert not sees_texts_again(training, 17)
    several = training.model_copy(update={"epochs": 2})
    assert sees_texts_again(several, 17)
    assert not sees_texts_again(several.model_copy(update={"max_steps": 2}), 17)
    assert sees_texts_again(training.model_copy(update={"epochs": "auto"}), 17)
