"""Search settings on the validation set, before the run itself.

Trials train on the run's training set and are compared on its validation set; evaluation sets are
taken away before the first one. Data are prepared and the base model is loaded once. Everything
lies in `RUN/search`, so a search that was killed goes on where it was.
"""

import json
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from taskfit.errors import CheckpointError, TaskfitError, TrainingError
from taskfit.files import write_json_atomic
from taskfit.models.load import LoadedModel
from taskfit.runs.file_names import DATA_FILE, SETTINGS_FILE
from taskfit.runs.prepare import PreparedData
from taskfit.runs.records import SEARCH_FILE
from taskfit.runs.settle import as_settled
from taskfit.runs.shared_model import SharedModel
from taskfit.screen import Screen
from taskfit.search.records import (
    FOLDER,
    TRIAL_FILE,
    SearchRecord,
    TrialRecord,
    write_table,
)
from taskfit.search.setup import DataOf, prepared, wordings
from taskfit.search.space import Space, Value, make_space
from taskfit.search.trial import ShouldStop, TrialOutcome, run_trial
from taskfit.settings import RunSettings
from taskfit.settings_file import dump_settings, load_run_settings, settings_differences
from taskfit.stats.paired import paired_bootstrap

if TYPE_CHECKING:
    from optuna.trial import Trial

    from taskfit.search.study import Study

# With nothing but failures so far, more of them teach nothing.
FAILURES_TO_GIVE_UP = 3


def settings_of_search(settings: RunSettings, folder: Path, *, resume: bool) -> RunSettings:
    """Return the winner's settings where the folder holds a finished search, else those given.

    Args:
        settings: The settings of the run, as given at first or as the folder has them.
        folder: The run's folder.
        resume: Whether the run goes on.

    Raises:
        CheckpointError: If a new run is to start where a search lies already.
    """
    given_file = folder / FOLDER / SETTINGS_FILE
    if not given_file.is_file():
        return settings
    if not resume:
        raise CheckpointError(
            f"{folder} holds a search already. Continue it with `taskfit fit --resume {folder}`, "
            "or give another folder with --out."
        )
    record = SearchRecord.load(folder)
    if record is None:
        return settings
    given = load_run_settings(given_file)
    winner = load_run_settings(folder / FOLDER / "best.yaml")
    in_folder = load_run_settings(folder / SETTINGS_FILE)
    if not settings_differences(as_settled(in_folder, given), given):
        _adopt(winner, folder)  # it was killed just after its search
    return settings if settings_differences(as_settled(settings, given), given) else winner


