"""The encoder baseline: its loss is a sum over examples, its scores are theirs alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.errors import DataError
from taskfit.methods.encoder import EncoderLoss, EncoderScorer, ExampleTokenizer
from taskfit.models.encoder import LoadedEncoder, load_encoder

LABELS = ("bad", "good")
CPU = torch.device("cpu")


@pytest.fixture
def encoder(wordpiece_tokenizer: PreTrainedTokenizerFast) -> LoadedEncoder:
    """A fresh tiny BERT without dropout, with weights large enough for differences to show."""
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
    return LoadedEncoder(model.eval(), wordpiece_tokenizer, "tiny", None)


@pytest.fixture
def texts(encoder: LoadedEncoder) -> ExampleTokenizer:
    return ExampleTokenizer(encoder, columns=("text",), label_names=LABELS)


def uneven_examples() -> list[Example]:
    """Examples of very different lengths."""
    return [
        Example(example.id, {"text": f"{example.texts['text']} " * (1 + i % 4)}, example.label)
        for i, example in enumerate(tiny.toy_examples(8))
    ]


def gradient(encoder: LoadedEncoder, pieces: list[list[int]], items: list) -> torch.Tensor:
    encoder.model.zero_grad()
    loss = EncoderLoss(encoder)
    for piece in pieces:
        loss.loss_sum([items[i] for i in piece]).backward()
    return torch.cat([p.grad.flatten() for p in encoder.model.parameters()])


def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    items = texts.encode(uneven_examples())
    loss = EncoderLoss(encoder)
    one_pass = gradient(encoder, [list(range(8))], items)
    one_by_one = gradient(encoder, [[i] for i in range(8)], items)
    pieces = loss.plan(items, loss.largest(items))
    assert 1 < len(pieces) < 8
    planned = gradient(encoder, pieces, items)
    scale = float(one_pass.abs().max())
    assert scale > 0.1
    torch.testing.assert_close(one_by_one, one_pass, atol=1e-5 * scale, rtol=0)
    torch.testing.assert_close(planned, one_pass, atol=1e-5 * scale, rtol=0)


def test_a_budget_below_the_longest_example_names_it(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    items = texts.encode(uneven_examples())
    loss = EncoderLoss(encoder)
    with pytest.raises(DataError, match=r"toy:3 has \d+ tokens; the token budget is"):
        loss.plan(items, loss.largest(items) - 1)


def test_the_loss_is_the_cross_entropy_of_the_scores(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    examples = uneven_examples()
    shares = [np.array([share, 1 - share]) for share in np.linspace(0, 1, 8)]
    log_probs = EncoderScorer(encoder, texts).log_probs(examples)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, atol=1e-12)
    with torch.no_grad():
        soft = EncoderLoss(encoder).loss_sum(texts.encode(examples, targets=shares))
        hard = EncoderLoss(encoder).loss_sum(texts.encode(examples))
    assert float(soft) == pytest.approx(-(np.stack(shares) * log_probs).sum(), rel=1e-5)
    gold = [LABELS.index(str(example.label)) for example in examples]
    assert float(hard) == pytest.approx(-log_probs[np.arange(8), gold].sum(), rel=1e-5)


def test_with_several_labels_a_text_the_loss_is_the_mean_over_labels_of_their_own(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    examples = uneven_examples()
    targets = [np.array([i % 2, i // 2 % 2], dtype=float) for i in range(8)]
    probabilities = 1 / (1 + np.exp(-EncoderScorer(encoder, texts).scores(examples)))
    right = np.where(np.stack(targets) > 0, probabilities, 1 - probabilities)
    with torch.no_grad():
        loss = EncoderLoss(encoder, multi_label=True).loss_sum(
            texts.encode(examples, targets=targets)
        )
    assert float(loss) == pytest.approx(-np.log(right).mean(axis=1).sum(), rel=1e-5)


def test_class_weights_and_focal_factor_reach_the_loss(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    examples = uneven_examples()
    items = texts.encode(examples)
    gold = [LABELS.index(str(example.label)) for example in examples]
    right = EncoderScorer(encoder, texts).log_probs(examples)[np.arange(8), gold]
    weighted = EncoderLoss(encoder, class_weights=torch.tensor([3.0, 0.5]), focal_gamma=2.0)
    weights = np.array([3.0, 0.5])[gold]
    with torch.no_grad():
        loss = float(weighted.loss_sum(items))
    assert loss == pytest.approx(-(weights * (1 - np.exp(right)) ** 2 * right).sum(), rel=1e-4)


def test_scores_do_not_depend_on_batch_mates_budget_or_order(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    examples, seen = uneven_examples(), []
    together = EncoderScorer(encoder, texts).log_probs(examples)
    small = EncoderScorer(encoder, texts, token_budget=64)
    np.testing.assert_allclose(small.log_probs(examples, advance=seen.append), together, atol=1e-5)
    assert sum(seen) == 8
    assert len(seen) > 1
    for i, example in enumerate(examples):
        np.testing.assert_allclose(small.log_probs([example])[0], together[i], atol=1e-5)
    np.testing.assert_allclose(small.log_probs(examples[::-1])[::-1], together, atol=1e-5)
    assert np.ptp(together[:, 0]) > 0.01
    assert small.log_probs([]).shape == (0, 2)


def test_scoring_has_no_dropout_and_gives_training_mode_back(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    encoder.model.train()
    scorer = EncoderScorer(encoder, texts)
    first = scorer.log_probs(uneven_examples())
    np.testing.assert_array_equal(first, scorer.log_probs(uneven_examples()))
    assert encoder.model.training


def test_labels_are_not_looked_at_in_scoring_but_needed_in_training(
    encoder: LoadedEncoder, texts: ExampleTokenizer
) -> None:
    examples = uneven_examples()
    blind = [Example(example.id, example.texts) for example in examples]
    scorer = EncoderScorer(encoder, texts)
    np.testing.assert_array_equal(scorer.log_probs(blind), scorer.log_probs(examples))
    with pytest.raises(DataError, match="toy:0 has no label"):
        EncoderLoss(encoder).loss_sum(texts.encode(blind))


def test_the_longest_text_is_the_models_or_the_given_limit(encoder: LoadedEncoder) -> None:
    def made(max_length: int | None) -> ExampleTokenizer:
        return ExampleTokenizer(
            encoder, columns=("text",), label_names=LABELS, max_length=max_length
        )

    assert [made(limit).max_length for limit in (None, 8, 1000)] == [64, 8, 64]
    (item,) = made(8).encode([Example("a", {"text": "dog " * 30})])
    assert (item.num_tokens, item.num_tokens_cut) == (8, 22)


def test_two_columns_are_scored_as_a_pair_in_the_given_order(encoder: LoadedEncoder) -> None:
    example = Example("a", {"first": "The dog was sad", "second": "a song"})
    scores = [
        EncoderScorer(
            encoder, ExampleTokenizer(encoder, columns=columns, label_names=LABELS)
        ).log_probs([example])
        for columns in (("first", "second"), ("second", "first"))
    ]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3


def test_eight_examples_are_learned_by_heart_and_predicted_alike_after_saving(
    encoder: LoadedEncoder, texts: ExampleTokenizer, tmp_path: Path
) -> None:
    examples = tiny.toy_examples(8)
    items, loss = texts.encode(examples), EncoderLoss(encoder)
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=1e-3)
    encoder.model.train()
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
    log_probs = EncoderScorer(encoder, texts).log_probs(examples)
    gold = [LABELS.index(str(example.label)) for example in examples]
    assert log_probs[np.arange(8), gold].min() > np.log(0.9)

    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    again = load_encoder(str(tmp_path), device=CPU, dtype=torch.float32, num_labels=2, head="saved")
    np.testing.assert_array_equal(EncoderScorer(again, texts).log_probs(examples), log_probs)
