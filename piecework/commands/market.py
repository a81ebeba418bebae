"""`piecework market`: the index of signed offers, with an explorer page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from piecework.base.files import private_folder
from piecework.commands import _common as common

app = common.group()
STORE = "market.db"


@app.callback()
def _market() -> None:
    """Run an index of signed offers.

    An index is a cache. Anybody may run one, and nobody has to trust it.
    """


@app.command()
def start(
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
) -> None:
    """Serve the index until SIGTERM or Ctrl-C.

    It prints one JSON line when it is ready.
    """
    folder = common.home("market", home_dir)
    common.guard(lambda: private_folder(folder, marks=(STORE,)))
    common.run(_serve(deployment, folder, host, port, rpc))


async def _serve(file: Path, folder: Path, host: str, port: int, rpc: str | None) -> None:
    from aiohttp import web

    from piecework.chain.deployment import Deployment
    from piecework.chain.reader import ChainReader
    from piecework.commands._server import listen, logs_to_stderr, until_told_to_stop
    from piecework.market.offer_store import OfferStore
    from piecework.market.server import IndexServer

    logs_to_stderr()
    deployment = Deployment.load(file)
    async with await ChainReader.connect(deployment, rpc_url=rpc) as reader:
        store = OfferStore(folder / STORE, deployment.domain)
        try:
            runner = web.AppRunner(
                IndexServer(store, reader, deployment.payment_token).application(),
                handler_cancellation=True,
                access_log=None,
            )
            bound = await listen(runner, host, port)
            try:
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
                await runner.cleanup()
        finally:
            store.close()
