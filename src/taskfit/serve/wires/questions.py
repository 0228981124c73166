"""What System One's and OpenAI's typed questions share: kinds, and how sure an answer is."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from taskfit.serve.work import ModelCard, Option, Question


def _content(value: object) -> object:
    if isinstance(value, str | dict | list):
        return value
    raise PydanticCustomError("content", "give text, an object or a list")


# Told in one message; a union would tell what each of its members misses.
Json = Annotated[
    Any,
    BeforeValidator(_content),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "items": {}}]}
    ),
]


def as_text(content: Any) -> str:  # noqa: ANN401
    """Return what the model is shown of instructions or a description; JSON stays JSON."""
    if content is None:
        return ""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def choice(instructions: str, descriptions: Mapping[str, Json | None]) -> Question:
    """Return a question with named options."""
    options = tuple(Option(name, as_text(text)) for name, text in descriptions.items())
    return Question("choice", instructions, options)


def yes_or_no(
    instructions: str, *, true: Json | None = None, false: Json | None = None
) -> Question:
    """Return a question whose answer is yes or no."""
    options = (Option("true", as_text(true)), Option("false", as_text(false)))
    return Question("noul", instructions, options)


def score(instructions: str, levels: Sequence[Json]) -> Question:
    """Return a question with ordered levels, lowest first; they are called 0, 1, ..."""
    options = tuple(Option(str(i), as_text(level)) for i, level in enumerate(levels))
    return Question("score", instructions, options)


def in_order(question: Question, probabilities: Mapping[str, float]) -> dict[str, float]:
    """Return probabilities in the order in which a question names its options."""
    return {option.name: probabilities[option.name] for option in question.options}


def given_labels(
    card: ModelCard, question: Question, probabilities: Mapping[str, float]
) -> dict[str, list[str]]:
    """Return what a choice's answer has in addition where a text may have several of its labels.

    It is ours: `labels`, those that the text is given by the run's thresholds.
    """
    if not card.multi_label or question.kind != "choice":
        return {}
    return {"labels": card.given(probabilities)}


def choice_confidence(probabilities: Sequence[float]) -> float:
    """Return how far the best of n options stands above chance, (p - 1/n) / (1 - 1/n).

    As `Question.answer` of transformers' `decision` computes it; between 0 and 1.
    """
    n = len(probabilities)
    return 1.0 if n == 1 else max(0.0, (max(probabilities) - 1 / n) / (1 - 1 / n))


def score_confidence(probabilities: Sequence[float]) -> float:
    """Return 1 minus the mean distance from the best level, over the same under uniform levels.

    As `Question.answer` of transformers' `decision` computes it, whose uniform levels lie around
    their middle: 1 - E|level - best| / mean|level - (n - 1) / 2|; between 0 and 1.
    """
    n = len(probabilities)
    if n == 1:
        return 1.0
    best = max(range(n), key=probabilities.__getitem__)
    distance = sum(p * abs(level - best) for level, p in enumerate(probabilities))
    uniform = sum(abs(level - (n - 1) / 2) for level in range(n)) / n
    return max(0.0, 1 - distance / uniform)


def mean_level(probabilities: Sequence[float]) -> float:
    """Return the expected level."""
    return sum(level * p for level, p in enumerate(probabilities))
