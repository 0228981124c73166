"""Laws of `RemoteModel`, against a real HTTP server on this machine."""

import re
import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_server import Reply, answer, error
from taskfit.errors import SettingsError
from taskfit.remote import ChatRequest, RemoteEndpoint, RemoteError, RemoteModel, Usage

AskAbout = Callable[..., list[ChatRequest]]


def echo(body: dict[str, Any]) -> Reply:
    text = body["messages"][-1]["content"]
    return answer(text, top={text: -0.5, "x": -2.0})


def test_answers_come_in_the_order_of_the_requests(server, endpoint, ask_about):
    server.then = echo
    server.delay = 0.005
    texts = [f"text {i} ü 🙂 \ud83d" for i in range(20)]
    answers = RemoteModel(endpoint).complete(ask_about(*texts))
    assert [a.text for a in answers] == texts
    assert [a.top_log_probs for a in answers] == [{text: -0.5, "x": -2.0} for text in texts]
    assert {(a.prompt_tokens, a.completion_tokens, a.from_cache) for a in answers} == {
        (10, 2, False)
    }


def test_requests_are_greedy_and_ask_for_log_probs(server, endpoint):
    chat = [{"role": "system", "content": "Judge."}, {"role": "user", "content": "fine"}]
    RemoteModel(endpoint).complete([ChatRequest(chat, max_tokens=7)])
    assert server.headers[0]["path"] == "/v1/chat/completions"
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Judge."},
                {"role": "user", "content": "fine"},
            ],
            "max_tokens": 7,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ]


def test_as_many_requests_as_allowed_are_under_way_at_once(server, endpoint, ask_about):
    server.delay = 0.05
    RemoteModel(replace(endpoint, concurrency=3)).complete(ask_about(*range(13)))
    assert 1 < server.most_at_once <= 3


def test_what_is_cached_is_not_sent_again(server, endpoint, ask_about):
    server.then = echo
    requests = ask_about("a", "b", "c")
    first = RemoteModel(endpoint).complete(requests)
    server.stop()
    again = RemoteModel(endpoint)
    second = again.complete(requests)
    assert second == [replace(a, from_cache=True) for a in first]
    assert again.usage == Usage(num_cached=3)


def test_another_model_length_text_or_address_is_another_answer(server, endpoint, ask_about):
    (request,) = ask_about("a")
    RemoteModel(endpoint).complete([request])
    RemoteModel(replace(endpoint, model="other")).complete([request])
    RemoteModel(endpoint).complete([replace(request, max_tokens=4)])
    RemoteModel(endpoint).complete(ask_about("a "))
    other = server.base_url.replace("127.0.0.1", "localhost")
    RemoteModel(replace(endpoint, base_url=other)).complete([request])
    RemoteModel(replace(endpoint, base_url=server.base_url + "/")).complete([request])
    assert len(server.bodies) == 5


@pytest.mark.parametrize("is_cached", [True, False])
def test_equal_requests_are_sent_once(server, endpoint, without_cache, ask_about, is_cached):
    model = RemoteModel(endpoint if is_cached else without_cache)
    steps: list[int] = []
    answers = model.complete(ask_about("a", "b", "a", "a"), advance=steps.append)
    assert [a.from_cache for a in answers] == [False, False, True, True]
    assert len(server.bodies) == 2
    assert model.usage.num_cached == 2
    assert sum(steps) == 4


def test_progress_is_told_as_answers_become_known(server, endpoint, ask_about):
    RemoteModel(endpoint).complete(ask_about(*range(3)))
    steps: list[int] = []
    RemoteModel(endpoint).complete(ask_about(*range(5)), advance=steps.append)
    assert steps == [3, 1, 1]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_passing_failures_are_retried(server, endpoint, ask_about, status):
    server.first = [error(status), error(status)]
    model = RemoteModel(endpoint)
    assert model.complete(ask_about("a"))[0].text == "positive"
    assert (model.usage.num_requests, model.usage.num_retries) == (3, 2)


def test_retries_end(server, endpoint, ask_about):
    server.then = lambda body: error(500, "out of cheese")
    message = r"answered HTTP 500: out of cheese \(tried 3 times\)\. .* 0 of 2 answers are safe in"
    with pytest.raises(RemoteError, match=message):
        RemoteModel(endpoint).complete(ask_about("a", "b"))
    assert len(server.bodies) == 3  # the second request is never sent: the first goes alone


