"""A budget and a number of requests: kept to, told, and gone on from without paying twice."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_server import ChatServer, answer, error
from taskfit.errors import SettingsError
from taskfit.remote import (
    Answer,
    ChatRequest,
    RemoteEndpoint,
    RemoteLimitError,
    RemoteModel,
)
from taskfit.remote.allowance import Allowance, SpentError
from taskfit.remote.estimate import estimate

AskAbout = Callable[..., list[ChatRequest]]
# Of the test server: 10 tokens of prompt and 2 of answer, 14 millionths each.
PRICES = {"price_per_million_input": 1.0, "price_per_million_output": 2.0}
COST = 14e-6


def test_a_number_of_requests_is_kept_to_and_gone_on_from(
    server: ChatServer, endpoint: RemoteEndpoint, ask_about: AskAbout
) -> None:
    requests = ask_about(*range(10))
    limited = replace(endpoint, max_requests=4)
    for sent in (4, 8):
        with pytest.raises(RemoteLimitError, match=f"4 requests .*{sent} of 10 answers are safe"):
            RemoteModel(limited).complete(requests)
        assert len(server.bodies) == sent
    model = RemoteModel(limited)
    model.complete(requests)
    assert len(server.bodies) == 10
    assert model.usage.num_cached == 8


def test_repeated_requests_count_among_those_allowed(
    server: ChatServer, endpoint: RemoteEndpoint, ask_about: AskAbout
) -> None:
    server.first = [error(503), error(503)]
    with pytest.raises(RemoteLimitError):
        RemoteModel(replace(endpoint, max_requests=2)).complete(ask_about(1))
    assert len(server.bodies) == 2


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_budget_is_never_passed_and_used_up_to_less_than_a_request(
    server: ChatServer, endpoint: RemoteEndpoint, ask_about: AskAbout, concurrency: int
) -> None:
    server.delay = 0.002
    budget = 6.5 * COST
    limited = replace(endpoint, budget=budget, concurrency=concurrency, **PRICES)
    model = RemoteModel(limited)
    # As long as each other, so that what the next one costs is known from the first.
    with pytest.raises(RemoteLimitError, match="The budget of"):
        model.complete(ask_about(*range(100, 130)))
    cost = model.usage.cost
    assert cost is not None
    # An answer may have 3 tokens, and has 2.
    assert budget - 2 * COST < cost <= budget


def test_a_budget_needs_prices(endpoint: RemoteEndpoint) -> None:
    with pytest.raises(SettingsError, match="both prices"):
        replace(endpoint, budget=1.0)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=30),
    budget=st.floats(1e-6, 1e-2),
    density=st.floats(0.05, 0.5),
)
def test_money_is_only_spent_where_it_was_set_aside(
    lengths: list[int], budget: float, density: float
) -> None:
    allowance = Allowance(max_requests=None, budget=budget, prices=(2.0, 3.0))
    spent = 0.0
    for length in lengths:
        request = ChatRequest([{"role": "user", "content": "x" * length}], max_tokens=5)
        try:
            held = allowance.hold(request)
        except SpentError:
            break
        tokens = round(density * length)
        answered = Answer("a", None, tokens, 4)
        cost = (tokens * 2.0 + 4 * 3.0) / 1e6
        allowance.settle(held, request, answered)
        spent += cost
    # But for the roundings of tokens, which make some texts denser than those before them.
    assert spent <= budget + len(lengths) * 2e-6


def test_samples_are_requests_of_their_own_with_seed_and_temperature(
    server: ChatServer, endpoint: RemoteEndpoint, ask_about: AskAbout
) -> None:
    (plain,) = ask_about("a")
    drawn = [replace(plain, temperature=0.7, seed=seed) for seed in range(3)]
    RemoteModel(endpoint).complete([plain, *drawn])
    asked = sorted((b["temperature"], b.get("seed", -1)) for b in server.bodies)
    assert asked == [(0, -1), (0.7, 0), (0.7, 1), (0.7, 2)]
    RemoteModel(endpoint).complete([plain, *drawn])
    assert len(server.bodies) == 4


def test_a_seed_that_is_refused_is_left_out_and_draws_stay_apart(
    server: ChatServer, endpoint: RemoteEndpoint, ask_about: AskAbout
) -> None:
    server.then = lambda body: error(400, "unknown field: seed") if "seed" in body else answer("a")
    drawn = [replace(r, temperature=1.0, seed=s) for r in ask_about("a") for s in range(3)]
    model = RemoteModel(endpoint)
    assert [a.text for a in model.complete(drawn)] == ["a"] * 3
    assert len([body for body in server.bodies if "seed" not in body]) == 3
    assert len(model.known(drawn)) == 3
    assert None not in model.known(drawn)


def test_what_is_known_is_not_estimated_and_prices_may_be_unknown(
    server: ChatServer, endpoint: RemoteEndpoint, ask_about: AskAbout
) -> None:
    requests = ask_about("aaaa", "bbbb", "cccc")
    model = RemoteModel(endpoint)
    before = estimate(requests, model.known(requests), prices=(None, 1.0))
    assert (before.num_requests, before.num_known, before.cost) == (3, 0, None)
    model.complete(requests[:1])
    found = estimate(requests, model.known(requests), prices=(1.0, 2.0))
    # Texts of this length have 10 tokens, as the answer has told.
    assert (found.num_requests, found.num_known, found.prompt_tokens) == (2, 1, 20)
    assert found.completion_tokens == 6
    assert found.cost == pytest.approx((20 + 2 * 6) / 1e6)
    assert model.paid(requests).num_answers == 1
