"""What a request passes before a wire reads it: key, body, JSON, ids, logs, metrics."""

import gzip
import json
import logging
import socket
import threading
import time
import zlib
from collections.abc import Iterator

import httpx2
import pytest
from backports import zstd
from fake_engine import FakeEngine
from live_server import serving

JSON = {"Content-Type": "application/json"}
GOOD = json.dumps({"model": "tone", "input": "good"}).encode()
PATHS = ("/v1/systemone", "/v1/decisions", "/classify", "/predict", "/v1/chat/completions",
         "/v1/completions", "/v1/taskfit/explain")  # fmt: skip


def told(response: httpx2.Response) -> str:
    """The message of an error, whatever its shape."""
    body = response.json()
    if "detail" in body:
        detail = body["detail"]
        return detail if isinstance(detail, str) else detail[0]["msg"]
    return body["error"] if isinstance(body["error"], str) else body["error"]["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1, 2",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"state": {"b": {"a": 1, "a": 2}}}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[" * 100_000,
        b'{"state": ' + b"[" * 70 + b"]" * 70 + b"}",
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_not_json_is_a_400_in_every_shape(
    live: httpx2.Client, path: str, body: bytes
) -> None:
    response = live.post(path, content=body, headers=JSON)
    assert response.status_code == 400
    assert "not valid JSON" in told(response)


@pytest.mark.parametrize("path", PATHS)
def test_json_of_another_shape_is_told_and_never_a_500(live: httpx2.Client, path: str) -> None:
    for body in (b"3", b"null", b"[]", b'"text"', b"{}", b'{"model": 10000000000000000000000}'):
        response = live.post(path, content=body, headers=JSON)
        assert response.status_code in (400, 422), body
        assert told(response)


def test_only_json_is_read(live: httpx2.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = live.post("/classify", content=GOOD, headers={"Content-Type": kind})
        assert response.status_code == 415
        assert "application/json" in told(response)
    assert live.get("/classify").status_code == 405
    assert live.get("/nowhere").status_code == 404


@pytest.mark.parametrize(
    ("name", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress)],
)
def test_compressed_bodies_are_read_up_to_the_limit(
    live: httpx2.Client, name: str, pack: object
) -> None:
    assert callable(pack)
    headers = {**JSON, "Content-Encoding": name}
    assert live.post("/classify", content=pack(GOOD), headers=headers).status_code == 200
    bomb = pack(b'{"input": "' + b"a" * 3_000_000)
    assert live.post("/classify", content=bomb, headers=headers).status_code == 413
    for damaged in (pack(GOOD)[:-3], b"damaged"):
        assert live.post("/classify", content=damaged, headers=headers).status_code == 400
    unknown = {**JSON, "Content-Encoding": "br"}
    assert live.post("/classify", content=GOOD, headers=unknown).status_code == 415


def test_a_large_body_is_a_413_that_says_the_limit_with_or_without_a_length() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b"a" * 100

    with serving(FakeEngine(), max_body=1000, max_texts=3) as client:
        for content in (b"a" * 3000, chunks()):
            response = client.post("/classify", content=content, headers=JSON)
            assert response.status_code == 413
            assert "1,000 bytes" in told(response)
        many = client.post("/classify", json={"model": "tone", "input": ["a"] * 4})
        assert many.status_code == 422
        assert told(many) == "4 texts; this server takes at most 3."
        assert client.post("/classify", content=GOOD, headers=JSON).status_code == 200


def test_limits_of_questions_and_options_are_told() -> None:
    questions = {f"q{i}": {"type": "noul"} for i in range(3)}
    options = {"type": "choice", "criteria": dict.fromkeys("abc")}
    predicate = {"type": "predicate", "instructions": "?"}
    with serving(FakeEngine(), max_questions=2, max_options=2) as client:
        for path, body in (
            ("/v1/systemone", {"state": "a", "questions": questions}),
            ("/v1/systemone", {"state": "a", "questions": {"q": options}}),
            ("/v1/decisions", {"input": "a", "questions": [predicate] * 3}),
        ):
            response = client.post(path, json={"model": "tone", **body})
            assert response.status_code in (400, 422)
            assert "at most 2" in told(response)


def raw(client: httpx2.Client, *parts: bytes, seconds: float = 0.0) -> bytes:
    """What comes back for bytes that are sent with pauses between them."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as wire:
        wire.settimeout(5)
        for part in parts:
            wire.sendall(part)
            time.sleep(seconds)
        found = b""
        while part := wire.recv(65536):
            found += part
        return found


def test_slow_senders_are_cut_off_while_others_are_served() -> None:
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with serving(FakeEngine(), read_timeout=0.3) as client:
        found: dict[str, bytes] = {}

        def send(name: str, *parts: bytes) -> None:
            found[name] = raw(client, *parts)

        senders = [
            threading.Thread(target=send, args=("body", head + b"Content-Length: 99\r\n\r\n{")),
            threading.Thread(target=send, args=("head", b"POST /classify HT")),
            threading.Thread(target=send, args=("silence",)),
        ]
        for one in senders:
            one.start()
        assert client.post("/classify", content=GOOD, headers=JSON).status_code == 200
        for one in senders:
            one.join(5)
        assert b" 408 " in found["body"].splitlines()[0]
        assert found["head"] == found["silence"] == b""
        # A second request over a connection that was of use before.
        whole = head + b"Content-Length: %d\r\n\r\n%s" % (len(GOOD), GOOD)
        both = raw(client, whole, whole[:20], seconds=0.1)
        assert both.count(b"HTTP/1.1 200") == 1


def test_a_key_is_asked_for_in_either_header_but_not_by_health_checks() -> None:
    with serving(FakeEngine(), api_key="s3cret") as client:
        for path in ("/health", "/readyz", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Api-Key": "s3cre"},
                        {"Authorization": "Basic s3cret"}):  # fmt: skip
            for path in (*PATHS, "/v1/models", "/metrics", "/v1/taskfit/models"):
                ask = client.get if path in ("/metrics",) or "models" in path else client.post
                response = ask(path, headers=headers)
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"
                assert told(response)
        for headers in ({"Authorization": "Bearer s3cret"}, {"X-Api-Key": "s3cret"}):
            response = client.post("/classify", content=GOOD, headers={**JSON, **headers})
            assert response.status_code == 200
            assert client.get("/metrics", headers=headers).status_code == 200


@pytest.mark.parametrize("asked", ["abc-1.2:3", "a" * 128])
def test_a_sane_request_id_is_kept(live: httpx2.Client, asked: str) -> None:
    response = live.get("/health", headers={"X-Request-Id": asked})
    assert response.headers["x-request-id"] == asked


@pytest.mark.parametrize("asked", ["a b", "a" * 129, "", "{}", "ä"])
def test_other_request_ids_are_made(live: httpx2.Client, asked: str) -> None:
    response = live.get("/health", headers={"X-Request-Id": asked.encode("latin-1")})  # type: ignore[dict-item]
    assert len(response.headers["x-request-id"]) == 16


def test_no_text_of_a_user_is_in_any_log(caplog: pytest.LogCaptureFixture) -> None:
    marker = "SECRETWORD"
    with caplog.at_level(logging.DEBUG), serving(FakeEngine()) as client:
        # The client's own log is not the server's.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        logging.getLogger("httpcore2").setLevel(logging.WARNING)
        for text in (marker, f"crash the batch {marker}", f"unreadable {marker}"):
            client.post("/classify", json={"model": "tone", "input": text})
            client.post("/v1/taskfit/explain", json={"model": "tone", "state": text})
        client.post("/classify", json={"model": marker, marker: "a"})
        client.post("/classify", content=b'{"' + marker.encode(), headers=JSON)
        client.get(f"/v1/models/{marker}?{marker}")
        client.get(f"/{marker}")
        body = {"model": "writer", "prompt": f"explode {marker} now", "stream": True}
        client.post("/v1/completions", json=body)
        answered = client.post("/classify", json={"model": "tone", "input": "crash the batch"})
    assert marker not in caplog.text
    # Where it failed is there, with the id that the client was told.
    assert answered.headers["x-request-id"] in caplog.text
    assert "fake_engine.py" in caplog.text
    assert "classify 200" in caplog.text


def test_metrics_count_by_wire_and_outcome() -> None:
    with serving(FakeEngine()) as client:
        client.post("/classify", content=GOOD, headers=JSON)
        client.post("/classify", content=b"{", headers=JSON)
        client.get("/secret/path")
        body = {"model": "writer", "prompt": "a b", "max_tokens": 3}
        client.post("/v1/completions", json=body)
        response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if line[0] != "#")
        for name, value in {
            'taskfit_requests_total{outcome="200",wire="classify"}': 1,
            'taskfit_requests_total{outcome="400",wire="classify"}': 1,
            'taskfit_requests_total{outcome="404",wire="other"}': 1,
            'taskfit_request_duration_seconds_count{wire="classify"}': 2,
            "taskfit_queue_seconds_count": 1,
            "taskfit_tokenization_seconds_count": 1,
            "taskfit_inference_seconds_count": 1,
            "taskfit_batch_requests_sum": 1,
            "taskfit_batch_tokens_sum": 2,
            "taskfit_generated_tokens_total": 3,
            "taskfit_queue_requests": 0,
            "taskfit_queue_tokens": 0,
        }.items():
            assert float(lines[name]) == value, name
        assert "secret" not in response.text


def test_no_other_site_may_read_answers(live: httpx2.Client) -> None:
    response = live.post("/classify", content=GOOD, headers={**JSON, "Origin": "http://evil.test"})
    assert not [name for name in response.headers if name.startswith("access-control")]
    asked = {"Origin": "http://evil.test", "Access-Control-Request-Method": "POST"}
    assert live.options("/classify", headers=asked).status_code == 405
