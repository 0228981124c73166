"""The clock of a run goes on where an interruption left it."""

import json
from pathlib import Path

import pytest

from taskfit.runs import clock as module
from taskfit.runs.clock import Clock, TickingScreen
from taskfit.screen import SilentScreen


def test_sittings_add_up_and_a_new_run_starts_from_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PACE", 0.0)
    first = Clock(tmp_path, resume=False)
    first.open()
    screen = TickingScreen(SilentScreen(), first)
    with screen.progress("working", 3) as advance:
        advance(3)
    kept = json.loads((tmp_path / "clock.json").read_text())
    assert 0 < kept["seconds"] <= first.seconds
    (tmp_path / "clock.json").write_text(json.dumps({"seconds": 100.0, "cpu_seconds": 50.0}))
    assert 100 < Clock(tmp_path, resume=True).seconds < 101
    assert 50 <= Clock(tmp_path, resume=True).cpu_seconds < 51
    assert Clock(tmp_path, resume=False).seconds < 1
    first.remove()
    assert not (tmp_path / "clock.json").exists()


def test_nothing_is_written_more_often_than_it_needs_to_be_nor_into_the_folder_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Clock(tmp_path, resume=False)
    quick.open()
    quick.tick()
    assert not (tmp_path / "clock.json").exists()
    monkeypatch.setattr(module, "PACE", 0.0)
    other = Clock(tmp_path, resume=False)
    other.tick()
    other.keep()
    assert not (tmp_path / "clock.json").exists()
    other.open()
    other.tick()
    assert (tmp_path / "clock.json").exists()
