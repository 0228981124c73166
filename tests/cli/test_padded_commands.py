"""Every command on a model that the tree does not serve: it works, and says once what is lost."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import tiny
from taskfit.serve.engine import load_engine
from taskfit.serve.work import Answers, GenerateRequest, TextsRequest

TOLD = "not as token trees"
SETS = [
    part
    for one in (
        "model.dtype=float32",
        "training.tensorboard=false",
        "training.max_steps=2",
        "data.validation_fraction=0",
    )
    for part in ("--set", one)
]
CHAT = ("tuning.num_samples=1", "tuning.max_new_tokens=4", "tuning.chat_template=plain")


@pytest.fixture
def given(shell, hybrid_folder: Path) -> list[str]:
    return ["--data", "train.csv", "--test", "new=test.csv", "--model", str(hybrid_folder), *SETS]


def works(shell, *command: str) -> str:
    """Run a command; return what it said, in one line."""
    code, out, err = shell(*command)
    assert code == 0, err
    return " ".join((out + err).split())


def test_fit_predict_evaluate_and_the_server_agree(
    shell, given: list[str], hybrid_folder: Path
) -> None:
    for name, method in (("words", "label_words"), ("head", "head")):
        said = works(shell, "fit", *given, "--method", method, "--out", name)
        assert said.count(TOLD) == 1
        assert "attention that cannot be replaced" in said
    runs = {name: shell.folder / name for name in ("words", "head")}
    engine = load_engine(runs, base=str(hybrid_folder), device="cpu")
    assert engine.num_bases == 1
    (note,) = engine.notes
    assert TOLD in note
    texts = pd.read_csv("test.csv")["text"].tolist()
    for name in runs:
        assert works(shell, "predict", name, "test.csv", "-o", f"{name}.csv").count(TOLD) == 1
        table = pd.read_csv(f"{name}.csv")
        works(shell, "evaluate", name, "--data", "test.csv", "--name", "again")
        record = json.loads((runs[name] / "result.json").read_text())["evaluations"]
        accuracy = (table["predicted"] == table["label"]).mean()
        assert record["again"]["accuracy"] == pytest.approx(accuracy)
        assert record["new"]["accuracy"] == pytest.approx(accuracy)
        (found,) = engine.score([engine.encode(TextsRequest(name, texts))])
        assert isinstance(found, Answers)
        served = [row["label"]["good"] for row in found.probabilities]
        np.testing.assert_allclose(served, table["p_good"], atol=1e-6)
    pieces = engine.generate(
        GenerateRequest(str(hybrid_folder), "The dog", max_tokens=4, temperature=0)
    )
    (shell.folder / "asks.jsonl").write_text('{"prompt": "The dog"}\n')
    command = ["generate", str(hybrid_folder), "asks.jsonl", "-o", "said.jsonl"]
    assert TOLD in works(shell, *command, "--max-new-tokens", "4", "--chat-template", "plain")
    assert "".join(piece.text for piece in pieces).strip()


def test_what_can_be_told_before_a_run_is_told(shell, given: list[str]) -> None:
    without = ["--data", "train.csv", *given[4:]]
    said = works(shell, "inspect", *without, "--method", "label_words")
    assert "Prefix sharing: little or none" in said
    assert "attention that cannot be replaced" in said
    planned = works(shell, "plan", *without, "--method", "label_words", "--gpu", "t4")
    assert planned.count(TOLD) == 1
    assert "padded tokens" in planned
    assert "texts of like length (taskfit)" in planned
    assert "It fits." in planned


def test_passes_that_hang_on_numbers_leave_a_plan_of_what_stays_in_memory(
    shell, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no rule for shapes\nof this operator")

    monkeypatch.setattr("taskfit.plan.simulate.SimulatedModel.score", fails)
    own = ["--data", "train.csv", *given[4:], "--method", "label_words"]
    said = works(shell, "plan", *own, "--gpu", "t4")
    assert "What stays in memory fits; what the passes take cannot be told" in said
    assert "(no rule for shapes)" in said
    assert "It fits." not in said


@pytest.mark.parametrize("architecture", ["mamba", "bloom", "recurrent_gemma"])
def test_models_of_other_kinds_are_planned_and_looked_at(
    shell, tmp_path: Path, byte_level_tokenizer, architecture: str
) -> None:
    tiny.tiny_model(architecture, len(byte_level_tokenizer)).save_pretrained(tmp_path / "model")
    byte_level_tokenizer.save_pretrained(tmp_path / "model")
    recurrent = architecture == "recurrent_gemma"
    reason = "(recurrent)" if recurrent else "attention that cannot be replaced"
    for command in (["inspect"], ["plan", "--gpu", "t4"]):
        assert reason in works(shell, *command, "train.csv", "--model", "model")


def test_compare_says_once_what_is_lost(shell, given: list[str]) -> None:
    methods = ["--methods", "label_words,in_context", "--seeds", "1", "--out", "grid"]
    assert works(shell, "compare", *given, *methods).count(TOLD) == 1
    assert len(pd.read_csv(shell.folder / "grid" / "results.csv")) == 2


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_answers_are_learned_and_written(shell, given: list[str], method: str) -> None:
    rows = [
        {"prompt": e.texts["text"], "chosen": "yes", "rejected": "no", "completion": "yes"}
        for e in tiny.toy_examples(8)
    ]
    kept = ("prompt", "completion") if method == "sft" else ("prompt", "chosen", "rejected")
    lines = [json.dumps({name: row[name] for name in kept}) + "\n" for row in rows]
    (shell.folder / "rows.jsonl").write_text("".join(lines))
    chat = [part for one in CHAT for part in ("--set", one)]
    own = ["--data", "rows.jsonl", *given[4:], "--method", method, *chat]
    assert works(shell, "plan", *own, "--gpu", "cpu").count(TOLD) == 1
    works(shell, "fit", *own, "--out", "run")
    works(shell, "generate", "run", "rows.jsonl", "-o", "answers.jsonl", "--max-new-tokens", "4")
    assert len((shell.folder / "answers.jsonl").read_text().splitlines()) == len(rows)


def test_exports_work_or_say_why_not(
    shell, given: list[str], refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untraceable(*_: object) -> None:
        raise RuntimeError("Constraints violated")  # found after a minute

    monkeypatch.setattr("taskfit.export.onnx_file.write_onnx", untraceable)
    works(shell, "fit", *given, "--method", "label_words", "--out", "run")
    works(shell, "export", "run", "--merge", "-o", "merged")
    works(shell, "export", "run", "--as", "sequence-classification", "-o", "classifier")
    assert "writes the Llama architecture only" in refused("export", "run", "--gguf", "-o", "gguf")
    told = refused("export", "run", "--onnx", "-o", "onnx")
    assert "PyTorch cannot write JambaForSequenceClassification" in told
    assert not (shell.folder / "onnx").exists()
