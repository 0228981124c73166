"""Supervised tokens are exactly the completion's, on three kinds of tokenizers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.errors import PromptError
from taskfit.tasks import Label, PromptEncoder, Task, Template, TextEncoder, task_from_columns
from taskfit.tasks.control_tokens import split_marks

KINDS = ["byte_level_tokenizer", "metaspace_tokenizer", "wordpiece_tokenizer"]
TASK = task_from_columns(name="toy", text=["text"], label_column="label", labels=["bad", "good"])
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from(" \n🙂é日"),
    max_size=40,
)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def whole_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """What the tokenizer makes of a text as a user would call it."""
    return list(tokenizer(text)["input_ids"])


@given(text=texts)
@example(text="\ufdd0")
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_prompt_and_completion_are_the_ids_of_the_text_tokenized_once(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    encoder = PromptEncoder(tokenizer, TASK, tiny.toy_examples(2), max_length=10_000)
    (item,) = encoder.encode([Example("x", {"text": text}, "good")])
    prompt = encoder.render({"text": text})
    for candidate, completion in zip(encoder.candidates, item.completions, strict=True):
        joined = [*item.prompt_ids.tolist(), *completion.tolist()]
        # A rendered prompt has a sign of its own for the character that marks control tokens.
        assert joined == whole_ids(tokenizer, split_marks(prompt + candidate.word)[0])
        decoded = tokenizer.decode(completion.tolist()).strip()
        assert decoded.replace(" ##", "").replace("##", "") == candidate.word.strip()


@given(text=texts)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_the_shortcut_for_many_words_equals_full_tokenization(
    tokenizer: PreTrainedTokenizerFast, text: str
) -> None:
    labels = [f"{noun} {word}" for noun in tiny.NOUNS for word in tiny.GOOD]
    task = task_from_columns(name="many", text=["text"], label_column="label", labels=labels)
    encoder = PromptEncoder(tokenizer, task, [], max_length=10_000)
    assert encoder._tails is not None
    (short,) = encoder.encode([Example("x", {"text": text})])
    prompt_ids, completions = encoder._in_full(encoder.render({"text": text}))
    assert short.prompt_ids.tolist() == prompt_ids.tolist()
    assert [c.tolist() for c in short.completions] == [c.tolist() for c in completions]


def test_the_shortcut_is_not_used_where_a_text_touches_the_label(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = replace(TASK, template=Template("", "It was {text}{label}"))
    assert PromptEncoder(byte_level_tokenizer, task, [], max_length=99)._tails is None


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_template_that_ends_in_a_space_says_how_to_move_it(
    kind: str, request: pytest.FixtureRequest
) -> None:
    task = replace(
        TASK,
        template=Template("", "Text: {text} Label: {label}"),
        labels=(Label("bad", ("bad",)), Label("good", ("good",))),
    )
    with pytest.raises(
        PromptError, match=r"spans the end of the prompt.*should end without a space"
    ):
        PromptEncoder(request.getfixturevalue(kind), task, [], max_length=99)


def test_a_space_at_the_cut_is_harmless_where_spaces_are_no_tokens(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    pair = TextEncoder(wordpiece_tokenizer).encode_pair("Label: ", "good")
    assert wordpiece_tokenizer.decode(pair.ids[pair.completion_start :].tolist()) == "good"


def test_the_start_token_stands_once_also_in_a_chat(
    metaspace_tokenizer: PreTrainedTokenizerFast, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    start = metaspace_tokenizer.bos_token_id
    encoder = PromptEncoder(metaspace_tokenizer, TASK, [], max_length=999)
    assert encoder.encode(tiny.toy_examples(1))[0].prompt_ids.tolist().count(start) == 1

    task = replace(TASK, chat=True, template=Template("Judge.", "{text} {label}"))
    chat = PromptEncoder(chat_tokenizer, task, tiny.toy_examples(2), max_length=999)
    (item,) = chat.encode(tiny.toy_examples(1, offset=5))
    assert chat.candidates[0].word == "bad"
    text = chat_tokenizer.decode(item.prompt_ids.tolist())
    assert text.startswith("<s>system\nJudge.</s>")
    assert text.endswith("<s>assistant\n")
    assert not text.startswith("<s><s>")


def test_a_chat_needs_a_chat_template(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(PromptError, match="no chat template"):
        PromptEncoder(byte_level_tokenizer, replace(TASK, chat=True), [], max_length=99)


@given(length=st.integers(1, 60), limit=st.integers(70, 110))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_long_texts_are_shortened_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast, length: int, limit: int
) -> None:
    shown = tiny.toy_examples(2)
    encoder = PromptEncoder(tokenizer, TASK, shown, max_length=limit)
    text = "The dog was happy. " * length
    (item,) = encoder.encode([Example("x", {"text": text}, "good")])
    assert len(item.prompt_ids) + max(map(len, item.completions)) <= limit
    roomy = PromptEncoder(tokenizer, TASK, shown, max_length=10_000)
    (full,) = roomy.encode([Example("x", {"text": text}, "good")])
    assert item.num_tokens_cut == len(full.prompt_ids) - len(item.prompt_ids)
    assert [c.tolist() for c in item.completions] == [c.tolist() for c in full.completions]
    head = encoder.text.ids(encoder.render({"text": ""}))[:20]
    assert [i for i in item.prompt_ids.tolist() if i not in encoder.text.start_ids][:20] == head


def test_a_prompt_that_cannot_fit_names_the_example(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = PromptEncoder(byte_level_tokenizer, TASK, tiny.toy_examples(4), max_length=20)
    with pytest.raises(PromptError, match=r"toy:7: even without its text .*max_length is 20"):
        encoder.encode(tiny.toy_examples(1, offset=7))


def with_words(*words: tuple[str, ...]) -> Task:
    return replace(TASK, labels=tuple(Label(f"l{i}", found) for i, found in enumerate(words)))


def test_words_that_are_the_same_tokens_are_refused(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(PromptError, match=r"' Good' .* are the same tokens"):
        PromptEncoder(wordpiece_tokenizer, with_words((" good",), (" Good",)), [], max_length=99)


def test_a_word_that_becomes_no_token_is_refused(
    wordpiece_tokenizer: PreTrainedTokenizerFast,
) -> None:
    with pytest.raises(PromptError, match="has no token of its own"):
        PromptEncoder(wordpiece_tokenizer, with_words((" good",), ("\u200b",)), [], max_length=99)


def test_the_same_word_for_two_labels_is_refused() -> None:
    with pytest.raises(PromptError, match="' yes' stands for 'l0' and for 'l1'"):
        with_words((" yes",), (" no", " yes"))


def test_content_free_inputs_keep_everything_but_the_text(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = PromptEncoder(byte_level_tokenizer, TASK, tiny.toy_examples(2), max_length=999)
    (item,) = encoder.content_free(["N/A"])
    assert byte_level_tokenizer.decode(item.prompt_ids.tolist()) == encoder.render({"text": "N/A"})
    assert np.all(item.completions[0] == encoder.encode(tiny.toy_examples(1))[0].completions[0])
