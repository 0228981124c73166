"""The stock clients of other projects run unmodified against a live server."""

import httpx2
import openai
import pytest
from fake_engine import probabilities
from typesafe_sdk import Choice, Noul, Score, TypeSafeClient, TypeSafeNotFoundError

from taskfit.serve.work import Option, Question


@pytest.fixture(scope="module")
def ai(live: httpx2.Client) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.base_url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("compression", ["zstd", False])
def test_typesafe_sdk(live: httpx2.Client, compression: "str | bool") -> None:
    base = str(live.base_url).rstrip("/")
    with TypeSafeClient(api_key="none", base_url=base, compression=compression) as client:
        state = {"message": "Please help.", "filling": "x" * 1500}
        found = client.system_one(
            state=state,
            model="tone",
            questions={
                "billing": Noul(instructions="Is this about billing?"),
                "tone": Choice(instructions="Tone?", criteria={"angry": "Loud", "calm": None}),
                "urgency": Score(instructions="How urgent?", criteria=["Wait", "Week", "Today"]),
            },
        )
        billing = Question("noul", "Is this about billing?", (Option("true"), Option("false")))
        assert found.nouls["billing"].noul == pytest.approx(probabilities(state, billing)["true"])
        assert found.choices["tone"].choice in ("angry", "calm")
        assert set(found.scores["urgency"].probabilities) == {0, 1, 2}
        assert found.usage.output_tokens == 0
        names = [model.name for model in client.models.list().models]
        assert names == ["tone", "mail", "writer"]
        with pytest.raises(TypeSafeNotFoundError, match="Did you mean tone") as caught:
            client.system_one(state="a", model="tonne", questions={"q": Noul(instructions="?")})
        assert caught.value.request_id


def test_openai_decisions(ai: openai.OpenAI) -> None:
    found = ai.decisions.create(
        model="tone",
        input="I was charged twice.",
        questions=[
            {"type": "predicate", "name": "billing", "instructions": "It is about billing."},
            {
                "type": "choice",
                "instructions": [{"type": "input_text", "text": "Is it?"}],
                "choices": [{"value": True}, {"value": "true"}, {"value": False}],
            },
            {
                "type": "score",
                "name": "urgency",
                "instructions": "How urgent?",
                "levels": [{"label": "low"}, {"label": "high", "description": "Today"}],
            },
        ],
        safety_identifier="someone",
    )
    billing, choice, urgency = found.answers
    expected = Question("noul", "It is about billing.", (Option("true"), Option("false")))
    assert billing.type == "predicate"
    assert billing.probability == probabilities("I was charged twice.", expected)["true"]
    assert choice.type == "choice"
    assert choice.name is None
    assert [one.value for one in choice.probabilities] == [True, "true", False]
    assert sum(one.probability for one in choice.probabilities) == pytest.approx(1)
    assert urgency.type == "score"
    assert [(one.value, one.label) for one in urgency.probabilities] == [(0, "low"), (1, "high")]
    assert urgency.score == pytest.approx(urgency.probabilities[1].probability)
    assert found.usage.total_tokens == found.usage.input_tokens


def test_openai_errors_are_its_own(ai: openai.OpenAI) -> None:
    question = {"type": "predicate", "instructions": "?"}
    with pytest.raises(openai.NotFoundError) as missing:
        ai.decisions.create(model="none", input="a", questions=[question])  # type: ignore[list-item]
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
    with pytest.raises(openai.BadRequestError) as bad:
        ai.decisions.create(model="tone", input="a", questions=[])
    assert bad.value.param == "questions"


def test_openai_models(ai: openai.OpenAI) -> None:
    assert [model.id for model in ai.models.list()] == ["tone", "mail", "writer"]
    assert ai.models.retrieve("mail").owned_by == "taskfit"


def test_openai_chat(ai: openai.OpenAI) -> None:
    found = ai.chat.completions.create(
        model="writer",
        messages=[{"role": "developer", "content": "Be"}, {"role": "user", "content": "brief now"}],
        max_completion_tokens=2,
        logprobs=True,
        top_logprobs=2,
        seed=1,
    )
    choice = found.choices[0]
    assert choice.message.content == " now brief"
    assert choice.finish_reason == "length"
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert [token.token for token in choice.logprobs.content] == [" now", " brief"]
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 2)


def test_openai_streams(ai: openai.OpenAI) -> None:
    stream = ai.chat.completions.create(
        model="writer",
        messages=[{"role": "user", "content": "one two three"}],
        stop=["one"],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == " three two"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens == 3
    pieces = list(ai.completions.create(model="writer", prompt="a b", max_tokens=3, stream=True))
    assert [one.choices[0].text for one in pieces] == [" b", " a", " b"]
    assert pieces[-1].choices[0].finish_reason == "length"


def test_openai_completions(ai: openai.OpenAI) -> None:
    found = ai.completions.create(model="writer", prompt="a bc", max_tokens=3, logprobs=1)
    assert found.choices[0].text == " bc a bc"
    logprobs = found.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [" bc", " a", " bc"]
    assert logprobs.text_offset == [0, 3, 5]
