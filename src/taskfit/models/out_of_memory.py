"""Tell memory errors from others."""

import torch

WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: CPU allocators raise a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        words in str(error) for words in WORDS
    )
