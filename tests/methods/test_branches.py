"""Label words decided branch by branch: a distribution over words, exact and cheap."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.methods.branches import BranchWords, LabelTree
from taskfit.methods.calibration import apply_prior
from taskfit.methods.label_words import LabelWordLoss
from taskfit.methods.scoring import LabelScorer
from taskfit.models.adapters import add_adapter
from taskfit.models.load import LoadedModel
from taskfit.settings import AdapterSettings
from taskfit.tasks import Label, PromptEncoder, Task, task_from_columns

END = 0
EXAMPLES = tiny.toy_examples(12)
# " yes" starts " yes or no"; the others part after one token and after several.
WORDS = {
    "a": (" yes",),
    "b": (" yes or no", " maybe"),
    "c": (" The dog was happy in the park",),
    "d": (" The dog was sad in the park",),
}


def task_of(words: dict[str, tuple[str, ...]]) -> Task:
    task = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["bad", "good"]
    )
    return replace(task, labels=tuple(Label(name, found) for name, found in words.items()))


def scorer_of(
    loaded: LoadedModel, task: Task, *, branches: bool = True, budget: int | None = None
) -> LabelScorer:
    encoder = PromptEncoder(loaded.tokenizer, task, [], max_length=256)
    words = BranchWords(END) if branches else None
    return LabelScorer(loaded.tree, encoder, token_budget=budget, words=words)


def plain_next(loaded: LoadedModel, ids: np.ndarray) -> torch.Tensor:
    """Scores of the next token by a plain pass, (V,)."""
    with loaded.tree.plain_attention() as plain, torch.no_grad():
        return plain(torch.from_numpy(ids)[None]).logits[0, -1].float()


def plain_words(
    loaded: LoadedModel, prompt: np.ndarray, words: list[tuple[int, ...]]
) -> np.ndarray:
    """The definition, one word and one token at a time: every word ends with the end token."""
    ended = [(*word, END) for word in words]
    result = []
    for word in ended:
        total = 0.0
        for depth, token in enumerate(word):
            before = word[:depth]
            allowed = sorted({other[depth] for other in ended if other[:depth] == before})
            scores = plain_next(loaded, np.array([*prompt, *before]))[allowed]
            total += float(torch.log_softmax(scores, dim=0)[allowed.index(token)])
        result.append(total)
    return np.array(result)


def test_a_word_has_the_product_of_its_choices(loaded: LoadedModel) -> None:
    scorer = scorer_of(loaded, task_of(WORDS))
    found = scorer.log_probs(EXAMPLES[:4])
    for row, item in zip(found, scorer.encoder.encode(EXAMPLES[:4]), strict=True):
        words = [tuple(ids.tolist()) for ids in item.completions]
        of_words = plain_words(loaded, item.prompt_ids, words)
        expected = np.full(len(WORDS), -np.inf)
        for candidate, value in zip(scorer.encoder.candidates, of_words, strict=True):
            expected[candidate.label_index] = np.logaddexp(expected[candidate.label_index], value)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_the_words_share_all_probability(loaded: LoadedModel) -> None:
    found = scorer_of(loaded, task_of(WORDS)).log_probs(EXAMPLES)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)


def test_words_of_one_token_have_their_share_of_the_joint(loaded: LoadedModel) -> None:
    task = task_of({"a": (" good",), "b": (" bad", " sad")})
    joint = scorer_of(loaded, task, branches=False).log_probs(EXAMPLES)
    found = scorer_of(loaded, task).log_probs(EXAMPLES)
    np.testing.assert_allclose(np.exp(found), apply_prior(joint, None), rtol=1e-4)


def test_scores_depend_neither_on_batch_mates_nor_on_the_budget(loaded: LoadedModel) -> None:
    task = task_of(WORDS)
    whole = scorer_of(loaded, task).log_probs(EXAMPLES)
    alone = np.concatenate([scorer_of(loaded, task).log_probs([e]) for e in EXAMPLES])
    tight = scorer_of(loaded, task, budget=40).log_probs(EXAMPLES[::-1])[::-1]
    for other in (alone, tight):
        np.testing.assert_allclose(other, whole, rtol=1e-4, atol=1e-5)


def test_permuting_labels_permutes_scores(loaded: LoadedModel) -> None:
    task = task_of(WORDS)
    swapped = replace(task, labels=task.labels[::-1])
    np.testing.assert_allclose(
        scorer_of(loaded, swapped).log_probs(EXAMPLES)[:, ::-1],
        scorer_of(loaded, task).log_probs(EXAMPLES),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_loss_and_its_gradient_are_those_of_the_scores(loaded: LoadedModel) -> None:
    """Only the words' own branches run in training; all branches run in scoring."""
    task = task_of(WORDS)
    examples = [Example(e.id, e.texts, task.label_names[i % 4]) for i, e in enumerate(EXAMPLES)]
    scorer = scorer_of(loaded, task)
    items = scorer.encoder.encode(examples)
    add_adapter(loaded.tree.model, AdapterSettings(lora_dropout=0.0), seed=0)
    parameters = [p for p in loaded.tree.model.parameters() if p.requires_grad]
    owners = scorer.label_of_candidate
    loss = LabelWordLoss(loaded.tree, owners, over="branches", end_id=END)

    every = [range(len(owners))] * len(items)
    words = scorer.words.log_probs(loaded.tree, items, every).view(len(items), -1)
    total = words.new_zeros(())
    for row, item in zip(words, items, strict=True):
        own = [place for place, owner in enumerate(owners) if owner == item.label_index]
        total = total - torch.logsumexp(row[own], dim=0)
    found = loss.loss_sum(items)
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad(found, parameters, allow_unused=True),
        torch.autograd.grad(total, parameters, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_what_decides_nothing_never_runs(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither tokens after the last branch, nor other labels' branches, nor the vocabulary."""
    task = task_of({"c": WORDS["c"], "d": WORDS["d"], "e": (" maybe or not",)})
    scorer = scorer_of(loaded, task)
    items = scorer.encoder.encode(
        [replace(EXAMPLES[0], label="e"), replace(EXAMPLES[0], label="c")]
    )
    first, other = items[0].completions[:2]
    parting = int(np.argmax(first[: len(other)] != other[: len(first)]))
    assert 1 < parting < len(first) - 1
    monkeypatch.setattr(loaded.tree, "logits", lambda *_: pytest.fail("the vocabulary was scored"))
    loss = LabelWordLoss(loaded.tree, scorer.label_of_candidate, over="branches", end_id=END)
    prompt = len(items[0].prompt_ids)
    for item, needed in zip(items, (prompt, prompt + parting), strict=True):
        before = loaded.tree.num_tokens_run
        loss.loss_sum([item])
        assert loaded.tree.num_tokens_run - before == needed == loss.largest([item])


def test_a_word_that_starts_another_needs_an_end_token() -> None:
    tree = LabelTree.build([(5,), (5, 6), (7,)], END)
    assert [options.tolist() for options in tree.options] == [[5, 7], [END, 6]]
    assert tree.choices.tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 1], [2, 0, 1]]
    with pytest.raises(PromptError, match=r"method\.loss=labels"):
        LabelTree.build([(5,), (5, 6), (7,)], None)
