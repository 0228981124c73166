"""Measure a run on its own small table: every text is predicted by a fit that has not seen it.

Of a few dozen rows a held-out test set would tell nothing and cost a fifth of the labels. The run
itself then learns from all of them; what is reported is of fits on two thirds each.

Legend: N examples, L labels, of all questions side by side.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from taskfit.data import Example
from taskfit.data.overlap import text_key
from taskfit.data.splits import stratified_order
from taskfit.files import file_atomic
from taskfit.methods.method import Method, MethodContext, TrainedMethod
from taskfit.methods.table import label_method
from taskfit.models.load import LoadedModel, resolve_device
from taskfit.runs.baselines import fit_baselines
from taskfit.runs.blending import fit_probes, make_blend
from taskfit.runs.classifier import Classifier
from taskfit.runs.prepare import PreparedData, take_demonstrations
from taskfit.runs.run import Run
from taskfit.runs.shared_model import SharedModel
from taskfit.runs.train_method import train_method
from taskfit.screen import Screen, SilentScreen
from taskfit.settings import RunSettings
from taskfit.training.distributed import num_processes
from taskfit.training.memory import MemoryAccount
from taskfit.training.trackers import Trackers

FloatArray = NDArray[np.float64]
FOLDS = 3
SET = "cross-validation"
FOLDER = "folds"
TUNED, RUN = "tuned", "run"


def needs_cross_validation(method: Method, settings: RunSettings, data: PreparedData) -> bool:
    """Return whether a run is measured on its own small table, since it has no other set.

    With a test share that was given, 0 too, the user has decided how to measure.
    """
    return (
        method.learns
        and settings.data.test_fraction == "auto"
        and not data.evaluations
        and not data.unlabeled
        and len(data.train) >= FOLDS * max(len(t.labels) for t in data.asked.tasks.values())
        and num_processes() == 1
    )


@dataclass(frozen=True, slots=True)
class Folds:
    """How examples are cut, and what is fitted on the rest of each fold.

    Attributes:
        of: The fold of each example, (N,).
        baselines: Whether baselines are fitted beside the run.
        own_demonstrations: Whether each fit takes its demonstrations from what it learns from, so
            that every example is predicted; else those of the data are shown.
    """

    of: NDArray[np.int64]
    baselines: bool = True
    own_demonstrations: bool = False


def folds_of(
    examples: Sequence[Example],
    *,
    seed: int,
    num: int = FOLDS,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.int64]:
    """Return the fold of each example, stratified, (N,).

    Args:
        examples: Labelled examples.
        seed: Seed of the draw.
        num: How many folds.
        groups: What stays together, N of them; None: copies of a text.
    """
    if groups is None:
        groups = [text_key(example) for example in examples]
    fold: dict[Hashable, int] = {}
    for place, index in enumerate(stratified_order(examples, seed=[seed, 6])):
        fold.setdefault(groups[index], place % num)
    return np.array([fold[group] for group in groups])


def cross_validate(
    settings: RunSettings,
    data: PreparedData,
    folder: Path,
    *,
    model: LoadedModel | None,
    screen: Screen,
    folds: Folds | None = None,
) -> dict[str, FloatArray]:
    """Fit on all folds but one, predict that one, for each fold; the model is left as it was.

    Finished folds are kept in the folder, so that an interrupted run does not fit them again.

    Args:
        settings: Of the run.
        data: Its examples; those of `train` are cut into folds.
        folder: The run's folder.
        model: The base model, or None for a method without one.
        screen: Where progress is shown.
        folds: How the examples are cut; None: three folds, with baselines.

    Returns:
        Probabilities of all training texts by fits that had not seen them: of the `run`, of its
        method alone (`tuned`), of the baselines, and of the probes of a blend, (N, L) each.
    """
    folds = folds or Folds(folds_of(data.train, seed=settings.seed))
    shared = SharedModel(model, settings)
    parts: dict[str, FloatArray] = {}
    num = int(folds.of.max()) + 1
    for fold in range(num):
        path = folder / FOLDER / f"fold-{fold}.safetensors"
        if not path.is_file():
            screen.note(f"cross-validation: fold {fold + 1} of {num}")
            fitted = _without(settings, data, folds, fold)
            texts = [e for e, own in zip(data.train, folds.of, strict=True) if own == fold]
            # The first one tells for all.
            told = SilentScreen() if fold else screen
            found = _fit_fold(settings, fitted, texts, folder, shared, told)
            if folds.baselines:
                for name, predict in fit_baselines(settings, data.asked, fitted.train).items():
                    found[name] = predict(texts)
            path.parent.mkdir(parents=True, exist_ok=True)
            with file_atomic(path) as scratch:
                save_file({name: np.ascontiguousarray(p) for name, p in found.items()}, scratch)
        for name, saved in load_file(path).items():
            shape = (len(data.train), saved.shape[1])
            parts.setdefault(name, np.full(shape, np.nan))[folds.of == fold] = saved
    return parts


def _without(settings: RunSettings, data: PreparedData, folds: Folds, fold: int) -> PreparedData:
    """Return the data of the fit that does not see a fold."""
    learned = [e for e, own in zip(data.train, folds.of, strict=True) if own != fold]
    shown = data.demonstrations
    if folds.own_demonstrations:
        shown, learned = take_demonstrations(data.asked, learned, settings)
    return replace(data, train=learned, validation=[], evaluations={}, demonstrations=shown)


def _fit_fold(
    settings: RunSettings,
    data: PreparedData,
    texts: Sequence[Example],
    folder: Path,
    shared: SharedModel,
    screen: Screen,
) -> dict[str, FloatArray]:
    """Return the probabilities of held-out texts by the run and its parts, (n, L).

    The screen is told what reads them, not how training goes.
    """
    learned = data.train
    found: dict[str, FloatArray] = {}
    method: Method | None = None
    try:
        context = MethodContext(settings, data.asked, data.demonstrations, shared.model)
        method = label_method(settings.method.name)(context)
        classifier = Classifier(method)
        probes = fit_probes(context, learned)
        method.prepare(learned, ())
        if isinstance(method, TrainedMethod):
            run = Run(
                settings=settings,
                folder=folder / FOLDER / "under-way",
                data=data,
                classifier=classifier,
                memory=MemoryAccount(resolve_device(settings.model.device)),
                screen=SilentScreen(),
            )
            run.folder.mkdir(parents=True, exist_ok=True)
            train_method(run, method, trackers=Trackers({}), save=False)
        classifier.blend = make_blend(method, probes, ())
        parts = classifier.parts(texts)
        names = (TUNED, *(classifier.blend.names if classifier.blend is not None else ()))
        found |= {name: part for name, part in zip(names, parts, strict=True) if part is not None}
        found[RUN] = classifier.combined(parts)
        if shared.model is not None and (note := shared.model.tree.lean.stock_note()) is not None:
            screen.note(note)
    finally:
        shared.restore(method)
    return found
