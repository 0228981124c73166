"""Context distillation: nothing to learn from oneself, the right teacher, the right gradient."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import tiny
from taskfit.data import Example
from taskfit.methods.calibration import apply_prior
from taskfit.methods.distill import DistillLoss
from taskfit.methods.scoring import LabelScorer
from taskfit.methods.student import DistillItem, divergence
from taskfit.methods.teacher import Teacher, redrawn_demonstrations, student_task
from taskfit.models.adapters import add_adapter, trainable_parameters
from taskfit.models.load import LoadedModel
from taskfit.settings import AdapterSettings
from taskfit.tasks import Label, PromptEncoder, Task

EXAMPLES = tiny.toy_examples(8)
TEXTS = [Example(e.id, e.texts) for e in EXAMPLES]
SHOWN = tiny.toy_examples(4, offset=100)
MANY = (Label("bad", (" yes or no", " sad")), Label("good", (" yes",)))


def loss_of(
    loaded: LoadedModel,
    *,
    task: Task,
    shown: list[Example],
    adapter: Any = None,
    kind: Any = "self",
    over: Any = "labels",
    temperature: float = 1.0,
    log_prior: Any = None,
    redraw: Any = None,
) -> tuple[DistillLoss, list[DistillItem]]:
    student = PromptEncoder(
        loaded.tokenizer, student_task(task, keep_instruction=False), [], max_length=256
    )
    context = PromptEncoder(loaded.tokenizer, task, shown, max_length=256)
    loss = DistillLoss(
        LabelScorer(loaded.tree, student),
        Teacher(loaded.tree, adapter, kind=kind, encoder=context),
        over=over,
        temperature=temperature,
        log_prior=log_prior,
        redraw=redraw,
    )
    items = [
        DistillItem(s.id, s.prompt_ids, s.completions, None, s.num_tokens_cut, example=e)
        for e, s in zip(TEXTS, student.encode(TEXTS), strict=True)
    ]
    return loss, items


def gradient(loaded: LoadedModel, loss: DistillLoss, pieces: list[list[DistillItem]]) -> Any:
    parameters = trainable_parameters(loaded.tree.model)
    for p in parameters.values():
        p.grad = None
    for piece in pieces:
        loss.loss_sum(piece).backward()
    return torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])


def disturb(loaded: LoadedModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trainable_parameters(loaded.tree.model).values():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)


@pytest.mark.parametrize("over", ["labels", "vocabulary"])
@pytest.mark.parametrize("labels", [None, MANY], ids=["single", "several"])
def test_a_teacher_without_context_teaches_nothing(
    loaded: LoadedModel, over: str, labels: tuple[Label, ...] | None
) -> None:
    add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    disturb(loaded)
    loss, items = loss_of(loaded, task=tiny.toy_task(labels=labels), shown=[], over=over)
    found = loss.loss_sum(items)
    assert float(found.detach()) == pytest.approx(0, abs=1e-5)
    # Beside a real teacher's gradient this one is nothing.
    other, _ = loss_of(loaded, task=tiny.toy_task(labels=labels), shown=SHOWN, over=over)
    none, some = (gradient(loaded, one, [items]).norm() for one in (loss, other))
    assert none < 1e-4 * some


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("labels", [None, MANY], ids=["single", "several"])
def test_over_labels_the_loss_is_that_of_the_two_prompts_scored_alone(
    loaded: LoadedModel, temperature: float, labels: tuple[Label, ...] | None
) -> None:
    task = tiny.toy_task(labels=labels)
    loss, items = loss_of(loaded, task=task, shown=SHOWN, temperature=temperature)
    with torch.no_grad():
        found = float(loss.loss_sum(items))
    taught = LabelScorer(loaded.tree, loss.teacher.encoder).log_probs(TEXTS)
    own = loss.student.log_probs(TEXTS)
    theirs, ours = (
        functional.log_softmax(torch.from_numpy(scores) / temperature, dim=1)
        for scores in (taught, own)
    )
    expected = (theirs.exp() * (theirs - ours)).sum() * temperature**2
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_calibrated_teacher_teaches_what_in_context_learning_with_that_prior_says(
    loaded: LoadedModel,
) -> None:
    prior = np.array([-0.2, -2.0])
    loss, items = loss_of(loaded, task=tiny.toy_task(), shown=SHOWN, log_prior=prior)
    with torch.no_grad():
        found = float(loss.loss_sum(items))
    theirs = apply_prior(LabelScorer(loaded.tree, loss.teacher.encoder).log_probs(TEXTS), prior)
    ours = apply_prior(loss.student.log_probs(TEXTS), None)
    expected = (theirs * (np.log(theirs) - np.log(ours))).sum()
    assert found == pytest.approx(float(expected), rel=1e-4)
    # A prior that favours no label changes nothing.
    even, _ = loss_of(loaded, task=tiny.toy_task(), shown=SHOWN, log_prior=np.array([-1.0, -1.0]))
    plain, _ = loss_of(loaded, task=tiny.toy_task(), shown=SHOWN)
    with torch.no_grad():
        assert float(even.loss_sum(items)) == pytest.approx(float(plain.loss_sum(items)), abs=1e-6)


def test_over_the_vocabulary_single_words_compare_the_whole_next_token(loaded: LoadedModel) -> None:
    task = tiny.toy_task()
    loss, items = loss_of(loaded, task=task, shown=SHOWN, over="vocabulary", temperature=2.0)
    with torch.no_grad():
        found = float(loss.loss_sum(items))

    def next_token(prompts: list[np.ndarray]) -> torch.Tensor:
        with loaded.tree.plain_attention() as plain, torch.no_grad():
            rows = [plain(torch.from_numpy(ids)[None]).logits[0, -1].float() for ids in prompts]
        return functional.log_softmax(torch.stack(rows) / 2.0, dim=1)

    theirs = next_token([item.prompt_ids for item in loss.teacher.encoder.encode(TEXTS)])
    ours = next_token([item.prompt_ids for item in items])
    expected = (theirs.exp() * (theirs - ours)).sum() * 4
    assert found == pytest.approx(float(expected), rel=1e-4)


def test_over_the_vocabulary_later_branches_count_as_often_as_the_teacher_gets_there(
    loaded: LoadedModel,
) -> None:
    task = tiny.toy_task(labels=MANY)
    loss, items = loss_of(loaded, task=task, shown=SHOWN, over="vocabulary")
    with torch.no_grad():
        found = float(loss.loss_sum(items[:2]))
    taught = loss.teacher.encoder.encode(TEXTS[:2])
    expected = 0.0
    for student, teacher in zip(items[:2], taught, strict=True):
        openings = {
            tuple(completion[:length].tolist())
            for completion in teacher.completions
            for length in range(len(completion))
        }
        for opening in openings:
            scores = []
            for prompt in (teacher.prompt_ids, student.prompt_ids):
                ids = np.concatenate((prompt, np.array(opening, dtype=np.int64)))
                with loaded.tree.plain_attention() as plain, torch.no_grad():
                    scores.append(plain(torch.from_numpy(ids)[None]).logits[0].float())
            start = len(teacher.prompt_ids) - 1
            log_probs = functional.log_softmax(scores[0][start:], dim=-1)
            reached = sum(float(log_probs[i, token]) for i, token in enumerate(opening))
            one = divergence(scores[0][-1:], scores[1][-1:], temperature=1.0)
            expected += float(np.exp(reached)) * float(one)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("over", ["labels", "vocabulary"])
def test_cutting_a_step_changes_no_gradient(loaded: LoadedModel, over: str) -> None:
    adapter = add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    disturb(loaded)
    loss, items = loss_of(
        loaded,
        task=tiny.toy_task(labels=MANY),
        shown=SHOWN,
        adapter=adapter,
        kind="frozen",
        over=over,
    )
    whole = gradient(loaded, loss, [items])
    pieces = [[items[i] for i in piece] for piece in loss.plan(items, 40)]
    assert len(pieces) > 1
    torch.testing.assert_close(gradient(loaded, loss, pieces), whole, rtol=1e-3, atol=1e-5)


def test_a_frozen_teacher_stays_what_it_was_and_a_self_teacher_moves(loaded: LoadedModel) -> None:
    adapter = add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    kinds = {}
    for kind in ("frozen", "self"):
        loss, items = loss_of(loaded, task=tiny.toy_task(), shown=SHOWN, adapter=adapter, kind=kind)
        kinds[kind] = (loss, items)

    def taught(kind: str) -> np.ndarray:
        loss, _ = kinds[kind]
        loss.start_step(0)
        with loss.teacher.reading():
            encoded, prefix = loss.teacher.encode(TEXTS)
            return loss._label_scores(loss.teacher.model, encoded, prefix).numpy()

    before = {kind: taught(kind) for kind in kinds}
    disturb(loaded)
    np.testing.assert_array_equal(taught("frozen"), before["frozen"])
    assert np.abs(taught("self") - before["self"]).max() > 1e-3


def test_redrawn_contexts_are_a_function_of_seed_and_step(loaded: LoadedModel) -> None:
    task = tiny.toy_task(num_demonstrations=2)
    redraw = partial(redrawn_demonstrations, EXAMPLES, task, 3)
    drawn = [[e.id for e in redraw(step)] for step in (0, 1, 2, 0)]
    assert drawn[0] == drawn[3]
    assert len({tuple(ids) for ids in drawn}) > 1
    assert {e.label for e in redraw(5)} == {"bad", "good"}
    loss, _ = loss_of(loaded, task=task, shown=[], redraw=redraw)
    loss.start_step(1)
    assert [e.id for e in loss.teacher.encoder.demonstrations] == drawn[1]


def test_divergence_is_zero_on_itself_and_never_negative() -> None:
    scores = torch.randn(5, 7)
    assert divergence(scores, scores, temperature=2.0).abs().max() < 1e-6
    assert (divergence(scores, torch.randn(5, 7), temperature=1.0) > 0).all()
