"""The check-up tells the truth about three kinds of tokenizers, and advises only what helps."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

import tiny
from taskfit.data import Example
from taskfit.tasks import Checkup, Label, PromptEncoder, Task, Template, check_up
from taskfit.tasks import task_from_columns as from_columns

KINDS = ["byte_level_tokenizer", "metaspace_tokenizer", "wordpiece_tokenizer"]
TASK = from_columns(name="toy", text=["text"], label_column="label", labels=["bad", "good"])
SPLIT = "split inside a word or with more than 4 tokens"


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return request.getfixturevalue(request.param)


def with_words(*words: str, line: str = "Text: {text} Label:{label}") -> Task:
    labels = tuple(Label(f"l{i}", (word,)) for i, word in enumerate(words))
    return replace(TASK, labels=labels, template=Template("", line))


def rows_for(task: Task, num: int = 12) -> list[Example]:
    names = task.label_names
    return [replace(e, label=names[i % len(names)]) for i, e in enumerate(tiny.toy_examples(num))]


def look(
    tokenizer: PreTrainedTokenizerFast,
    task: Task,
    *,
    examples: Sequence[Example] | None = None,
    max_length: int = 500,
) -> Checkup:
    examples = rows_for(task) if examples is None else examples
    encoder = PromptEncoder(tokenizer, task, [], max_length=max_length)
    return check_up(encoder, tokenizer, examples, encoder.encode(examples))


def advice(found: Checkup, part: str) -> list[str]:
    return [sentence for sentence in found.advice if part in sentence]


def plain(text: str) -> str:
    """Text as every tokenizer keeps it: no spaces, no case, no marks of word pieces."""
    return "".join(text.replace("##", "").split()).casefold()


def test_the_shown_prompt_is_the_first_example_with_its_label(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # The tiny tokenizers know no full stop.
    example = Example("x", {"text": "The dog was lovely, everybody said so"}, "bad")
    found = look(tokenizer, TASK, examples=[example])
    (encoded,) = PromptEncoder(tokenizer, TASK, [], max_length=500).encode([example])
    ids = [token.id for token in found.prompt]
    completions = [c.tolist() for c in encoded.completions]
    assert ids == [*encoded.prompt_ids.tolist(), *completions[0]]
    is_completion = [token.is_completion for token in found.prompt]
    assert is_completion == [False] * len(encoded.prompt_ids) + [True] * len(completions[0])
    shown = "".join(token.text for token in found.prompt).removeprefix("<s>")
    assert plain(shown) == plain("Text: The dog was lovely, everybody said so\nLabel: bad")
    if tokenizer.backend_tokenizer.normalizer is None:
        assert shown.lstrip() == "Text: The dog was lovely, everybody said so\nLabel: bad"


@pytest.mark.parametrize("gold", ["bad", "good", None])
def test_the_answer_that_is_shown_is_the_gold_one(
    byte_level_tokenizer: PreTrainedTokenizerFast, gold: str | None
) -> None:
    words = (Label("bad", (" no", " cold", " sad")), Label("good", (" yes", " warm")))
    task = replace(TASK, labels=words)
    found = look(byte_level_tokenizer, task, examples=[Example("x", {"text": "Hm."}, gold)])
    answer = "".join(token.text for token in found.prompt if token.is_completion)
    assert answer == (" yes" if gold == "good" else " no")
    assert [report.label for report in found.words] == ["bad"] * 3 + ["good"] * 2


def test_a_part_of_a_character_is_shown_by_its_bytes(
    byte_level_tokenizer: PreTrainedTokenizerFast, metaspace_tokenizer: PreTrainedTokenizerFast
) -> None:
    for tokenizer in (byte_level_tokenizer, metaspace_tokenizer):
        found = look(tokenizer, TASK, examples=[Example("x", {"text": "🙂"}, "good")])
        assert not any("\ufffd" in token.text or not token.text for token in found.prompt)


def test_words_are_reported_token_by_token(tokenizer: PreTrainedTokenizerFast) -> None:
    task = with_words(" happy teacher", " gloomy", " grstw")
    found = look(tokenizer, task)
    for report, label in zip(found.words, task.labels, strict=True):
        assert (report.label, report.word) == (label.name, label.words[0])
        assert plain("".join(report.tokens)) == plain(report.word)
        assert report.with_space >= 1
        assert report.without_space >= 1
        assert report.with_space == len(report.tokens)  # behind a colon, as in this template


def test_lengths_are_those_of_the_prompt_with_its_longest_answer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    task = with_words(" yes", " not at all")
    rows = rows_for(task, 11)
    encoded = PromptEncoder(tokenizer, task, [], max_length=500).encode(rows)
    lengths = sorted(len(e.prompt_ids) + max(map(len, e.completions)) for e in encoded)
    found = look(tokenizer, task, examples=rows)
    assert (found.lengths["min"], found.lengths["max"]) == (lengths[0], lengths[-1])
    assert found.lengths["median"] == lengths[5]
    assert list(found.lengths.values()) == sorted(
        [found.lengths["min"], found.lengths["median"], found.lengths["95 %"], lengths[-1]]
    )
    assert (found.num_encoded, found.max_length, found.num_shortened) == (11, 500, 0)


def test_texts_that_do_not_fit_are_counted_and_the_remedy_named(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    long = [Example(f"x{i}", {"text": "The dog was happy. " * 90}, "good") for i in range(3)]
    found = look(tokenizer, TASK, examples=[*rows_for(TASK), *long], max_length=80)
    assert found.num_shortened == 3
    assert found.lengths["max"] == 80
    (sentence,) = advice(found, "shortened")
    assert "Of 15 texts 3 do not fit into 80 tokens" in sentence
    assert "model.max_length" in sentence
    assert not advice(look(tokenizer, TASK), "shortened")


def test_shared_first_tokens_name_their_words(tokenizer: PreTrainedTokenizerFast) -> None:
    found = look(tokenizer, with_words(" happy dog", " happy cat", " sad"))
    ((token, words),) = found.shared_first_tokens.items()
    assert words == (" happy dog", " happy cat")
    assert plain("happy").startswith(plain(token))
    assert len(advice(found, "share their first token")) == 1
    apart = look(tokenizer, with_words(" happy", " sad"))
    assert apart.shared_first_tokens == {}
    assert not advice(apart, "share their first token")


def test_a_word_that_starts_another_is_told(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    found = look(tokenizer, with_words(" happy", " happy dog", " sad"))
    assert found.prefixes == ((" happy", " happy dog"),)
    (sentence,) = advice(found, "what follows a word decides")
    assert "' happy' start those of ' happy dog'" in sentence
    # Letters in common are no tokens in common.
    assert look(tokenizer, with_words(" in", " sad")).prefixes == ()


def test_many_prefixes_are_summed_up(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    found = look(byte_level_tokenizer, with_words(" dog", *(f" dog {n}" for n in tiny.NOUNS[1:7])))
    assert len(found.prefixes) == 6
    assert len(advice(found, "what follows a word decides")) == 3
    assert advice(found, "3 more pairs of words")


def test_odd_splits_are_those_inside_a_word(tokenizer: PreTrainedTokenizerFast) -> None:
    words = (" happy teacher", " gloomy", " zebra-fish quux")
    found = look(tokenizer, with_words(*words))
    assert [report.is_split for report in found.words] == [False, False, True]
    (sentence,) = advice(found, SPLIT)
    assert "1, most of all ' zebra-fish quux'" in sentence
    assert not advice(look(tokenizer, with_words(*words[:2])), SPLIT)


def test_five_whole_words_are_long_but_not_split(tokenizer: PreTrainedTokenizerFast) -> None:
    found = look(tokenizer, with_words(" happy dog happy cat warm", " no"))
    assert not found.words[0].is_split
    assert advice(found, SPLIT)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_bare_answers_that_cost_a_space_are_told_to_take_it_along(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(kind)
    spaced, bare = (
        look(tokenizer, with_words(" happy", " sad")),
        look(tokenizer, with_words("happy", "sad")),
    )
    assert "all of them have one" in spaced.leading_space
    assert "none of them has one" in bare.leading_space
    assert not advice(spaced, "start the word with the space")
    sentences = advice(bare, "start the word with the space")
    assert len(sentences) == 2
    for report, sentence in zip(bare.words, sentences, strict=True):
        assert report.with_space <= report.without_space
        assert f"{report.word!r} is {report.without_space} tokens" in sentence
    mixed = look(tokenizer, with_words(" happy", "sad"))
    assert "1 of 2 have one" in mixed.leading_space
    assert len(advice(mixed, "start the word with the space")) == 1


def test_spaces_are_nothing_to_wordpiece(wordpiece_tokenizer: PreTrainedTokenizerFast) -> None:
    for words in ((" happy", " sad"), ("happy", "sad")):
        found = look(wordpiece_tokenizer, with_words(*words))
        assert "the same with one and without" in found.leading_space
        assert all(report.with_space == report.without_space for report in found.words)
        assert not advice(found, "start the word with the space")


@pytest.mark.parametrize("line", ['{text} "{label}"', "{text} ({label})", "{text}\n{label}"])
def test_where_running_text_has_no_space_none_is_advised(
    byte_level_tokenizer: PreTrainedTokenizerFast, line: str
) -> None:
    found = look(byte_level_tokenizer, with_words("happy", "sad", line=line))
    assert not advice(found, "start the word with the space")


def test_many_bare_words_are_summed_up(byte_level_tokenizer: PreTrainedTokenizerFast) -> None:
    found = look(byte_level_tokenizer, with_words(*tiny.NOUNS))
    listed = advice(found, "start the word with the space")
    (rest,) = advice(found, "more words")
    assert len(listed) == 3
    num_bare = sum(report.with_space <= report.without_space for report in found.words)
    assert f"{num_bare - 3} more words" in rest


def test_an_answer_in_a_chat_starts_a_turn(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    task = replace(TASK, chat=True)
    found = look(chat_tokenizer, task)
    assert "starts a turn of the chat" in found.leading_space
    assert [report.word for report in found.words] == ["bad", "good"]
    assert not advice(found, "start the word with the space")
    answer = "".join(token.text for token in found.prompt if token.is_completion)
    assert answer == "bad"


def test_labels_are_counted_over_all_examples_and_absent_ones_named(
    byte_level_tokenizer: PreTrainedTokenizerFast,
) -> None:
    labels = [f"kind {noun}" for noun in tiny.NOUNS[:6]]
    task = from_columns(name="toy", text=["text"], label_column="label", labels=labels)
    rows = [replace(e, label=labels[i % 2]) for i, e in enumerate(tiny.toy_examples(9))]
    encoder = PromptEncoder(byte_level_tokenizer, task, [], max_length=500)
    found = check_up(encoder, byte_level_tokenizer, rows, encoder.encode(rows[:4]))
    assert found.num_encoded == 4
    assert found.class_counts == dict(zip(labels, [5, 4, 0, 0, 0, 0], strict=True))
    (sentence,) = advice(found, "There is no example of")
    assert "'kind bird', 'kind teacher', 'kind farmer' and 1 more" in sentence


def test_good_words_are_not_objected_to(tokenizer: PreTrainedTokenizerFast) -> None:
    assert look(tokenizer, with_words(" happy", " sad")).advice == ()
