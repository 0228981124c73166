"""Ctrl-C: what is safe, the command that goes on, and from where it goes on."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from taskfit.cli import stopped


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_stopped_run_says_how_far_it_is_and_goes_on_from_there(shell: Any) -> None:
    loop = importlib.import_module("taskfit.training.loop")
    original, seen = loop.accumulate_gradient, []

    def stop_at_the_fourth(*arguments: object) -> float:
        seen.append(1)
        if len(seen) == 5:  # the first is the dry run's, or a step
            raise KeyboardInterrupt
        return float(original(*arguments))

    shell.patch.setattr(loop, "accumulate_gradient", stop_at_the_fourth)
    sets = ("--set", "training.eval_every_steps=2", "--set", "training.max_steps=8")
    code, _, err = shell.fit(*sets, "--set", "training.epochs=9", "--batch-size", "8")
    assert code == 130
    kept = max(int(path.name[5:]) for path in Path("run/checkpoints").glob("step-*"))
    assert kept > 0
    assert f"stopped. Safe in run: everything up to step {kept} of 8. Go on with:\n" in err
    assert "\n  taskfit fit --resume run\n" in err
    shell.patch.setattr(loop, "accumulate_gradient", original)
    code, out, err = shell("fit", "--resume", "run")
    assert code == 0, err
    assert f"going on in run from step {kept} of 8\n" in out


def test_a_run_stopped_before_it_began_leaves_nothing(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("taskfit.search.search_and_fit")
    monkeypatch.setattr(module, "fit", interrupt)
    code, _, err = shell("fit", "train.csv", "--method", "tfidf")
    assert code == 130
    assert "nothing is lost:\n  taskfit fit train.csv --method tfidf" in err
    assert not any(Path("runs").iterdir())


def test_other_states_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    assert stopped.where_it_goes_on(run) is None
    (run / "settings.yaml").write_text("")
    assert "no step was kept" in stopped.tell_of_run(run)
    assert f"--resume '{run}'" in stopped.tell_of_run(run)
    assert "from the start of training" in str(stopped.where_it_goes_on(run))
    (run / "search" / "trial-000").mkdir(parents=True)
    (run / "search" / "trial-000" / "trial.json").write_text("{}")
    assert "1 trial of the search" in stopped.tell_of_run(run)
    assert "with its search" in str(stopped.where_it_goes_on(run))
    (run / "result.json").write_text("{}")
    assert "is finished and whole" in stopped.tell_of_run(run)
    assert stopped.where_it_goes_on(run) is None


def test_the_same_command_goes_on_with_predictions(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell("fit", "train.csv", "--method", "tfidf", "--out", "run")[0] == 0
    predicting = importlib.import_module("taskfit.runs.predict")
    monkeypatch.setattr(predicting, "CHUNK", 8)
    predictor = importlib.import_module("taskfit.runs.predictor")
    original, seen = predictor.prediction_table, []

    def stop_at_the_second(*arguments: Any, **options: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(predictor, "prediction_table", stop_at_the_second)
    command = ("predict", "run", "test.csv", "-o", "my out.csv")
    code, _, err = shell(*command)
    assert code == 130
    assert "Safe in my out.csv.partial: 1 finished part." in err
    assert "\n  taskfit predict run test.csv -o 'my out.csv'\n" in err
    code, out, err = shell(*command)
    assert code == 0, err
    assert "1 of 3 parts are finished" in out


def test_comparisons_and_curations(
    shell: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = importlib.import_module("taskfit.compare.run")
    monkeypatch.setattr(run._Work, "through", interrupt)
    code, _, err = shell("compare", "train.csv", "--methods", "majority", "--out", "grid")
    assert code == 130
    assert "Safe in grid: 0 finished runs" in err
    assert "taskfit compare train.csv --methods majority --out grid" in err
    assert "No step was finished" in stopped.tell_of_curation(tmp_path / "curated")
    step = tmp_path / "curated.work" / "01-length"
    step.mkdir(parents=True)
    (step / "step.json").write_text(json.dumps({"result": {"name": "length"}}))
    assert "1 finished step (length)" in stopped.tell_of_curation(tmp_path / "curated")
