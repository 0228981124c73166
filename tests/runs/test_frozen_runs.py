"""Whole runs whose lower layers are kept: the same losses as if they ran in each step."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from taskfit.files import read_jsonl
from taskfit.models.frozen_depth import FrozenDepth
from taskfit.runs.fit import fit
from taskfit.settings import RunSettings
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

QUESTIONS = """
name: toy
text: text
questions:
  - {name: mood, ask: "Mood?", kind: choice, options: [good, bad]}
  - {name: park, ask: "Is it so?", kind: yes_no}
"""


Fit = Callable[..., object]
Make = Callable[..., tuple[Fit, RunSettings]]


@pytest.fixture
def make(tmp_path: Path, model_folder: Path) -> Make:
    train = tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(20))
    (tmp_path / "questions.yaml").write_text(QUESTIONS)
    with (tmp_path / "asked.csv").open("w", newline="") as file:
        rows = [[e.texts["text"], e.label, ("yes", "no")[i % 2]] for i, e in enumerate(TOY)]
        csv.writer(file).writerows([["text", "mood", "park"], *rows])
    pairs = [
        {"prompt": f"Is {e.texts['text']}", "chosen": "yes", "rejected": "no"} for e in TOY[:9]
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    answers = [{"instruction": row["prompt"], "output": row["chosen"]} for row in pairs]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))

    def settings(kind: str, *extra: str) -> tuple[Fit, RunSettings]:
        run: Fit = fit
        own = [f"data.train={train}", "method.num_demonstrations=2", f"method.name={kind}"]
        own.append("data.test_fraction=0")
        if kind == "questions":
            own = [f"data.train={tmp_path / 'asked.csv'}", "method.name=label_words"]
            own += [f"task.name={tmp_path / 'questions.yaml'}", "data.test_fraction=0"]
        elif kind in ("sft", "dpo"):
            name = "rows" if kind == "sft" else "pairs"
            own = [f"data.train={tmp_path / name}.jsonl", f"method.name={kind}"]
            own += ["tuning.chat_template=plain", "tuning.num_samples=0"]
        return run, settings_for(
            [
                *own,
                f"model.name={model_folder}",
                "model.dtype=float32",
                "model.device=cpu",
                "adapter.layers=1",
                "data.validation_fraction=0.2",
                "training.epochs=3",
                "training.batch_size=4",
                "training.learning_rate=0.01",
                "training.tensorboard=false",
            ],
            extra,
        )

    return settings


TOY = tiny.toy_examples(20)


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in read_jsonl(folder / "metrics.jsonl") if "loss" in r]


KINDS = ["label_words", "head", "label_text", "distill", "questions", "sft", "dpo"]


@pytest.mark.parametrize("kind", KINDS)
def test_kept_layers_change_no_loss_and_run_once(
    make: Make, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = make(kind, "adapter.cache_gigabytes=null")
    run(plain, tmp_path / "plain")
    calls: list[bool] = []
    original = FrozenDepth.lower

    def counted(self: FrozenDepth, run_decoder: Any) -> Any:
        # Within a step of training, the adapters' parameters have gradients.
        calls.append(self._decoder.training)
        return original(self, run_decoder)

    monkeypatch.setattr(FrozenDepth, "lower", counted)
    run, kept = make(kind)
    screen = NotingScreen()
    run(kept, tmp_path / "kept", screen=screen)
    assert any("layers have run, once for all epochs" in note for note in screen.notes)
    np.testing.assert_allclose(
        losses(tmp_path / "kept"), losses(tmp_path / "plain"), rtol=1e-5, atol=1e-6
    )
    # Only the rehearsal before the first step runs them in training.
    assert sum(calls) <= 2


@pytest.mark.parametrize("kind", ["label_words", "head"])
def test_a_killed_run_with_kept_layers_resumes_bitwise(
    make: Make, tmp_path: Path, kind: str
) -> None:
    extra = ["training.save_every_steps=1", "training.eval_every_steps=2"]
    run, settings = make(kind, *extra)
    run(settings, tmp_path / "whole")
    with pytest.raises(Killed):
        run(settings, tmp_path / "broken", screen=NotingScreen(kill_at=5))
    run(settings, tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_single_epoch_keeps_nothing_of_the_training_texts(make: Make, tmp_path: Path) -> None:
    run, settings = make("head", "training.epochs=1")
    screen = NotingScreen()
    run(settings, tmp_path / "run", screen=screen)
    assert not any("have run, once" in note for note in screen.notes)
