"""Laws of reading labels from answers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskfit.remote import Answer, label_scores
from taskfit.remote.chat import read_answer
from taskfit.remote.scores import PARSED_EPSILON

WORDS = [[" negative", " bad"], [" positive"], [" neutral"]]
TOKENS = ["pos", " Positive", "neg", "ne", "neutral", "b", "The", " ", "positively", "n", ""]


def said(text: str = "", **top: float) -> Answer:
    return from_tokens({token: math.log(p) for token, p in top.items()}, text)


def from_tokens(top: dict[str, float], text: str = "") -> Answer:
    return Answer(text, top or None, None, None)


def test_the_tokens_of_a_label_add_up() -> None:
    answer = from_tokens({" Pos": math.log(0.3), "positive": math.log(0.1), "NEG": math.log(0.2)})
    scores = label_scores(answer, [["negative"], ["positive"]])
    assert scores is not None
    np.testing.assert_allclose(np.exp(scores), [1 / 3, 2 / 3])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(TOKENS), st.floats(-30.0, -0.01), max_size=8), st.text())
def test_scores_are_log_probabilities_and_follow_the_labels(
    top: dict[str, float], text: str
) -> None:
    scores = label_scores(from_tokens(top, text), WORDS)
    turned = label_scores(from_tokens(top, text), WORDS[::-1])
    if scores is None:
        assert turned is None
    else:
        assert np.isfinite(scores).all()
        assert math.isclose(np.exp(scores).sum(), 1.0)
        assert turned is not None
        np.testing.assert_allclose(scores, turned[::-1], atol=1e-12)


@settings(deadline=None)
@given(st.floats(-20.0, -0.1), st.floats(-20.0, -0.1))
def test_an_unlisted_label_is_below_every_listed_one(first: float, second: float) -> None:
    scores = label_scores(from_tokens({"neg": first, "pos": second}), WORDS)
    assert scores is not None
    assert scores[2] < min(scores[:2])


def test_a_label_that_is_certain_leaves_others_almost_nothing() -> None:
    scores = label_scores(said(positive=1.0), WORDS)
    assert scores is not None
    assert np.exp(scores[0]) < 1e-9


def test_an_ambiguous_token_counts_for_none() -> None:
    answer = from_tokens({"ne": math.log(0.1), "neg": math.log(0.2), "neu": math.log(0.3)})
    scores = label_scores(answer, WORDS)
    assert scores is not None
    assert scores[2] - scores[0] == pytest.approx(math.log(1.5))


def test_where_ambiguous_tokens_weigh_most_the_text_decides() -> None:
    words = [["new york"], ["new jersey"], ["boston"]]
    top = {"new": math.log(0.9), "bos": math.log(0.05)}
    scores = label_scores(from_tokens(top, "New Jersey"), words)
    assert scores is not None
    assert int(scores.argmax()) == 1
    assert label_scores(from_tokens(top, "new"), words) is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("positive", 1),
        (" Positive.", 1),
        ("The sentiment is POSITIVE, positive!", 1),
        ("bad", 0),
        ("bad and negative", 0),
        ("**neutral**", 2),
        ("positive or negative", None),
        ("positively", None),
        ("nonpositive", None),
        ("", None),
        ("I cannot say", None),
    ],
)
def test_a_text_is_a_label_if_exactly_one_stands_in_it(text: str, label: int | None) -> None:
    scores = label_scores(from_tokens({}, text), WORDS)
    if label is None:
        assert scores is None
    else:
        assert scores is not None
        expected = np.full(3, PARSED_EPSILON / 3)
        expected[label] += 1 - PARSED_EPSILON
        np.testing.assert_allclose(np.exp(scores), expected)


def test_a_word_inside_a_longer_label_is_not_another_label() -> None:
    words = [["acceptable", "good"], ["not acceptable", "good for nothing"]]
    said = {"Not acceptable.": 1, "acceptable": 0, "Good!": 0, "It is good for nothing.": 1}
    for text, label in said.items():
        scores = label_scores(from_tokens({}, text), words)
        assert scores is not None
        assert int(scores.argmax()) == label


def test_tokens_that_say_nothing_leave_it_to_the_text() -> None:
    scores = label_scores(said("The answer: positive", The=0.9), WORDS)
    assert scores is not None
    assert int(scores.argmax()) == 1


def test_log_probs_are_read_at_the_first_token_that_is_not_white_space() -> None:
    reply = b"""{"choices": [{"message": {"content": "\\npositive"}, "logprobs": {"content": [
        {"token": "\\n", "logprob": -0.1, "top_logprobs": [{"token": "\\n", "logprob": -0.1}]},
        {"token": "pos", "logprob": -0.2, "top_logprobs": [
            {"token": "pos", "logprob": -0.2}, {"token": "\\ufffd", "logprob": -2.0},
            {"token": "\\ufffd", "logprob": -2.0}, {"token": "x", "logprob": -Infinity}]}]}}]}"""
    assert read_answer(reply).top_log_probs == {
        "pos": -0.2,
        "\ufffd": pytest.approx(math.log(2 * math.exp(-2.0))),
    }


@pytest.mark.parametrize(
    "log_probs", ["null", "[]", "{}", '{"content": null}', '{"content": [{"token": "a"}]}', "3"]
)
def test_log_probs_of_another_shape_are_none(log_probs: str) -> None:
    reply = f'{{"choices": [{{"message": {{"content": "a"}}, "logprobs": {log_probs}}}]}}'
    assert read_answer(reply.encode()).top_log_probs is None
