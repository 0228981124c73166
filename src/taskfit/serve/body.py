"""From the bytes of a request to JSON, more strictly than Python reads it.

A name given twice, NaN, a number beyond floats, half a character: each would be dropped, changed or
break later, where nobody could say why.
"""

import json
import math
import re
import sys
import zlib
from typing import Any

from taskfit.serve.work import RequestError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_DEPTH = 64
TOO_DEEP = f"it is nested more than {MAX_DEPTH} deep"
# A \u escape of half a character; two in the right order are one character.
SURROGATE = re.compile(r"[\ud800-\udfff]")


def parse(raw: bytes) -> Any:  # noqa: ANN401
    """Return the JSON value of a body.

    Raises:
        RequestError: 400 if it is none.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start:,} is not UTF-8") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at character {error.pos:,}") from None
    except RequestError:
        raise
    except RecursionError:
        raise _invalid(TOO_DEEP) from None
    except ValueError:  # Python's limit on digits of an integer
        raise _invalid("a number has too many digits") from None
    _check_depth(value)
    if "\\u" in text and SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise _invalid("a \\u escape is half a character")
    return value


def decompress(raw: bytes, encoding: str, *, max_bytes: int) -> bytes:
    """Return a body without its compression.

    Args:
        raw: As it was sent.
        encoding: Of the header: gzip, deflate, zstd or identity.
        max_bytes: What it may have.

    Raises:
        RequestError: 413 if it is larger, 415 for another compression, 400 if it is damaged.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return raw
    if name in ("gzip", "x-gzip", "deflate"):
        plain = _inflate(raw, max_bytes)
    elif name == "zstd":
        plain = _zstd(raw, max_bytes)
    else:
        raise RequestError(
            415, f"Content-Encoding {encoding!r} is not known; send gzip, zstd, or no compression."
        )
    if len(plain) > max_bytes:
        raise too_large(max_bytes)
    return plain


def too_large(max_bytes: int) -> RequestError:
    """Return what is said of a body that is too large."""
    return RequestError(413, f"The body is larger than {max_bytes:,} bytes; send it in parts.")


def _invalid(reason: str) -> RequestError:
    return RequestError(400, f"The body is not valid JSON: {reason}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _invalid("an object has the same name twice")
    return found


def _constant(name: str) -> None:
    raise _invalid(f"{name} is no JSON number")


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _invalid("a number is too large")
    return number


def _check_depth(value: Any) -> None:  # noqa: ANN401
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise _invalid(TOO_DEEP)


def _inflate(raw: bytes, max_bytes: int) -> bytes:
    # 32: gzip or zlib, told by the first bytes.
    stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    try:
        plain = stream.decompress(raw, max_bytes + 1)
    except zlib.error:
        raise RequestError(400, "The compressed body is damaged.") from None
    if not stream.eof and len(plain) <= max_bytes:
        raise RequestError(400, "The compressed body ends too early.")
    return plain


def _zstd(raw: bytes, max_bytes: int) -> bytes:
    stream = zstd.ZstdDecompressor()
    try:
        plain: bytes = stream.decompress(raw, max_length=max_bytes + 1)
    except zstd.ZstdError:
        raise RequestError(400, "The compressed body is damaged.") from None
    if not stream.eof and len(plain) <= max_bytes:
        raise RequestError(400, "The compressed body ends too early.")
    return plain
