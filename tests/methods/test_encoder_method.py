"""The encoder baseline: its loss is a sum over examples, its scores are theirs alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.methods.encoder import Encoder
from taskfit.methods.method import MethodContext
from taskfit.settings_file import load_settings
from taskfit.tasks import Task, task_from_columns

LABELS = ("bad", "good")
TASK = task_from_columns(name="toy", text=["text"], label_column="label", labels=list(LABELS))


@pytest.fixture(scope="module")
def folder(
    wordpiece_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved tiny BERT without dropout, with weights large enough for differences to show."""
    config = BertConfig(
        vocab_size=len(wordpiece_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    wordpiece_tokenizer.save_pretrained(folder)
    return folder


def method_of(folder: Path, *overrides: str, task: Task = TASK) -> Encoder:
    settings = load_settings(overrides=["method.name=encoder", *overrides])
    return Encoder(MethodContext(settings, task, (), None, saved=folder))


@pytest.fixture
def method(folder: Path) -> Encoder:
    return method_of(folder)


def uneven_examples() -> list[Example]:
    """Examples of very different lengths."""
    return [
        Example(example.id, {"text": f"{example.texts['text']} " * (1 + i % 4)}, example.label)
        for i, example in enumerate(tiny.toy_examples(8))
    ]


def gold_of(examples: list[Example]) -> list[int]:
    return [LABELS.index(str(example.label)) for example in examples]


def with_targets(examples: list[Example], targets: list[Mapping[str, float]]) -> list[Example]:
    return [replace(e, target=target) for e, target in zip(examples, targets, strict=True)]


def loss_of(method: Encoder, examples: list[Example]) -> float:
    with torch.no_grad():
        return float(method.objective().loss_sum(method.encode(examples)))


def gradient(method: Encoder, pieces: list[list[int]], items: list) -> torch.Tensor:
    method.module.zero_grad()
    loss = method.objective()
    for piece in pieces:
        loss.loss_sum([items[i] for i in piece]).backward()
    return torch.cat([p.grad.flatten() for p in method.module.parameters()])


def test_the_gradient_does_not_depend_on_how_a_step_is_cut(method: Encoder) -> None:
    items = method.encode(uneven_examples())
    loss = method.objective()
    one_pass = gradient(method, [list(range(8))], items)
    one_by_one = gradient(method, [[i] for i in range(8)], items)
    pieces = loss.plan(items, loss.largest(items))
    assert 1 < len(pieces) < 8
    planned = gradient(method, pieces, items)
    scale = float(one_pass.abs().max())
    assert scale > 0.1
    torch.testing.assert_close(one_by_one, one_pass, atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(planned, one_pass, atol=1e-5 * scale, rtol=0)


def test_a_budget_below_the_longest_example_names_it(method: Encoder) -> None:
    items = method.encode(uneven_examples())
    loss = method.objective()
    with pytest.raises(DataError, match=r"toy:3 has \d+ tokens; the token budget is"):
        loss.plan(items, loss.largest(items) - 1)


def test_the_loss_is_the_cross_entropy_of_the_scores(method: Encoder) -> None:
    examples = uneven_examples()
    shares = [{"bad": share, "good": 1 - share} for share in np.linspace(0, 1, 8)]
    log_probs = np.log(method.probabilities(examples))
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, atol=1e-12)
    soft, hard = loss_of(method, with_targets(examples, shares)), loss_of(method, examples)
    weights = np.array([[share[label] for label in LABELS] for share in shares])
    assert soft == pytest.approx(-(weights * log_probs).sum(), rel=1e-5)
    expected = -log_probs[np.arange(8), gold_of(examples)].sum()
    assert hard == pytest.approx(expected, rel=1e-5)


def test_with_several_labels_a_text_the_loss_is_the_mean_over_labels_of_their_own(
    folder: Path,
) -> None:
    method = method_of(folder, task=replace(TASK, multi_label=True))
    targets = [{"bad": float(i % 2), "good": float(i // 2 % 2)} for i in range(8)]
    examples = with_targets(uneven_examples(), targets)
    probabilities = method.probabilities(examples)
    holds = np.array([[target[label] for label in LABELS] for target in targets]) > 0
    right = np.where(holds, probabilities, 1 - probabilities)
    expected = -np.log(right).mean(axis=1).sum()
    assert loss_of(method, examples) == pytest.approx(expected, rel=1e-5)


def test_class_weights_and_focal_factor_reach_the_loss(folder: Path) -> None:
    method = method_of(folder, "method.class_weights=balanced", "method.focal_gamma=2")
    examples = uneven_examples()
    gold = gold_of(examples)
    method.prepare([*examples[::2], examples[1]], ())  # four good texts, one bad
    right = np.log(method.probabilities(examples))[np.arange(8), gold]
    weights = np.array([5 / 2, 5 / 8])[gold]
    expected = -(weights * (1 - np.exp(right)) ** 2 * right).sum()
    assert loss_of(method, examples) == pytest.approx(expected, rel=1e-4)


def test_scores_do_not_depend_on_batch_mates_budget_or_order(folder: Path) -> None:
    examples, seen = uneven_examples(), []
    together = np.log(method_of(folder).probabilities(examples))
    small = method_of(folder, "training.score_token_budget=64")

    def log_probs(texts: list[Example]) -> np.ndarray:
        return np.log(small.probabilities(texts, advance=seen.append))

    np.testing.assert_allclose(log_probs(examples), together, atol=1e-5)
    assert sum(seen) == 8
    assert len(seen) > 1
    for i, example in enumerate(examples):
        np.testing.assert_allclose(log_probs([example])[0], together[i], atol=1e-5)
    np.testing.assert_allclose(log_probs(examples[::-1])[::-1], together, atol=1e-5)
    assert np.ptp(together[:, 0]) > 0.01
    assert small.probabilities([]).shape == (0, 2)


def test_scoring_has_no_dropout_and_gives_training_mode_back(method: Encoder) -> None:
    for module in method.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    method.module.train()
    first = method.probabilities(uneven_examples())
    np.testing.assert_array_equal(first, method.probabilities(uneven_examples()))
    assert method.module.training


def test_labels_are_not_looked_at_in_scoring_but_needed_in_training(method: Encoder) -> None:
    examples = uneven_examples()
    blind = [Example(example.id, example.texts) for example in examples]
    np.testing.assert_array_equal(method.probabilities(blind), method.probabilities(examples))
    with pytest.raises(DataError, match="toy:0 has no label"):
        loss_of(method, blind)


def test_the_longest_text_is_the_models_or_the_given_limit(folder: Path) -> None:
    given = ((), ("model.max_length=8",), ("model.max_length=1000",))
    made = [method_of(folder, *overrides) for overrides in given]
    assert [method.max_length for method in made] == [64, 8, 64]
    (item,) = made[1].encode([Example("a", {"text": "dog " * 30})])
    assert (item.num_tokens, item.num_tokens_cut) == (8, 22)


def test_two_columns_are_scored_as_a_pair_in_the_given_order(folder: Path) -> None:
    example = Example("a", {"first": "The dog was sad", "second": "a song"})
    scores = []
    for columns in (["first", "second"], ["second", "first"]):
        task = task_from_columns(name="toy", text=columns, label_column="label", labels=LABELS)
        scores.append(np.log(method_of(folder, task=task).probabilities([example])))
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_eight_examples_are_learned_by_heart_and_predicted_alike_after_saving(
    method: Encoder, tmp_path: Path
) -> None:
    examples = tiny.toy_examples(8)
    items, loss = method.encode(examples), method.objective()
    optimizer = torch.optim.AdamW(method.make_trainable().values(), lr=1e-3)
    method.module.train()
    for _ in range(300):  # some 40 are needed; the tokenizer, trained anew, is not always the same
        optimizer.zero_grad()
        total = 0.0
        for piece in loss.plan(items, 64):
            step_loss = loss.loss_sum([items[i] for i in piece]) / len(items)
            step_loss.backward()
            total += step_loss.item()

        if total < 0.01:
            break
        optimizer.step()
    found = method.probabilities(examples)
    assert found[np.arange(8), gold_of(examples)].min() > 0.9

    method.save_weights(tmp_path)
    np.testing.assert_array_equal(method_of(tmp_path).probabilities(examples), found)
