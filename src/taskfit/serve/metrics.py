"""What `/metrics` tells, in a registry of each app's own."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class Metrics:
    """Counts and times of one server.

    Attributes:
        requests: By wire and outcome: the status, or `gone` where the client did not wait.
        duration: Seconds from a request's arrival to the end of its answer, by wire.
        queue: Seconds between a request's tokens and the start of its batch.
        tokenization: Seconds in which the texts of a request became tokens.
        inference: Seconds of a batch.
        waiting: Requests that wait or run.
        waiting_tokens: Tokens that wait or run.
        batch_requests: Requests scored together.
        batch_tokens: Tokens scored together.
        generated: Tokens written by generators.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "taskfit_requests",
            "Requests by wire and outcome.",
            ["wire", "outcome"],
            registry=self.registry,
        )
        self.duration = Histogram(
            "taskfit_request_duration_seconds",
            "From arrival to the end of the answer.",
            ["wire"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue = self._histogram("queue_seconds", "From tokens to the start of the batch.")
        self.tokenization = self._histogram("tokenization_seconds", "Of a request's texts.")
        self.inference = self._histogram("inference_seconds", "Of a batch.")
        self.batch_requests = self._histogram("batch_requests", "Scored together.", SIZES)
        self.batch_tokens = self._histogram("batch_tokens", "Scored together.", TOKENS)
        self.waiting = Gauge(
            "taskfit_queue_requests", "Requests that wait or run.", registry=self.registry
        )
        self.waiting_tokens = Gauge(
            "taskfit_queue_tokens", "Tokens that wait or run.", registry=self.registry
        )
        self.generated = Counter(
            "taskfit_generated_tokens", "Tokens written by generators.", registry=self.registry
        )

    def _histogram(
        self, name: str, documentation: str, buckets: Sequence[float] = SECONDS
    ) -> Histogram:
        return Histogram(f"taskfit_{name}", documentation, buckets=buckets, registry=self.registry)

    def page(self) -> bytes:
        """Return all in Prometheus' text format."""
        return generate_latest(self.registry)
