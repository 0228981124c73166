"""A small OpenAI-compatible server on this machine that can be told to misbehave."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, str], bytes]


def answer(
    text: str = "positive", *, top: dict[str, float] | None = None, usage: bool = True
) -> Reply:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "logprobs": None}
    if top is not None:
        listed = [{"token": token, "logprob": value} for token, value in top.items()]
        choice["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    data: dict[str, Any] = {"choices": [choice]}
    if usage:
        data["usage"] = {"prompt_tokens": 10, "completion_tokens": 2}
    return 200, {}, json.dumps(data).encode()


def error(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, named, json.dumps({"error": {"message": message}}).encode()


class ChatServer:
    """Answers with `first` in turn, then with what `then` makes of a request's body."""

    def __init__(self) -> None:
        self.first: list[Reply] = []
        self.then: Callable[[dict[str, Any]], Reply] = lambda body: answer(top={"positive": -0.1})
        self.delay = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def settings(self) -> list[str]:
        """The section `remote` that points here, as overrides; prices are for a million tokens."""
        given = {
            "base_url": self.base_url,
            "model": "tiny",
            "max_retries": "0",
            "input_price": "1.0",
            "output_price": "2.0",
        }
        return [f"remote.{name}={value}" for name, value in given.items()]

    def start(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.serve(self, body)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._port = self._server.server_port
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True
        ).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.times.append(time.monotonic())
            self.bodies.append(body)
            self.headers.append({**handler.headers, "path": handler.path})
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            reply = self.first.pop(0) if self.first else None
        time.sleep(self.delay)
        with self._lock:
            self._at_once -= 1
        status, headers, content = reply or self.then(body)
        # The client may have given up meanwhile.
        try:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(content)))
            handler.send_header("Connection", "close")
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            handler.close_connection = True
