"""One scoring path: exact, and independent of everything but prompt and word."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from taskfit.data import Example
from taskfit.methods.calibration import apply_prior, content_free_prior, text_prior
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.scoring import JOINT, LabelScorer
from taskfit.models.adapters import add_adapter
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.settings import AdapterSettings
from taskfit.tasks import Label, PromptEncoder, Task, task_from_columns
from taskfit.tree import TokenTree

EXAMPLES = tiny.toy_examples(12)
TEXTS = [Example(example.id, example.texts) for example in EXAMPLES]


def toy_task(words: dict[str, tuple[str, ...]] | None = None) -> Task:
    task = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["bad", "good"]
    )
    if words is not None:
        task = replace(task, labels=tuple(Label(name, found) for name, found in words.items()))
    return task


MANY = {
    "a": (" yes",),
    "b": (" yes or no", " maybe"),
    "c": (" The dog was happy in the park",),
}


def scorer_of(
    loaded: LoadedModel, task: Task, demonstrations: list[Example], budget: int | None = None
) -> LabelScorer:
    encoder = PromptEncoder(loaded.tokenizer, task, demonstrations, max_length=256)
    return LabelScorer(loaded.tree, encoder, token_budget=budget)


def plain_joint(loaded: LoadedModel, prompt: np.ndarray, completion: np.ndarray) -> float:
    """The sum of log-softmax of plain passes, one token at a time."""
    ids = torch.from_numpy(np.concatenate((prompt, completion)))[None]
    with loaded.tree.plain_attention() as plain, torch.no_grad():
        log_probs = torch.log_softmax(plain(ids).logits[0].float(), dim=-1)
    start = len(prompt) - 1
    return float(log_probs[torch.arange(start, len(ids[0]) - 1), ids[0, start + 1 :]].sum())


@pytest.mark.parametrize("words", [None, MANY], ids=["single words", "several of several tokens"])
@pytest.mark.parametrize("num_demonstrations", [0, 3])
def test_a_labels_score_is_the_sum_over_its_words_of_the_exact_joint(
    loaded: LoadedModel, words: dict[str, tuple[str, ...]] | None, num_demonstrations: int
) -> None:
    task = toy_task(words)
    shown = [Example(e.id, e.texts, task.label_names[0]) for e in EXAMPLES[8:][:num_demonstrations]]
    scorer = scorer_of(loaded, task, shown)
    found = scorer.log_probs(TEXTS[:5])
    for row, item in zip(found, scorer.encoder.encode(TEXTS[:5]), strict=False):
        expected = np.full(len(task.labels), -np.inf)
        for candidate, completion in zip(scorer.encoder.candidates, item.completions, strict=True):
            joint = plain_joint(loaded, item.prompt_ids, completion)
            label = candidate.label_index
            expected[label] = np.logaddexp(expected[label], joint)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_scores_do_not_depend_on_batch_mates_order_or_budget(loaded: LoadedModel) -> None:
    task = toy_task(MANY)
    whole = scorer_of(loaded, task, []).log_probs(TEXTS)
    reversed_ = scorer_of(loaded, task, []).log_probs(TEXTS[::-1])[::-1]
    alone = np.concatenate([scorer_of(loaded, task, []).log_probs([e]) for e in TEXTS])
    tight = scorer_of(loaded, task, [], budget=60).log_probs(TEXTS)
    for other in (reversed_, alone, tight):
        np.testing.assert_allclose(other, whole, rtol=1e-4, atol=1e-5)


def test_the_cached_prefix_serves_later_calls_with_other_texts(loaded: LoadedModel) -> None:
    task = toy_task()
    scorer = scorer_of(loaded, task, EXAMPLES[:4])
    scorer.log_probs(EXAMPLES[4:8])
    before = loaded.tree.num_tokens_run
    second = scorer.log_probs(EXAMPLES[8:])
    used = loaded.tree.num_tokens_run - before
    fresh = scorer_of(loaded, task, EXAMPLES[:4])
    before = loaded.tree.num_tokens_run
    np.testing.assert_allclose(second, fresh.log_probs(EXAMPLES[8:]), rtol=1e-5, atol=1e-6)
    assert used < loaded.tree.num_tokens_run - before


def test_permuting_labels_permutes_scores(loaded: LoadedModel) -> None:
    task = toy_task(MANY)
    swapped = replace(task, labels=task.labels[::-1])
    np.testing.assert_allclose(
        scorer_of(loaded, swapped, []).log_probs(TEXTS)[:, ::-1],
        scorer_of(loaded, task, []).log_probs(TEXTS),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("over", ["labels", "vocabulary"])
@pytest.mark.parametrize("words", [None, MANY], ids=["single", "many"])
def test_the_training_loss_is_what_scoring_says(
    loaded: LoadedModel, over: str, words: dict[str, tuple[str, ...]] | None
) -> None:
    task = toy_task(words)
    examples = [
        Example(e.id, e.texts, task.label_names[i % len(task.labels)])
        for i, e in enumerate(EXAMPLES)
    ]
    scorer = scorer_of(loaded, task, [])
    log_probs = scorer.log_probs(examples)
    gold = [task.label_names.index(str(e.label)) for e in examples]
    picked = log_probs[np.arange(len(gold)), gold]
    if over == "labels":
        picked = picked - np.logaddexp.reduce(log_probs, axis=1)
    loss = LabelWordLoss(loaded.tree, scorer.label_of_candidate, over=over)
    with torch.no_grad():
        found = float(loss.loss_sum(scorer.encoder.encode(examples)))
    assert found == pytest.approx(-picked.sum(), rel=1e-4)


@pytest.mark.parametrize("over", ["labels", "vocabulary", "branches"])
@pytest.mark.parametrize("words", [None, MANY], ids=["single", "many"])
def test_the_loss_of_shares_is_the_mean_of_the_labels_losses_by_share(
    loaded: LoadedModel, over: str, words: dict[str, tuple[str, ...]] | None
) -> None:
    task = toy_task(words)
    scorer = scorer_of(loaded, task, [])
    loss = LabelWordLoss(loaded.tree, scorer.label_of_candidate, over=over, end_id=0)
    shares = dict(zip(task.label_names, (0.3, 0.7, 0.0), strict=False))
    text = EXAMPLES[0].texts

    def value(target: dict[str, float]) -> float:
        items = scorer.encoder.encode([Example("x", text, "x", target)])
        with torch.no_grad():
            return float(loss.loss_sum(items))

    expected = sum(share * value({name: 1.0}) for name, share in shares.items())
    assert value(shares) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("over", ["labels", "vocabulary", "branches"])
@pytest.mark.parametrize("budget", [45, 80, 4000])
def test_the_gradient_does_not_depend_on_how_a_step_is_cut(
    loaded: LoadedModel, over: str, budget: int
) -> None:
    task = toy_task(MANY)
    examples = [Example(e.id, e.texts, task.label_names[i % 3]) for i, e in enumerate(EXAMPLES)]
    scorer = scorer_of(loaded, task, [])
    items = scorer.encoder.encode(examples)
    add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    loss = LabelWordLoss(loaded.tree, scorer.label_of_candidate, over=over, end_id=0)
    parameters = [p for p in loaded.tree.model.parameters() if p.requires_grad]

    def gradient(pieces: list[list[int]]) -> torch.Tensor:
        for p in parameters:
            p.grad = None
        for piece in pieces:
            loss.loss_sum([items[i] for i in piece]).backward()
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])

    whole = gradient([list(range(len(items)))])
    pieces = loss.plan(items, budget)
    assert budget > 1000 or len(pieces) > 1
    torch.testing.assert_close(gradient(pieces), whole, rtol=1e-4, atol=1e-5)


def test_single_token_loss_over_labels_skips_the_vocabulary(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = scorer_of(loaded, toy_task(), [])
    items = scorer.encoder.encode(EXAMPLES)
    assert all(len(c) == 1 for c in items[0].completions)

    def never(*_: object) -> None:
        raise AssertionError("the whole vocabulary was scored")

    monkeypatch.setattr(loaded.tree, "logits", never)
    LabelWordLoss(loaded.tree, scorer.label_of_candidate, over="labels").loss_sum(items)


def test_a_tree_of_candidates_runs_no_token_that_nobody_reads(loaded: LoadedModel) -> None:
    scorer = scorer_of(loaded, toy_task(), [])
    items = scorer.encoder.encode(EXAMPLES[:1])
    before = loaded.tree.num_tokens_run
    with torch.no_grad():
        JOINT.log_probs(loaded.tree, items, [[0, 1]])
    assert loaded.tree.num_tokens_run - before == len(items[0].prompt_ids)


def test_a_prior_divides_and_probabilities_sum_to_one() -> None:
    log_probs = np.log(np.array([[0.2, 0.6], [0.3, 0.1]]))
    np.testing.assert_allclose(apply_prior(log_probs, None), [[0.25, 0.75], [0.75, 0.25]])
    calibrated = apply_prior(log_probs, np.log(np.array([0.25, 0.75])))
    np.testing.assert_allclose(calibrated, [[0.5, 0.5], [0.9, 0.1]])


def test_running_out_of_memory_in_scoring_halves_the_trees_and_changes_no_score(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = scorer_of(loaded, toy_task(MANY), []).log_probs(TEXTS)
    tight = scorer_of(loaded, toy_task(MANY), [])
    sizes: list[int] = []
    original = TreeModel.hidden

    def limited(model: TreeModel, tree: TokenTree, *args: Any, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(tree))
        if len(tree) > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return original(model, tree, *args, **kwargs)

    monkeypatch.setattr(TreeModel, "hidden", limited)
    np.testing.assert_allclose(tight.log_probs(TEXTS), calm, rtol=1e-4, atol=1e-5)
    assert max(sizes) > 100
    assert min(sizes) <= 100


def test_calibration_makes_its_own_inputs_uninformative(loaded: LoadedModel) -> None:
    scorer = scorer_of(loaded, toy_task(), [])
    prior = text_prior(scorer.log_probs, EXAMPLES)
    scores = np.log(apply_prior(scorer.log_probs(EXAMPLES), None)) - prior
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-6)
    assert np.logaddexp.reduce(content_free_prior(scorer)) == pytest.approx(0, abs=1e-6)
