"""Whether the hub can be reached, found out in seconds and without a word on the screen."""

import threading
from pathlib import Path
from typing import Literal

from taskfit.errors import first_line

PATIENCE_SECONDS = 3.0


def why_not_at_hand(name: str, *, kind: Literal["model", "dataset"]) -> str | None:
    """Say why something of the hub cannot be had; None: it is cached, or the hub answers.

    Libraries try each file several times, with long pauses, and tell of every try. One question
    with a deadline comes before them; name servers that do not answer are waited for no longer.

    Args:
        name: `owner/name`.
        kind: What it is.
    """
    from huggingface_hub import constants, get_session

    cached = Path(constants.HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "snapshots"
    if constants.HF_HUB_OFFLINE or (cached.is_dir() and any(cached.iterdir())):
        return None
    url, problems = f"{constants.ENDPOINT}/api/{kind}s/{name}", []

    def ask() -> None:
        try:
            get_session().head(url, timeout=PATIENCE_SECONDS)
        except Exception as error:  # the library's client decides which kinds there are
            problems.append(first_line(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS + 0.5)
    if asking.is_alive():
        return f"{constants.ENDPOINT} does not answer"
    return f"{constants.ENDPOINT} cannot be reached ({problems[0]})" if problems else None
