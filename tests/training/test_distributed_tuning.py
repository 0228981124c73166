"""Instruction tuning in two processes is that in one, and a killed run goes on in two."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_distributed import FULL, SHARDED, fit_together, steps, weights

import tiny
from taskfit.files import read_jsonl
from taskfit.runs.fit import fit
from taskfit.runs.records import RunResult
from taskfit.settings import RunSettings
from taskfit.settings_file import load_settings

ANSWERS = ("yes", "no", "good", "bad maybe")
Make = Callable[..., RunSettings]


@pytest.fixture
def make(tmp_path: Path, model_folder: Path) -> Make:
    rows, pairs = [], []
    for i, noun in enumerate(tiny.NOUNS * 2):
        question = f"Is the {noun} {'warm' if i < 10 else 'cold'}?"
        answer, other = ANSWERS[i % 4], ANSWERS[(i + 1) % 4]
        rows.append({"instruction": question, "output": answer})
        pairs.append({"prompt": question, "chosen": answer, "rejected": other})
    for name, found in (("sft", rows), ("dpo", pairs)):
        lines = (json.dumps(row) + "\n" for row in found)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))

    def settings(method: str, *extra: str) -> RunSettings:
        return load_settings(
            overrides=[
                f"method.name={method}",
                f"data.train={tmp_path / f'{method}.jsonl'}",
                "data.validation_fraction=0.25",
                f"model.name={model_folder}",
                "model.dtype=float32",
                "model.device=cpu",
                "adapter.lora_dropout=0",
                "tuning.chat_template=headings",
                "tuning.max_new_tokens=8",
                "training.epochs=2",
                # Fifteen rows, so four steps; of the shares of seven one is smaller.
                "training.batch_size=8",
                "training.learning_rate=0.005",
                "training.eval_every_steps=2",
                "training.tensorboard=false",
                *extra,
            ]
        )

    return settings


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("method", "changed"),
    [("sft", []), ("sft", SHARDED), ("dpo", SHARDED)],
    ids=["sft lora", "sft sharded", "dpo sharded"],
)
def test_tuning_in_two_processes_is_tuning_in_one(
    make: Make, tmp_path: Path, method: str, changed: list[str]
) -> None:
    fit(make(method, *(FULL if changed else ())), tmp_path / "one")
    assert fit_together(make(method, *changed), tmp_path / "two") == ["", ""]
    one, two = (tmp_path / name for name in ("one", "two"))
    for kind in ("step", "validation"):
        np.testing.assert_allclose(steps(two, kind=kind), steps(one, kind=kind), atol=2e-6)
    if method == "dpo":
        margins = [steps(folder, "reward_margin") for folder in (two, one)]
        np.testing.assert_allclose(*margins, atol=2e-6)
        # Before the first step all margins are rounding.
        shares = [steps(folder, "reward_accuracy")[1:] for folder in (two, one)]
        assert shares[0] == pytest.approx(shares[1])
    found, wanted = weights(two), weights(one)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=0)
    # One process wrote, and each thing once.
    assert files(two) | {"compile.json"} == files(one) | {"compile.json"}
    assert read_jsonl(two / "samples.jsonl") == read_jsonl(one / "samples.jsonl")
    results = [RunResult.load(folder) for folder in (two, one)]
    for when in ("before", "after"):
        measured = [result.details[when]["validation"] for result in results]
        assert measured[0] == pytest.approx(measured[1], rel=1e-5, abs=2e-5)
        assert measured[0]["num_rows"] == 5
    assert results[0].tokens["padded"] == results[1].tokens["padded"]


def test_tuning_that_was_killed_in_two_processes_goes_on_in_two(make: Make, tmp_path: Path) -> None:
    settings = make("sft", "training.save_every_steps=1")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit_together(settings, whole) == ["", ""]
    assert fit_together(settings, broken, killed_at=3) == ["Killed: ", "Killed: "]
    assert fit_together(settings, broken, resume=True) == ["", ""]
    assert steps(broken) == steps(whole)
    found, wanted = weights(broken), weights(whole)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert (broken / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
