"""What a server takes on at once and from one request; what is beyond is refused with the limit."""

from collections.abc import Sized
from dataclasses import dataclass, fields

from taskfit.errors import SettingsError
from taskfit.serve.work import RequestError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server; all are positive, `max_delay_ms` may be 0.

    Attributes:
        max_queue: Requests that wait or run at once; more are refused with 429.
        max_queue_tokens: Tokens that wait or run at once.
        max_tokens_per_batch: Tokens that are scored together.
        max_delay_ms: How long a request may wait for company when nothing runs.
        timeout: Seconds until a request is given up, counted from its arrival; a text that is being
            written is not cut off.
        read_timeout: Seconds in which a body must have arrived.
        grace: Seconds that what was accepted has left after the order to stop.
        max_body: Bytes of a request's body, before and after decompression.
        max_texts: Texts of a request.
        max_questions: Questions of a request.
        max_options: Options of a question.
        max_words: Words of a text that is explained.
        max_tokens: Tokens of a request, beyond the prompt that is kept.
        max_new_tokens: Tokens that a generator writes for one request.
        max_generations: Texts that are written at once; others wait.
        encode_threads: Threads that turn texts into tokens.
    """

    max_queue: int = 512
    max_queue_tokens: int = 262_144
    max_tokens_per_batch: int = 4096
    max_delay_ms: float = 0.0
    timeout: float = 60.0
    read_timeout: float = 15.0
    grace: float = 30.0
    max_body: int = 2 * MIB
    max_texts: int = 256
    max_questions: int = 400
    max_options: int = 255
    max_words: int = 200
    max_tokens: int = 16_384
    max_new_tokens: int = 4096
    max_generations: int = 4
    encode_threads: int = 2

    def __post_init__(self) -> None:
        """Refuse what is not positive."""
        for one in fields(self):
            value = getattr(self, one.name)
            if not (value > 0 or (value == 0 and one.name == "max_delay_ms")):
                option = "--" + one.name.replace("_", "-")
                raise SettingsError(f"{option} is {value:g}; give a number greater than 0.")


def refuse_more(items: Sized, limit: int, what: str, *where: str | int) -> None:
    """Refuse a part of a request that has too many items.

    Args:
        items: What is counted.
        limit: How many are allowed.
        what: What they are called, such as "texts".
        where: Path of the value in the request.

    Raises:
        RequestError: 422 with the limit.
    """
    if len(items) > limit:
        raise RequestError(
            422, f"{len(items):,} {what}; this server takes at most {limit:,}.", where=where
        )