def search_settings(
    settings: RunSettings,
    folder: Path,
    data: PreparedData,
    *,
    model: LoadedModel | None,
    screen: Screen,
) -> RunSettings:
    """Search settings for a run; return the winner's, which its folder then has.

    Args:
        settings: All settings, `search` among them; see `refuse_unserved`.
        folder: The run's folder, opened.
        data: The run's data.
        model: The base model, put back after every trial; None for methods without one.
        screen: Where notes go.

    Raises:
        TaskfitError: If the search cannot serve the run, or no trial came to an end.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    space = make_space(settings, data, wordings(settings, data, model))
    data_of = prepared(space, data)
    home = folder / FOLDER
    home.mkdir(parents=True, exist_ok=True)
    dump_settings(settings, home / SETTINGS_FILE)
    from taskfit.search.study import Study

    study = Study(home, space, settings.search, seed=settings.seed)
    search = _Search(study, space, data_of, home, SharedModel(model, settings), screen)
    before = search.cost()
    _announce(space, len(study.trials), screen)
    search.run()
    record = _conclude(study, space, data, home)
    # What lies between the trials is part of the price.
    here, cpu_here = time.perf_counter() - started, time.process_time() - cpu_started
    record = replace(record, seconds=before[0] + here, cpu_seconds=before[1] + cpu_here)
    winner = space.settings(record.best)
    dump_settings(winner, home / "best.yaml")
    write_json_atomic(folder / SEARCH_FILE, asdict(record))
    _adopt(winner, folder)
    screen.note(record.sentence)
    return winner


@dataclass(frozen=True, slots=True)
class _Search:
    """A search under way.

    Attributes:
        study: Its trials.
        space: What they try.
        data_of: Gives a trial its data.
        home: Its folder, in the run's.
        shared: The base model.
        screen: Where notes go.
    """

    study: "Study"
    space: Space
    data_of: DataOf
    home: Path
    shared: SharedModel
    screen: Screen

    def cost(self) -> tuple[float, float]:
        """Return the time and processor time of all trials so far (seconds)."""
        trials = self.study.trials
        seconds = sum(trial.seconds for trial in trials) + self.study.lost_seconds
        return seconds, sum(trial.cpu_seconds for trial in trials)

    def run(self) -> None:
        """Run trials until their number or the time is up, or every combination was tried."""
        asked, task = self.space.given.search, self.data_of(self.space.given).task
        given = self.space.given_values(task)
        earlier, started = self.cost()[0], time.perf_counter()
        while not self._is_over(earlier + time.perf_counter() - started):
            index = len(self.study.trials) + 1
            proposed = self.study.propose(index, given)
            if proposed is None:
                self.screen.note("every combination has been tried")
                return
            trial, values = proposed
            record = self._run_one(index, values, partial(_should_prune, trial))
            self.study.settle(trial, record)
            write_table(self.home.parent, self.study.trials, task.metric)
            of = f"/{asked.trials}" if asked.trials else ""
            self.screen.note(f"trial {index}{of}: {_describe(record, task.metric)}")

    def _is_over(self, seconds: float) -> bool:
        asked, trials = self.space.given.search, self.study.trials
        failed = [trial for trial in trials if trial.state == "failed"]
        if len(failed) == len(trials) >= FAILURES_TO_GIVE_UP:
            raise TrainingError(_all_failed(failed, self.home))
        if asked.trials and len(trials) >= asked.trials:
            return True
        is_late = asked.budget_seconds is not None and seconds >= asked.budget_seconds
        if is_late and trials:
            self.screen.note(f"the time of the search is up after {seconds:.0f} s")
            return True
        return False

    def _run_one(
        self, index: int, values: Mapping[str, Value], should_stop: ShouldStop
    ) -> TrialRecord:
        """Run a trial; whatever it fails of is recorded, and the others go on."""
        started, cpu_started = time.perf_counter(), time.process_time()
        folder = self.home / f"trial-{index:03d}"
        shutil.rmtree(folder, ignore_errors=True)  # of one that was killed
        outcome, message, trace = TrialOutcome(), "", ""
        try:
            settings = self.space.settings(values)
            data = self.data_of(settings)
            outcome = run_trial(settings, data, folder, self.shared, should_stop=should_stop)
        except Exception as error:
            message = str(error) or type(error).__name__
            trace = "" if isinstance(error, TaskfitError) else traceback.format_exc()
        shown = asdict(outcome)
        predicted = shown.pop("predicted")
        record = TrialRecord(
            index=index,
            values=dict(values),
            seconds=time.perf_counter() - started,
            cpu_seconds=time.process_time() - cpu_started,
            message=message,
            **shown,
        )
        more = {"traceback": trace, "predicted": predicted}
        write_json_atomic(folder / TRIAL_FILE, {**asdict(record), **more})
        return record


def _should_prune(trial: "Trial", number: int, score: float) -> bool:
    trial.report(score, number)
    return trial.should_prune()


def _announce(space: Space, num_done: int, screen: Screen) -> None:
    what = "; ".join(
        f"{d.key} {', '.join(map(str, d.choices))}"
        if d.choices
        else f"{d.key} {d.at(d.low)} to {d.at(d.high)}{' (log)' if d.is_log else ''}"
        for d in space.dimensions
    )
    screen.note(f"search on the validation set: {what}")
    if num_done:
        screen.note(f"{num_done} trials were done before; the search goes on after them")


def _describe(record: TrialRecord, metric: str) -> str:
    values = ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in record.values.items())
    if record.state == "failed":
        return f"{values}: failed ({record.message.splitlines()[0][:160]})"
    how = f" (pruned at validation {record.num_validations})" if record.state == "pruned" else ""
    return (
        f"{values}: {metric} {record.score:.3f}, loss {record.log_loss:.3f}{how}, "
        f"{record.seconds:.0f} s"
    )


def _all_failed(failed: Sequence[TrialRecord], home: Path) -> str:
    return (
        f"All {len(failed)} trials of the search failed; the first said: {failed[0].message} "
        f"Their records lie in {home}. Put right what it says, and start in a new folder."
    )


def _conclude(study: "Study", space: Space, data: PreparedData, home: Path) -> SearchRecord:
    """Choose the winner, and compare it with the settings as given."""
    trials = study.trials
    by_state = {
        state: [t for t in trials if t.state == state] for state in ("finished", "pruned", "failed")
    }
    finished = sorted(by_state["finished"], key=TrialRecord.order)
    if not finished:
        raise TrainingError(_all_failed(by_state["failed"], home))
    best = finished[0]
    given_values = space.given_values(data.task)
    given = next((t for t in finished if t.values == given_values), None)
    difference, interval = None, None
    if given is not None and given is not best and not data.task.multi_label:
        names = data.task.label_names
        gold = np.array([names.index(str(example.label)) for example in data.validation])
        difference, interval = paired_bootstrap(
            gold, *(_answers(home, t) for t in (best, given)), metric=data.task.metric, seed=0
        )
    return SearchRecord(
        num_trials=len(trials),
        num_pruned=len(by_state["pruned"]),
        num_failed=len(by_state["failed"]),
        seconds=0.0,
        cpu_seconds=0.0,
        best_trial=best.index,
        best=best.values,
        metric=data.task.metric,
        score=float(best.score or 0.0),
        num_validation=len(data.validation),
        score_given=None if given is None else given.score,
        difference=difference,
        interval=interval,
        importance=study.importance(),
    )


def _answers(home: Path, trial: TrialRecord) -> NDArray[np.int64]:
    text = (home / trial.folder / TRIAL_FILE).read_text(encoding="utf-8")
    return np.array(json.loads(text)["predicted"], dtype=np.int64)


def _adopt(winner: RunSettings, folder: Path) -> None:
    """Give the run's folder the winner's settings; its data are recorded anew."""
    (folder / DATA_FILE).unlink(missing_ok=True)
    dump_settings(winner, folder / SETTINGS_FILE)
