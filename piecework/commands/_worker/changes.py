"""The commands of `piecework worker` that change what a home says: settings and payout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework_node.daemon.changing import ChangeReport
    from piecework_node.home import Home
    from piecework_node.operations.owning import OwnerCall
    from piecework_protocol.signing import AsyncSigner, LocalSigner
    from piecework_protocol.types import Address

HomeOption = Annotated[Path | None, common.home_option("worker")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
OwnerKey = Annotated[
    Path | None,
    typer.Option(
        help="v3 keystore of the stake's owner. Without it the command prints what to send."
    ),
]
OwnerPassword = Annotated[
    Path | None,
    typer.Option("--owner-password-file", help="File with that key's password."),
]
PLACES = frozenset({"bind", "endpoint", "relays"})


def register(app: typer.Typer) -> None:
    """Add these commands to `piecework worker`."""
    app.command("set")(change)
    app.command()(payout)


def place_of(home: Path | None) -> Home:
    """The files of a worker's home. One clear line when there is none."""
    from piecework_node.home import Home

    place = Home(common.home("worker", home))
    if not place.config.is_file() or not place.deployment.is_file():
        no_home(place)
    return place


def no_home(place: Home) -> NoReturn:
    """Say in one line that there is no home, and how to make one."""
    line = "Make one: piecework worker join URL, or piecework worker init"
    common.fail(f"no worker's home in {place.root}. {line}")


def change(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME VALUE", help="Settings, each with its new value."),
    ] = None,
    *,
    unset: Annotated[
        list[str] | None, typer.Option(help="Setting that goes back to its default; repeatable.")
    ] = None,
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """Change settings of the home: prices and others.

    A running worker takes up what it can at once, with a new offer. Jobs that run keep their terms.
    It says which settings need a restart. Amounts are numbers of tokens. Lists are divided by
    commas.
    """
    from piecework_node.operations.running import change_settings

    texts, dropped = _pairs(words or []), tuple(unset or ())
    if not texts and not dropped:
        common.fail("name a setting and its value, such as: price_per_thousand_steps 0.002", 2)
    both = sorted(texts.keys() & set(dropped))
    if both:
        common.fail(f"{both[0]} is both set and unset", 2)
    place = place_of(home)
    report = common.run(change_settings(place, texts, dropped))
    if json:
        body = None if report is None else report.to_json()
        common.print_json({"running": report is not None, "change": body})
        return
    _say_report(report, [*texts, *dropped])


def _pairs(words: Sequence[str]) -> dict[str, str]:
    if len(words) % 2:
        common.fail(f"{words[-1]} has no value. Put a value with spaces in quotes", 2)
    names = list(words[::2])
    for name in names:
        if names.count(name) > 1:
            common.fail(f"{name} is given twice", 2)
    return dict(zip(names, words[1::2], strict=True))


def _say_report(report: ChangeReport | None, names: Sequence[str]) -> None:
    import os

    from piecework_node.config import VARIABLES

    if report is None:
        common.say("written. No worker runs: it is in force at the next start")
        for name in (n for n in names if VARIABLES.name_of(n) in os.environ):
            common.say(f"{name}: the variable {VARIABLES.name_of(name)} goes first", err=True)
    else:
        if report.applied:
            common.say(f"in force now: {', '.join(report.applied)}")
        if report.offers_until is not None:
            end = datetime.fromtimestamp(report.offers_until, UTC).strftime("%H:%M:%S UTC")
            common.say(f"offers with the old terms hold until {end}, and running jobs keep theirs")
        if report.restart:
            common.say(f"in force after a restart: {', '.join(report.restart)}")
        for name in report.overridden:
            common.say(f"{name}: a flag or a variable of the running worker goes first", err=True)
        if not (report.applied or report.restart or report.overridden):
            common.say("nothing changed: the settings are so already")
    if PLACES & set(names):
        common.say("after the restart run `piecework worker init` again: the registry has a place")


