"""Every wire answers in the shape of its own project, with the engine's numbers."""

import json
from typing import Any

import httpx2
import pytest
from fake_engine import CARDS, SENTIMENT, probabilities
from hypothesis import given
from hypothesis import strategies as st
from transformers.decision.template_utils import Question as TheirQuestion
from typesafe_sdk._schemas import models as theirs

from taskfit.serve.wires import questions as typed
from taskfit.serve.wires.decision_input import state_of
from taskfit.serve.work import Option, Question

TONE = {
    "type": "choice",
    "instructions": {"ask": "Which tone?"},
    "criteria": {"calm": None, "angry": ["loud", {"and": "rude"}], "glad": "Happy"},
}


def post(live: httpx2.Client, path: str, **body: Any) -> Any:
    return live.post(path, json=body)


def weights() -> st.SearchStrategy[list[float]]:
    one = st.floats(0.001, 1)
    return st.lists(one, min_size=1, max_size=9).map(lambda w: [x / sum(w) for x in w])


@given(weights())
def test_confidences_and_scores_are_those_of_transformers(p: list[float]) -> None:
    names = [str(i) for i in range(len(p))]
    for kind, ours in (("choice", typed.choice_confidence), ("score", typed.score_confidence)):
        question = TheirQuestion("q", kind, "", names, names, names)
        answer = question.answer(p)
        assert ours(p) == pytest.approx(answer["confidence"], abs=1e-12)
    assert typed.mean_level(p) == pytest.approx(answer["score"], abs=1e-12)


def test_system_one_answers_all_kinds_with_the_engines_numbers(live: httpx2.Client) -> None:
    state = {"subject": "Charged twice", "lines": ["help", 2]}
    body = {
        "model": "tone",
        "state": state,
        "questions": {
            "tone": TONE,
            "spam": {"type": "noul", "instructions": "Spam?", "criteria": {"true": "An advert"}},
            "bare": {"type": "noul"},
            "urgency": {"type": "score", "criteria": ["Can wait", {"days": 7}, "Today"]},
        },
    }
    theirs.SystemOneRequest.model_validate(body)
    response = live.post("/v1/systemone", json=body)
    assert response.status_code == 200, response.text
    found = theirs.SystemOneResponse.model_validate(response.json())
    assert list(found.answers) == ["tone", "spam", "bare", "urgency"]
    tone = probabilities(
        state,
        Question(
            "choice",
            '{"ask": "Which tone?"}',
            (
                Option("calm"),
                Option("angry", '["loud", {"and": "rude"}]'),
                Option("glad", "Happy"),
            ),
        ),
    )
    answer = found.answers["tone"].root
    assert isinstance(answer, theirs.ChoiceAnswer)
    assert answer.probabilities == pytest.approx(tone)
    assert answer.choice == max(tone, key=tone.__getitem__)
    spam = Question("noul", "Spam?", (Option("true", "An advert"), Option("false")))
    noul = found.answers["spam"].root
    assert isinstance(noul, theirs.NoulAnswer)
    assert noul.noul == pytest.approx(probabilities(state, spam)["true"])
    score = found.answers["urgency"].root
    assert isinstance(score, theirs.ScoreAnswer)
    assert score.legend == {"0": "Can wait", "1": {"days": 7}, "2": "Today"}
    assert score.score == pytest.approx(score.probabilities["1"] + 2 * score.probabilities["2"])
    assert found.usage.input_tokens > 0


@pytest.mark.parametrize(
    ("body", "where", "told"),
    [
        ({"state": "a"}, ["questions"], "Field required"),
        ({"state": 3, "questions": {"q": TONE}}, ["state"], "text, an object or a list"),
        ({"state": "a", "questions": {}}, ["questions"], "at least 1"),
        ({"state": "a", "questions": {"q": {"type": "box"}}}, ["questions", "q", "type"], "box"),
        ({"state": "a", "questions": {"q": {"type": "colour"}}}, ["questions", "q"], "colour"),
        (
            {"state": "a", "questions": {"q": {"type": "score", "criteria": []}}},
            ["questions", "q", "score", "criteria"],
            "at least 1",
        ),
        (
            {"state": "a", "questions": {"q": {"type": "noul"}}, "assets": {"i": {"part": "p"}}},
            ["assets"],
            "Images",
        ),
        ({"state": "a", "questions": {"q": TONE}, "modle": "tone"}, ["modle"], "not permitted"),
        ({"state": "a", "questions": {"q": TONE}}, ["model"], "tone, mail, writer"),
    ],
)
def test_what_system_one_cannot_answer_is_told_with_its_place(
    live: httpx2.Client, body: dict[str, Any], where: list[str], told: str
) -> None:
    response = live.post("/v1/systemone", json=body)
    assert response.status_code == 422
    error = theirs.HTTPValidationError.model_validate(response.json())
    assert error.detail is not None
    assert error.detail[0].loc == ["body", *where]
    assert told in error.detail[0].msg


