"""The commands of `piecework client` that show and move money."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._client.home import (
    Earlier,
    Home,
    Json,
    PasswordFile,
    market_token_of,
    print_amounts,
    safe,
    with_client,
)

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.types import Address


DAY_S = 86_400
LAST_TIME = 2**40
"""Later than every block."""


GoodFor = Annotated[
    float,
    typer.Option(
        "--valid-hours", min=0.01, max=720, help="With --gasless: how long what is signed is good."
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands to `piecework client`."""
    for command in (deposit, balance, channels, close, withdraw, recover, invoice):
        app.command()(command)


def deposit(
    amount: Annotated[str | None, typer.Argument(help="Tokens to put into the escrow.")] = None,
    *,
    gasless: Annotated[
        Path | None,
        typer.Option(help="Write a signed deposit that anybody may submit to this file."),
    ] = None,
    relay: Annotated[
        Path | None,
        typer.Option(help="Submit somebody's signed deposit from this file and pay its gas."),
    ] = None,
    valid_hours: GoodFor = 24.0,
    faucet: Annotated[
        bool,
        typer.Option("--faucet", help="Development chains: take the tokens and the gas there."),
    ] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Put tokens into the escrow.

    One deposit serves any number of workers.
    """
    if (amount is None) == (relay is None) or (gasless and relay):
        common.fail("give an AMOUNT (perhaps with --gasless FILE), or --relay FILE", 2)
    if faucet and (gasless or relay):
        common.fail(
            "--faucet pays for a deposit that is made now: leave out --gasless and --relay", 2
        )
    token = market_token_of(home)
    units = None if amount is None else common.some_units(token, amount)

    async def work(client: PieceworkClient) -> dict[str, Any]:
        from piecework.chain.dev.faucet import take_from_faucet
        from piecework.commands._client.deposits import deposit_now, relay_from, sign_to
        from piecework_protocol.types import Amount

        if relay is not None:
            return await relay_from(client, relay)
        if gasless is not None:
            return await sign_to(client, token.amount(units or 0), gasless, int(valid_hours * 3600))
        if faucet:
            await take_from_faucet(
                client.reader.rpc, client.token, client.wallet.payer.address, Amount(units or 0)
            )
        return await deposit_now(client, token.amount(units or 0))

    result = with_client(home, password_file, work)
    if json:
        print_amounts(result, token)
    elif "file" in result:
        common.say(
            f"Signed. Anybody may submit it: piecework client deposit --relay {result['file']}"
        )
    else:
        common.say(f"{token.format(result['amount'])} deposited in block {result['block']}")


def balance(*, home: Home = None, password_file: PasswordFile = None, json: Json = False) -> None:
    """Show where the client's money is, and what is reserved and why."""
    from piecework.commands._client.views import balance_view

    view = with_client(home, password_file, balance_view)
    token = market_token_of(home)
    if json:
        print_amounts(view, token)
        return
    common.say(f"payer                {view['payer']}")
    for label, key in (
        ("own account", "own"),
        ("escrow, free", "free"),
        ("escrow, pooled", "pooled"),
        ("in channels", "in_channels"),
        ("promised to workers", "paid"),
        ("spent today (UTC)", "spent_today"),
        ("spent this month", "spent_this_month"),
    ):
        common.say(f"{label:20} {token.format(view[key])}")
    for row in view["reserved"]:
        common.say(
            f"reserved             {token.format(row['amount'])} until {utc(row['until'])}: "
            f"{row['why']} ({row['operator']})"
        )


def channels(*, home: Home = None, password_file: PasswordFile = None, json: Json = False) -> None:
    """List payment channels and their state."""
    from piecework.commands._client.views import channels_view

    rows = with_client(home, password_file, channels_view)
    token = market_token_of(home)
    if json:
        print_amounts({"channels": rows}, token)
        return
    for row in rows:
        common.say(
            f"{row['channel']}  {row['status']:8} worker {row['operator']}"
            f"  {token.format(row['cumulative'])} of {token.format(row['deposit'])}"
            f"  {row['count']} canvases, {row['unacknowledged']} unconfirmed"
        )


def close(
    channel: Annotated[
        list[str] | None,
        typer.Argument(help="Channel ids, or their first digits. Default: all that hold money."),
    ] = None,
    *,
    deployment: Earlier = None,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Close channels together with their workers.

    If a worker does not answer, the withdrawal delay of its channel starts. Each channel is decided
    from the chain, so the command can be repeated. It fails if a channel could not be closed.
    """

    async def work(client: PieceworkClient) -> list[dict[str, Any]]:
        from piecework.commands._client.views import closings_view

        chosen = [client.store.channel_named(text) for text in channel or ()]
        if not chosen:
            return closings_view(await client.funds.close_all())
        return closings_view(tuple([await client.funds.close(one) for one in chosen]))

    rows = with_client(home, password_file, work, earlier=deployment)
    _print_closings(rows, json)
    if not rows and not json:
        common.say("no channel holds money")
    _fail_if_left(rows)


def withdraw(
    amount: Annotated[
        str | None, typer.Argument(help="Number of tokens. Default: all that is free.")
    ] = None,
    *,
    to: Annotated[
        str | None, typer.Option(help="Address that gets them. Default: the payer's own account.")
    ] = None,
    from_channel: Annotated[
        str | None,
        typer.Option(help="Ask for AMOUNT of this channel back. It stays in use with the rest."),
    ] = None,
    cancel: Annotated[
        str | None, typer.Option(help="Call off what was asked back of this channel.")
    ] = None,
    gasless: Annotated[
        Path | None,
        typer.Option(help="Write a signed withdrawal that anybody may submit to this file."),
    ] = None,
    fee: Annotated[str, typer.Option(help="With --gasless: tokens for whoever submits it.")] = "0",
    valid_hours: GoodFor = 24.0,
    relay: Annotated[
        Path | None,
        typer.Option(help="Submit somebody's signed withdrawal from this file for its fee."),
    ] = None,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Take money out of channels and the escrow.

    What --from-channel asks for comes after the withdrawal delay. Run the command again then.
    """
    _check_ways(amount, from_channel, cancel, gasless, relay)
    token = market_token_of(home)
    units = None if amount is None else common.some_units(token, amount)
    receiver = None if to is None else _address(to)
    cost = token.amount(common.units(token, fee))

    wanted = None if units is None else token.amount(units)
    valid_s = int(valid_hours * 3600)

    async def work(client: PieceworkClient) -> dict[str, Any]:
        from piecework.commands._client.orders import WayOut, carry_out

        way = WayOut(wanted, receiver, from_channel, cancel, gasless, cost, valid_s, relay)
        return await carry_out(client, way)

    _print_withdrawal(with_client(home, password_file, work), token, as_json=json)


def _print_withdrawal(view: dict[str, Any], token: Token, *, as_json: bool) -> None:
    """What was done. It fails if a channel could not be seen to."""
    if as_json:
        print_amounts(view, token)
    else:
        _say_withdrawal(view, token)
    _fail_if_left(view.get("channels", []))


def _say_withdrawal(view: dict[str, Any], token: Token) -> None:
    if "file" in view:
        how = f"piecework client withdraw --relay {view['file']}"
        common.say(f"Signed. Anybody may submit it: {how}")
        return
    _print_closings(view.get("channels", []), as_json=False)
    if "amount" in view:
        common.say(f"{token.format(view['amount'])} sent to {view['to']}")


def _check_ways(amount: str | None, *ways: str | Path | None) -> None:
    """A withdrawal goes one way at a time, and some ways need an amount."""
    from_channel, cancel, gasless, relay = ways
    if sum(way is not None for way in ways) > 1:
        common.fail("give one of --from-channel, --cancel, --gasless and --relay", 2)
    if amount is None and (from_channel is not None or gasless is not None):
        common.fail("give an AMOUNT with --from-channel and with --gasless", 2)
    if amount is not None and (cancel is not None or relay is not None):
        common.fail("--cancel and --relay take no AMOUNT", 2)


def recover(*, home: Home = None, password_file: PasswordFile = None, json: Json = False) -> None:
    """Find channels again after client.db was lost or is an old copy.

    Channels come from the chain, what was paid comes from the workers. The command can be repeated.
    Then close them, or go on using them.
    """
    from piecework.commands._client.views import recovery_view

    token = market_token_of(home)
    rows = with_client(home, password_file, recovery_view)
    if json:
        print_amounts({"channels": rows}, token)
        return
    for row in rows:
        how = "found" if row["found"] else "known"
        common.say(
            f"{row['channel'][:14]}…  {how}: {token.format(row['funded'])} in it, "
            f"{token.format(row['cumulative'])} promised; {safe(row['note'])}"
        )
    common.say(f"{len(rows)} channels on the chain", err=True)


def invoice(
    *,
    since: Annotated[
        datetime | None,
        typer.Option(
            "--from", formats=["%Y-%m-%d"], help="First day, in UTC. Default: the first of all."
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], help="Last day, in UTC. Default: today."),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print a table for a spreadsheet.")] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Make a bill from the chain, and hold it against the receipts.

    Every line is one event of the escrow in a final block. The command fails if anything differs by
    a base unit.
    """
    from piecework.commands._client.views import invoice_view, write_csv

    token = market_token_of(home)
    start = 0 if since is None else int(since.replace(tzinfo=UTC).timestamp())
    end = LAST_TIME if until is None else int(until.replace(tzinfo=UTC).timestamp()) + DAY_S
    view = with_client(home, password_file, lambda client: invoice_view(client, start, end))
    if json:
        print_amounts(view, token)
    elif csv:
        write_csv(view, token, sys.stdout)
    else:
        for row in view["lines"]:
            common.say(
                f"{utc(row['time'])}  {row['kind']:10} {token.format(row['amount'])}"
                f"  pool {token.format(row['pool'])}"
                f"  channels {token.format(row['in_channels'])}  {row['check']}"
            )
        sums = view["totals"]
        common.say("  ".join(f"{name} {token.format(sums[name])}" for name in sums))
    for trouble in view["troubles"]:
        common.say(f"differs: {trouble}", err=True)
    if view["troubles"]:
        raise typer.Exit(1)
    if not json:
        common.say("reconciled to the base unit", err=True)


def _address(text: str) -> Address:
    from piecework_protocol.types import parse_address

    try:
        return parse_address(text)
    except ValueError as error:
        common.fail(str(error), 2)


def _print_closings(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        common.print_json({"channels": rows})
        return
    for row in rows:
        at = row["withdrawable_at"]
        later = "" if at is None else f", from {utc(at)} on"
        common.say(f"{row['channel'][:14]}…  {row['state']}: {safe(row['note'])}{later}")


def _fail_if_left(rows: list[dict[str, Any]]) -> None:
    """A channel that could not be closed is a failure of the command, after all are shown."""
    if any(row["state"] == "failed" for row in rows):
        raise typer.Exit(1)


def utc(time: int) -> str:
    """A time for a person."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"
