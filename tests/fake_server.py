"""What the playground page asks a server for, answered from sums over the words of the text."""

import json
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

PAGE = files("taskfit.serve") / "page"
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


def card(name: str, **more: Any) -> dict[str, Any]:
    usual = {"columns": ["text"], "questions": {}, "multi_label": False, "asks_anything": False, "generates": False}  # fmt: skip
    of = {"description": "", "base": "tiny", "method": "head", "created": 0, "max_length": 512}
    return {"name": name} | of | usual | more


def choice(words: str, *names: str) -> dict[str, Any]:
    options = [{"name": name, "description": ""} for name in names]
    return {"kind": "choice", "instructions": words, "options": options}


MODELS = [
    card(
        "words",
        description="Label words, fitted to 500 reviews.",
        method="label_words",
        questions={"label": choice("Is the review positive or negative?", "positive", "negative")},
        asks_anything=True,
    ),
    card("head", questions={"label": choice("", "positive", "negative")}),
    card(
        "pairs",
        columns=["premise", "hypothesis"],
        questions={
            "label": choice("Does it follow?", "yes", "no", "open"),
            "topic": choice("What about?", *(f"topic {n}" for n in range(12))),
        },
    ),
    card("writer", method="sft", generates=True),
]


def weight(word: str, option: str) -> float:
    return zlib.crc32(f"{word} {option}".encode()) / 2**32 * 6 - 3


def probabilities(state: Any, names: list[str]) -> dict[str, float]:
    words = (state if isinstance(state, str) else json.dumps(state)).split()
    raw = {name: 2 ** sum(weight(word, name) for word in words) for name in names}
    return {name: value / sum(raw.values()) for name, value in raw.items()}


def names_of(question: Mapping[str, Any]) -> list[str]:
    if question["type"] == "noul":
        return ["true", "false"]
    found = question["criteria"]
    return list(found) if isinstance(found, dict) else [str(level) for level in range(len(found))]


def answer(state: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    found = probabilities(state, names_of(question))
    if question["type"] == "noul":
        return {"type": "noul", "noul": found["true"]}
    top = max(found, key=found.__getitem__)
    if question["type"] == "choice":
        return {"type": "choice", "choice": top, "confidence": 0.5, "probabilities": found}
    legend = {str(level): words for level, words in enumerate(question["criteria"])}
    score = sum(int(level) * share for level, share in found.items())
    return {"type": "score", "score": score, "confidence": 0.5, "legend": legend, "probabilities": found}  # fmt: skip


def systemone(body: Mapping[str, Any]) -> dict[str, Any]:
    answers = {name: answer(body["state"], asked) for name, asked in body["questions"].items()}
    usage = {"input_tokens": 9, "output_tokens": len(answers)}
    return {"model": body["model"], "answers": answers, "usage": usage}


def classify(body: Mapping[str, Any]) -> dict[str, Any]:
    [question] = next(one for one in MODELS if one["name"] == body["model"])["questions"].values()
    data = []
    for index, text in enumerate(body["input"]):
        found = probabilities(text, [option["name"] for option in question["options"]])
        label = max(found, key=found.__getitem__)
        data.append({"index": index, "label": label, "probs": list(found.values()), "num_classes": len(found)})  # fmt: skip
    return {"id": "1", "object": "list", "created": 0, "model": body["model"], "data": data}


def explain(body: Mapping[str, Any]) -> dict[str, Any]:
    text = body["state"] if isinstance(body["state"], str) else "\n".join(body["state"].values())
    names = names_of(body["question"])
    words, end = [], 0
    for word in text.split():
        start = text.index(word, end)
        end = start + len(word)
        without = probabilities(text[:start] + text[end:], names)
        words.append({"text": word, "start": start, "end": end, "probabilities": without})
    parts = [("Read the text and answer.\n\n", "prompt"), (text, "text"), ("\nAnswer:", "question")]
    tokens = [{"text": w + " ", "part": part} for words, part in parts for w in words.split(" ")]
    return {"tokens": tokens, "question": "label", "probabilities": probabilities(text, names), "words": words}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Serves the page's files and the four requests it makes."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def reply(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def reply_json(self, status: int, found: Any) -> None:
        self.reply(status, json.dumps(found).encode(), "application/json")

    def is_refused(self) -> bool:
        key = self.server.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.reply_json(401, {"detail": "No API key, or a wrong one."})
        return True

    def do_GET(self) -> None:
        if self.path == "/v1/taskfit/models":
            if not self.is_refused():
                self.reply_json(200, {"models": MODELS})
            return
        name = self.path.removeprefix("/page/") if self.path != "/" else "index.html"
        if (PAGE / name).is_file():
            kind = TYPES[name.rpartition(".")[2]]
            self.reply(200, (PAGE / name).read_bytes(), f"{kind}; charset=utf-8")
        else:
            self.reply_json(404, {"detail": f"Nothing here: {self.path}"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append((self.path, body))
        if self.is_refused():
            return
        if "refuse" in json.dumps(body):
            detail = [{"loc": ["body", "state"], "msg": "Too long: 600 tokens, 512 allowed.", "type": "value"}]  # fmt: skip
            self.reply_json(422, {"detail": detail})
        elif self.path == "/v1/chat/completions":
            self.chat(body)
        else:
            wires = {"/v1/systemone": systemone, "/classify": classify, "/v1/taskfit/explain": explain}  # fmt: skip
            self.reply_json(200, wires[self.path](body))

    def chat(self, body: Mapping[str, Any]) -> None:
        words = f"You said: {body['messages'][-1]['content']}".split(" ")
        of = {"id": "1", "created": 0, "model": body["model"]}
        deltas = [{"content": word + " "} for word in words] + [{}]
        if not body.get("stream"):
            message = {"role": "assistant", "content": " ".join(words)}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self.reply_json(200, of | {"object": "chat.completion", "choices": choices})
            return
        events = []
        for delta in deltas:
            part = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            chunk = of | {"object": "chat.completion.chunk", "choices": [part]}
            events.append(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")
        self.stream("".join([*events, "data: [DONE]\n\n"]).encode())

    def stream(self, content: bytes) -> None:
        """Send it in pieces that end anywhere, within characters too."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for start in range(0, len(content), 97):
            self.wfile.write(content[start : start + 97])
            self.wfile.flush()


class Server(ThreadingHTTPServer):
    """Remembers what it was asked; set `key` to ask for one."""

    daemon_threads = True
    key = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[tuple[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"


@contextmanager
def serving() -> Iterator[Server]:
    """Serve while the block runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
