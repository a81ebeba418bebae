"""`piecework signer`: the operator key of a worker in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.signer.config import SignerConfig, SignerHome
    from piecework.signer.remote import SignerState
    from piecework_protocol.signing import LocalSigner

app = common.group()
HomeOption = Annotated[Path | None, common.home_option("signer")]
PasswordFile = Annotated[Path | None, typer.Option(help="File with the key's password.")]
SocketOption = Annotated[
    Path | None,
    typer.Option("--socket", help="Where it listens. Default: the file socket in its home."),
]


@app.callback()
def _signer() -> None:
    """Hold a worker's operator key apart from the worker.

    The worker sends what it wants signed over a unix socket. The signer reads it, holds it to its
    settings and to the limits of a day, writes it down and signs it.
    """


def _place(home: Path | None) -> SignerHome:
    from piecework.signer.config import SignerHome

    return SignerHome(common.home("signer", home))


@app.command()
def init(
    *,
    deployment: Annotated[Path, typer.Option(help="The deployment file of the worker's market.")],
    payout: Annotated[list[str], typer.Option(help="Address that earnings may go to; repeatable.")],
    key: Annotated[
        Path | None,
        typer.Option("--import", help="v3 keystore of an operator, instead of a new key."),
    ] = None,
    key_password_file: Annotated[
        Path | None,
        typer.Option("--import-password-file", help="File with the password of that keystore."),
    ] = None,
    home: HomeOption = None,
    password_file: PasswordFile = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a signer's home: a key, its settings and its market.

    It prints the address of the operator.
    """
    place = _place(home)
    secret = common.password(password_file, confirm=True)
    imported = None if key is None else _imported(key, key_password_file, secret)
    address = common.guard(lambda: _make(place, deployment, payout, imported, secret))
    if json:
        common.print_json({"operator": address, "home": str(place.root)})
        return
    common.say(f"operator {address}")
    common.say(f"settings {place.config}")
    common.say(f"next: piecework signer start --home {place.root}")


def _imported(file: Path, password_file: Path | None, secret: str) -> LocalSigner:
    from piecework.base.files import read
    from piecework.chain.keystore import open_keystore

    if password_file is not None:
        text = common.guard(lambda: read(password_file, common.MAX_PASSWORD_BYTES).decode())
        secret = text.rstrip("\r\n")
    return common.guard(lambda: open_keystore(file, secret))


def _make(
    place: SignerHome,
    deployment: Path,
    payouts: list[str],
    imported: LocalSigner | None,
    secret: str,
) -> str:
    import json
    import secrets

    from piecework.base import settings
    from piecework.base.files import write_private
    from piecework.chain.deployment import Deployment
    from piecework.chain.keystore import encrypt_keystore, keystore_address
    from piecework.signer.config import SignerConfig
    from piecework_protocol.types import address_hex, parse_address

    market = Deployment.load(deployment)
    values = {
        "payouts": [address_hex(common.address("--payout", text)) for text in payouts],
        "daily_tokens": market.payment_token.write(market.min_stake),
    }
    settings.check(SignerConfig, values)
    place.create()
    if not place.deployment.is_file():
        write_private(place.deployment, json.dumps(market.to_json(), indent=2).encode())
    if not place.config.is_file():
        text = settings.to_toml(SignerConfig, values, rest=True)
        write_private(place.config, text.encode())
    if imported is not None or not place.key.is_file():
        bare = secrets.token_bytes(32) if imported is None else imported.secret
        write_private(place.key, encrypt_keystore(bare, secret))
    return address_hex(parse_address("0x" + keystore_address(place.key)))


@app.command()
def start(
    *,
    socket: SocketOption = None,
    group: Annotated[
        str,
        typer.Option(help="Group that may open the socket too: a name or number. Default: none."),
    ] = "",
    home: HomeOption = None,
    password_file: PasswordFile = None,
) -> None:
    """Sign what the settings allow, until SIGTERM or Ctrl-C.

    The socket has mode 0600. It prints one JSON line when it is ready.
    """
    from piecework.signer.config import load

    place = _place(home)
    settings = common.guard(lambda: load(place))
    secret = common.password(password_file)
    path = (socket or place.socket).absolute()
    common.run(_serve(place, settings, path, group, secret))


async def _serve(
    place: SignerHome, settings: SignerConfig, socket: Path, group: str, secret: str
) -> None:
    import asyncio
    from contextlib import ExitStack

    import structlog

    from piecework.base.clock import SystemClock
    from piecework.chain.deployment import Deployment
    from piecework.chain.keystore import open_keystore
    from piecework.commands._server import logs_to_stderr, until_told_to_stop
    from piecework.signer.book import LimitBook
    from piecework.signer.record import SignatureLog
    from piecework.signer.server import SignerServer
    from piecework.signer.statements import SignedStatements
    from piecework_protocol.types import address_hex

    logs_to_stderr()
    place.create()
    deployment = Deployment.load(place.deployment)
    key = await asyncio.to_thread(open_keystore, place.key, secret)
    with ExitStack() as files:
        book = LimitBook.open(place.book, settings.limits(deployment.payment_token))
        files.callback(book.close)
        statements = SignedStatements.open(place.statements)
        files.callback(statements.close)
        record = SignatureLog(place.record)
        files.callback(record.close)
        server = SignerServer(
            key,
            settings.pins(key.address, deployment),
            book,
            statements,
            record,
            users=settings.user_ids,
            clock=SystemClock(),
            log=structlog.get_logger(),
        )
        try:
            await server.start(socket, group=group)
            ready = {"ready": True, "role": "signer", "operator": address_hex(key.address)}
            common.print_json({**ready, "socket": str(socket)})
            await until_told_to_stop()
        finally:
            await server.close()


async def _ask(place: SignerHome, socket: Path) -> SignerState:
    from piecework.chain.deployment import Deployment
    from piecework.chain.keystore import keystore_address
    from piecework.signer.remote import RemoteSigner
    from piecework_protocol.types import parse_address

    operator = parse_address("0x" + keystore_address(place.key))
    signer = RemoteSigner(socket, operator, Deployment.load(place.deployment))
    try:
        return await signer.state()
    finally:
        await signer.close()


@app.command()
def status(
    *,
    socket: SocketOption = None,
    home: HomeOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say whether the signer answers, and what is left of its day."""
    from dataclasses import asdict

    from piecework.chain.deployment import Deployment
    from piecework_protocol.types import to_hex

    place = _place(home)
    found = common.run(_ask(place, socket or place.socket))
    if json:
        body = {**asdict(found), "address": to_hex(found.address)}
        common.print_json({**body, "registry": to_hex(found.registry)})
        return
    for line in status_lines(found, Deployment.load(place.deployment).payment_token):
        common.say(line)


def status_lines(state: SignerState, token: Token) -> tuple[str, ...]:
    """Say to a person what is left of a signer's day. token: what stake is counted in."""
    from piecework.base.amounts import native_coin
    from piecework.signer.book import shown_time
    from piecework_protocol.types import to_hex

    return (
        f"operator   {to_hex(state.address)}",
        f"signatures {state.signatures} left",
        f"gas        {native_coin().format(state.wei)} left",
        f"tokens     {token.format(state.tokens)} left",
        f"renewed    {shown_time(state.renews_at)}",
        f"last offer {state.last_offer or 'none'}",
    )
