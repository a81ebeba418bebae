"""What the gateway counts, for Prometheus. Digests of nothing: only numbers and bounded labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from piecework.base.connections import Refused
from piecework.client.gateway.line import WaitingLine


class GatewayMetrics:
    """Counters of one gateway, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self._requests = Counter(
            "piecework_gateway_requests",
            "Answers by format and outcome.",
            ["format", "stream", "outcome"],
            registry=r,
        )
        self._failures = Counter(
            "piecework_gateway_stream_failures",
            "Streams that failed after they began.",
            ["code"],
            registry=r,
        )
        self._refused = Counter(
            "piecework_gateway_connections_refused",
            "Connections closed as soon as they came, by reason.",
            ["reason"],
            registry=r,
        )
        self._running = Gauge(
            "piecework_gateway_running", "Answers running or waiting now.", registry=r
        )
        self._waiting = Gauge(
            "piecework_gateway_waiting", "Jobs waiting for their turn.", registry=r
        )
        self._seconds = Histogram(
            "piecework_gateway_seconds",
            "Seconds from request to the end of the answer.",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
            registry=r,
        )
        self._canvases = Counter("piecework_gateway_canvases", "Canvases paid for.", registry=r)
        self._tokens = Counter(
            "piecework_gateway_output_tokens", "Output tokens paid for.", registry=r
        )
        self._steps = Counter(
            "piecework_gateway_denoising_steps", "Denoising steps paid for.", registry=r
        )
        self._structured = Counter(
            "piecework_gateway_structured_answers", "Structured answers begun.", registry=r
        )
        self._repairs = Counter(
            "piecework_gateway_repairs",
            "Jobs that filled a part of a structured answer again.",
            registry=r,
        )
        self._spent = Counter(
            "piecework_gateway_spent_base_units", "Base units promised.", registry=r
        )

    def watch(self, line: WaitingLine) -> None:
        """Show how many wait in this line."""
        self._waiting.set_function(lambda: line.waiting)

    @contextmanager
    def request(self, form: str, *, stream: bool) -> Iterator[None]:
        """Count one request of a format and its time, whatever becomes of it."""
        outcome = "failed"
        with self._running.track_inprogress(), self._seconds.time():
            try:
                yield
                outcome = "answered"
            finally:
                self._requests.labels(form, str(stream).lower(), outcome).inc()

    def failed(self, code: str) -> None:
        """A stream failed after its first byte."""
        self._failures.labels(code).inc()

    def canvas(self, tokens: int, steps: int, amount: int) -> None:
        """A canvas was delivered and paid."""
        self._canvases.inc()
        self._tokens.inc(tokens)
        self._steps.inc(steps)
        self._spent.inc(amount)

    def structured(self) -> None:
        """A structured answer began."""
        self._structured.inc()

    def repaired(self) -> None:
        """A structured answer needed one more job."""
        self._repairs.inc()

    def connection_refused(self, why: Refused) -> None:
        """A connection was closed as soon as it came."""
        self._refused.labels(why).inc()

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
