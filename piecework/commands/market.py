"""`piecework market`: the index of signed offers, with an explorer page."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from piecework.base.connections import ConnectionLimits, parse_networks
from piecework.base.files import private_folder
from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.chain.deployment import Deployment
    from piecework_protocol.types import Address

app = common.group()
STORE = "market.db"
CONNECTIONS_PER_ADDRESS = 64
"""A client needs one or two. One address may be a NAT with many clients behind it."""
MAX_TOKEN_USD: Final = 10**9
Rpc = Annotated[
    str | None,
    typer.Option(
        envvar="PIECEWORK_MARKET_RPC",
        help="The chain's node. The file of a development chain names its own.",
    ),
]


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
    rpc: Rpc = None,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="PIECEWORK_MARKET_DATABASE",
            help="postgresql://… that several instances share, instead of a file in the home.",
        ),
    ] = None,
    max_connections: Annotated[
        int, typer.Option(min=8, max=100_000, help="Connections held at once.")
    ] = 1024,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address or network of a proxy whose X-Forwarded-For is believed."),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(help="Where readers reach the index, for the commands on its page."),
    ] = None,
    token_usd: Annotated[
        str | None,
        typer.Option(
            help="Dollars for one token, to show both. Default: 1 if --descriptor says so."
        ),
    ] = None,
    transaction_url: Annotated[
        str | None,
        typer.Option(help="A block explorer's address of a transaction, with {} for its hash."),
    ] = None,
    descriptor: Annotated[
        Path | None,
        typer.Option(help="The market's descriptor, to serve it with how to join on the page."),
    ] = None,
) -> None:
    """Serve the index until SIGTERM or Ctrl-C. It prints one JSON line when it is ready."""
    from piecework.base.http_server import http_limits

    folder = common.home("market", home_dir)
    common.guard(lambda: private_folder(folder, marks=(STORE,)))
    try:
        trusted = parse_networks(trusted_proxy or ())
    except ValueError as error:
        common.fail(str(error), 2)
    limits = http_limits(max_connections, CONNECTIONS_PER_ADDRESS, trusted)
    shown = _Shown(public_url, _dollars(token_usd), _template(transaction_url), descriptor)
    place = database or folder / STORE
    common.run(_serve((deployment, rpc), (folder, place), (host, port), limits, shown))


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the explorer shows beside the offers. `usd`: what one token is worth."""

    url: str | None
    usd: Decimal | None
    transactions: str | None
    descriptor: Path | None


@dataclass(frozen=True, slots=True)
class _Served:
    """What newcomers need, by the path that it is served at.

    `key`: who signed the descriptor, if there is one. `marked`: it says that the token is 1 USD.
    """

    files: dict[str, bytes]
    key: Address | None = None
    marked: bool = False


def _served(market: Deployment, descriptor: Path | None) -> _Served:
    """Read what an index serves beside its offers.

    Raises:
        PieceworkError: The descriptor cannot be used, or is another market's.
    """
    import json

    from piecework.base.files import read
    from piecework.chain.descriptor import (
        MAX_DESCRIPTOR_BYTES,
        MAX_SIGNATURE_FILE_BYTES,
        BadDescriptor,
        MarketDescriptor,
    )
    from piecework.commands._descriptor import signature_file
    from piecework.market.explorer.offers import DEPLOYMENT, DESCRIPTOR, SIGNATURE

    files = {DEPLOYMENT: json.dumps(market.to_json(), indent=2).encode() + b"\n"}
    if descriptor is None:
        return _Served(files)
    content = read(descriptor, MAX_DESCRIPTOR_BYTES)
    signature = read(signature_file(descriptor), MAX_SIGNATURE_FILE_BYTES)
    found = MarketDescriptor.decode(content)
    if not found.deployment.same_market(market):
        raise BadDescriptor("--descriptor is that of another market than --deployment")
    files |= {DESCRIPTOR: content, SIGNATURE: signature}
    return _Served(files, found.signer(signature), found.token_is_usd)


def _dollars(text: str | None) -> Decimal | None:
    if text is None:
        return None
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal(0)
    if not value.is_finite() or not 0 < value < MAX_TOKEN_USD:
        common.fail(f"--token-usd is a number of dollars above 0 and below {MAX_TOKEN_USD:,}", 2)
    return value


def _template(text: str | None) -> str | None:
    if text is not None and (not text.startswith(("https://", "http://")) or "{}" not in text):
        common.fail("--transaction-url is an http address with {} in place of the hash", 2)
    return text