def test_retry_after_is_honoured_by_the_request_and_by_all_others(server, endpoint, ask_about):
    server.first = [error(429, Retry_After="0.2")]
    RemoteModel(endpoint).complete(ask_about("a"))
    server.first = [error(503, Retry_After="0.2")]
    impatient = RemoteModel(replace(endpoint, max_retries=0))
    with pytest.raises(RemoteError, match="HTTP 503"):
        impatient.complete(ask_about("b"))
    impatient.complete(ask_about("c"))
    assert server.times[1] - server.times[0] > 0.18
    assert server.times[3] - server.times[2] > 0.18


def test_hours_are_not_waited_for(server, endpoint, ask_about):
    server.first = [error(429, "daily quota", Retry_After="7200")]
    with pytest.raises(RemoteError, match="daily quota and asks to wait 7200 seconds"):
        RemoteModel(endpoint).complete(ask_about("a"))
    assert len(server.bodies) == 1


def test_the_rate_is_limited_over_all_threads_and_calls(server, without_cache, ask_about):
    model = RemoteModel(replace(without_cache, requests_per_minute=1200.0))
    model.complete(ask_about(*range(4)))
    model.complete(ask_about(*range(3)))
    # Six intervals of 0.05 seconds, less what the first may have been late.
    assert server.times[-1] - server.times[0] > 0.2


def test_log_probs_are_given_up_where_they_are_refused(server, endpoint, ask_about):
    def refuse(body: dict[str, Any]) -> Reply:
        return error(400, "unknown field `top_logprobs`") if "logprobs" in body else answer()

    server.then = refuse
    model = RemoteModel(endpoint)
    answers = model.complete(ask_about(*range(6)))
    assert {a.top_log_probs for a in answers} == {None}
    model.complete(ask_about("more"))
    # Only the first request was refused: with 20, and with the 5 that some servers allow.
    assert [body.get("top_logprobs") for body in server.bodies] == [20, 5] + [None] * 7
    assert [a.from_cache for a in RemoteModel(endpoint).complete(ask_about(*range(6)))] == [
        True
    ] * 6


def test_fewer_log_probs_are_asked_for_where_twenty_are_refused(server, endpoint, ask_about):
    def limit(body: dict[str, Any]) -> Reply:
        return error(422, "at most 5 logprobs") if body["top_logprobs"] > 5 else echo(body)

    server.then = limit
    answers = RemoteModel(endpoint).complete(ask_about("a", "b"))
    assert all(a.top_log_probs for a in answers)
    assert [body["top_logprobs"] for body in server.bodies] == [20, 5, 5]


def test_log_probs_are_no_longer_asked_for_where_they_never_come(server, endpoint, ask_about):
    server.then = lambda body: answer()
    RemoteModel(endpoint).complete(ask_about("a", "b", "c"))
    assert ["logprobs" in body for body in server.bodies] == [True, False, False]


def test_one_answer_without_log_probs_does_not_end_them(server, endpoint, ask_about):
    model = RemoteModel(endpoint)
    model.complete(ask_about("a"))
    server.first = [answer()]
    model.complete(ask_about("b"))
    assert model.complete(ask_about("c"))[0].top_log_probs == {"positive": -0.1}
    assert "logprobs" in server.bodies[-1]


def test_the_newer_name_of_the_length_limit_is_learnt(server, endpoint, ask_about):
    def modern(body: dict[str, Any]) -> Reply:
        if "max_tokens" in body:
            return error(400, "Use 'max_completion_tokens' instead of 'max_tokens'.")
        return echo(body)

    server.then = modern
    RemoteModel(endpoint).complete(ask_about("a", "b"))
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 3, 3]


def test_other_refusals_are_not_retried(server, endpoint, ask_about):
    server.then = lambda body: error(400, "the prompt is too long")
    with pytest.raises(RemoteError, match=r"refused the request .HTTP 400: the prompt is too long"):
        RemoteModel(endpoint).complete(ask_about("a"))
    assert len(server.bodies) == 1


def test_an_endpoint_that_goes_down_loses_nothing(server, endpoint, ask_about):
    requests = ask_about(*range(30))

    def go_down(body: dict[str, Any]) -> Reply:
        return echo(body) if len(server.bodies) <= 12 else error(503, "shutting down")

    server.then = go_down
    with pytest.raises(RemoteError) as caught:
        RemoteModel(endpoint).complete(requests)
    told = re.search(r"(\d+) of 30 answers are safe in (\S+); the same command", str(caught.value))
    assert told is not None
    assert told[2] == str(endpoint.cache)
    num_safe = int(told[1])
    assert 0 < num_safe <= 12

    server.stop()
    with pytest.raises(RemoteError, match=f"cannot be reached .* {num_safe} of 30 answers"):
        RemoteModel(endpoint).complete(requests)

    server.start()
    server.bodies.clear()
    server.then = echo
    answers = RemoteModel(endpoint).complete(requests)
    assert [a.text for a in answers] == [str(i) for i in range(30)]
    assert sum(a.from_cache for a in answers) == num_safe
    assert len(server.bodies) == 30 - num_safe


