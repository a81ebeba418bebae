"""`piecework market`: the index of signed offers, with an explorer page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piecework.base.connections import ConnectionLimits, parse_networks
from piecework.base.files import private_folder
from piecework.commands import _common as common

app = common.group()
STORE = "market.db"
CONNECTIONS_PER_ADDRESS = 64
"""A client needs one or two. One address may be a NAT with many clients behind it."""


@app.callback()
def _market() -> None:
    """Run an index of signed offers.

    An index is a cache. Anybody may run one, and nobody has to trust it.
    """


@app.command()
def start(
    *,
    deployment: Annotated[
        Path, typer.Option(help="The deployment file of the market's contracts.")
    ],
    home_dir: Annotated[Path | None, common.home_option("market")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the index is meant to be public.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free port.")] = 8380,
    rpc: Annotated[
        str | None, typer.Option(help="Instead of the deployment's RPC endpoint.")
    ] = None,
    max_connections: Annotated[
        int, typer.Option(min=8, max=100_000, help="Connections held at once.")
    ] = 1024,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address or network of a proxy whose X-Forwarded-For is believed."),
    ] = None,
) -> None:
    """Serve the index until SIGTERM or Ctrl-C.

    It prints one JSON line when it is ready.
    """
    from piecework.base.http_server import http_limits

    folder = common.home("market", home_dir)
    common.guard(lambda: private_folder(folder, marks=(STORE,)))
    try:
        trusted = parse_networks(trusted_proxy or ())
    except ValueError as error:
        common.fail(str(error), 2)
    limits = http_limits(max_connections, CONNECTIONS_PER_ADDRESS, trusted)
    common.run(_serve(deployment, folder, (host, port), limits, rpc))


async def _serve(
    file: Path, folder: Path, address: tuple[str, int], limits: ConnectionLimits, rpc: str | None
) -> None:
    from piecework.base.http_server import DEAF, HttpServer, serving
    from piecework.chain.deployment import Deployment
    from piecework.chain.reader import ChainReader
    from piecework.commands._server import logs_to_stderr, until_told_to_stop
    from piecework.market.offer_store import OfferStore
    from piecework.market.server import IndexServer

    logs_to_stderr()
    host, port = address
    deployment = Deployment.load(file)
    async with await ChainReader.connect(deployment, rpc_url=rpc) as reader:
        store = OfferStore(folder / STORE, deployment.domain)
        try:
            index = IndexServer(
                store, reader, deployment.payment_token, trusted_proxies=limits.trusted
            )
            server = HttpServer(
                index.application(),
                limits,
                on_refused=index.metrics.connection_refused,
                deaf=DEAF,
            )
            async with serving(server, host, port) as bound:
                ready = {
                    "ready": True,
                    "role": "market",
                    "url": bound.url,
                    "host": host,
                    "port": bound.port,
                }
                common.print_json({**ready, "home": str(folder), "chain_id": deployment.chain_id})
                await until_told_to_stop()
        finally:
            store.close()
