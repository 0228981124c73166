"""What is served on the page that is tested: models of every kind that it tells apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from fake_engine import FakeEngine

from taskfit.serve.work import (
    GenerateRequest,
    Job,
    ModelCard,
    Option,
    Piece,
    Question,
    StateRequest,
    TextsRequest,
)

FEELING = Question(
    "choice", "Is the review positive or negative?", (Option("positive"), Option("negative"))
)
FOLLOWS = Question("choice", "Does it follow?", (Option("yes"), Option("no"), Option("open")))
TOPIC = Question("choice", "What about?", tuple(Option(f"topic {n}") for n in range(12)))
CARDS = (
    ModelCard("words", "Fitted to 500 reviews.", "tiny", "label_words", 0,
              questions={"label": FEELING}, asks_anything=True, max_length=64),
    ModelCard("head", "", "tiny", "head", 0, questions={"label": FEELING}, max_length=64),
    ModelCard("pairs", "", "tiny", "head", 0, columns=("premise", "hypothesis"),
              questions={"label": FOLLOWS, "topic": TOPIC}, max_length=64),
    ModelCard("writer", "", "tiny", "sft", 0, columns=(), generates=True, max_length=64),
    ModelCard("tiny", "", "tiny", "none", 0, columns=(), asks_anything=True, generates=True,
              max_length=64),
)  # fmt: skip


@dataclass
class AskedEngine(FakeEngine):
    """Remembers what it was asked."""

    cards: Sequence[ModelCard] = CARDS
    asked: list[TextsRequest | StateRequest | GenerateRequest] = field(default_factory=list)

    def encode(self, request: TextsRequest | StateRequest) -> Job:
        """Note a request, and encode it."""
        self.asked.append(request)
        return super().encode(request)

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        """Note a request, and write."""
        self.asked.append(request)
        return super().generate(request)
