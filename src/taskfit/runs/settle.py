"""Put numbers in place of the settings that were left open, once the data are known."""

from pathlib import Path

from taskfit.method_settings import HeadSettings
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.kind import Size
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings
from taskfit.training.distributed import on_main
from taskfit.training.length import settle_length

# Below this a head learns faster from a probe's weights; above it they leave too little gradient.
FEW_TEXTS = 200


def settle(settings: RunSettings, folder: Path, size: Size, screen: Screen) -> RunSettings:
    """Return settings with the length of training in numbers; the run's folder holds them.

    Args:
        settings: Resolved settings of the run.
        folder: Its folder.
        size: How much there is to learn from.
        screen: Where it is said what was taken, and why.
    """
    settled, reason = settle_length(
        settings,
        num_train=size.num_train,
        num_labels=size.num_labels,
        mean_words=size.mean_words,
    )
    if reason:
        screen.note(reason)
    if isinstance(settled.method, HeadSettings) and settled.method.start == "auto":
        start = "probe" if size.num_train < FEW_TEXTS else "zero"
        method = settled.method.model_copy(update={"start": start})
        settled = settled.model_copy(update={"method": method})
    on_main(lambda: dump_settings(settled, folder / SETTINGS_FILE))
    return settled


def as_settled(requested: RunSettings, found: RunSettings) -> RunSettings:
    """Return settings with a run's own numbers where `settle` put them for those left open.

    Args:
        requested: Resolved settings, as given again.
        found: Those in the folder of the run.
    """
    length, start, share = {}, {}, {}
    if requested.training.epochs == "auto":
        length["epochs"] = found.training.epochs
    if requested.training.batch_size == "auto":
        length["batch_size"] = found.training.batch_size
    again, before = requested.method, found.method
    if isinstance(again, HeadSettings) and isinstance(before, HeadSettings):
        start["start"] = before.start if again.start == "auto" else again.start
    if requested.data.validation_fraction == "auto":  # a search puts its own there
        share["validation_fraction"] = found.data.validation_fraction
    return requested.model_copy(
        update={
            "data": requested.data.model_copy(update=share),
            "training": requested.training.model_copy(update=length),
            "method": again.model_copy(update=start),
        }
    )
