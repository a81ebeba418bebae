"""`piecework relay`: an untrusted relay for workers behind routers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piecework.base.connections import ConnectionLimits
from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.relay.limits import RelayLimits
    from piecework.relay.server import Relay

app = common.group()
MAX_WATCHERS = 16
"""Connections of the metrics port. Prometheus needs one."""


@app.callback()
def _relay() -> None:
    """Run a relay for workers that have no public port.

    A relay passes sealed bytes. Anybody may run one, and nobody has to trust it.
    """


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a relay listens, and what it calls itself."""

    host: str
    port: int
    name: str
    metrics: tuple[str, int] | None
    """Where its figures are served, as host and port."""


NodeUrl = Annotated[
    str | None,
    typer.Option("--rpc", help="The chain's node. The file of a development chain names its own."),
]


@app.command()
def start(
    *,
    deployment: Annotated[
        Path, typer.Option(help="The deployment file of the market whose workers it takes.")
    ],
    name: Annotated[
        str,
        typer.Option(
            help="host:port that workers and clients dial. Default: that of --host and --port."
        ),
    ] = "",
    host: Annotated[
        str, typer.Option(help="Address to listen on; a relay is meant to be public.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 7443,
    rpc: NodeUrl = None,
    max_connections: Annotated[
        int,
        typer.Option(min=16, max=100_000, help="Connections held at once. A client takes two."),
    ] = 2048,
    connections_per_address: Annotated[
        int,
        typer.Option(
            min=1, max=100_000, help="Connections of one address, a client's or a worker's."
        ),
    ] = 64,
    workers: Annotated[
        int, typer.Option(min=1, max=10_000, help="Workers admitted at once.")
    ] = 256,
    clients_per_worker: Annotated[
        int, typer.Option(min=1, max=10_000, help="Clients of one worker at once.")
    ] = 256,
    idle_s: Annotated[
        float, typer.Option(min=1, max=86_400, help="Seconds without a byte that end a client.")
    ] = 120.0,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Serve /metrics and /health there; 0 picks a port."),
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address of the metrics port. It asks for no password.")
    ] = "127.0.0.1",
) -> None:
    """Pass clients on to the workers that dial in, until SIGTERM or Ctrl-C.

    It admits operators with an active stake. It prints one JSON line when it is ready.
    """
    from piecework.base.listener import connections_that_fit
    from piecework.relay.limits import RelayLimits

    fitting = connections_that_fit(max_connections, 1)
    limits = RelayLimits(
        ConnectionLimits(fitting, min(connections_per_address, max(1, fitting // 2))),
        workers=workers,
        clients_per_worker=clients_per_worker,
        idle_s=idle_s,
    )
    watched = None if metrics_port is None else (metrics_host, metrics_port)
    common.run(_serve(deployment, _Place(host, port, name, watched), limits, rpc))


async def _serve(file: Path, place: _Place, limits: RelayLimits, rpc: str | None) -> None:
    import structlog

    from piecework.base.clock import SystemClock
    from piecework.base.dialling import Dialler
    from piecework.base.listener import bind
    from piecework.chain.deployment import Deployment
    from piecework.chain.limits import DEVELOPMENT_CHAIN_IDS
    from piecework.chain.reading.reader import ChainReader
    from piecework.commands._server import logs_to_stderr, until_told_to_stop
    from piecework.relay.joined import Gatekeeper
    from piecework.relay.operators import RegisteredOperators, dial_back_server
    from piecework.relay.server import Relay
    from piecework_protocol.relaying import relay_domain

    logs_to_stderr()
    deployment, clock = Deployment.load(file), SystemClock()
    sockets = bind(place.host, place.port)
    bound = sockets[0].getsockname()[1]
    shown = f"[{place.host}]" if ":" in place.host else place.host
    name = place.name or f"{shown}:{bound}"
    async with await ChainReader.connect(deployment, rpc_url=rpc) as reader:
        domain = relay_domain(deployment.chain_id, deployment.registry)
        operators = RegisteredOperators(reader, clock)
        gatekeeper = Gatekeeper(name, domain, operators, clock)
        dialler = Dialler(public_only=deployment.chain_id not in DEVELOPMENT_CHAIN_IDS)
        dials = dial_back_server(operators, dialler, deployment.domain, clock)
        relay = Relay(gatekeeper, dials, limits, clock=clock, log=structlog.get_logger())
        relay.start(sockets)
        try:
            async with _watched(relay, place.metrics) as url:
                ready = {"ready": True, "role": "relay", "name": name, "port": bound}
                common.print_json({**ready, "chain_id": deployment.chain_id, "metrics_url": url})
                await until_told_to_stop()
        finally:
            await relay.close()


@asynccontextmanager
async def _watched(relay: Relay, place: tuple[str, int] | None) -> AsyncIterator[str | None]:
    """Serve a relay's figures, and give their address. None: nobody asked for them."""
    from piecework.base.http_server import HttpServer, http_limits, serving
    from piecework.relay.metrics import metrics_application

    if place is None:
        yield None
        return
    server = HttpServer(
        metrics_application(relay),
        http_limits(MAX_WATCHERS, MAX_WATCHERS),
        on_refused=lambda why: relay.refused(f"metrics_{why}"),
    )
    async with serving(server, *place) as bound:
        yield f"{bound.url}/metrics"