async def _serve(
    market: tuple[Path, str | None],
    home: tuple[Path, Path | str],
    address: tuple[str, int],
    limits: ConnectionLimits,
    shown: _Shown,
) -> None:
    from piecework.base.clock import SystemClock
    from piecework.base.http_server import DEAF, HttpServer, serving
    from piecework.chain.deployment import Deployment
    from piecework.chain.reading.reader import ChainReader
    from piecework.commands._server import logs_to_stderr, until_told_to_stop
    from piecework.market.explorer.layout import Money
    from piecework.market.offer_store import OfferStore
    from piecework.market.server import ExplorerSettings, IndexServer
    from piecework.market.storage.database import open_database
    from piecework_protocol.types import Timestamp

    logs_to_stderr()
    (host, port), (file, rpc), (folder, place) = address, market, home
    deployment = Deployment.load(file)
    served = _served(deployment, shown.descriptor)
    async with await ChainReader.connect(deployment, rpc_url=rpc) as reader:
        database = await open_database(place)
        marked = served.marked and shown.usd is None
        money = Money(deployment.payment_token, Decimal(1) if marked else shown.usd, marked)
        settings = ExplorerSettings(money, shown.url, shown.transactions, served.files, served.key)
        try:
            now = Timestamp(int(SystemClock().wall()))
            store = await OfferStore.open(database, deployment.domain, deployment.token, now)
            index = IndexServer(store, reader, settings, trusted_proxies=limits.trusted)
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
            await database.close()


@app.command()
def describe(
    *,
    deployment: Annotated[Path, typer.Option(help="The market's deployment file.")],
    out: Annotated[
        Path, typer.Option(help="File to write. Its signature goes beside it, as FILE.sig.")
    ] = Path("market.json"),
    key: Annotated[
        Path, typer.Option(help="Keystore of the market's key. It is made if there is none.")
    ] = Path("market-key.json"),
    index: Annotated[list[str] | None, typer.Option(help="URL of an index; repeatable.")] = None,
    relay: Annotated[
        list[str] | None, typer.Option(help="host:port of a relay; repeatable.")
    ] = None,
    faucet: Annotated[str | None, typer.Option(help="URL of a faucet. Test networks only.")] = None,
    token_is_usd: Annotated[
        bool | None,
        typer.Option(
            "--token-is-usd/--no-token-is-usd",
            help="Mark the token as 1 US dollar. Default: as in --out, else no.",
        ),
    ] = None,
    sequence: Annotated[
        int | None,
        typer.Option(min=1, help="Its number. Default: one more than that of --out, or 1."),
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the key's password.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write and sign what others need to join this market.

    Publish both files, and the fingerprint somewhere else. Keep the key: worker homes pin it. They
    take no descriptor with a lower number than one that they have seen.
    """
    from piecework.commands import _descriptor

    before = common.guard(lambda: _descriptor.written_before(out))
    if token_is_usd is None:
        token_is_usd = common.guard(lambda: _descriptor.was_marked(before, deployment))
    values: dict[str, Any] = {
        "indexes": tuple(index or ()),
        "relays": tuple(relay or ()),
        "faucet": faucet,
        "sequence": sequence or (1 if before is None else before.sequence + 1),
        "token_is_usd": token_is_usd,
    }
    made = common.guard(lambda: _descriptor.described(deployment, **values))
    secret = common.password(password_file, confirm=not key.is_file())
    signer = common.guard(lambda: _descriptor.describe(made, key, secret, out))
    if json:
        common.print_json({**_descriptor.market_json(made, signer), "file": str(out)})
        return
    _descriptor.say_market(made, signer)
    common.say(f"wrote {out} and {_descriptor.signature_file(out)}")


@app.command()
def verify(
    place: Annotated[str, typer.Argument(help="URL or file of a descriptor.")],
    *,
    fingerprint: Annotated[
        str | None, typer.Option(help="The address whose key must have signed it.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a market's descriptor, and show what it says.

    The signature says whose key made it. Whether that key is the market's, only its fingerprint
    from elsewhere can tell.
    """
    from piecework.commands import _descriptor

    wanted = None if fingerprint is None else common.address("--fingerprint", fingerprint)
    found, signer = common.run(_descriptor.fetch(place))
    if json:
        common.print_json(_descriptor.market_json(found, signer))
    else:
        _descriptor.say_market(found, signer)
    if wanted is not None and signer != wanted:
        common.fail("another key signed this descriptor than --fingerprint names")
