"""The section `remote`: an endpoint, and what asking it may cost."""

from pydantic import Field

from taskfit.settings_base import Section


class RemoteSettings(Section):
    """The endpoint of method remote, `taskfit label` and distill: a server of OpenAI's protocol."""

    base_url: str = "http://localhost:8000/v1"
    """Address up to and with `/v1`."""
    model: str | None = None
    """The model's name at the endpoint."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself is written nowhere."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests a minute. None: no limit."""
    concurrency: int = Field(default=4, ge=1)
    """Requests under way at the same time."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """Longest wait for an answer (seconds)."""
    max_retries: int = Field(default=5, ge=0)
    """Repeated attempts after a failure that may pass."""
    input_price: float | None = Field(default=None, ge=0)
    """Price of a million prompt tokens. None: cost is not known."""
    output_price: float | None = Field(default=None, ge=0)
    """Price of a million tokens of answers. None: cost is not known."""
    samples: int = Field(default=1, ge=1)
    """Answers drawn for each text where the endpoint gives no log-probabilities; their shares are
    the probabilities. 1: one answer, the most probable, is taken for all of it."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Temperature of these draws, where there are several."""
    budget: float | None = Field(default=None, gt=0)
    """Most money for the requests of one command, in the currency of the prices, which it needs.
    The same command goes on, with as much again. None: no limit."""
    max_requests: int | None = Field(default=None, ge=1)
    """Most requests of one command, repeated ones included; the same command goes on. None: no
    limit."""
