"""Text written by a tuned generator, or a bare base, piece by piece."""

from collections.abc import Iterator

import numpy as np

from taskfit.data.messages import ROLES, Message
from taskfit.errors import TaskfitError
from taskfit.methods.token_stream import NextToken, Sampling, TextPieces, stream_tokens
from taskfit.runs.tuning.model import TunedModel, Valve
from taskfit.runs.tuning.rows import Prompt
from taskfit.serve.work import FinishReason, GenerateRequest, Piece, RequestError, TokenScore
from taskfit.tree import IntArray


class Writer:
    """Writes answers with a model and its chat template."""

    def __init__(self, tuned: TunedModel) -> None:
        """Bind to a model."""
        self._tuned = tuned
        ends, text = tuned.end_of_turn()
        end = tuned.model.tokenizer.eos_token_id
        self._end_ids = frozenset([*ends, *([] if end is None else [end])])
        self._end_text = text

    def generate(self, request: GenerateRequest) -> Iterator[Piece]:
        """Check a request now, and write when asked for pieces.

        Raises:
            RequestError: 422 for a prompt or setting that cannot be served.
        """
        _check(request)
        ids = self._ids(request)
        limit = self._tuned.model.tree.max_length
        room = limit - len(ids)
        wanted = room if request.max_tokens is None else request.max_tokens
        if wanted > room or room < 1:
            raise RequestError(
                422,
                f"The prompt has {len(ids)} tokens and the answer may have {wanted}; together "
                f"{limit} are read at most. Shorten the prompt, or ask for fewer tokens.",
                where=("prompt",) if room < 1 else ("max_tokens",),
            )
        return self._pieces(ids, wanted, request)

    def _pieces(self, ids: IntArray, max_tokens: int, request: GenerateRequest) -> Iterator[Piece]:
        texts, out = TextPieces(self._tuned.model), list[str]()
        stop = [*request.stop, *([self._end_text] if self._end_text else [])]
        valve = Valve(out.append, stop)
        sampling = Sampling(request.temperature, request.top_p, request.seed, request.top_logprobs)
        tree, prompt = self._tuned.model.tree, len(ids)
        tokens = stream_tokens(
            tree, ids, max_tokens=max_tokens, end_ids=self._end_ids, sampling=sampling
        )
        for count, token in enumerate(tokens, start=1):
            ended = token.id in self._end_ids
            valve.take(texts.take(token.id))
            if (ended or count == max_tokens) and not valve.is_over:
                valve.take(texts.close())
                valve.close()
            finish: FinishReason | None = "length" if count == max_tokens else None
            if ended or valve.is_over:
                finish = "stop"
            text = "".join(out)
            out.clear()
            yield Piece(
                text,
                *self._scores(token),
                finish_reason=finish,
                num_prompt_tokens=prompt,
            )
            if finish is not None:
                return

    def _scores(self, token: NextToken) -> tuple[TokenScore | None, tuple[TokenScore, ...]]:
        if token.log_prob is None:
            return None, ()
        top = tuple(TokenScore(self._decode(one), log_prob) for one, log_prob in token.top)
        return TokenScore(self._decode(token.id), token.log_prob), top

    def _decode(self, token: int) -> str:
        return str(self._tuned.model.tokenizer.decode([token]))

    def _ids(self, request: GenerateRequest) -> IntArray:
        try:
            ids = self._tuned.prompt_ids(_prompt(request))
        except TaskfitError as error:
            raise RequestError(422, str(error), where=("prompt",)) from error
        if not ids:
            raise RequestError(
                422,
                "The prompt is empty, and this model has no token to start from.",
                where=("prompt",),
            )
        return np.array(ids, dtype=np.int64)


def _prompt(request: GenerateRequest) -> Prompt:
    if isinstance(request.prompt, str):
        return request.prompt
    messages = []
    for place, turn in enumerate(request.prompt):
        role, content = turn.get("role", ""), turn.get("content", "")
        if role not in ROLES:
            raise RequestError(
                422,
                f"Message {place + 1} has the role {role!r}; allowed are {', '.join(ROLES)}.",
                where=("messages", place, "role"),
            )
        messages.append(Message(ROLES[role], content))
    if not messages:
        raise RequestError(422, "There are no messages.", where=("messages",))
    return tuple(messages)


def _check(request: GenerateRequest) -> None:
    """Raise `RequestError` for a setting that means nothing."""
    most = request.max_tokens
    for name, value, is_allowed, allowed in (
        ("max_tokens", most, most is None or most >= 1, "1 or more"),
        ("temperature", request.temperature, 0 <= request.temperature <= 10, "0 to 10"),
        ("top_p", request.top_p, 0 < request.top_p <= 1, "above 0 and at most 1"),
        ("top_logprobs", request.top_logprobs, 0 <= (request.top_logprobs or 0) <= 20, "0 to 20"),
    ):
        if not is_allowed:
            raise RequestError(422, f"{name} is {value}; allowed is {allowed}.", where=(name,))
