"""Orders of options in scoring and training: one tree, one mean, nothing else changed."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import tiny
from taskfit.data import Example
from taskfit.errors import SettingsError
from taskfit.methods.in_context import InContext
from taskfit.methods.label_words import LabelWords
from taskfit.methods.method import FloatArray, MethodContext
from taskfit.methods.scoring import LabelScorer
from taskfit.methods.shuffled import MOST_ORDERS, ShuffledItem, ShuffledOptions
from taskfit.models.load import LoadedModel
from taskfit.settings_file import load_settings
from taskfit.tasks import Label, PromptEncoder, Task, Template, num_orders, option_orders
from taskfit.tasks.question_files import questionnaire_from_dict
from taskfit.tasks.questions import Questionnaire

TEXTS = [Example(e.id, e.texts) for e in tiny.toy_examples(6)]
SHOWN = [replace(e, label=name) for e, name in zip(tiny.toy_examples(3), "abc", strict=True)]
LABELS = (
    Label("a", (" happy",)),
    Label("b", (" yes or no", " maybe")),
    Label("c", (" sad",)),
)
BEHIND = Template("", "Text: {text}\nOptions: {options}\nAnswer:{label}", "\n\n")
BEFORE = Template("Which one: {options:or}?", "Text: {text}\nAnswer:{label}")
PLACES = pytest.mark.parametrize("template", [BEHIND, BEFORE], ids=["behind", "before"])


def task_of(template: Template = BEHIND, **changes: Any) -> Task:
    return replace(tiny.toy_task(labels=LABELS), template=template, **changes)


def method_of(
    loaded: LoadedModel, asked: Task | Questionnaire, *overrides: str, shown: int = 0
) -> Any:
    settings = load_settings(overrides=overrides)
    settings = settings.resolved(questions=isinstance(asked, Questionnaire))
    kind = {"in_context": InContext, "label_words": LabelWords}[settings.method.name]
    return kind(MethodContext(settings, asked, SHOWN[:shown], loaded))


def in_context(loaded: LoadedModel, task: Task, count: int, *more: str, shown: int = 0) -> Any:
    given = ["method.name=in_context", f"method.option_orders={count}", *more]
    return method_of(loaded, replace(task, num_demonstrations=shown), *given, shown=shown)


def share(log_probs: FloatArray) -> FloatArray:
    found = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    return np.asarray(found / found.sum(axis=1, keepdims=True))


@PLACES
@pytest.mark.parametrize("shown", [0, 2])
def test_the_mean_is_over_what_each_order_gives_alone(
    loaded: LoadedModel, template: Template, shown: int
) -> None:
    task = task_of(template)
    found = in_context(loaded, task, 3, shown=shown).probabilities(TEXTS)
    alone = [
        in_context(loaded, one, 1, shown=shown).probabilities(TEXTS)
        for one in option_orders(task, 3, seed=0)
    ]
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3  # orders do matter to this model


@PLACES
def test_over_all_orders_answers_do_not_hang_on_the_given_one(
    loaded: LoadedModel, template: Template
) -> None:
    task = task_of(template)
    every = num_orders(task)
    first = in_context(loaded, task, every).probabilities(TEXTS)
    for listed in (("c", "a", "b"), ("b", "a", "c")):
        other = in_context(loaded, replace(task, listed=listed), every)
        np.testing.assert_allclose(other.probabilities(TEXTS), first, atol=1e-5)
        swapped = replace(task, labels=tuple(LABELS[i] for i in (2, 0, 1)), listed=listed)
        permuted = in_context(loaded, swapped, every).probabilities(TEXTS)
        np.testing.assert_allclose(permuted[:, [1, 2, 0]], first, atol=1e-5)
    # As many orders as options: nothing hangs on where the list begins.
    some = in_context(loaded, task, 3).probabilities(TEXTS)
    turned = in_context(loaded, replace(task, listed=("b", "c", "a")), 3).probabilities(TEXTS)
    np.testing.assert_allclose(turned, some, atol=1e-5)


@PLACES
@pytest.mark.parametrize("name", ["in_context", "label_words"])
def test_one_order_is_what_it_was_to_the_byte(
    loaded: LoadedModel, template: Template, name: str
) -> None:
    task = task_of(template)
    method = method_of(loaded, task, f"method.name={name}", "method.num_demonstrations=0")
    # The same prompt with the options written by hand.
    by_hand = replace(task, template=task.written)
    assert not by_hand.names_options
    old = method_of(loaded, by_hand, f"method.name={name}", "method.num_demonstrations=0")
    assert np.array_equal(method.probabilities(TEXTS), old.probabilities(TEXTS))


@PLACES
def test_answers_over_orders_do_not_depend_on_batch_mates_or_budget(
    loaded: LoadedModel, template: Template
) -> None:
    task = task_of(template)
    whole = in_context(loaded, task, 3).probabilities(TEXTS)
    alone = [in_context(loaded, task, 3).probabilities([text]) for text in TEXTS]
    tight = in_context(loaded, task, 3, "training.score_token_budget=150")
    np.testing.assert_allclose(np.concatenate(alone), whole, atol=1e-5)
    np.testing.assert_allclose(tight.probabilities(TEXTS[::-1])[::-1], whole, atol=1e-5)


def test_orders_behind_the_text_share_it_in_one_tree(loaded: LoadedModel) -> None:
    long = [Example("x", {"text": "The dog was happy in the park. " * 12})]
    task = task_of()

    def tokens(*encoders: PromptEncoder) -> int:
        scorer = LabelScorer(loaded.tree, encoders[0], orders=[encoders[1:]])
        before = loaded.tree.num_tokens_run
        scorer.log_probs(long)
        return loaded.tree.num_tokens_run - before

    first = PromptEncoder(loaded.tokenizer, task, [], max_length=250)
    every = [first.for_task(one, demonstrations=[]) for one in option_orders(task, 6, seed=0)]
    alone, together = tokens(every[0]), tokens(*every)
    text = len(first.text.ids(long[0].texts["text"]))
    assert together < alone + 5 * (alone - text) + 12
    assert together < 6 * alone / 2


def test_the_options_of_every_question_are_averaged_over_their_own_orders(
    loaded: LoadedModel,
) -> None:
    asked = questionnaire_from_dict(
        {
            "name": "toy",
            "text": ["text"],
            "questions": [
                {
                    "name": "mood",
                    "ask": "How?",
                    "kind": "choice",
                    "options": ["happy", "sad", "so"],
                },
                {"name": "park", "ask": "In the park?", "kind": "yes_no"},
                {"name": "stars", "ask": "How many?", "kind": "score", "options": [0, 1, 2]},
            ],
        }
    )
    method = method_of(loaded, asked, "method.name=label_words", "method.option_orders=6")
    found = np.split(method.probabilities(TEXTS), [3, 5], axis=1)
    orders = {"mood": 6, "park": 2, "stars": 2}
    assert dict(zip(orders, map(len, method.by_order(TEXTS, 6)), strict=True)) == orders
    for part, task in zip(found, asked.tasks.values(), strict=True):
        alone = []
        for one in option_orders(task, 6, seed=method.context.settings.seed):
            encoder = PromptEncoder(loaded.tokenizer, one, [], max_length=250)
            scorer = LabelScorer(loaded.tree, encoder, words=method.scorer.words)
            alone.append(share(scorer.log_probs(TEXTS)))
        np.testing.assert_allclose(part, np.mean(alone, axis=0), atol=1e-5)


def test_orders_come_back_in_their_places_whatever_prompts_begin_alike(loaded: LoadedModel) -> None:
    asked = questionnaire_from_dict(
        {
            "name": "toy",
            "text": ["text"],
            "instruction": "One of {options}",
            "questions": [
                {"name": "x", "ask": "How?", "kind": "choice", "options": ["happy", "sad", "so"]},
                {"name": "y", "ask": "Now?", "kind": "choice", "options": ["so", "happy", "sad"]},
            ],
        }
    )
    method = method_of(loaded, asked, "method.name=label_words", "method.option_orders=3")
    found = method.by_order(TEXTS, 3)
    for task, parts in zip(asked.tasks.values(), found, strict=True):
        for one, part in zip(option_orders(task, 3, seed=0), parts, strict=True):
            encoder = PromptEncoder(loaded.tokenizer, one, [], max_length=250)
            alone = LabelScorer(loaded.tree, encoder, words=method.scorer.words)
            np.testing.assert_allclose(part, share(alone.log_probs(TEXTS)), atol=1e-5)


@pytest.mark.parametrize("calibration", ["contextual", "pmi", "batch"])
def test_priors_are_measured_over_the_same_orders(loaded: LoadedModel, calibration: str) -> None:
    task = task_of(BEHIND)
    method = in_context(loaded, task, 6, f"method.calibration={calibration}")
    method.prepare(TEXTS, [])
    turned = in_context(
        loaded, replace(task, listed=("c", "b", "a")), 6, f"method.calibration={calibration}"
    )
    turned.prepare(TEXTS, [])
    np.testing.assert_allclose(turned.log_prior, method.log_prior, atol=1e-5)
    single = in_context(loaded, task, 1, f"method.calibration={calibration}")
    single.prepare(TEXTS, [])
    assert np.abs(share(single.log_prior[None]) - share(method.log_prior[None])).max() > 1e-4


@pytest.mark.parametrize("setting", ["option_orders=2", "shuffle_options=true"])
def test_a_prompt_that_lists_nothing_refuses_orders(loaded: LoadedModel, setting: str) -> None:
    task = task_of(Template("", "{text}:{label}"))
    with pytest.raises(SettingsError, match=r"lists no options.*\{options:or\}"):
        method_of(loaded, task, "method.name=label_words", f"method.{setting}")


def shuffled(loaded: LoadedModel, asked: Task | Questionnaire, seed: int = 0) -> LabelWords:
    given = ["method.name=label_words", "method.shuffle_options=true", f"seed={seed}"]
    method = method_of(loaded, asked, *given)
    assert isinstance(method, LabelWords)
    return method


def drawn(method: LabelWords, step: int) -> list[list[int]]:
    examples = [replace(e, label="a") for e in tiny.toy_examples(40)]
    objective, items = method.objective(), method.encode(examples)
    assert isinstance(objective, ShuffledOptions)
    objective.start_step(step)
    return [item.prompt_ids.tolist() for item in objective.drawn(items)]  # type: ignore[attr-defined]


def test_every_step_draws_orders_by_seed_step_and_text_alone(loaded: LoadedModel) -> None:
    method = shuffled(loaded, task_of())
    first = drawn(method, 3)
    assert first == drawn(shuffled(loaded, task_of()), 3)
    assert first != drawn(method, 4)
    assert first != drawn(shuffled(loaded, task_of(), seed=1), 3)
    endings = {tuple(ids[-12:]) for ids in first}
    assert len(endings) == 6  # of three options


def test_a_shuffled_step_is_the_loss_of_its_prompts_and_fits_the_largest(
    loaded: LoadedModel,
) -> None:
    method = shuffled(loaded, task_of())
    examples = [replace(e, label="abc"[i % 3]) for i, e in enumerate(tiny.toy_examples(6))]
    objective, items = method.objective(), method.encode(examples)
    assert isinstance(objective, ShuffledOptions)
    assert all(isinstance(item, ShuffledItem) for item in items)
    for step in range(4):
        objective.start_step(step)
        now = objective.drawn(items)
        found = float(objective.loss_sum(items))
        assert found == pytest.approx(float(objective.inner.loss_sum(now)), rel=1e-6)
        parts = objective.plan(items, objective.largest(items))
        assert sorted(i for part in parts for i in part) == list(range(6))
    assert objective.count(items) == 6


def test_rows_of_one_id_are_each_learned_from(loaded: LoadedModel) -> None:
    method = shuffled(loaded, task_of())
    examples = [replace(e, id="train.csv:2", label="a") for e in tiny.toy_examples(4)]
    objective, items = method.objective(), method.encode(examples)
    assert isinstance(objective, ShuffledOptions)
    objective.start_step(0)
    prompts = [tuple(item.prompt_ids) for item in objective.drawn(items)]  # type: ignore[attr-defined]
    assert len(set(prompts)) == 4


def test_many_options_are_shuffled_over_some_random_orders(loaded: LoadedModel) -> None:
    labels = tuple(Label(chr(97 + i), (f" {chr(97 + i)}",)) for i in range(8))
    task = replace(task_of(), labels=labels)
    assert len(set(map(tuple, drawn(shuffled(loaded, task), 0)))) > 15
    assert num_orders(task) > MOST_ORDERS


def test_several_questions_are_shuffled_each_by_itself(loaded: LoadedModel) -> None:
    asked = questionnaire_from_dict(
        {
            "name": "toy",
            "text": ["text"],
            "questions": [
                {"name": "x", "ask": "Is it?", "kind": "yes_no"},
                {"name": "y", "ask": "So?", "kind": "yes_no"},
            ],
        }
    )
    method = shuffled(loaded, asked)
    examples = [replace(e, label=None, answers={"x": "yes", "y": "no"}) for e in TEXTS]
    objective, items = method.objective(), method.encode(examples)
    assert isinstance(objective, ShuffledOptions)
    objective.start_step(0)
    orders = set()
    for item in objective.drawn(items):
        texts = [
            loaded.tokenizer.decode(branch.prompt_ids.tolist())
            for branch in item.branches.values()  # type: ignore[attr-defined]
        ]
        orders.add(tuple("no, yes" in text for text in texts))
    assert len(orders) > 1
    assert float(objective.loss_sum(items)) > 0
