"""The shapes that requests and answers have in other projects; one file a project."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskfit.serve.wires import (
    chat,
    classify,
    completions,
    decisions,
    explain,
    models,
    predict,
    systemone,
)
from taskfit.serve.work import ModelCard

ROUTERS = tuple(
    wire.router
    for wire in (systemone, decisions, classify, predict, chat, completions, models, explain)
)
# A request for each address that the served models answer, if any do.
EXAMPLES: Mapping[str, Callable[[Sequence[ModelCard]], dict[str, Any] | None]] = {
    "/v1/systemone": systemone.example,
    "/v1/decisions": decisions.example,
    "/classify": classify.example,
    "/v1/classify": classify.example,
    "/predict": predict.example,
    "/v1/chat/completions": chat.example,
    "/v1/completions": completions.example,
    "/v1/taskfit/explain": explain.example,
}
