"""The study on disk: which trials there were, and what to try next.

Optuna proposes (TPE, Bergstra et al. 2011) and decides which trials end early. The sampler is
seeded anew for every trial by its number, so a search that was killed proposes what it would have
proposed without. Needs the package optuna, so it is imported where a search runs.
"""

import contextlib
import itertools
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from taskfit.files import read_jsonl
from taskfit.search.records import TrialRecord
from taskfit.search.space import Dimension, Space, Value
from taskfit.settings import SearchSettings

STUDY_FILE = "study.jsonl"
NEW_FILE = "study-new.jsonl"
NAME = "search"
RECORD = "record"  # attribute of a trial that is over
LOST = "lost_seconds"  # attribute of the study: the time of trials that were killed
# Trials before TPE models anything, and before a median means anything.
RANDOM_TRIALS = 4
TRIALS_BEFORE_PRUNING = 3
VALIDATIONS_BEFORE_PRUNING = 2
PROPOSALS = 8  # of the sampler, before one is taken that was not tried yet
TRIALS_FOR_IMPORTANCE = 10


class Study:
    """The trials of one search."""

    def __init__(self, folder: Path, space: Space, settings: SearchSettings, *, seed: int) -> None:
        """Open the study of a folder, or start one.

        Trials that were killed are left out; what they tried will be proposed again.
        """
        self._folder = folder
        self._space = space
        self._settings = settings
        self._seed = seed
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = self._open(STUDY_FILE)
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if RECORD in trial.user_attrs:  # killed as it was being settled
                record = TrialRecord(**trial.user_attrs[RECORD])
                self.settle(Trial(self._study, trial._trial_id), record)
        killed = [t for t in self._study.get_trials(deepcopy=False) if not t.state.is_finished()]
        if killed:
            self._leave_out(killed)

    @property
    def trials(self) -> list[TrialRecord]:
        """Return the trials that are over, in their order."""
        found = [t for t in self._study.get_trials(deepcopy=False) if RECORD in t.user_attrs]
        records = [TrialRecord(**trial.user_attrs[RECORD]) for trial in found]
        return sorted(records, key=lambda record: record.index)

    @property
    def lost_seconds(self) -> float:
        """Return the time of trials that were killed."""
        return float(self._study.user_attrs.get(LOST, 0.0))

    def propose(
        self, index: int, given: Mapping[str, Value] | None
    ) -> tuple[Trial, dict[str, Value]] | None:
        """Return a trial of a combination that was not tried yet, or None if there is none left.

        Args:
            index: Number of the trial, from 1.
            given: What the first trial tries; None: what the sampler says.
        """
        tried = [record.values for record in self.trials]
        if len(tried) >= self._space.size:
            return None
        for attempt in range(PROPOSALS + 1):
            self._study.sampler = self._sampler(index, attempt)
            with _quiet():
                if index == 1 and given is not None:
                    self._study.enqueue_trial(dict(given))
                elif attempt == PROPOSALS and self._space.size < math.inf:
                    self._study.enqueue_trial(self._untried(tried))
                trial = self._study.ask()
                drawn = {d.key: d.at(_suggest(trial, d)) for d in self._space.dimensions}
            if index == 1 and given is not None:
                drawn = dict(given)  # with all their digits
            if drawn not in tried:
                trial.set_user_attr("index", index)
                return trial, drawn
            with _quiet():
                self._study.tell(trial, state=TrialState.FAIL)
        return None

    def settle(self, trial: Trial, record: TrialRecord) -> None:
        """Write what became of a trial."""
        trial.set_user_attr(RECORD, asdict(record))
        with _quiet():
            if record.state == "finished":
                self._study.tell(trial, record.score)
            else:
                state = TrialState.PRUNED if record.state == "pruned" else TrialState.FAIL
                self._study.tell(trial, state=state)

    def importance(self) -> dict[str, float]:
        """Return how much each setting mattered (PED-ANOVA, Watanabe et al. 2023).

        Empty with few trials, and where all did equally well.
        """
        finished = [t for t in self.trials if t.state == "finished"]
        if len(finished) < TRIALS_FOR_IMPORTANCE or len({t.score for t in finished}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator
        with _quiet():
            found = optuna.importance.get_param_importances(self._study, evaluator=evaluator())
        return {name: float(value) for name, value in found.items()}

    def _untried(self, tried: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
        """Return the first combination of a finite space that was not tried."""
        names = [dimension.key for dimension in self._space.dimensions]
        options = [dimension.values() for dimension in self._space.dimensions]
        combinations = (dict(zip(names, one, strict=True)) for one in itertools.product(*options))
        return next(one for one in combinations if one not in tried)

    def _sampler(self, index: int, attempt: int) -> optuna.samplers.TPESampler:
        seed = np.random.SeedSequence([self._seed, index, attempt]).generate_state(1)[0]
        return optuna.samplers.TPESampler(seed=int(seed), n_startup_trials=RANDOM_TRIALS)

    def _open(self, file: str) -> optuna.Study:
        with _quiet():
            return optuna.create_study(
                study_name=NAME,
                storage=JournalStorage(JournalFileBackend(str(self._folder / file))),
                sampler=self._sampler(0, 0),
                pruner=_pruner(self._settings),
                direction="maximize",
                load_if_exists=True,
            )

    def _leave_out(self, killed: Sequence[FrozenTrial]) -> None:
        """Write the study anew without some trials, whose time counts.

        Marked as failed they would stay in the way: successive halving compares with whatever has
        reported a score, and a queued trial is the next one.
        """
        lost = self.lost_seconds
        for trial in killed:
            folder = self._folder / f"trial-{trial.user_attrs.get('index', 0):03d}"
            records = read_jsonl(folder / "metrics.jsonl")
            lost += max((record.get("seconds", 0.0) for record in records), default=0.0)
        kept = [t for t in self._study.get_trials(deepcopy=False) if t.state.is_finished()]
        new = self._folder / NEW_FILE
        new.unlink(missing_ok=True)  # of a writing that was killed
        study = self._open(NEW_FILE)
        study.add_trials(kept)
        study.set_user_attr(LOST, lost)
        os.replace(new, self._folder / STUDY_FILE)
        self._study = self._open(STUDY_FILE)


def _suggest(trial: Trial, dimension: Dimension) -> Value:
    key = dimension.key
    if dimension.choices:
        return trial.suggest_categorical(key, dimension.choices)
    if dimension.is_integer:
        low, high = int(dimension.low), int(dimension.high)
        return trial.suggest_int(key, low, high, log=dimension.is_log)
    return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.is_log)


def _pruner(settings: SearchSettings) -> optuna.pruners.BasePruner:
    if settings.pruner == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=TRIALS_BEFORE_PRUNING, n_warmup_steps=VALIDATIONS_BEFORE_PRUNING
        )
    if settings.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    return optuna.pruners.NopPruner()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back warnings about parts of Optuna that may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
