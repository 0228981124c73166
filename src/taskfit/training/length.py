"""How long to train where the settings leave it open: a rule from the data, no clock in it.

What decides is the number of optimizer steps, not of epochs: with few labels one epoch is a dozen
steps, and nothing has been learned by then. The numbers are those of results/defaults.md.
"""

import math

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


def settle_length(
    settings: RunSettings, *, num_train: int, num_labels: int, mean_words: float
) -> tuple[RunSettings, str]:
    """Return settings with numbers for the autos of the length of training; what is given stays.

    Args:
        settings: Of the run.
        num_train: Training examples.
        num_labels: Classes; 0 where there are none.
        mean_words: Words of a training text, on average.

    Returns:
        The settings, and why, in one line for the screen; it is empty if nothing was left open.
    """
    training = settings.training
    batch_size, epochs = training.batch_size, training.epochs
    if batch_size == "auto":
        halved = mean_words > LONG_TEXT or num_train < FEW_TEXTS
        batch_size = BATCH_SIZE // 2 if halved else BATCH_SIZE
    per_epoch = math.ceil(max(1, num_train) / batch_size)
    if epochs == "auto":
        learns_labels = num_labels > 0 and not settings.method.is_tuning
        epochs = _epochs(num_train, num_labels, per_epoch) if learns_labels else 1.0
    settled = training.model_copy(update={"epochs": epochs, "batch_size": batch_size})
    reason = ""
    if training.epochs == "auto":
        steps = count_steps(max(1, num_train), settled)
        reason = f"training: {steps:,} steps of {batch_size} texts, "
        if steps == training.max_steps:
            reason += "as training.max_steps says"
        else:
            times = f"{steps / per_epoch:.3g}"
            classes = f" in {num_labels} classes" if num_labels else ""
            reason += (
                f"each seen {'once' if times == '1' else f'{times} times'}, by the rule for "
                f"{num_train:,} texts{classes}; training.epochs sets it"
            )
    return settings.model_copy(update={"training": settled}), reason


def _epochs(num_train: int, num_labels: int, per_epoch: int) -> float:
    enough = (MIN_STEPS + STEPS_PER_CLASS * num_labels) / per_epoch
    least = MIN_EPOCHS
    if num_train > MANY_LABELS:
        # Rounded up: on CoLA's 8,000 labels two passes reach an MCC of .53 out of domain, one .42.
        least = math.ceil(MIN_EPOCHS * MANY_LABELS / num_train)
    epochs = min(MAX_EPOCHS, max(enough, least))
    # Whole epochs, so that every text is seen as often as any other.
    return float(round(epochs))


def count_steps(num_items: int, settings: TrainingSettings) -> int:
    """Return the number of optimizer steps of a run."""
    per_epoch = math.ceil(num_items / known(settings.batch_size))
    steps = max(1, math.ceil(known(settings.epochs) * per_epoch))
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def sees_texts_again(training: TrainingSettings, num_train: int) -> bool:
    """Return whether training goes on after its first pass over the examples."""
    if training.epochs == "auto":  # what the rule chooses is more than one pass
        training = training.model_copy(update={"epochs": MAX_EPOCHS})
    return count_steps(num_train, training) > math.ceil(num_train / known(training.batch_size))
