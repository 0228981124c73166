"""Label words of which one starts another: every word is scored up to where it ends."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.methods.calibration import apply_prior
from taskfit.methods.distill import Distill
from taskfit.methods.in_context import InContext
from taskfit.methods.label_words import LabelWordLoss, LabelWords
from taskfit.methods.method import MethodContext
from taskfit.methods.scoring import LabelScorer
from taskfit.models.load import LoadedModel
from taskfit.models.tree_model import TreeModel
from taskfit.runs.classifier import Classifier
from taskfit.settings import RunSettings
from taskfit.tasks import Label, PromptEncoder, Task, task_from_columns
from taskfit.tasks.questions import Option, Question, Questionnaire

EXAMPLES = tiny.toy_examples(8)
STARTING = {"a": (" yes",), "b": (" yes or no",), "c": (" yes or no and maybe", " sad")}
APART = {"a": (" yes",), "b": (" no or yes",), "c": (" sad", " happy in the park")}
SEPARATOR = "\n\n"


def task_of(words: dict[str, tuple[str, ...]], **changes: object) -> Task:
    task = task_from_columns(
        name="toy", text=["text"], label_column="label", labels=["bad", "good"]
    )
    labels = tuple(Label(name, found) for name, found in words.items())
    return replace(task, labels=labels, num_demonstrations=0, **changes)


def encoder_of(tokenizer: PreTrainedTokenizerFast, task: Task, *, marks: bool) -> PromptEncoder:
    return PromptEncoder(tokenizer, task, [], max_length=256, marks_ends=marks)


def scorer_of(loaded: LoadedModel, task: Task, *, marks: bool = True, **how: object) -> LabelScorer:
    return LabelScorer(loaded.tree, encoder_of(loaded.tokenizer, task, marks=marks), **how)


def context_of(
    loaded: LoadedModel, task: Task | Questionnaire, method: dict[str, object], **more: object
) -> MethodContext:
    settings = RunSettings.model_validate({"method": method})
    return MethodContext(settings, task, [], loaded, **more)


def plain_joint(loaded: LoadedModel, ids: list[int], start: int) -> float:
    """The sum of log-softmax of one plain pass from a place on."""
    with loaded.tree.plain_attention() as plain, torch.no_grad():
        found = torch.log_softmax(plain(torch.tensor([ids])).logits[0].float(), dim=-1)
    return sum(float(found[place - 1, ids[place]]) for place in range(start, len(ids)))


def test_a_word_is_scored_with_the_token_that_follows_it_in_a_prompt(loaded: LoadedModel) -> None:
    task = task_of(STARTING)
    scorer = scorer_of(loaded, task)
    found = scorer.log_probs(EXAMPLES[:2])
    text = scorer.encoder.text
    for row, example in zip(found, EXAMPLES[:2], strict=True):
        prompt = task.template.query(example.texts)
        expected = np.full(len(task.labels), -np.inf)
        for place, label in enumerate(task.labels):
            for word in label.words:
                # As a demonstration has it: word, separator, and the next line's first words.
                whole = text.encode_pair(prompt, f"{word}{SEPARATOR}Text:")
                start, length = whole.completion_start, len(text.encode_pair(prompt, word).ids)
                joint = plain_joint(loaded, whole.ids[: length + 1].tolist(), start)
                expected[place] = np.logaddexp(expected[place], joint)
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_the_longer_word_has_its_chance(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    task = task_of({"short": (" yes",), "long": (" yes yes",)})
    won = {True: 0, False: 0}
    for seed in range(6):
        model = tiny.tiny_model("llama", len(byte_level_tokenizer), seed=seed)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(20)  # sure of what comes next
        loaded = LoadedModel(TreeModel(model), byte_level_tokenizer, "tiny", None)
        for marks in won:
            found = scorer_of(loaded, task, marks=marks).log_probs(EXAMPLES)
            won[marks] += int((found[:, 1] > found[:, 0]).sum())
    assert won[False] == 0  # whatever model and text: the shorter one's probability holds it
    assert 0 < won[True] < 6 * len(EXAMPLES)


@pytest.mark.parametrize("end", ["token", "per token"])
def test_scores_hang_on_neither_the_order_of_labels_nor_batch_mates_nor_budget(
    loaded: LoadedModel, end: str
) -> None:
    task = task_of(STARTING)
    how = {"length_normalization": None if end == "per token" else False}
    whole = scorer_of(loaded, task, **how).log_probs(EXAMPLES)
    swapped = replace(task, labels=task.labels[::-1])
    others = [
        scorer_of(loaded, swapped, **how).log_probs(EXAMPLES)[:, ::-1],
        np.concatenate([scorer_of(loaded, task, **how).log_probs([one]) for one in EXAMPLES]),
        scorer_of(loaded, task, token_budget=45, **how).log_probs(EXAMPLES[::-1])[::-1],
    ]
    for other in others:
        np.testing.assert_allclose(other, whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply_prior(whole, None).sum(axis=1), 1, rtol=1e-9)


def test_where_no_word_starts_another_nothing_changes_by_a_bit(loaded: LoadedModel) -> None:
    task = task_of(APART)
    before = scorer_of(loaded, task, marks=False).log_probs(EXAMPLES)
    assert np.array_equal(scorer_of(loaded, task).log_probs(EXAMPLES), before)
    unset = scorer_of(loaded, task, length_normalization=None).log_probs(EXAMPLES)
    assert np.array_equal(unset, before)
    assert encoder_of(loaded.tokenizer, task, marks=True).end_id is None


def test_ends_are_what_the_prompt_shows(
    byte_level_tokenizer: PreTrainedTokenizerFast,
    metaspace_tokenizer: PreTrainedTokenizerFast,
    chat_tokenizer: PreTrainedTokenizerFast,
) -> None:
    def end(tokenizer: PreTrainedTokenizerFast, line: str, separator: str, *, chat: bool) -> str:
        task = task_of(STARTING, chat=chat)
        template = replace(task.template, line=line, separator=separator)
        encoder = encoder_of(tokenizer, replace(task, template=template), marks=True)
        (item,) = encoder.encode(EXAMPLES[:1])
        assert {int(ids[-1]) for ids in item.completions} == {encoder.end_id}
        return str(tokenizer.convert_ids_to_tokens(encoder.end_id))

    byte = byte_level_tokenizer
    assert end(byte, "{text} ={label}", "\n", chat=False) == "Ċ"
    assert end(byte, "{text} ={label}, and", "\n", chat=False) == ","
    assert end(byte, "So{label}? {text}: {text} is", "", chat=False) == "?"
    assert end(metaspace_tokenizer, "{text} ={label}", " or ", chat=False) == "▁or"
    # Nothing says what comes next.
    assert end(byte, "{text} ={label}", "", chat=False) == "</s>"
    assert end(byte, "{text} ={label}", " ", chat=False) == "</s>"
    assert end(chat_tokenizer, "{text} ={label}", "\n", chat=True) == "</s>"


def test_words_are_scored_per_token_only_where_no_answer_is_shown(
    byte_level_tokenizer: PreTrainedTokenizerFast, loaded: LoadedModel
) -> None:
    task = task_of(STARTING)
    assert np.array_equal(
        scorer_of(loaded, task, length_normalization=None).log_probs(EXAMPLES),
        scorer_of(loaded, task, length_normalization=True).log_probs(EXAMPLES),
    )
    shown = replace(task, num_demonstrations=2)
    assert np.array_equal(
        scorer_of(loaded, shown, length_normalization=None).log_probs(EXAMPLES),
        scorer_of(loaded, shown, length_normalization=False).log_probs(EXAMPLES),
    )

    def per_token(**method: object) -> bool | None:
        settings = RunSettings.model_validate({"method": {"name": "in_context", **method}})
        return settings.method.per_token  # type: ignore[union-attr]

    assert per_token() is None
    assert per_token(calibration="batch") is False
    assert per_token(calibration="batch", length_normalization=True) is True
    assert per_token(length_normalization=False) is False


@pytest.mark.parametrize("over", ["labels", "vocabulary"])
def test_training_learns_what_scoring_reads(loaded: LoadedModel, over: str) -> None:
    task = task_of(STARTING)
    examples = [Example(e.id, e.texts, "abc"[i % 3]) for i, e in enumerate(EXAMPLES)]
    method = LabelWords(context_of(loaded, task, {"name": "label_words", "loss": over}))
    scores = method.scorer.log_probs(examples)
    gold = scores[np.arange(len(scores)), ["abc".index(str(e.label)) for e in examples]]
    if over == "labels":
        gold = gold - np.logaddexp.reduce(scores, axis=1)
    loss = method.objective()
    assert isinstance(loss, LabelWordLoss)
    with torch.no_grad():
        assert float(loss.loss_sum(method.encode(examples))) == pytest.approx(-gold.sum(), rel=1e-4)
    assert np.array_equal(scores, scorer_of(loaded, task).log_probs(examples))


@pytest.mark.parametrize("over", ["labels", "vocabulary"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(loaded: LoadedModel, over: str) -> None:
    task = task_of(STARTING).with_instruction("Answer.")
    given = {"name": "distill", "loss": over}
    own = Distill(context_of(loaded, task, {**given, "num_demonstrations": 0}))
    loss = own.objective()
    loss.teacher.use(own.scorer.encoder)  # type: ignore[attr-defined]
    with torch.no_grad():
        assert float(loss.loss_sum(own.encode(EXAMPLES))) == pytest.approx(0, abs=1e-4)


def test_questions_are_scored_as_each_alone(loaded: LoadedModel) -> None:
    def asked(*questions: Question) -> InContext:
        several = Questionnaire("toy", 1, ("text",), questions)
        return InContext(context_of(loaded, several, {"name": "in_context"}))

    starting = Question(
        "mood", "How is it?", "choice", "mood", tuple(Option(n, w) for n, w in STARTING.items())
    )
    apart = Question(
        "place", "Where?", "choice", "place", tuple(Option(n, w) for n, w in APART.items())
    )
    both = asked(starting, apart)
    alone = [asked(one).probabilities(EXAMPLES) for one in (starting, apart)]
    np.testing.assert_allclose(
        both.probabilities(EXAMPLES), np.concatenate(alone, axis=1), atol=1e-5
    )
    (note,) = both.notes()
    assert note.startswith("question toy/mood: ' yes' starts ' yes or no' (2 more such pairs)")
    assert not asked(apart).notes()


def test_methods_say_how_they_tell_such_words_apart(loaded: LoadedModel) -> None:
    task = task_of({"a": (" yes",), "b": (" yes or no",)})

    own = replace(loaded, tokenizer=tiny.byte_level_tokenizer())  # others need its end token

    def note(kind: type[InContext | LabelWords], task: Task = task, **method: object) -> str:
        (found,) = kind(context_of(own, task, method)).notes()
        assert found.startswith("' yes' starts ' yes or no': ")
        return found

    shown = replace(task, num_demonstrations=2)
    few = note(InContext, shown, name="in_context")
    assert r"with the '\n' that follows it; method.calibration=batch" in few
    assert "per token" in note(InContext, name="in_context")
    calibrated = note(InContext, name="in_context", calibration="contextual")
    assert calibrated.endswith(r"with the '\n' that follows it")
    assert "'</s>' is one of the tokens" in note(LabelWords, name="label_words")
    assert r"'\n' that follows it" in note(LabelWords, name="label_words", loss="labels")
    own.tokenizer.eos_token = None
    bare = replace(task, template=replace(task.template, line="{text} ={label}", separator=""))
    assert "choose other words" in note(InContext, bare, name="in_context")


def test_runs_of_earlier_versions_are_read_as_they_were_learned(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    task, method = task_of(STARTING), {"name": "label_words", "loss": "labels"}
    (tmp_path / "settings.yaml").write_text("method: {name: label_words, loss: labels}\n")

    def saved_and_loaded(**more: object) -> np.ndarray:
        fitted = Classifier(LabelWords(context_of(loaded, task, method, **more)))
        fitted.save(tmp_path, weights="none", extra={})
        return Classifier.load(tmp_path, model=loaded).probabilities(EXAMPLES)

    def expected(*, marks: bool) -> np.ndarray:
        return apply_prior(scorer_of(loaded, task, marks=marks).log_probs(EXAMPLES), None)

    assert np.array_equal(saved_and_loaded(), expected(marks=True))
    assert np.array_equal(saved_and_loaded(marks_ends=False), expected(marks=False))
    file = tmp_path / "classifier.json"
    file.write_text(file.read_text().replace('"marks_ends"', '"unknown"'))
    before = Classifier.load(tmp_path, model=loaded).probabilities(EXAMPLES)
    assert np.array_equal(before, expected(marks=False))


def test_the_tree_is_the_padded_pass_for_such_words_too(
    metaspace_tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny.tiny_model("gemma2", len(metaspace_tokenizer)).requires_grad_(False)
    loaded = LoadedModel(TreeModel(model), metaspace_tokenizer, "tiny", None)
    scorer = scorer_of(loaded, task_of({"a": (" yes",), "b": (" yes or no",)}))
    (item,) = scorer.encoder.encode(EXAMPLES[:1])
    plain = [
        plain_joint(loaded, [*item.prompt_ids.tolist(), *ids.tolist()], len(item.prompt_ids))
        for ids in item.completions
    ]
    np.testing.assert_allclose(scorer.log_probs(EXAMPLES[:1])[0], plain, rtol=1e-4, atol=1e-4)