def test_an_unknown_model_is_a_404_in_every_shape(live: httpx2.Client) -> None:
    question = {"type": "noul"}
    told = post(live, "/v1/systemone", model="tome", state="a", questions={"q": question})
    assert told.status_code == 404
    assert "Did you mean tone?" in told.json()["detail"]
    asked = {"type": "predicate", "instructions": "?"}
    told = post(live, "/v1/decisions", model="tome", input="a", questions=[asked])
    assert (told.status_code, told.json()["error"]["code"]) == (404, "model_not_found")
    told = post(live, "/classify", model="tome", input="a")
    assert (told.status_code, told.json()["error"]["code"]) == (404, 404)
    told = post(live, "/predict", model="tome", inputs="a")
    assert (told.status_code, told.json()["error_type"]) == (404, "Validation")
    assert live.get("/v1/models/tome").status_code == 404
    assert live.get("/v1/models/tone").json()["id"] == "tone"


def test_classify_is_vllms_and_takes_a_question_of_a_run(live: httpx2.Client) -> None:
    texts = ["good", "bad", "so so"]
    found = post(live, "/v1/classify", model="tone", input=texts, user="u", priority=0).json()
    assert found["object"] == "list"
    assert found["id"].startswith("classify-")
    for index, (text, data) in enumerate(zip(texts, found["data"], strict=True)):
        expected = probabilities(text, SENTIMENT)
        assert data == {
            "index": index,
            "label": max(expected, key=expected.__getitem__),
            "probs": list(expected.values()),
            "num_classes": 2,
        }
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"]
    alone = post(live, "/classify", model="tone", input="bad").json()
    assert alone["data"][0]["probs"] == found["data"][1]["probs"]
    refused = post(live, "/classify", model="mail", input="a")
    assert refused.status_code == 422
    assert "mail/spam, mail/urgency" in refused.json()["error"]["message"]
    mail = {"subject": "s", "body": "b"}
    asked = post(live, "/classify", model="mail/urgency", input=[mail]).json()
    assert asked["data"][0]["num_classes"] == 2
    assert post(live, "/classify", model="writer", input="a").status_code == 422


@pytest.mark.parametrize(
    "extra",
    [
        {"add_special_tokens": False},
        {"priority": 1},
        {"priority": False},
        {"use_activation": False},
        {"padding": "max_length"},
        {"truncate_prompt_tokens": 12},
        {"truncate_prompt_tokens": -1, "truncation_side": "left"},
        {"messages": []},
        {"inptu": "a"},
    ],
)
def test_classify_refuses_by_name_what_would_change_the_answer(
    live: httpx2.Client, extra: dict[str, Any]
) -> None:
    response = post(live, "/classify", model="tone", input="a", **extra)
    assert response.status_code == 422
    assert response.json()["error"]["param"] in extra


def test_predict_is_text_embeddings_inferences(live: httpx2.Client) -> None:
    one = post(live, "/predict", model="tone", inputs="good").json()
    expected = sorted(probabilities("good", SENTIMENT).items(), key=lambda pair: -pair[1])
    assert one == [{"score": p, "label": label} for label, p in expected]
    batch = post(live, "/predict", model="tone", inputs=[["good"], ["bad"]]).json()
    assert batch[0] == one
    assert len(batch) == 2
    pair = post(live, "/predict", model="mail/spam", inputs=["a subject", "a body"])
    assert [set(p) for p in pair.json()] == [{"score", "label"}] * 2
    for body in ({"inputs": ["good", "bad"]}, {"inputs": "good", "raw_scores": True},
                 {"inputs": "good", "truncate": True, "truncation_direction": "Left"},
                 {"inputs": []}, {"inputs": 3}):  # fmt: skip
        refused = live.post("/predict", json={"model": "tone", **body})
        assert refused.status_code == 422, body
        assert refused.json()["error_type"] == "Validation"


