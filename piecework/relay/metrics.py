"""What the relay counts, for Prometheus. No address and no operator is in it."""

from __future__ import annotations

from aiohttp import hdrs, web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    generate_latest,
)

from piecework.relay.server import Relay


class RelayMetrics:
    """Figures of one relay, in a registry of its own.

    The relay counts as it goes, without a library in its loops. They are brought here when they are
    asked for.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._workers = Gauge("piecework_relay_workers", "Workers that are admitted.", registry=r)
        self._worker_limit = Gauge(
            "piecework_relay_workers_limit", "Workers that are admitted at most.", registry=r
        )
        self._clients = Gauge(
            "piecework_relay_clients", "Clients that a worker has or that wait for one.", registry=r
        )
        self._client_limit = Gauge(
            "piecework_relay_clients_limit", "Clients that all workers have at most.", registry=r
        )
        self._connections = Gauge(
            "piecework_relay_connections", "Open connections of every kind.", registry=r
        )
        self._bytes = Counter(
            "piecework_relay_bytes", "Bytes passed on, both ways together.", registry=r
        )
        self._joins = Counter("piecework_relay_joins", "Workers admitted.", registry=r)
        self._refused = Counter(
            "piecework_relay_refused",
            "Connections and clients that were turned away or cut off, by reason.",
            ["reason"],
            registry=r,
        )
        self._dials = Counter(
            "piecework_relay_dials",
            "Addresses dialled for workers, by what became of it.",
            ["outcome"],
            registry=r,
        )
        self._told: dict[str, int] = {}

    def exposition(self, relay: Relay) -> bytes:
        """The text that Prometheus reads."""
        self._workers.set(relay.workers)
        self._worker_limit.set(relay.limits.workers)
        self._clients.set(relay.clients)
        self._client_limit.set(relay.most_clients)
        self._connections.set(relay.connections)
        self._bring(self._bytes, "bytes", relay.passed_bytes)
        self._bring(self._joins, "joins", relay.joins)
        for reason, count in relay.counts.items():
            self.refused(reason, count)
        for outcome, count in relay.dials.items():
            self._bring(self._dials.labels(outcome), f"dials {outcome}", count)
        return generate_latest(self.registry)

    def refused(self, reason: str, count: int) -> None:
        """Take how many were turned away for a reason until now."""
        self._bring(self._refused.labels(reason), f"refused {reason}", count)

    def _bring(self, counter: Counter, name: str, count: int) -> None:
        counter.inc(count - self._told.get(name, 0))
        self._told[name] = count


def metrics_application(relay: Relay) -> web.Application:
    """Routes /metrics and /health."""
    metrics = RelayMetrics()

    async def expose(_: web.Request) -> web.Response:
        body = metrics.exposition(relay)
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "workers": relay.workers})

    app = web.Application()
    app.router.add_get("/metrics", expose)
    app.router.add_get("/health", health)
    return app
