"""Answers of a model behind an OpenAI-compatible HTTP endpoint. Knows no task and no template."""

from taskfit.remote.chat import Answer, ChatRequest
from taskfit.remote.client import RemoteError, RemoteLimitError, RemoteModel
from taskfit.remote.endpoint import RemoteEndpoint
from taskfit.remote.scores import label_scores
from taskfit.remote.usage import Usage

__all__ = [
    "Answer",
    "ChatRequest",
    "RemoteEndpoint",
    "RemoteError",
    "RemoteLimitError",
    "RemoteModel",
    "Usage",
    "label_scores",
]
