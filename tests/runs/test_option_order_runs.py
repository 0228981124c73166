"""Runs whose prompts list options: shuffled, averaged, tried in other orders, back from disk."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tiny
from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.export.export import export_run
from taskfit.report.pages import write_page
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.runs.option_order import (
    inspect_orders,
    inspect_run_orders,
    lists_options,
    order_sentences,
    try_orders,
)
from taskfit.runs.predict import predict_file
from taskfit.runs.records import RunResult
from taskfit.screen import SilentScreen
from taskfit.settings import RunSettings
from taskfit.stats.order_effect import OrderEffect
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

OTHERS = tiny.toy_examples(10, offset=200)
TEXTS = [Example(e.id, e.texts) for e in OTHERS]
LISTED = "task.line=Text: {text}\\nOptions: {options}\\nAnswer:{label}"


@pytest.fixture
def make(tmp_path: Path, model_folder: Path) -> Any:
    tiny.write_csv(tmp_path / "train.csv", tiny.toy_examples(12))
    tiny.write_csv(tmp_path / "other.csv", OTHERS)

    def settings(*extra: str, listed: str = LISTED) -> RunSettings:
        shared = [
            f"data.train={tmp_path / 'train.csv'}",
            f"data.tests.other={tmp_path / 'other.csv'}",
            "data.validation_fraction=0",
            f"model.name={model_folder}",
            "model.dtype=float32",
            "model.device=cpu",
            "method.num_demonstrations=0",
            "training.epochs=6",
            "training.batch_size=4",
            "training.learning_rate=0.02",
            "training.save_every_steps=4",
            "training.tensorboard=false",
            "adapter.lora_dropout=0.1",
            *([listed] if listed else []),
        ]
        name = [] if any(one.startswith("method.name") for one in extra) else ["label_words"]
        return settings_for(shared, [*(f"method.name={one}" for one in name), *extra])

    return settings


@pytest.mark.parametrize("layers", ["all", "1"])
def test_a_killed_shuffled_run_ends_bitwise_equal_and_comes_back(
    make: Any, tmp_path: Path, layers: str
) -> None:
    settings = make(
        "method.shuffle_options=true", "method.option_orders=2", f"adapter.layers={layers}"
    )
    whole = fit(settings, tmp_path / "whole").fitted.probabilities(TEXTS)
    with pytest.raises(Killed):
        fit(settings, tmp_path / "broken", screen=NotingScreen(6))
    resumed = fit(settings, tmp_path / "broken", resume=True).fitted
    assert np.array_equal(resumed.probabilities(TEXTS), whole)
    plain = fit(make("method.option_orders=2", f"adapter.layers={layers}"), tmp_path / "plain")
    assert np.abs(plain.fitted.probabilities(TEXTS) - whole).max() > 1e-4  # it does something
    again = Classifier.load(tmp_path / "whole", device="cpu")
    np.testing.assert_allclose(again.probabilities(TEXTS), whole, atol=1e-5)
    assert again.task.names_options


def test_predict_says_what_was_measured_over_the_same_orders(make: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fitted = fit(make("method.option_orders=2"), run).fitted
    measured = pd.read_parquet(run / "predictions" / "other.parquet")
    out = tmp_path / "out.csv"
    predict_file(
        run,
        str(tmp_path / "other.csv"),
        out,
        encoding="utf-8",
        device="cpu",
        screen=SilentScreen(),
    )
    predicted = pd.read_csv(out)
    np.testing.assert_allclose(predicted["p_good"], measured["p_good"], atol=1e-5)
    orders = fitted.method.by_order(TEXTS, 2)[0]
    np.testing.assert_allclose(measured["p_good"], orders.mean(axis=0)[:, 1], atol=1e-5)


def test_fit_records_and_shows_what_other_orders_change(make: Any, tmp_path: Path) -> None:
    run, screen = tmp_path / "run", NotingScreen()
    fit(make(), run, screen=screen)
    details = RunResult.load(run).details["option_order"]
    assert (details["set"], details["averaged"]) == ("other", 1)
    effect = OrderEffect.from_dict(details["questions"][""])
    assert (effect.num_orders, effect.num_examples) == (2, 10)
    classifier = Classifier.load(run, device="cpu")
    given, turned = classifier.method.by_order(OTHERS, 2)[0]  # type: ignore[attr-defined]
    flips = float((given.argmax(axis=1) != turned.argmax(axis=1)).mean())
    assert effect.flips.value == pytest.approx(flips)
    assert effect.total_variation.value == pytest.approx(
        np.abs(given - turned).sum(axis=1).mean() / 2, abs=1e-5
    )
    assert any("in the other order of the options" in text for text in screen.notes)
    write_page(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Order of the options" in page
    found = inspect_run_orders(run, None, count=6, screen=SilentScreen())
    assert found.effects[""].flips == effect.flips
    assert found.num_tokens > 0


@pytest.mark.parametrize(
    ("extra", "listed"),
    [
        (["method.name=head"], LISTED),
        (["method.name=label_words"], ""),
        (["method.name=tfidf"], ""),
    ],
)
def test_where_there_is_no_order_nothing_is_tried(
    make: Any, tmp_path: Path, extra: list[str], listed: str
) -> None:
    run = fit(make(*extra, listed=listed), tmp_path / "run", baselines=False)
    assert not lists_options(run.fitted)
    assert "option_order" not in run.result.details
    with pytest.raises(SettingsError, match=r"no order of options to try.*\{options\}"):
        try_orders(run.fitted, OTHERS, screen=SilentScreen())


def test_a_student_without_the_instruction_lists_nothing(make: Any, tmp_path: Path) -> None:
    settings = make(
        "method.name=distill",
        "task.instruction=Is it {options:or}?",
        listed="task.line=Text: {text}\\nMood:{label}",
    )
    run = fit(settings, tmp_path / "run", baselines=False)
    assert "option_order" not in run.result.details


def test_a_model_is_asked_in_context_before_any_training(make: Any) -> None:
    found = inspect_orders(make(), count=6, screen=SilentScreen())
    effect = found.effects[""]
    assert (effect.num_orders, effect.num_examples, found.num_texts) == (2, 10, 10)
    assert len(effect.accuracies) == 2
    (sentence,) = order_sentences(found.effects)
    assert "10 texts" in sentence
    assert "method.option_orders averages" not in " ".join(
        order_sentences({"": replace(effect, flips=replace(effect.flips, value=0.0))})
    )


def test_questions_are_tried_each_by_itself(make: Any, tmp_path: Path) -> None:
    file = {
        "name": "toy",
        "text": ["text"],
        "questions": [
            {"name": "mood", "ask": "Mood?", "kind": "choice", "options": ["good", "bad", "so"],
             "label": "label"},
            {"name": "park", "ask": "In the park?", "kind": "yes_no"},
        ],
    }  # fmt: skip
    (tmp_path / "q.yaml").write_text(json.dumps(file))
    for name in ("train", "other"):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        table["park"] = ["yes" if i % 2 else "" for i in range(len(table))]
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    settings = make(f"task.name={tmp_path / 'q.yaml'}", listed="")
    effects = inspect_orders(settings, count=4, screen=SilentScreen()).effects
    assert {name: one.num_orders for name, one in effects.items()} == {"mood": 4, "park": 2}
    assert effects["mood"].mean_accuracy is not None
    assert effects["park"].mean_accuracy is None  # half of its answers are not known


def test_an_export_answers_behind_the_given_order_and_says_so(make: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(make("method.option_orders=2"), run, baselines=False)
    checks = export_run(run, tmp_path / "out", form="classification", device="cpu")
    assert checks
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "averages over up to 2 orders" in card
