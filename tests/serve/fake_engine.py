"""An engine without a model: probabilities come from a hash of what is asked."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from taskfit.serve.work import (
    Answers,
    GenerateRequest,
    Job,
    ModelCard,
    Option,
    Piece,
    PromptToken,
    Question,
    RequestError,
    StateRequest,
    TextsRequest,
    TokenScore,
)

SENTIMENT = Question(
    "choice", "What is the sentiment?", (Option("positive", "Praise"), Option("negative"))
)
LEVELS = (Option("0", "low"), Option("1", "high"))
CARDS = (
    ModelCard("tone", "Sentiment of a text.", "tiny", "head", 1_790_000_000,
              questions={"label": SENTIMENT}, asks_anything=True, max_length=64),
    ModelCard("mail", "Two questions of a mail.", "tiny", "label_words", 1_790_000_000,
              columns=("subject", "body"),
              questions={
                  "spam": Question("noul", "Is it spam?", (Option("true"), Option("false"))),
                  "urgency": Question("score", "How urgent?", LEVELS),
              }, max_length=64),
    ModelCard("writer", "Writes.", "tiny", "sft", 1_790_000_000, generates=True, max_length=64),
)  # fmt: skip


def probabilities(text: object, question: Question) -> dict[str, float]:
    """Probabilities of options that depend on all that is asked, and on nothing else."""
    key = repr((text, question.instructions, question.options))
    weights = [
        1 + int.from_bytes(hashlib.sha256(f"{key}|{option.name}".encode()).digest()[:4], "big")
        for option in question.options
    ]
    total = sum(weights)
    return {option.name: w / total for option, w in zip(question.options, weights, strict=True)}


@dataclass
class FakeJob:
    model: str
    num_texts: int
    num_tokens: int
    request: TextsRequest | StateRequest


@dataclass
class FakeEngine:
    """Answers at once unless told otherwise.

    `fail` says of a text whether its job fails, and with what; `hold` keeps `score` waiting until
    it is set; `seconds` is what a batch takes.
    """

    cards: Sequence[ModelCard] = CARDS
    seconds: float = 0.0
    fail: Callable[[object], Exception | None] = lambda text: None
    hold: threading.Event | None = None
    batches: list[list[FakeJob]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    closed: list[str] = field(default_factory=list)
    piece_seconds: float = 0.0

    def models(self) -> Sequence[ModelCard]:
        return self.cards

    def card(self, name: str) -> ModelCard:
        for card in self.cards:
            if card.name == name:
                return card
        raise RequestError(404, f"There is no model {name!r}.", where=("model",))

    def encode(self, request: TextsRequest | StateRequest) -> Job:
        card = self.card(request.model)
        contents: Sequence[object]
        if isinstance(request, TextsRequest):
            contents = request.texts
            for index, text in enumerate(request.texts):
                given = set(text) if isinstance(text, Mapping) else {card.columns[0]}
                if given != set(card.columns):
                    raise RequestError(422, f"Columns are {card.columns}.", where=("input", index))
        else:
            contents = [request.state]
            asked = set(request.questions.values())
            if not card.asks_anything and not asked <= set(card.questions.values()):
                raise RequestError(422, f"{card.name} knows {list(card.questions)}.")
        lengths = [len(str(content).split()) + 1 for content in contents]
        if max(lengths) > card.max_length and not request.shorten:
            raise RequestError(422, f"{max(lengths)} tokens are more than {card.max_length}.")
        for content in contents:
            if "unreadable" in str(content):
                raise ValueError(f"cannot read {content}")
        tokens = sum(min(n, card.max_length) for n in lengths)
        return FakeJob(card.name, len(contents), tokens, request)

    def score(self, jobs: Sequence[Job]) -> Sequence[Answers | Exception]:
        self.begun.set()
        if self.hold is not None:
            self.hold.wait(20)
        time.sleep(self.seconds)
        fakes = [job for job in jobs if isinstance(job, FakeJob)]
        self.batches.append(fakes)
        return [self._answer(job) for job in fakes]

    def _answer(self, job: FakeJob) -> Answers | Exception:
        request, card = job.request, self.card(job.model)
        if isinstance(request, TextsRequest):
            contents, questions = list(request.texts), card.questions
        else:
            contents, questions = [request.state], request.questions
        for content in contents:
            if "crash the batch" in str(content):
                raise RuntimeError(f"crashed on {content}")
            error = self.fail(content)
            if error is not None:
                return error
        found = [
            {name: probabilities(content, q) for name, q in questions.items()}
            for content in contents
        ]
        short = [i for i, c in enumerate(contents) if len(str(c).split()) + 1 > card.max_length]
        return Answers(found, job.num_tokens, short)

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        card = self.card(request.model)
        if not card.generates:
            raise RequestError(422, f"{card.name} does not write.", where=("model",))
        return self._pieces(request)

    def _pieces(self, request: GenerateRequest) -> Iterator[Piece]:
        prompt = request.prompt
        text = prompt if isinstance(prompt, str) else " ".join(m["content"] for m in prompt)
        words = text.split()
        if not words:
            yield Piece("", finish_reason="stop")
        try:
            count = len(words) if request.max_tokens is None else request.max_tokens
            for i in range(count if words else 0):
                time.sleep(self.piece_seconds)
                word = words[-1 - i % len(words)]
                if "explode" in text and i == 1:
                    raise RuntimeError(f"exploded on {text}")
                is_last = i == count - 1
                reason = None
                if word in request.stop:
                    yield Piece("", finish_reason="stop", num_prompt_tokens=len(words))
                    return
                if is_last:
                    reason = "length" if request.max_tokens is not None else "stop"
                score = None if request.top_logprobs is None else TokenScore(f" {word}", -0.5)
                top = [TokenScore(f"{n}", -0.5 - n) for n in range(request.top_logprobs or 0)]
                yield Piece(f" {word}", score, top, reason, len(words))
        finally:
            self.closed.append(text)

    def tokens(self, request: TextsRequest | StateRequest) -> Sequence[PromptToken]:
        self.encode(request)
        content = request.texts[0] if isinstance(request, TextsRequest) else request.state
        return [PromptToken("Answer: ", "prompt"), PromptToken(str(content), "text")]
