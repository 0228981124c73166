"""What is said of requests and their cost, in words."""

from taskfit.remote.estimate import Estimate
from taskfit.remote.usage import Usage

PRICES = "unknown (set remote.input_price and remote.output_price, per million tokens)"


def estimate_words(found: Estimate) -> str:
    """Say what is still to be sent and what it will cost."""
    kept = f"; {found.num_known:,} answers are kept from before" * bool(found.num_known)
    return (
        f"{found.num_requests:,} requests, about {found.prompt_tokens:,} tokens, answers of at "
        f"most {found.completion_tokens:,}; price: {_about(found.cost)}{kept}"
    )


def usage_words(usage: Usage) -> str:
    """Say what was sent and what it did cost."""
    repeated = f" ({usage.num_retries:,} of them repeated)" * bool(usage.num_retries)
    sent = f"{usage.num_requests:,} requests{repeated}"
    if usage.num_uncounted:
        return f"{sent}; spent: unknown, as the endpoint does not say how many tokens they have"
    cost = PRICES if usage.cost is None else f"{usage.cost:.4g}"
    return (
        f"{sent}, {usage.prompt_tokens:,} tokens, answers of {usage.completion_tokens:,}; "
        f"spent: {cost}"
    )


def _about(cost: float | None) -> str:
    return PRICES if cost is None else f"about {cost:.2g}"
