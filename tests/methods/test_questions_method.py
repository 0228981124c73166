"""Several questions in one tree: what comes out is what every question gives alone, cheaper."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from taskfit.data import Example
from taskfit.methods.label_words import LabelWordLoss, LabelWords
from taskfit.methods.method import FloatArray, MethodContext
from taskfit.methods.questions import QuestionItem, QuestionLoss
from taskfit.methods.scoring import LabelScorer
from taskfit.models.adapters import add_adapter
from taskfit.models.load import LoadedModel
from taskfit.settings import AdapterSettings
from taskfit.settings_file import load_settings
from taskfit.tasks.question_files import questionnaire_from_dict
from taskfit.tasks.questions import Questionnaire

QUESTIONS: dict[str, Any] = {
    "name": "toy",
    "text": ["text"],
    "instruction": "Answer the question.",
    "questions": [
        {
            "name": "mood",
            "ask": "How is it?",
            "kind": "choice",
            "options": [
                {"name": "good", "words": [" happy", " warm and bright"], "description": "fine"},
                {"name": "bad", "description": "not {so} fine"},
                "neither of them",
            ],
            "weight": 0.5,
        },
        {"name": "park", "ask": "In the park?", "kind": "yes_no"},
        {"name": "stars", "ask": "How lovely?", "kind": "score", "options": [0, 1, 2]},
    ],
}
SINGLE = {**QUESTIONS, "questions": QUESTIONS["questions"][1:]}
BOTH = pytest.mark.parametrize("data", [QUESTIONS, SINGLE], ids=["long words", "single tokens"])
TOY = tiny.toy_examples(9)


def answered() -> list[Example]:
    """Nine texts; every third lacks one answer, and one has a single answer only."""
    found = []
    for i, example in enumerate(TOY):
        answers = {
            "mood": ("good", "bad", "neither of them")[i % 3],
            "park": ("yes", "no")[i % 2],
            "stars": str(i % 3),
        }
        if i % 3 == 0:
            del answers[("mood", "park", "stars")[i // 3]]
        found.append(Example(example.id, example.texts, answers=answers))
    found[4] = Example(found[4].id, found[4].texts, answers={"stars": "2"})
    return found


def method_of(
    loaded: LoadedModel, data: dict[str, Any] | Questionnaire = QUESTIONS, *overrides: str
) -> LabelWords:
    questionnaire = data if isinstance(data, Questionnaire) else questionnaire_from_dict(data)
    settings = load_settings(overrides=overrides).resolved(questions=True)
    return LabelWords(MethodContext(settings, questionnaire, (), loaded))


def log_probs(method: LabelWords, examples: Sequence[Example]) -> dict[str, FloatArray]:
    """Of every question by itself."""
    return by_question(method, method.scorer.log_probs(examples))


def by_question(method: LabelWords, found: FloatArray) -> dict[str, FloatArray]:
    parts = np.split(found, np.cumsum(method.scorer.num_labels)[:-1], axis=1)
    return dict(zip(method.context.asked.tasks, parts, strict=True))


def alone(loaded: LoadedModel, method: LabelWords) -> dict[str, LabelScorer]:
    words = method.scorer.words
    return {
        name: LabelScorer(loaded.tree, encoder, words=words)
        for name, encoder in method.encoders.items()
    }


def loss_of(method: LabelWords, examples: list[Example]) -> QuestionLoss:
    method.prepare(examples, ())
    found = method.objective()
    assert isinstance(found, QuestionLoss)
    return found


@BOTH
@pytest.mark.parametrize("over", ["labels", "branches"])
def test_every_question_scores_as_if_it_were_asked_alone(
    loaded: LoadedModel, data: dict[str, Any], over: str
) -> None:
    method = method_of(loaded, data, "method.name=label_words", f"method.loss={over}")
    together = log_probs(method, TOY)
    assert list(together) == [question["name"] for question in data["questions"]]
    for name, scorer in alone(loaded, method).items():
        np.testing.assert_allclose(together[name], scorer.log_probs(TOY), atol=1e-4)
    shares = by_question(method, method.probabilities(TOY))
    for name in together:
        np.testing.assert_allclose(shares[name].sum(axis=1), 1)


def test_texts_that_are_shortened_for_one_question_score_as_alone(loaded: LoadedModel) -> None:
    answers = {"mood": "good", "park": "yes", "stars": "1"}
    long = [replace(e, texts={"text": e.texts["text"] * 8}, answers=answers) for e in TOY[:3]]
    method = method_of(loaded, QUESTIONS, "model.max_length=110")
    items = method.encode(long)
    cuts = {item.branches[name].num_tokens_cut for item in items for name in item.branches}
    assert len(cuts) > 1
    found = log_probs(method, long)
    for name, scorer in alone(loaded, method).items():
        np.testing.assert_allclose(found[name], scorer.log_probs(long), atol=1e-4)


def test_scores_do_not_depend_on_batch_mates_order_or_budget(loaded: LoadedModel) -> None:
    whole = log_probs(method_of(loaded), TOY)
    back = log_probs(method_of(loaded), TOY[::-1])
    tight = log_probs(method_of(loaded, QUESTIONS, "training.score_token_budget=150"), TOY)
    single = [log_probs(method_of(loaded), [example]) for example in TOY]
    for name, expected in whole.items():
        for other in (back[name][::-1], tight[name], np.concatenate([s[name] for s in single])):
            np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_questions_permutes_the_results(loaded: LoadedModel) -> None:
    swapped = {**QUESTIONS, "questions": QUESTIONS["questions"][::-1]}
    first, second = (log_probs(method_of(loaded, d), TOY) for d in (QUESTIONS, swapped))
    assert list(second) == list(first)[::-1]
    for name in first:
        np.testing.assert_allclose(second[name], first[name], atol=1e-5)


def test_one_tree_runs_fewer_tokens_than_the_questions_alone(loaded: LoadedModel) -> None:
    method = method_of(loaded)
    scorers = alone(loaded, method)

    def tokens(run: Any) -> int:
        before = loaded.tree.num_tokens_run
        run()
        return loaded.tree.num_tokens_run - before

    together = tokens(lambda: log_probs(method, TOY))
    apart = tokens(lambda: [scorer.log_probs(TOY) for scorer in scorers.values()])
    texts = sum(len(method.encoders["mood"].text.ids(e.texts["text"])) for e in TOY)
    # The static prefix and the texts stand once instead of three times.
    assert together < apart - texts


@BOTH
@pytest.mark.parametrize("over", ["labels", "branches"])
def test_loss_and_gradient_are_the_weighted_sum_of_the_questions_alone(
    loaded: LoadedModel, data: dict[str, Any], over: str
) -> None:
    method, examples = (
        method_of(loaded, data, "method.name=label_words", f"method.loss={over}"),
        answered(),
    )
    add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    items = method.encode(examples)
    loss, gradient = gradient_of(method, lambda: loss_of(method, examples).loss_sum(items))

    def apart() -> torch.Tensor:
        total = torch.zeros(())
        for name, task in method.context.asked.tasks.items():
            encoder = method.encoders[name]
            owners = [c.label_index for c in encoder.candidates]
            known = [e.of(name) for e in examples if name in e.answers]
            one = LabelWordLoss(
                loaded.tree, owners, over=over, end_id=loaded.tokenizer.eos_token_id
            )
            total = total + task.weight * one.loss_sum(encoder.encode(known))
        return total

    expected_loss, expected_gradient = gradient_of(method, apart)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert expected_gradient.abs().max() > 0
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


def gradient_of(method: LabelWords, run: Any) -> tuple[float, torch.Tensor]:
    parameters = [p for p in method.module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    losses = run()
    for loss in losses if isinstance(losses, list) else [losses]:
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])


@pytest.mark.parametrize("budget", [150, 300])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    loaded: LoadedModel, budget: int
) -> None:
    method, examples = method_of(loaded), answered()
    items = method.encode(examples)
    add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    objective = loss_of(method, examples)
    assert objective.largest(items) <= budget
    pieces = objective.plan(items, budget)
    assert len(pieces) > 1
    assert sorted(i for piece in pieces for i in piece) == list(range(len(items)))
    whole = gradient_of(method, lambda: objective.loss_sum(items))
    cut = gradient_of(
        method, lambda: [objective.loss_sum([items[i] for i in piece]) for piece in pieces]
    )
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)
    torch.testing.assert_close(cut[1], whole[1], rtol=1e-4, atol=1e-5)


def test_a_question_without_a_label_is_not_asked(loaded: LoadedModel) -> None:
    method, examples = method_of(loaded), answered()
    items = method.encode([*examples, Example("none", TOY[0].texts, answers={})])
    asked = [set(item.branches) for item in items]
    assert asked == [set(example.answers) for example in examples]
    before = loaded.tree.num_tokens_run
    with torch.no_grad():
        loss_of(method, examples).loss_sum([items[4]])
    run = loaded.tree.num_tokens_run - before
    assert run == len(items[4].branches["stars"].prompt_ids)


def test_an_item_counts_the_tokens_of_all_its_questions(loaded: LoadedModel) -> None:
    items = method_of(loaded).encode(answered())
    item: QuestionItem = items[1]
    assert item.num_tokens == sum(b.num_tokens for b in item.branches.values())
    assert item.num_tokens_cut == 0


def test_balanced_class_weights_are_those_of_each_question(loaded: LoadedModel) -> None:
    method = method_of(loaded, SINGLE, "method.class_weights=balanced", "method.focal_gamma=1.5")
    examples = answered()
    items = method.encode(examples)
    with torch.no_grad():
        found = float(loss_of(method, examples).loss_sum(items))
    expected = 0.0
    for name, encoder in method.encoders.items():
        known = [e.of(name) for e in examples if name in e.answers]
        log_probs = np.log(by_question(method, method.probabilities(known))[name])
        gold = np.array([encoder.task.label_names.index(str(e.label)) for e in known])
        counts = np.bincount(gold, minlength=len(encoder.task.labels))
        weights = len(gold) / (len(counts) * counts)
        picked = log_probs[np.arange(len(gold)), gold]
        expected -= (weights[gold] * (1 - np.exp(picked)) ** 1.5 * picked).sum()
    assert found == pytest.approx(expected, rel=1e-4)


def test_options_named_later_score_as_if_they_had_always_been_there(loaded: LoadedModel) -> None:
    names = ["lovely", "gloomy", "cold at home", "bad"]
    method = method_of(loaded)
    changed = method_of(loaded, method.context.asked.with_options({"mood": names}))
    found = by_question(changed, changed.probabilities(TOY))
    before = by_question(method, method.probabilities(TOY))
    assert found["mood"].shape == (len(TOY), 4)
    for name in ("park", "stars"):
        np.testing.assert_allclose(found[name], before[name], atol=1e-5)
    scorer = alone(loaded, changed)["mood"]
    assert [c.word for c in scorer.encoder.candidates] == [f" {name}" for name in names]