def payout(
    address: Annotated[str, typer.Argument(help="Cold address for the earnings from now on.")],
    *,
    owner_key: OwnerKey = None,
    owner_password_file: OwnerPassword = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    home: HomeOption = None,
    password_file: Annotated[
        Path | None,
        typer.Option(help="File with the operator key's password, if that is the owner."),
    ] = None,
    json: Json = False,
) -> None:
    """Change where the earnings go, on the registry and in the home.

    Only the owner of the stake can change it on the registry. Without --owner-key it prints the
    transaction for the owner. Run it again once that is mined.
    """
    place, wanted = place_of(home), common.address("ADDRESS", address)
    owner = owner_signer(owner_key, owner_password_file)
    waiting, done = common.run(_move(place, wanted, owner, password_file, yes=yes))
    if json:
        body = None if waiting is None else waiting.to_json()
        common.print_json({"done": list(done), "waiting_for": body})
        return
    for line in done:
        common.say(line)
    if waiting is not None:
        say_owner_call(waiting)
        return
    common.say(f"earnings go to {address}" if done else f"earnings go to {address} already")
    if done:
        common.say("restart a running worker now: until then no client takes its offers")
        common.say("channels that are open keep the old address. The stake keeps its owner")


def owner_signer(file: Path | None, password_file: Path | None) -> LocalSigner | None:
    """The owner's key, where it is at hand."""
    from piecework.base.files import read
    from piecework.chain.keystore import open_keystore

    if file is None:
        if password_file is not None:
            common.fail("--owner-password-file is given without --owner-key", 2)
        return None
    if password_file is None:
        secret = common.password(None)
    else:
        # The variable with the operator's password must not go before this file.
        secret = common.guard(lambda: read(password_file, common.MAX_PASSWORD_BYTES).decode())
    return common.guard(lambda: open_keystore(file, secret.rstrip("\r\n")))


async def _move(
    place: Home,
    wanted: Address,
    owner: LocalSigner | None,
    password_file: Path | None,
    *,
    yes: bool,
) -> tuple[OwnerCall | None, tuple[str, ...]]:
    from piecework.chain.deployment import Deployment
    from piecework_node import config as settings
    from piecework_node.daemon.assembly import connect
    from piecework_node.keys.operator import close_operator, keystore_address, open_operator
    from piecework_node.operations.owning import OwnerHands, move_payout, payout_doubt
    from piecework_protocol.types import address_hex, parse_address

    config = settings.load(place.root)
    operator = parse_address("0x" + keystore_address(place.operator))
    async with await connect(config, Deployment.load(place.deployment)) as reader:
        doubt = await payout_doubt(reader, operator, wanted)
        if doubt is not None:
            common.say(f"warning: {doubt}", err=True)
        known = await reader.worker(operator)
        settled = config.receiver == wanted and (known is None or known.payout == wanted)
        if not yes and not settled:
            confirm(f"Send all earnings to {address_hex(wanted)}?")
        keys: list[AsyncSigner] = [] if owner is None else [owner]
        if known is not None and known.owner == operator and not keys:
            secret = common.password(password_file)
            keys = [await open_operator(place.operator, config.signer, secret, reader.deployment)]
        try:
            return await move_payout(place, operator, wanted, OwnerHands(reader, keys))
        finally:
            for key in keys:
                await close_operator(key)


def confirm(question: str) -> None:
    """Ask a person. Without one, `--yes` is missing."""
    if not sys.stdin.isatty():
        common.fail(f"{question} Say --yes", 2)
    if not common.agrees(question):
        common.fail("nothing was changed")


def say_owner_call(call: OwnerCall) -> None:
    """What the owner has to send, for every wallet, for a Safe, and for cast."""
    body: dict[str, Any] = call.to_json()
    common.say(f"next: the owner {body['from']} sends this transaction ({call.what}):")
    for name in ("to", "data", "value", "chain_id"):
        common.say(f"  {name:8} {body[name]}")
    common.say("with --owner-key FILE this command sends it. Run it again when it is mined")