def test_an_interruption_saves_what_is_under_way(server, endpoint, ask_about):
    server.then = echo
    model = RemoteModel(replace(endpoint, concurrency=2))
    server.delay = 0.01

    def interrupt(count: int) -> None:
        if model.usage.num_answers >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.complete(ask_about(*range(40)), advance=interrupt)
    num_sent = len(server.bodies)
    assert 5 <= num_sent < 40
    again = RemoteModel(endpoint)
    again.complete(ask_about(*range(40)))
    assert again.usage.num_cached == num_sent


def test_a_failure_for_good_ends_the_waiting_and_the_queue(server, endpoint, ask_about):
    def judge(body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        return {"busy": error(503), "fatal": error(400)}.get(text, answer())

    server.then = judge
    server.delay = 0.02
    start = time.monotonic()
    with pytest.raises(RemoteError, match="HTTP 400"):
        RemoteModel(replace(endpoint, backoff_seconds=60.0)).complete(
            ask_about("first", "busy", "fatal", *range(200))
        )
    assert time.monotonic() - start < 20.0
    assert len(server.bodies) < 100


def test_a_slow_endpoint_is_told_from_one_that_is_down(server, endpoint, ask_about):
    server.delay = 0.3
    message = r"gave no answer within 0\.05 seconds \(tried once\)\. Raise timeout_seconds"
    with pytest.raises(RemoteError, match=message):
        RemoteModel(replace(endpoint, timeout_seconds=0.05, max_retries=0)).complete(ask_about("a"))


def test_a_trickling_answer_is_slow_too(server, endpoint, ask_about, monkeypatch):
    def trickle(handler: Any, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b" ")
                time.sleep(0.02)
        except OSError:
            handler.close_connection = True

    monkeypatch.setattr(server, "serve", trickle)
    start = time.monotonic()
    with pytest.raises(RemoteError, match=r"gave no answer within 0.1 seconds"):
        RemoteModel(replace(endpoint, timeout_seconds=0.1, max_retries=0)).complete(ask_about("a"))
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_not_retried_and_not_shown(
    server, endpoint, ask_about, monkeypatch, status
):
    monkeypatch.setenv("TINY_KEY", " secret-1 \n")
    server.then = lambda body: error(status, "Incorrect key: secret-1")
    model = RemoteModel(replace(endpoint, api_key_variable="TINY_KEY"))
    with pytest.raises(RemoteError, match=r"refused the key in TINY_KEY .HTTP 40[13]") as caught:
        model.complete(ask_about("a", "b", "c"))
    assert "secret-1" not in str(caught.value)
    assert [h["Authorization"] for h in server.headers] == ["Bearer secret-1"]


def test_a_missing_key_is_named_unless_everything_is_cached(
    server, endpoint, ask_about, monkeypatch
):
    monkeypatch.delenv("TINY_KEY", raising=False)
    keyed = replace(endpoint, api_key_variable="TINY_KEY")
    with pytest.raises(RemoteError, match=r"variable TINY_KEY, which .* is not set"):
        RemoteModel(keyed).complete(ask_about("a"))
    RemoteModel(endpoint).complete(ask_about("a"))
    assert RemoteModel(keyed).complete(ask_about("a"))[0].from_cache
    assert "Authorization" not in server.headers[0]


def test_an_unknown_model_is_named(server, endpoint, ask_about):
    server.then = lambda body: error(404, "model `tiny` not found")
    with pytest.raises(RemoteError, match=r"know the model 'tiny', .*HTTP 404: model `tiny` not"):
        RemoteModel(endpoint).complete(ask_about("a"))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<html>welcome</html>", "not JSON: <html>welcome</html>"),
        (b"", "not JSON: an empty reply"),
        (b"\xff\xfe\xff", "not JSON"),
        (b"[]", "no choice with a message"),
        (b'{"choices": []}', "no choice with a message"),
        (b'{"choices": [{"text": "positive"}]}', "no choice with a message"),
        (b'{"choices": [{"message": {"content": 3}}]}', "a message that is not text"),
        (b'{"error": {"message": "no credit left"}}', "no credit left"),
    ],
)
def test_nonsense_is_quoted_and_never_cached(server, endpoint, ask_about, content, found):
    server.first = [answer(), (200, {}, content)]
    with pytest.raises(RemoteError, match=re.escape(found)) as caught:
        RemoteModel(replace(endpoint, concurrency=1)).complete(ask_about("a", "b"))
    assert "1 of 2 answers is safe in" in str(caught.value)
    assert RemoteModel(endpoint).complete(ask_about("b"))[0].text == "positive"


