"""What the index counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)

from piecework.base.connections import Refused


class MarketMetrics:
    """Counters of one index, in a registry of its own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._accepted = Counter(
            "piecework_market_offers_accepted", "Offers taken in.", registry=self._registry
        )
        self._declined = Counter(
            "piecework_market_declined",
            "Requests declined, by code.",
            ["code"],
            registry=self._registry,
        )
        self._refused = Counter(
            "piecework_market_connections_refused",
            "Connections closed as soon as they came, by reason.",
            ["reason"],
            registry=self._registry,
        )
        self._dialled = Counter(
            "piecework_market_dials",
            "Addresses of workers dialled for them, by outcome.",
            ["outcome"],
            registry=self._registry,
        )
        self._live = Gauge("piecework_market_offers", "Live offers.", registry=self._registry)

    def accepted(self) -> None:
        """An offer was taken in."""
        self._accepted.inc()

    def declined(self, code: str) -> None:
        """A request was declined."""
        self._declined.labels(code).inc()

    def connection_refused(self, why: Refused) -> None:
        """A connection was closed as soon as it came."""
        self._refused.labels(why).inc()

    def dialled(self, outcome: str) -> None:
        """An address of a worker was dialled."""
        self._dialled.labels(outcome).inc()

    def exposition(self, live: int) -> bytes:
        """The text that Prometheus reads."""
        self._live.set(live)
        return generate_latest(self._registry)
