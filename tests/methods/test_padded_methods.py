"""Every method on models that the tree does not serve: the same laws, with nothing shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.methods.generation import generate_texts, generation_config
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.table import METHODS
from taskfit.models.engine import causal_engine
from taskfit.models.load import LoadedModel
from taskfit.runs.classifier import Classifier
from taskfit.runs.fit import fit
from taskfit.settings import RunSettings
from taskfit.tasks import EncodedExample
from tiny_screens import Killed, NotingScreen
from tiny_settings import settings_for

TWELVE = tiny.toy_examples(12)
OTHERS = tiny.toy_examples(6, offset=200)
KINDS = {
    "label_words": [],
    "branches": [
        "method.name=label_words",
        "method.loss=branches",
        "task.label_words={bad: ' The dog was sad', good: ' The dog was happy'}",
    ],
    "full": ["method.name=label_words", "adapter.weights=full"],
    "qlora": ["method.name=label_words", "adapter.weights=qlora"],
    "checkpointed": ["method.name=label_words", "training.gradient_checkpointing=true"],
    "blended head": ["method.name=head", "method.blend=[model]", "adapter.layers=1"],
    "free": ["method.name=label_text", "method.decoding=free"],
    "greedy": ["method.name=label_text", "method.decoding=greedy"],
    "calibrated": [
        "method.name=in_context",
        "method.num_demonstrations=2",
        "method.calibration=batch",
    ],
    "nearest": [
        "method.name=in_context",
        "method.demonstrations=nearest",
        "method.num_demonstrations=2",
        "method.calibration=pmi",
        "method.retriever=model",
    ],
    "frozen": ["method.name=distill", "method.num_demonstrations=2"],
    "self": [
        "method.name=distill",
        "method.teacher=self",
        "method.contexts=redrawn",
        "method.loss=vocabulary",
        "method.num_demonstrations=2",
    ],
    "probe": [],
    "knn": ["method.retriever=model"],
}


@pytest.fixture
def settings_of(tmp_path: Path, hybrid_folder: Path) -> Any:
    tiny.write_csv(tmp_path / "train.csv", TWELVE)
    tiny.write_csv(tmp_path / "other.csv", OTHERS)

    def make(name: str, *extra: str) -> RunSettings:
        return settings_for(
            [
                f"data.train={tmp_path / 'train.csv'}",
                f"data.tests.other={tmp_path / 'other.csv'}",
                "data.validation_fraction=0",
                f"model.name={hybrid_folder}",
                "model.dtype=float32",
                f"method.name={name if name in METHODS else 'label_words'}",
                "method.num_demonstrations=0",
                "training.epochs=1",
                "training.batch_size=8",
                "training.learning_rate=0.02",
                "training.tensorboard=false",
                *extra,
            ],
            KINDS[name],
        )

    return make


@pytest.mark.parametrize("name", list(KINDS))
def test_a_method_learns_comes_back_and_scores_texts_alone_as_together(
    settings_of: Any, tmp_path: Path, name: str
) -> None:
    screen = NotingScreen()
    run = fit(settings_of(name), tmp_path / "run", screen=screen)
    assert sum("not as token trees" in note for note in screen.notes) == 1
    texts = [Example(e.id, e.texts) for e in OTHERS]
    together = run.fitted.probabilities(texts)
    again = Classifier.load(tmp_path / "run", device="cpu")
    alone = np.concatenate([again.probabilities([text]) for text in texts])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    measured = run.result.evaluations["other"]
    gold = [run.fitted.task.label_names.index(str(example.label)) for example in OTHERS]
    if not np.isnan(together).any():
        assert measured.accuracy == pytest.approx((together.argmax(axis=1) == gold).mean())


@pytest.mark.parametrize("name", ["label_words", "frozen"])
def test_a_killed_run_ends_bitwise_equal(settings_of: Any, tmp_path: Path, name: str) -> None:
    short = ["training.epochs=4", "training.batch_size=4", "training.save_every_steps=5"]
    settings = settings_of(name, *short, "adapter.lora_dropout=0.1")
    whole = fit(settings, tmp_path / "whole").fitted.probabilities(OTHERS)
    with pytest.raises(Killed):
        fit(settings, tmp_path / "broken", screen=NotingScreen(7))
    resumed = fit(settings, tmp_path / "broken", resume=True).fitted.probabilities(OTHERS)
    assert np.array_equal(resumed, whole)


def loaded(architecture: str, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    model = tiny.tiny_model(architecture, len(tokenizer))
    return LoadedModel(causal_engine(model.requires_grad_(False)), tokenizer, "tiny", None)


@pytest.mark.parametrize("architecture", [*tiny.HYBRIDS, *tiny.PADDED])
def test_texts_are_written_together_as_alone(
    byte_level_tokenizer: PreTrainedTokenizerFast, architecture: str
) -> None:
    model = loaded(architecture, byte_level_tokenizer)
    assert model.tree.shares_prefixes == (architecture in tiny.HYBRIDS)
    config = generation_config(model, max_new_tokens=6)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, len(byte_level_tokenizer), n) for n in (3, 20, 11, 11)]
    alone = [generate_texts(model, [prompt], config)[0] for prompt in prompts]
    assert generate_texts(model, prompts, config) == alone


def test_padding_that_a_recurrent_state_reads_is_left_out(
    byte_level_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[torch.Size] = []
    for architecture, batches in (("jamba", 1), ("recurrent_gemma", 2)):
        model = loaded(architecture, byte_level_tokenizer)
        config = generation_config(model, max_new_tokens=1)
        generate = model.tree.model.generate

        def noting(*args: Any, generate: Any = generate, **given: Any) -> Any:
            if given["generation_config"] is config:  # noqa: B023 - called at once
                widths.append(given["input_ids"].shape)
            return generate(*args, **given)

        monkeypatch.setattr(model.tree.model, "generate", noting)
        widths.clear()
        generate_texts(model, [np.arange(3, 8), np.arange(3, 12), np.arange(4, 9)], config)
        assert len(widths) == batches


def test_a_step_is_cut_by_the_tokens_that_run(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt, words = np.arange(40), tuple(np.array([100 + i, 3, 4]) for i in range(10))
    items = [
        EncodedExample(f"{i}", np.append(prompt, i), words, 0, 0, np.eye(10)[0]) for i in range(6)
    ]
    tree, padded = (
        LabelWordLoss(loaded(name, byte_level_tokenizer).tree, range(10), over="labels")
        for name in ("llama", "jamba")
    )
    # A prompt of 41 tokens, behind which two tokens of each of ten words run.
    assert tree.largest(items) == 41 + 10 * 2
    assert padded.largest(items) == 10 * (41 + 2)
    assert [len(piece) for piece in tree.plan(items, 1000)] == [6]
    assert [len(piece) for piece in padded.plan(items, 1000)] == [2, 2, 2]
