"""The log writes first and shows then; a view may end the training, a tracker may not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from taskfit.training.log import TrainingLog

STEP = {"kind": "step", "step": 1, "loss": 0.5}


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_view_raises_ends_the_training_after_the_record_is_safe(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def show(record: Mapping[str, Any]) -> None:
        raise Enough

    log = TrainingLog(tmp_path, show=show)
    with pytest.raises(Enough):
        log.write(STEP)
    assert records_of(tmp_path) == [STEP]


def test_a_rewound_log_keeps_what_was_before_a_step(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path)
    for step in (1, 2, 3):
        log.write({"kind": "step", "step": step})
    log.rewind(2)
    assert [record["step"] for record in records_of(tmp_path)] == [1, 2]
