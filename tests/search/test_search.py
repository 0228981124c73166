"""A search compares settings on the validation set, never sees a test set, and loses nothing."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import tiny
from taskfit.cli.search import search_flags, show_search
from taskfit.data import Example
from taskfit.errors import CheckpointError, DataError, SettingsError, TrainingError
from taskfit.runs.classifier import Classifier
from taskfit.runs.records import RunResult, result_rows
from taskfit.search import trial as trial_module
from taskfit.search.records import (
    SearchRecord,
    TrialRecord,
    given_settings_file,
    recorded_trials,
)
from taskfit.search.search_and_fit import search_and_fit as fit
from taskfit.search.space import Dimension, Space
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings
from taskfit.stats.paired import paired_bootstrap
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

pytest.importorskip("optuna")

TEST = tiny.toy_examples(10, offset=200)
SPACE = "{training.learning_rate: [1e-4, 3e-2], adapter.lora_rank: [2, 4, 8]}"
MakeSettings = Callable[..., RunSettings]


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "taskfit.search.search.paired_bootstrap", lambda *_, **__: (0.1, (-0.1, 0.3))
    )


@pytest.fixture(scope="module")
def settings_of(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> MakeSettings:
    folder = tmp_path_factory.mktemp("data")
    tiny.write_csv(folder / "train.csv", tiny.toy_examples(24))
    tiny.write_csv(folder / "validation.csv", tiny.toy_examples(32, offset=100))
    tiny.write_csv(folder / "few.csv", tiny.toy_examples(29, offset=100))
    tiny.write_csv(folder / "test.csv", TEST)

    def make(*extra: str, space: str = SPACE) -> RunSettings:
        return settings_for(
            [
                f"data.train={folder / 'train.csv'}",
                f"data.validation={folder / 'validation.csv'}",
                f"data.tests.new={folder / 'test.csv'}",
                f"model.name={model_folder}",
                "model.dtype=float32",
                "method.name=label_words",
                "method.num_demonstrations=0",
                "training.batch_size=8",
                "training.epochs=1",
                "training.learning_rate=0.005",
                "training.tensorboard=false",
                "training.save_every_steps=1",
                "search.trials=4",
                f"search.space={space}",
            ],
            extra,
        )

    return make


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, settings_of: MakeSettings) -> Path:
    """A finished run with a search of four trials."""
    folder = tmp_path_factory.mktemp("searched") / "run"
    fit(settings_of(), folder, baselines=False)
    return folder


def weights_of(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "adapter").rglob("*"))
        if path.suffix == ".safetensors"
    }


def values_of(run: Path) -> list[tuple[dict[str, Any], float | None]]:
    return [(trial.values, trial.score) for trial in recorded_trials(run / "search")]


def test_trials_see_neither_text_nor_file_of_a_test_set_and_the_price_is_recorded(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: set[str] = set()
    in_trial: list[bool] = []
    test_file = tiny.write_csv(tmp_path / "gone.csv", TEST)
    score, run_trial = Classifier.probabilities, trial_module.run_trial

    def watch(self: Classifier, examples: list[Example], **more: Any) -> Any:
        if in_trial:
            scored.update(example.id for example in examples)
        return score(self, examples, **more)

    def without_test(*arguments: Any, **more: Any) -> Any:
        aside = test_file.rename(test_file.with_suffix(".aside"))
        assert not arguments[1].evaluations
        in_trial.append(True)
        try:
            return run_trial(*arguments, **more)
        finally:
            in_trial.pop()
            aside.rename(test_file)

    monkeypatch.setattr(Classifier, "probabilities", watch)
    monkeypatch.setattr("taskfit.search.search.run_trial", without_test)
    run = tmp_path / "run"
    result = fit(settings_of(f"data.tests.new={test_file}"), run).result
    assert not scored & {example.id for example in TEST}
    assert set(result.evaluations) == {"new"}
    record = SearchRecord.load(run)
    assert record is not None
    assert (record.num_trials, record.num_failed) == (4, 0)
    trials = recorded_trials(run / "search")
    assert 0 < sum(trial.seconds for trial in trials) <= record.seconds
    assert record.seconds == result.search_seconds < result.duration_seconds
    assert record.cpu_seconds < result.cpu_seconds
    found = RunResult.load(run)
    assert found.search["num_trials"] == 4
    assert result_rows(found)[0]["search_seconds"] == result.search_seconds
    assert result_rows(found)[0]["search_trials"] == 4
    table = pd.read_csv(run / "search.csv")
    assert table["accuracy"].tolist() == [trial.score for trial in trials]
    kept = {path.name for path in (run / "search").rglob("*") if path.is_file()}
    assert not [name for name in kept if name.endswith(".safetensors")]


def test_the_final_run_is_bitwise_an_ordinary_run_with_the_winners_settings(
    searched: Path, tmp_path: Path
) -> None:
    run, plain = searched, tmp_path / "plain"
    settings = load_settings(run / "settings.yaml")
    assert not settings.search.requested
    fit(settings, plain)
    assert weights_of(run)
    assert weights_of(run) == weights_of(plain)
    record = SearchRecord.load(run)
    assert record is not None
    finished = [trial for trial in recorded_trials(run / "search") if trial.state == "finished"]
    assert record.score == max(trial.score or 0.0 for trial in finished)
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = max(line["accuracy"] for line in history if line["kind"] == "validation")
    assert best == record.score


def test_full_weights_are_put_back_after_every_trial(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    space = "{training.learning_rate: [1e-3, 1e-2]}"
    settings = settings_of("adapter.weights=full", "search.trials=3", space=space)
    run = fit(settings, tmp_path / "run")
    plain = fit(load_settings(tmp_path / "run" / "settings.yaml"), tmp_path / "plain")
    np.testing.assert_array_equal(run.fitted.probabilities(TEST), plain.fitted.probabilities(TEST))


@pytest.mark.parametrize("when", ["in a trial", "in the final run", "there, within a grid"])
def test_a_killed_search_goes_on_as_if_nothing_had_happened(
    settings_of: MakeSettings,
    searched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    settings, run = settings_of(), tmp_path / "run"
    watch, count = trial_module._Watch.record, 0

    def kill(self: Any, record: Mapping[str, Any]) -> None:
        nonlocal count
        count += record["kind"] == "start"
        if count == 3 and record.get("step") == 2:
            raise Killed
        watch(self, record)

    with monkeypatch.context() as patch:
        if when == "in a trial":
            patch.setattr(trial_module._Watch, "record", kill)
        with pytest.raises(Killed):
            fit(settings, run, screen=NotingScreen(2) if when != "in a trial" else None)
    done = len(recorded_trials(run / "search"))
    assert done == (2 if when == "in a trial" else 4)
    # A grid resumes with the settings as given, the command line with those in the folder.
    again = load_settings(run / "settings.yaml") if when == "in the final run" else settings
    result = fit(again, run, resume=True).result
    assert values_of(run) == values_of(searched)
    assert weights_of(run) == weights_of(searched)
    spent = sum(trial.seconds for trial in recorded_trials(run / "search"))
    assert spent <= result.search_seconds < result.duration_seconds
    with pytest.raises(CheckpointError, match="finished"):
        fit(settings, run, resume=True)


def test_bad_trials_end_early_and_failed_ones_are_recorded_while_the_rest_goes_on(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_trial, count = trial_module.run_trial, 0

    def fail_once(*arguments: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise MemoryError("no memory")
        return run_trial(*arguments, **more)

    monkeypatch.setattr("taskfit.search.search.run_trial", fail_once)
    space = "{training.learning_rate: {choices: [0.01, 1e-7, 1e-6, 0.02, 2e-6, 2e-7]}}"
    settings = settings_of(
        "search.trials=6",
        "search.pruner=halving",
        "training.learning_rate=0.01",
        "training.epochs=4",
        space=space,
    )
    run = tmp_path / "run"
    fit(settings, run)
    trials = recorded_trials(run / "search")
    states = [trial.state for trial in trials]
    assert states[1] == "failed"
    assert "no memory" in trials[1].message
    assert "pruned" in states
    record = SearchRecord.load(run)
    assert record is not None
    assert (record.num_failed, record.num_pruned) == (1, states.count("pruned"))
    pruned = next(trial for trial in trials if trial.state == "pruned")
    assert pruned.num_validations < 5
    assert len({trial.values["training.learning_rate"] for trial in trials}) == 6
    # Also a trial that was cut off leaves the model as it was.
    fit(load_settings(run / "settings.yaml"), tmp_path / "plain")
    assert weights_of(run) == weights_of(tmp_path / "plain")


def test_a_trial_below_the_median_of_earlier_ones_ends_at_its_second_validation(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    from taskfit.search.study import Study

    settings = settings_of()
    space = Space(settings, (Dimension("training.learning_rate", low=0.1, high=1.0),), {})
    study = Study(tmp_path, space, settings.search, seed=0)
    for index, score in enumerate((0.8, 0.7, 0.9, 0.6, 0.85), start=1):
        proposed = study.propose(index, None)
        assert proposed is not None
        trial, values = proposed
        told = []
        for number in (1, 2):
            trial.report(score, number)
            told.append(trial.should_prune())
        assert told == [False, index == 4]
        state = "pruned" if told[1] else "finished"
        study.settle(trial, TrialRecord(index, state, values, score, 0.5, 1, 2, 1.0, 1.0))


@pytest.mark.parametrize("pruner", ["median", "halving"])
@pytest.mark.parametrize("when", ["queued", "asked", "in the middle", "as it ended"])
def test_a_study_goes_on_after_a_kill_as_if_nothing_had_happened(
    settings_of: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pruner: str,
    when: str,
) -> None:
    import optuna

    from taskfit.search.study import Study

    settings = settings_of(f"search.pruner={pruner}")
    space = Space(settings, (Dimension("training.learning_rate", low=0.1, high=1.0),), {})
    scores = (0.8, 0.9, 0.85, 0.88, 0.7, 0.86, 0.95)
    given = {"training.learning_rate": 0.5}
    kill_at = 1 if when == "queued" else 2

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    def go_on(folder: Path, *, dies: bool) -> list[tuple[Any, ...]]:
        folder.mkdir(exist_ok=True)
        study = Study(folder, space, settings.search, seed=0)
        told = [(t.values, t.num_validations, t.state) for t in study.trials]
        for index in range(len(told) + 1, len(scores) + 1):
            with monkeypatch.context() as patch:
                if dies and index == kill_at:
                    name = {"queued": "ask", "as it ended": "tell"}.get(when, "none")
                    patch.setattr(optuna.Study, name, kill, raising=False)
                proposed = study.propose(index, given)
                assert proposed is not None
                trial, values = proposed
                state, number = "finished", 0
                while number < 4 and state == "finished":
                    if (
                        dies
                        and index == kill_at
                        and when == ("in the middle" if number else "asked")
                    ):
                        raise Killed
                    number += 1
                    trial.report(scores[index - 1], number)
                    state = "pruned" if trial.should_prune() else "finished"
                score = scores[index - 1]
                study.settle(trial, TrialRecord(index, state, values, score, 0.5, 1, number, 1, 1))
            told.append((values, number, state))
        return told

    whole = go_on(tmp_path / "whole", dies=False)
    with pytest.raises(Killed):
        go_on(tmp_path / "killed", dies=True)
    assert go_on(tmp_path / "killed", dies=False) == whole
    assert len({state for _, _, state in whole}) == 2


def test_the_time_of_every_killed_trial_is_kept(settings_of: MakeSettings, tmp_path: Path) -> None:
    from taskfit.search.study import Study

    settings = settings_of()
    space = Space(settings, (Dimension("training.learning_rate", low=0.1, high=1.0),), {})
    (tmp_path / "trial-001").mkdir()
    for killed in range(3):
        study = Study(tmp_path, space, settings.search, seed=0)
        assert study.lost_seconds == 5.0 * killed
        assert study.propose(1, None) is not None
        log = [{"kind": "step", "seconds": 2.0}, {"kind": "step", "seconds": 5.0}]
        lines = "".join(json.dumps(record) + "\n" for record in log)
        (tmp_path / "trial-001" / "metrics.jsonl").write_text(lines)


def test_a_trial_that_was_over_when_it_was_killed_counts_with_its_score(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    from taskfit.search.study import Study

    settings = settings_of()
    space = Space(settings, (Dimension("training.learning_rate", low=0.1, high=1.0),), {})

    def opened() -> Study:
        return Study(tmp_path, space, settings.search, seed=0)

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    study = opened()
    proposed = study.propose(1, None)
    assert proposed is not None
    record = TrialRecord(1, "finished", proposed[1], 0.8, 0.5, 1, 2, 1.0, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", kill)
        with pytest.raises(Killed):
            study.settle(proposed[0], record)
    again = opened()
    assert again.trials == [record]
    assert again.lost_seconds == 0
    (trial,) = again._study.get_trials()
    assert (trial.state, trial.value) == (optuna.trial.TrialState.COMPLETE, 0.8)


def test_if_all_trials_fail_their_message_is_told(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TrainingError("Loss nan.")

    monkeypatch.setattr("taskfit.search.search.run_trial", fail)
    with pytest.raises(TrainingError, match=r"All 3 trials .* Loss nan\."):
        fit(settings_of("search.trials=8"), tmp_path / "run")
    assert len(recorded_trials(tmp_path / "run" / "search")) == 3


def test_methods_without_training_search_what_they_have(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    for method, keys in {
        "in_context": {"template", "method.num_demonstrations", "method.calibration"},
        "probe": {"template", "method.num_demonstrations"},
    }.items():
        settings = settings_of(
            f"method.name={method}", "search.trials=3", "data.num_train=20", space="{}"
        )
        result = fit(settings, tmp_path / method).result
        trials = recorded_trials(tmp_path / method / "search")
        assert {key for trial in trials for key in trial.values} == keys
        used = load_settings(tmp_path / method / "settings.yaml")
        assert result.num_demonstrations == used.method.shown
        assert fit(used, tmp_path / f"{method} again").result.evaluations == result.evaluations
    with pytest.raises(SettingsError, match="nothing to search"):
        fit(settings_of("method.name=tfidf", space="{}"), tmp_path / "tfidf")
    with pytest.raises(SettingsError, match="does not serve method remote"):
        fit(settings_of("method.name=remote"), tmp_path / "remote")


def test_a_small_space_is_tried_once_and_time_ends_a_search(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    settings = settings_of(
        "method.name=in_context", "search.trials=50", space="{template: [as given, label]}"
    )
    fit(settings, tmp_path / "small")
    assert len(recorded_trials(tmp_path / "small" / "search")) == 2
    settings = settings_of("search.trials=0", "search.budget_seconds=0.001")
    fit(settings, tmp_path / "short")
    assert len(recorded_trials(tmp_path / "short" / "search")) == 1


def test_too_few_validation_examples_are_refused_before_anything_runs(
    settings_of: MakeSettings, tmp_path: Path
) -> None:
    few = Path(str(settings_of().data.validation)).with_name("few.csv")
    with pytest.raises(DataError, match=r"29 examples.*by luck.*data\.validation"):
        fit(settings_of(f"data.validation={few}"), tmp_path / "run")
    assert not (tmp_path / "run" / "search").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{training.learning_rate: 3}", "write a range as"),
        ("{training.learning_rate: [3, 1]}", "low end must be below"),
        ("{training.learning_rate: {low: 0, high: 1, log: true}}", "above 0"),
        ("{training.learning_rat: [1, 2]}", "cannot be searched"),
        ("{data.num_train: [1, 2]}", "cannot be searched"),
        ("{adapter.weights: [lora, full]}", "cannot be searched"),
        ("{training.batch_size: [0, 4]}", "training.batch_size is 0"),
        ("{method.loss: [labels, some]}", "method.loss is 'some'"),
        ("{method.calibration: [none, batch]}", "is read by in_context, distill, not by"),
        ("{template: [as given, haiku]}", "no template 'haiku'"),
        ("{template: [label], task.line: [a, b, c]}", "exclude each other"),
    ],
)
def test_a_wrong_space_is_refused_with_one_message(
    settings_of: MakeSettings, tmp_path: Path, space: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        fit(settings_of(space=space), tmp_path / "run")


def test_a_folder_with_a_search_is_not_searched_anew(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of("search.trials=2")
    with monkeypatch.context() as patch:
        patch.setattr("taskfit.search.search.run_trial", lambda *_, **__: 1 / 0)
        patch.setattr("taskfit.search.search.FAILURES_TO_GIVE_UP", 1)
        with pytest.raises(TrainingError):
            fit(settings, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a search already"):
        fit(settings, tmp_path / "run")


def test_without_optuna_there_is_one_message(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "optuna" else find(name)
    )
    with pytest.raises(SettingsError, match=r"taskfit\[search\]"):
        fit(settings_of(), tmp_path / "run")


def test_the_winner_is_compared_with_the_settings_as_given_on_the_same_texts(
    settings_of: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskfit.search.search.paired_bootstrap", paired_bootstrap)
    monkeypatch.setattr("taskfit.stats.bootstrap.NUM_RESAMPLES", 50)
    space = "{training.learning_rate: {choices: [0.000001, 0.02]}}"
    fit(
        settings_of(
            "training.learning_rate=0.000001",
            "training.epochs=8",
            "search.trials=2",
            space=space,
        ),
        tmp_path / "run",
    )
    record = SearchRecord.load(tmp_path / "run")
    assert record is not None
    assert record.best == {"training.learning_rate": 0.02}
    assert record.score_given is not None
    assert record.interval is not None
    assert record.difference == pytest.approx(record.score - record.score_given)
    assert record.interval[0] <= record.difference <= record.interval[1]
    assert f"as given {record.score_given:.3f}" in record.sentence


def test_the_options_of_the_command_are_settings() -> None:
    assert search_flags(8, "1.5h") == {"search.trials": 8, "search.budget_seconds": 5400.0}
    assert search_flags(None, None) == {"search.trials": None, "search.budget_seconds": None}
    for trials, budget in ((0, None), (None, "30"), (None, "0m"), (None, "soon")):
        with pytest.raises(SettingsError):
            search_flags(trials, budget)


def test_the_table_of_trials_has_the_best_on_top(
    searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_search(searched, Console(width=200))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].split()[:3] == ["trial", "learning_rate", "lora_rank"]
    assert lines[1].endswith("best")
    record = SearchRecord.load(searched)
    assert record is not None
    assert int(lines[1].split()[0]) == record.best_trial
    assert len([line for line in lines if line.strip()]) == 1 + record.num_trials + 2


def test_the_settings_as_given_are_kept_beside_the_winners(
    settings_of: MakeSettings, searched: Path, tmp_path: Path
) -> None:
    assert load_settings(given_settings_file(searched)) == settings_of().resolved()
    assert given_settings_file(tmp_path) == tmp_path / "settings.yaml"
