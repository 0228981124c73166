"""Probabilities of every label of a table, each by a fit that has not seen the text.

Legend: N examples, L labels.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from taskfit.data import Example
from taskfit.data.examples import mean_words
from taskfit.data.overlap import text_key
from taskfit.errors import SettingsError
from taskfit.labels.audit_table import AuditedTable
from taskfit.methods.method import TrainedMethod
from taskfit.methods.table import label_method
from taskfit.models.load import LoadedModel, resolve_device
from taskfit.runs.bases import current_base, named_bases
from taskfit.runs.cross_validation import FOLDER as FOLDS_FOLDER
from taskfit.runs.cross_validation import RUN, Folds, cross_validate, folds_of
from taskfit.runs.file_names import SETTINGS_FILE
from taskfit.runs.kind import Size
from taskfit.runs.prepare import PreparedData
from taskfit.runs.rows import fingerprint
from taskfit.runs.run import model_of
from taskfit.runs.settle import settle
from taskfit.screen import Screen
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings
from taskfit.training.memory import MemoryAccount

FloatArray = NDArray[np.float64]
NUM_FOLDS = 5
# Of fewer texts of a class a fit on the other folds sees too few to know it.
MIN_CLASS = 5
FOLDER = "fits"
CONTENT = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Fits:
    """What is fitted, and where.

    Attributes:
        settings: Resolved settings.
        folder: Of the audit.
        screen: Where progress is shown.
        model: The base model, if it is loaded already.
    """

    settings: RunSettings
    folder: Path
    screen: Screen
    model: LoadedModel | None = None


def out_of_fold(fits: Fits, table: AuditedTable, groups: Sequence[int]) -> FloatArray:
    """Return the probability of each label of each text by a fit on the other folds, (N, L).

    Each fold is kept in the folder under a hash of settings and data, so that the same command
    goes on where it was interrupted, or ends at once where it was not.

    Args:
        fits: What is fitted.
        table: What is audited.
        groups: Near copies, which stay in one fold: else a fit would have seen the text, (N,).

    Raises:
        TaskfitError: If there are too few texts, or the method cannot serve them.
    """
    settings, folder, screen = fits.settings, fits.folder, fits.screen
    examples, task = table.examples, table.task
    kind = label_method(settings.method.name)
    together = _kept_together(examples, groups, screen)
    # Before the settings, so that the folder is known as an audit's.
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    if issubclass(kind, TrainedMethod):
        size = Size(len(examples), len(task.labels), mean_words(examples))
        settings = settle(settings, folder, size, screen)
    else:
        dump_settings(settings, folder / SETTINGS_FILE)
    shows = settings.method.retrieves or task.num_demonstrations > 0
    learns = kind.learns or (settings.method.shows_demonstrations and shows)
    num = NUM_FOLDS if learns else 1  # what learns from no text has seen none
    folds = folds_of(examples, seed=settings.seed, num=num, groups=together)
    folds = np.unique(folds, return_inverse=True)[1]  # large groups may leave one empty
    place = folder / FOLDER / _content(settings, folder, table, folds)
    for other in (folder / FOLDER).glob("*"):
        if other != place and CONTENT.fullmatch(other.name):
            shutil.rmtree(other)  # of other settings or data
    if len(list(place.glob(f"{FOLDS_FOLDER}/fold-*.safetensors"))) < int(folds.max()) + 1:
        memory = MemoryAccount(resolve_device(settings.model.device))
        model = model_of(settings, fits.model, memory, screen)
        if model is not None and not issubclass(kind, TrainedMethod):
            model.tree.prepare_scoring()
    else:
        model = None
        screen.note(f"probabilities of an earlier audit of the same data are taken from {place}")
    data = PreparedData(
        asked=task,
        train=examples,
        validation=[],
        demonstrations=[],
        evaluations={},
        overlap=None,
        unlabeled=[],
        fingerprint={},
    )
    cut = Folds(folds, baselines=False, own_demonstrations=True)
    return cross_validate(settings, data, place, model=model, screen=screen, folds=cut)[RUN]


def _kept_together(
    examples: Sequence[Example], groups: Sequence[int], screen: Screen
) -> Sequence[Hashable]:
    """Return what stays in one fold: near copies, or where nearly all are those, the same texts.

    Raises:
        SettingsError: If there are too few texts.
    """
    if len(set(groups)) >= 2 * NUM_FOLDS:
        return list(groups)
    same = [text_key(example) for example in examples]
    if len(set(same)) < 2 * NUM_FOLDS:
        raise SettingsError(
            f"{len(examples)} texts ({len(set(same))} without copies) are too few to say "
            f"anything about their labels by {NUM_FOLDS} fits; give {2 * NUM_FOLDS} or more."
        )
    screen.note(
        f"nearly all texts are near copies of {len(set(groups))}, so fits see near copies of what "
        "they judge, though never the same text"
    )
    return same


def _content(
    settings: RunSettings, folder: Path, table: AuditedTable, folds: NDArray[np.int64]
) -> str:
    """Return a hash of all that probabilities hang on: also what task file and models hold."""
    plain = json.dumps(settings.model_dump(), sort_keys=True, default=str)
    bases = [
        current_base(folder, key, *named) for key, named in sorted(named_bases(settings).items())
    ]
    models = str([base and base.identity.digest for base in bases])
    parts = (plain, repr(table.task), models, fingerprint(table.examples), folds.tobytes().hex())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
