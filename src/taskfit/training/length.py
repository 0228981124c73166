"""How long to train where the settings leave it open: a rule from the data, no clock in it.

What decides is the number of optimizer steps, not of epochs: with few labels one epoch is a dozen
steps, and nothing has been learned by then. The numbers are those of results/defaults.md.
"""

import math
from dataclasses import dataclass

from taskfit.settings import RunSettings, TrainingSettings, known

# Enough for the adapters of two to a dozen classes at batch 16; more are of use to many classes.
MIN_STEPS = 120
STEPS_PER_CLASS = 4
# With many labels each is seen a few times, fewer the more there are.
MIN_EPOCHS = 3.0
MANY_LABELS = 4000
# By then a few dozen texts are known by heart, and no gradient is left.
MAX_EPOCHS = 20.0
BATCH_SIZE = 16
# Words of a text from which half the batch costs as much as a batch of short texts.
LONG_TEXT = 100
# Fewer training texts than this make hardly any steps an epoch.
FEW_TEXTS = 50


@dataclass(frozen=True, slots=True)
class Length:
    """How long to train, and why.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Examples of an optimizer step.
        reason: One line for the screen; empty if nothing was left open.
    """

    epochs: float
    batch_size: int
    reason: str


def training_length(
    settings: RunSettings, *, num_train: int, num_labels: int, mean_words: float
) -> Length:
    """Return the length of training for the settings' autos; what is given stays.

    Args:
        settings: Of the run.
        num_train: Training examples.
        num_labels: Classes; 0 where there are none.
        mean_words: Words of a training text, on average.
    """
    training = settings.training
    batch_size = training.batch_size
    if batch_size == "auto":
        halved = mean_words > LONG_TEXT or num_train < FEW_TEXTS
        batch_size = BATCH_SIZE // 2 if halved else BATCH_SIZE
    epochs = training.epochs
    if epochs == "auto":
        if settings.method.is_tuning or num_labels == 0:
            epochs = 1.0
        else:
            epochs = _epochs(num_train, num_labels, batch_size)
    per_epoch = math.ceil(max(1, num_train) / batch_size)
    steps = max(1, math.ceil(epochs * per_epoch))
    if training.max_steps is not None:
        steps = min(steps, training.max_steps)
    passes = steps / per_epoch
    reason = (
        f"training: {steps:,} steps of {batch_size} texts, each seen {passes:.3g} times, by the "
        f"rule for {num_train:,} texts in {num_labels} classes; training.epochs sets it"
        if training.epochs == "auto"
        else ""
    )
    return Length(epochs, batch_size, reason)


def _epochs(num_train: int, num_labels: int, batch_size: int) -> float:
    per_epoch = math.ceil(max(1, num_train) / batch_size)
    wanted = MIN_STEPS + STEPS_PER_CLASS * num_labels
    least = MIN_EPOCHS if num_train <= MANY_LABELS else MIN_EPOCHS * MANY_LABELS / num_train
    epochs = min(MAX_EPOCHS, max(wanted / per_epoch, max(1.0, least)))
    # Whole epochs, so that every text is seen as often as any other.
    return float(max(1, round(epochs)))


def with_length(settings: RunSettings, length: Length) -> RunSettings:
    """Return settings with the numbers in place of their autos."""
    update = {"epochs": length.epochs, "batch_size": length.batch_size}
    training = settings.training.model_copy(update=update)
    return settings.model_copy(update={"training": training})


def sees_texts_again(training: TrainingSettings, num_train: int) -> bool:
    """Return whether training goes on after its first pass over the examples."""
    per_epoch = math.ceil(num_train / known(training.batch_size))
    steps = math.inf
    # What a rule is left to choose is more than one pass.
    if not isinstance(training.epochs, str):
        steps = max(1, math.ceil(training.epochs * per_epoch))
    return min(steps, training.max_steps or steps) > per_epoch