def test_a_long_reply_is_quoted_in_part(server, endpoint, ask_about):
    server.then = lambda body: (200, {}, b"word " * 5000)
    with pytest.raises(RemoteError) as caught:
        RemoteModel(endpoint).complete(ask_about("a"))
    assert len(str(caught.value)) < 700


def test_an_answer_without_text_is_empty(server, endpoint, ask_about):
    server.then = lambda body: (200, {}, b'{"choices": [{"message": {"content": null}}]}')
    (found,) = RemoteModel(endpoint).complete(ask_about("a"))
    assert (found.text, found.prompt_tokens) == ("", None)


def test_tokens_and_cost_are_counted_of_what_was_sent_only(server, endpoint, ask_about):
    priced = replace(endpoint, price_per_million_input=3.0, price_per_million_output=50.0)
    model = RemoteModel(priced)
    server.first = [error(500)]
    model.complete(ask_about("a", "b"))
    model.complete(ask_about("a", "b", "c"))
    assert model.usage == Usage(
        num_requests=4,
        num_retries=1,
        num_answers=3,
        num_cached=2,
        prompt_tokens=30,
        completion_tokens=6,
        cost=pytest.approx((30 * 3.0 + 6 * 50.0) / 1e6),
    )


def test_the_cost_is_unknown_without_prices_or_counts(server, endpoint, ask_about):
    model = RemoteModel(endpoint)
    model.complete(ask_about("a"))
    assert model.usage.cost is None
    priced = RemoteModel(
        replace(endpoint, price_per_million_input=3.0, price_per_million_output=5.0)
    )
    server.first = [answer(usage=False)]
    priced.complete(ask_about("b"))
    assert (priced.usage.num_uncounted, priced.usage.cost) == (1, None)


def test_without_a_cache_the_message_advises_one(server, without_cache, ask_about):
    server.then = lambda body: error(500)
    with pytest.raises(RemoteError, match="No cache is set, so nothing of these 1 requests"):
        RemoteModel(without_cache).complete(ask_about("a"))


def test_a_file_that_is_no_cache_is_left_alone(server, endpoint, ask_about, tmp_path):
    for content in (b"text,label\nfine,positive\n" * 100, b""):
        path = tmp_path / "table.csv"
        path.write_bytes(content)
        if not content:
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE answers (something TEXT)")
            database.close()
        before = path.read_bytes()
        with pytest.raises(RemoteError, match=r"table.csv cannot be used .* name another one"):
            RemoteModel(replace(endpoint, cache=path)).complete(ask_about("a"))
        assert server.bodies == []
        assert path.read_bytes()[100:] == before[100:]


def test_a_cache_that_cannot_be_written_is_named(server, endpoint, ask_about, tmp_path):
    (tmp_path / "file").write_text("")
    inside = replace(endpoint, cache=tmp_path / "file" / "answers.sqlite")
    with pytest.raises(RemoteError, match=r"answers\.sqlite cannot be used"):
        RemoteModel(inside).complete(ask_about("a"))


def test_two_models_share_one_cache_file(server, endpoint, ask_about):
    def nested(count: int) -> None:
        RemoteModel(endpoint).complete(ask_about("a", "b"))

    RemoteModel(endpoint).complete(ask_about("a"), advance=nested)
    assert len(server.bodies) == 2


def test_all_wrong_settings_are_named_at_once() -> None:
    with pytest.raises(
        SettingsError, match=r"base_url is 'localhost:80'.*max_retries.*concurrency"
    ):
        RemoteEndpoint(base_url="localhost:80", model="m", max_retries=-1, concurrency=0)


def test_a_login_in_the_address_is_sent_but_not_shown(server, endpoint, ask_about):
    address = server.base_url.replace("//", "//ann:secret-2@")
    server.then = lambda body: error(418)
    with pytest.raises(RemoteError, match="refused the request") as caught:
        RemoteModel(replace(endpoint, base_url=address)).complete(ask_about("a"))
    assert "secret-2" not in str(caught.value)
    assert server.headers[0]["Authorization"].startswith("Basic ")


def test_the_cache_holds_no_key(server, endpoint, ask_about, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "secret-3")
    RemoteModel(replace(endpoint, api_key_variable="TINY_KEY")).complete(ask_about("a"))
    folder: Path = endpoint.cache.parent
    assert all(b"secret-3" not in file.read_bytes() for file in folder.iterdir())