def test_a_text_that_is_too_long_is_refused_unless_the_client_asks(live: httpx2.Client) -> None:
    text = "word " * 100
    whole = {"model": "tone", "input": ["short", text]}
    refused = live.post("/classify", json=whole)
    assert refused.status_code == 422
    assert "64" in refused.json()["error"]["message"]
    for path, body in (
        ("/classify", {**whole, "truncate_prompt_tokens": -1}),
        ("/predict", {"model": "tone", "inputs": [["short"], [text]], "truncate": True}),
    ):
        answer = live.post(path, json=body)
        assert (answer.status_code, answer.headers["x-truncated"]) == (200, "1")
    body = {"model": "tone", "state": text, "questions": {"q": {"type": "noul"}}}
    assert live.post("/v1/systemone", json=body).status_code == 422
    asked = live.post("/v1/systemone", json=body, headers={"X-Truncate": "true"})
    assert (asked.status_code, asked.headers["x-truncated"]) == (200, "0")


def test_the_page_is_told_what_leaving_out_each_word_does(live: httpx2.Client) -> None:
    text = "  not a good film "
    found = post(live, "/v1/taskfit/explain", model="tone", state=text).json()
    assert found["question"] == "label"
    assert found["probabilities"] == probabilities(text, SENTIMENT)
    assert [word["text"] for word in found["words"]] == text.split()
    assert all(text[w["start"] : w["end"]] == w["text"] for w in found["words"])
    without = ["  a good film ", "  not good film ", "  not a film ", "  not a good"]
    for word, rest in zip(found["words"], without, strict=True):
        assert word["probabilities"] == probabilities(rest, SENTIMENT)
    assert {token["part"] for token in found["tokens"]} == {"prompt", "text"}
    question = {"type": "score", "criteria": ["low", "high"]}
    asked = post(live, "/v1/taskfit/explain", model="tone", state="a b", question=question).json()
    assert set(asked["words"][0]["probabilities"]) == {"0", "1"}
    mail = {"subject": "x y", "body": "z"}
    found = post(live, "/v1/taskfit/explain", model="mail/spam", state=mail).json()
    places = [(w["column"], w["start"]) for w in found["words"]]
    assert places == [("subject", 0), ("subject", 2), ("body", 0)]
    many = post(live, "/v1/taskfit/explain", model="tone", state="w " * 201)
    assert many.status_code == 422
    assert "200" in many.json()["detail"][0]["msg"]


def test_what_is_served_is_told_in_full(live: httpx2.Client) -> None:
    found = live.get("/v1/taskfit/models").json()["models"]
    assert [card["name"] for card in found] == [card.name for card in CARDS]
    assert found[1]["columns"] == ["subject", "body"]
    assert found[1]["questions"]["urgency"]["options"][1] == {"name": "1", "description": "high"}


USER = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}


@pytest.mark.parametrize(
    ("given", "state"),
    [
        ("hi", "hi"),
        ([USER], "hi"),
        ([{"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]}], {"a": 1}),
        (
            [{"role": "system", "content": "be"}, USER],
            [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}],
        ),
        (
            [
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "ok"},
            ],
            [{"call": "f", "input": "{}"}, {"output": "ok"}],
        ),
    ],
)
def test_a_decisions_input_becomes_one_state(given: Any, state: Any) -> None:
    assert state_of(given) == state


@pytest.mark.parametrize(
    "given",
    [
        [],
        [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}],
        [{"type": "function_call_output", "call_id": "1", "output": "ok"}],
        [{"role": "wizard", "content": "a"}],
        [{"type": "unknown"}],
    ],
)
def test_an_input_that_cannot_be_read_is_a_400_of_openai(live: httpx2.Client, given: Any) -> None:
    asked = [{"type": "predicate", "instructions": "?"}]
    response = post(live, "/v1/decisions", model="tone", input=given, questions=asked)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 2}, "n"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 100_000}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temprature": 1}, "temprature"),
        ({"seed": 10**30}, "seed"),
        ({"messages": []}, "messages"),
    ],
)
def test_chat_refuses_by_name_what_would_change_the_answer(
    live: httpx2.Client, extra: dict[str, Any], param: str
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    response = live.post(
        "/v1/chat/completions", json={"model": "writer", "messages": messages, **extra}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    harmless = {"user": "u", "metadata": {"a": "b"}, "n": 1, "tools": [], "tool_choice": "none"}
    response = live.post(
        "/v1/chat/completions", json={"model": "writer", "messages": messages, **harmless}
    )
    assert response.status_code == 200


def test_a_run_that_labels_does_not_chat(live: httpx2.Client) -> None:
    messages = [{"role": "user", "content": "hi"}]
    response = post(live, "/v1/chat/completions", model="tone", messages=messages)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


def test_a_stream_that_breaks_says_so_in_an_event(live: httpx2.Client) -> None:
    body = {"model": "writer", "prompt": "please explode now", "stream": True}
    text = live.post("/v1/completions", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert events[0]["choices"][0]["text"] == " now"
    assert "explode" not in events[-1]["error"]["message"]
    assert "[DONE]" not in text
