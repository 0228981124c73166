"""The commands from end to end on a tiny model: run folders, prediction, interruption."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file

import tiny
from taskfit.files import read_jsonl
from taskfit.runs.classifier import Classifier
from tiny_processes import SERVER, run_command

RESULT_KEYS = {
    *("method", "weights", "model", "num_train", "seed", "evaluations", "duration_seconds"),
    *("peak_memory_bytes", "memory_by_stage", "tokens", "task", "versions", "machine"),
}
METRIC_KEYS = {
    *("num_examples", "accuracy", "mcc", "macro_f1", "log_loss", "ece", "confusion_matrix"),
}


@pytest.mark.parametrize(
    "extra",
    [
        ["--method", "label_words"],
        ["--method", "label_words", "--weights", "full", "--set", "method.loss=vocabulary"],
        ["--method", "in_context", "--set", "method.num_demonstrations=0"],
        ["--method", "in_context", "--set", "method.calibration=contextual"],
        ["--method", "in_context", "--set", "method.calibration=batch"],
    ],
    ids=["lora", "full", "zero-shot", "contextual", "batch"],
)
def test_a_fit_leaves_a_whole_run_and_predict_and_evaluate_agree_with_it(
    shell, extra: list[str]
) -> None:
    code, out, err = shell.fit(*extra)
    assert code == 0, err
    assert "accuracy" in out
    run = shell.folder / "run"
    result = json.loads((run / "result.json").read_text())
    assert result.keys() >= RESULT_KEYS
    assert result["evaluations"]["new"].keys() >= METRIC_KEYS
    assert result["evaluations"]["new"]["num_examples"] == 20
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    trained = result["weights"]
    assert settings["training"]["learning_rate"] == (0.0005 if trained == "none" else 0.02)
    names = {path.name for path in run.iterdir()}
    assert names >= {"data.json", "classifier.json", "report.html", "plots", "predictions"}
    assert "checkpoints" not in names
    assert ("adapter" in names, "model" in names) == (trained == "lora", trained == "full")

    stored = pd.read_parquet(run / "predictions" / "new.parquet")
    columns = ["id", "text", "gold", "predicted", "p_bad", "p_good", "shortened", "error"]
    assert list(stored.columns) == columns
    np.testing.assert_allclose(stored[["p_bad", "p_good"]].sum(axis=1), 1, atol=1e-9)

    pd.read_csv("test.csv")[["text"]].to_csv("unlabelled.csv", index=False)
    # Formats know nothing of methods: one method writes all of them.
    others = ("out.csv", "out.tsv", "out.jsonl") if trained == "lora" else ()
    for target in (*others, "out.parquet"):
        code, out, err = shell("predict", "run", "unlabelled.csv", "-o", target)
        assert code == 0, err
    predicted = pd.read_parquet("out.parquet")
    for column in ("p_bad", "p_good"):
        np.testing.assert_allclose(predicted[column], stored[column], atol=1e-5)
        if others:
            np.testing.assert_allclose(pd.read_csv("out.csv")[column], stored[column], atol=1e-5)
    assert "gold" not in predicted

    code, out, err = shell("evaluate", "run", "--data", "test.csv", "--name", "again")
    assert code == 0, err
    after = json.loads((run / "result.json").read_text())["evaluations"]
    assert after["again"]["accuracy"] == after["new"]["accuracy"]
    assert after["again"]["log_loss"] == pytest.approx(after["new"]["log_loss"], abs=1e-5)


def test_predictions_do_not_depend_on_what_stands_beside_them(shell) -> None:
    shell.fit("--set", "training.max_steps=2")
    classifier = Classifier.load(shell.folder / "run", device="cpu")
    examples = tiny.toy_examples(6)
    alone = np.concatenate([classifier.probabilities([example]) for example in examples])
    np.testing.assert_allclose(classifier.probabilities(examples), alone, atol=1e-5)


def test_two_columns_a_task_file_and_a_settings_file(shell) -> None:
    table = pd.read_csv("train.csv").rename(columns={"text": "premise"})
    table["hypothesis"] = "It was so."
    table.to_csv("pairs.csv", index=False)
    # A test set of its own, or so small a table is cross-validated.
    Path("run.yaml").write_text(
        "training: {max_steps: 1}\nmodel: {dtype: float32}\nseed: 4\ndata: {test_fraction: 0.2}\n"
    )
    common = ["--data", "pairs.csv", "--model", str(shell.model), "--config", "run.yaml"]
    common += ["--method", "label_words"]
    code, _, err = shell("fit", *common, "--text", "premise", "--text", "hypothesis", "--out", "a")
    assert code == 0, err
    assert json.loads(Path("a/result.json").read_text())["seed"] == 4

    Path("task.yaml").write_text(
        "name: pairs\ntext: [premise, hypothesis]\n"
        "labels: [{name: bad, words: ' no'}, {name: good, words: [' yes', ' yes or no']}]\n"
        "template: {line: '{premise} {hypothesis}?{label}'}\nnum_demonstrations: 1\nmetric: mcc\n"
    )
    code, _, err = shell("fit", *common, "--task", "task.yaml", "--out", "b")
    assert code == 0, err
    saved = json.loads(Path("b/classifier.json").read_text())
    assert saved["task"]["labels"][1]["words"] == [" yes", " yes or no"]
    assert len(saved["demonstrations"]) == 1


def test_a_run_killed_at_any_moment_resumes_to_the_same_bits(shell) -> None:
    slow = ["--set", "training.epochs=6", "--set", "training.eval_every_steps=4"]
    assert shell.fit(*slow, out="whole")[0] == 0
    arguments = ["fit", *shell.fit_arguments(), *slow, "--out", "broken"]
    process = SERVER.Process(target=run_command, args=(arguments,))
    process.start()
    log = shell.folder / "broken" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not any(r.get("step", 0) >= 6 for r in read_jsonl(log)):
        assert time.monotonic() < deadline
        assert process.exitcode is None
        time.sleep(0.005)
    process.kill()
    process.join()
    assert not (shell.folder / "broken" / "result.json").exists()
    code, _, err = shell("fit", "--resume", "broken")
    assert code == 0, err
    whole, broken = (
        load_file(shell.folder / name / "adapter" / "adapter_model.safetensors")
        for name in ("whole", "broken")
    )
    assert whole.keys() == broken.keys()
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)
    first, second = (
        pd.read_parquet(shell.folder / name / "predictions" / "new.parquet")
        for name in ("whole", "broken")
    )
    pd.testing.assert_frame_equal(first, second)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_goes_on_later(
    shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    import taskfit.training.checkpoint as checkpoint

    original, calls = checkpoint.save_file, []

    def full_on_the_third(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise OSError(28, "No space left on device")
        original(*arguments)

    options = ["--set", "training.epochs=4", "--set", "training.eval_every_steps=3"]
    assert shell.fit(*options, out="whole")[0] == 0
    monkeypatch.setattr(checkpoint, "save_file", full_on_the_third)
    code, _, err = shell.fit(*options)
    assert code == 2
    assert "The disk is full" in err
    assert "--resume" in err
    assert list((shell.folder / "run" / "checkpoints").glob("step-*"))
    monkeypatch.setattr(checkpoint, "save_file", original)
    code, _, err = shell("fit", "--resume", "run")
    assert code == 0, err
    names = [f"{run}/adapter/adapter_model.safetensors" for run in ("whole", "run")]
    whole, resumed = (load_file(shell.folder / name) for name in names)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def test_inspect_models_and_data_show_something_useful(shell) -> None:
    code, out, err = shell("inspect", "--data", "train.csv", "--model", str(shell.model))
    assert code == 0, err
    for part in ("token by token", "Label words", "Prefix sharing", "times as many", "Duplicates"):
        assert part in out
    assert "smollm2-135m" in shell("models")[1]
    assert "sentiment" in shell("data")[1]


def test_a_damaged_adapter_of_a_classifier_is_one_message(
    shell: Any, refused: Callable[..., str]
) -> None:
    assert shell.fit(out="run")[0] == 0
    Path("run", "adapter", "adapter_model.safetensors").write_bytes(b"xx")
    message = refused("predict", "run", "test.csv", "-o", "labelled.csv", "--device", "cpu")
    assert "model of the run in run cannot be loaded" in message
    assert not Path("labelled.csv").exists()
