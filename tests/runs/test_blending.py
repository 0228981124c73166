"""Blending a tuned model with probes: the weights, and one path for all readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tiny
from taskfit.errors import ModelError, SettingsError
from taskfit.method_settings import as_method
from taskfit.models.adapters import adapters_off, add_adapter
from taskfit.models.load import load_model
from taskfit.report.pages import write_page
from taskfit.runs.blending import choose_weights
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.runs.predict import predict_file
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen
from taskfit.settings import AdapterSettings
from taskfit.settings_file import load_settings
from taskfit.tree import TokenTree
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

RNG = np.random.default_rng(0)
GOLD = RNG.integers(0, 3, 200)
TARGETS = np.eye(3)[GOLD]
RIGHT = 0.9 * TARGETS + 0.1 / 3
UNSURE = np.full((200, 3), 1 / 3)
WRONG = 0.9 * np.roll(TARGETS, 1, axis=1) + 0.1 / 3


def test_the_better_of_two_gets_all_of_the_weight_where_many_texts_say_so() -> None:
    assert choose_weights([RIGHT, WRONG], TARGETS) == (1.0, 0.0)
    assert choose_weights([WRONG, RIGHT], TARGETS) == (0.0, 1.0)
    assert choose_weights([WRONG, UNSURE, RIGHT], TARGETS) == (0.0, 0.0, 1.0)


def test_a_handful_of_texts_moves_the_weights_only_a_little() -> None:
    few = choose_weights([RIGHT[:4], UNSURE[:4]], TARGETS[:4])
    many = choose_weights([RIGHT, UNSURE], TARGETS)
    assert many[0] > few[0] > 0.5


def test_equal_parts_share_equally() -> None:
    assert choose_weights([RIGHT, RIGHT], TARGETS) == (0.5, 0.5)
    assert choose_weights([RIGHT, RIGHT, RIGHT], TARGETS) == pytest.approx((1 / 3,) * 3)


def test_the_order_of_the_parts_does_not_matter() -> None:
    mixed = 0.5 * RIGHT + 0.5 * RNG.dirichlet(np.ones(3), 200)
    one, other = choose_weights([mixed, UNSURE], TARGETS), choose_weights([UNSURE, mixed], TARGETS)
    assert one == other[::-1]


def test_several_labels_a_text_count_what_is_absent_too() -> None:
    present = RNG.random((200, 3)) < 0.4
    good = np.where(present, 0.9, 0.1)
    all_yes = np.full((200, 3), 0.9)
    assert choose_weights([good, all_yes], present.astype(float)) == (1.0, 0.0)


def settings_of(folder: Path, model: Path, *extra: str, tested: bool = True) -> Any:
    train = tiny.write_csv(folder / "train.csv", tiny.toy_examples(40))
    test = tiny.write_csv(folder / "test.csv", tiny.toy_examples(20, offset=100))
    return settings_for(
        [
            f"data.train={train}",
            *([f"data.tests.new={test}"] if tested else ()),
            f"model.name={model}",
            "model.dtype=float32",
            "model.device=cpu",
            "method.name=auto",
            "training.epochs=2",
            "training.tensorboard=false",
        ],
        extra,
    )


@pytest.mark.parametrize("parts", ["model", "{encoder}", "model, {encoder}"])
def test_a_blended_run_comes_back_from_disk_and_predicts_what_it_was_measured_by(
    model_folder: Path, encoder_folder: Path, tmp_path: Path, parts: str
) -> None:
    blend = parts.format(encoder=encoder_folder)
    settings = settings_of(tmp_path, model_folder, f"method.blend=[{blend}]")
    run = fit(settings, tmp_path / "run")
    kept = run.result.details["blend"]
    count = 2 + parts.count(",")
    assert kept["weights"] == pytest.approx([1 / count] * count)
    assert kept["num_held_out"] == 0
    measured = pd.read_parquet(tmp_path / "run" / "predictions" / "new.parquet")
    again = Classifier.load(tmp_path / "run", device="cpu")
    texts = tiny.toy_examples(20, offset=100)
    columns = [f"p_{name}" for name in again.task.label_names]
    np.testing.assert_allclose(again.probabilities(texts), measured[columns], atol=1e-5)
    # A text's probabilities do not hang on what else is predicted.
    alone = np.concatenate([again.probabilities([text]) for text in texts[:3]])
    np.testing.assert_allclose(alone, measured[columns][:3], atol=1e-5)
    predict_file(
        tmp_path / "run",
        str(tmp_path / "test.csv"),
        tmp_path / "out.csv",
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
    )
    written = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(written[columns], measured[columns], atol=1e-5)
    parts_of = again.parts(texts)
    assert len(parts_of) == count
    mean = np.mean([part for part in parts_of if part is not None], axis=0)
    np.testing.assert_allclose(mean, measured[columns], atol=1e-5)


def test_the_model_s_own_features_are_those_from_before_training(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, model_folder, "method.blend=[model]", "training.epochs=8")
    fit(settings, tmp_path / "run", baselines=False)
    run = load_settings(tmp_path / "run" / "settings.yaml")
    probe = run.model_copy(update={"method": as_method(run.method, "probe", blend=None)})
    alone = fit(probe, tmp_path / "probe", baselines=False).fitted
    texts = tiny.toy_examples(20, offset=100)
    blended = Classifier.load(tmp_path / "run", device="cpu").parts(texts)[1]
    assert blended is not None
    np.testing.assert_allclose(blended, alone.probabilities(texts), atol=1e-5)


def test_adapters_off_is_the_model_before_and_adapters_come_back(model_folder: Path) -> None:
    loaded = load_model(
        load_settings(overrides=[f"model.name={model_folder}", "model.dtype=float32"]).model
    )
    tree = TokenTree.build([[5, 6, 7], [5, 8]])
    nodes = np.arange(len(tree))
    before = loaded.tree.hidden(tree, nodes)
    add_adapter(loaded.tree.model, AdapterSettings(), seed=0)
    trained = [p for n, p in loaded.tree.model.named_parameters() if "lora_B" in n]
    for parameter in trained:
        parameter.data.add_(0.1)
    tuned = loaded.tree.hidden(tree, nodes)
    assert not np.allclose(tuned.detach(), before.detach(), atol=1e-3)
    with adapters_off(loaded.tree.model):
        np.testing.assert_array_equal(
            loaded.tree.hidden(tree, nodes).detach(), before.detach().numpy()
        )
    np.testing.assert_array_equal(loaded.tree.hidden(tree, nodes).detach(), tuned.detach().numpy())
    assert all(parameter.requires_grad for parameter in trained)


def test_an_encoder_that_cannot_be_had_is_told_before_training_with_the_way_round(
    model_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, model_folder, "method.blend=[/no/encoder]")
    with pytest.raises(ModelError, match=r"no folder /no/encoder(.|\n)*method\.blend=\[model\]"):
        fit(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_features_that_were_in_the_cache_are_counted(
    model_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, model_folder, f"method.blend=[model, {encoder_folder}]")
    first = fit(settings, tmp_path / "one", baselines=False).result
    again = fit(settings, tmp_path / "two", baselines=False).result
    assert again.cached_seconds > first.cached_seconds


def test_full_fine_tuning_cannot_blend_with_a_model_that_is_gone() -> None:
    given = ["adapter.weights=full", "method.name=head", "method.blend=[model]"]
    with pytest.raises(SettingsError, match="as it was before training"):
        load_settings(overrides=given).resolved()
    auto = load_settings(overrides=["adapter.weights=full"]).resolved()
    assert auto.method.blend == ["minilm"]
    assert load_settings().resolved().method.blend == ["model", "minilm"]


def test_a_run_ends_with_its_parts_and_baselines_on_the_same_texts(
    model_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, model_folder, f"method.blend=[model, {encoder_folder}]")
    fit(settings, tmp_path / "run", report=write_page)
    result = RunResult.load(tmp_path / "run")
    rows = result.details["baselines"]["new"]
    names = ["majority", "tfidf", "probe on the model", f"probe on {encoder_folder}"]
    assert [row["name"] for row in rows] == [*names, "head alone", "this run"]
    assert rows[-1]["mcc"] == result.evaluations["new"].mcc
    page = (tmp_path / "run" / "report.html").read_text()
    assert "All on the same texts" in page
    json.dumps(result.details)


def test_a_small_table_without_a_test_set_is_cross_validated_and_resumes_fold_by_fold(
    model_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(tmp_path, model_folder, f"method.blend=[{encoder_folder}]", tested=False)
    fit(settings, tmp_path / "whole", screen=(said := NotingScreen()))
    assert sum("cross-validation: fold" in note for note in said.notes) == 3
    with pytest.raises(Killed):
        fit(settings, tmp_path / "run", screen=NotingScreen(kill_at=1))
    fit(settings, tmp_path / "run", resume=True, screen=(again := NotingScreen()))
    assert not any("cross-validation: fold" in note for note in again.notes)
    result = RunResult.load(tmp_path / "run")
    assert list(result.evaluations) == ["cross-validation"]
    assert result.num_train == 38  # two are shown in the prompt
    assert result.evaluations["cross-validation"].num_examples == 38
    assert result.evaluations == RunResult.load(tmp_path / "whole").evaluations
    table = pd.read_parquet(tmp_path / "run" / "predictions" / "cross-validation.parquet")
    assert table["id"].is_unique
    assert not (tmp_path / "run" / "folds").exists()
    rows = result.details["baselines"]["cross-validation"]
    assert [row["name"] for row in rows][:2] == ["majority", "tfidf"]


def test_several_labels_a_text_are_blended_and_cross_validated_too(
    model_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    settings = settings_of(
        tmp_path,
        model_folder,
        f"method.blend=[model, {encoder_folder}]",
        "task.multi_label=true",
        tested=False,
    )
    rows = [
        tiny.Example(e.id, e.texts, f"{e.label}|seen" if i % 3 else str(e.label))
        for i, e in enumerate(tiny.toy_examples(40))
    ]
    tiny.write_csv(tmp_path / "train.csv", rows)
    result = fit(settings, tmp_path / "run").result
    assert result.evaluations["cross-validation"].multi_label
    again = Classifier.load(tmp_path / "run", device="cpu")
    found = again.probabilities(tiny.toy_examples(5, offset=200))
    assert found.shape == (5, 3)
    assert ((found > 0) & (found < 1)).all()


def test_a_table_of_200_rows_gives_a_fifth_for_the_test(model_folder: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, model_folder, "method.name=tfidf", tested=False)
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(200))
    result = fit(settings, tmp_path / "run", baselines=False).result
    assert list(result.evaluations) == ["test"]
    assert result.evaluations["test"].num_examples == 40
