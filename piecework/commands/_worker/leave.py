"""The commands of `piecework worker` that end something: leaving, and an operator key."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from piecework.commands import _common as common
from piecework.commands._worker.changes import (
    HomeOption,
    Json,
    OwnerKey,
    OwnerPassword,
    confirm,
    owner_signer,
    place_of,
    say_owner_call,
)

if TYPE_CHECKING:
    from piecework_node.home import Home
    from piecework_node.operations.leaving import LeaveReport, StepReport
    from piecework_node.operations.rotation import RotationReport
    from piecework_protocol.signing import AsyncSigner, LocalSigner
    from piecework_protocol.types import Address

PasswordFile = Annotated[Path | None, typer.Option(help="File with the key's password.")]


def register(app: typer.Typer) -> None:
    """Add these commands to `piecework worker`."""
    app.command()(leave)
    app.command("rotate-key")(rotate_key)


def leave(
    *,
    owner_key: OwnerKey = None,
    owner_password_file: OwnerPassword = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    home: HomeOption = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Leave the market: drain, settle, and get the stake back.

    Run it again to go on: it sees on the chain what is done. It prints what is next and when. The
    stake's owner sends two transactions, with the unbonding delay between them.
    """
    place = place_of(home)
    owner = owner_signer(owner_key, owner_password_file)
    secret = common.password(password_file)
    report = common.run(_leave(place, owner, secret, yes=yes, quiet=json))
    if json:
        common.print_json(report.to_json())
        return
    _say_steps(report.steps)
    if report.call is not None:
        say_owner_call(report.call)
    elif report.next is not None:
        when = ""
        if report.at is not None:
            moment = datetime.fromtimestamp(report.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
            when = f". Run this again after {moment}"
        common.say(f"next   {report.next.value:9} {report.why}{when}")
    else:
        common.say("the worker has left")
        for rest in report.left:
            common.say(f"still at the operator's address: {rest}. Its key is in {_key_of(place)}")


def _key_of(place: Home) -> str:
    from piecework_node import config as settings

    return settings.load(place.root).signer or str(place.operator)


def _say_steps(steps: tuple[StepReport, ...]) -> None:
    for step in steps:
        common.say(f"{'done ' if step.new else 'there'}  {step.step:9} {step.detail}")


async def _leave(
    place: Home, owner: LocalSigner | None, secret: str, *, yes: bool, quiet: bool
) -> LeaveReport:
    from piecework.chain.deployment import Deployment
    from piecework_node import config as settings
    from piecework_node.daemon.assembly import connect
    from piecework_node.keys.operator import close_operator, open_operator
    from piecework_node.operations.leaving import Leaver, waiting_times
    from piecework_node.operations.owning import OwnerHands

    config = settings.load(place.root)
    deployment = Deployment.load(place.deployment)
    operator = await open_operator(place.operator, config.signer, secret, deployment)
    try:
        async with await connect(config, deployment) as reader:
            known = await reader.worker(operator.address)
            if not quiet:
                delay = (await reader.stake_requirements()).unbonding_delay
                for step, time_taken in waiting_times(config, delay):
                    common.say(f"       {step:9} {time_taken}")
                if reader.deployment.disputes is not None:
                    common.say(
                        "jobs may be challenged while the stake leaves. After the step unbond run "
                        "`piecework worker start`: no client takes its offers, and it answers"
                    )
            leaving = known is None or bool(known.unbond_requested_at)
            if not yes and not leaving:
                confirm("Drain the worker and leave the market?")
            keys: list[AsyncSigner] = [operator] if owner is None else [operator, owner]
            return await Leaver(place, config, operator, OwnerHands(reader, keys)).run()
    finally:
        await close_operator(operator)


def rotate_key(
    *,
    replace: Annotated[
        str | None,
        typer.Option(help="Address of the operator to replace. Then nothing is asked."),
    ] = None,
    owner_key: OwnerKey = None,
    owner_password_file: OwnerPassword = None,
    new_password_file: Annotated[
        Path | None, typer.Option(help="File with the new key's password. Default: the old one's.")
    ] = None,
    new_signer: Annotated[
        str,
        typer.Option(
            help="The signer that has the new key, as unix:SOCKET. Default: a key in the home."
        ),
    ] = "",
    home: HomeOption = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Replace the operator key by a new registration with a stake.

    The old channels are settled, and the old stake leaves after the unbonding delay. Run it
    again with the same --replace if it was cut off.
    """
    place = place_of(home)
    old = _replaced(place, replace)
    owner = owner_signer(owner_key, owner_password_file)
    secret = common.password(password_file)
    fresh = secret if new_password_file is None else _new_password(new_password_file)
    report = common.run(_rotate(place, old, owner, (secret, fresh), new_signer))
    if json:
        common.print_json(report.to_json())
        return
    _say_rotation(report)


def _replaced(place: Home, given: str | None) -> Address:
    from piecework_node.keys.operator import keystore_address
    from piecework_protocol.types import address_hex, parse_address

    if given is not None:
        return common.address("--replace", given)
    current = common.guard(lambda: parse_address("0x" + keystore_address(place.operator)))
    confirm(f"Replace the key of operator {address_hex(current)}? (--replace ADDRESS)")
    return current


def _new_password(file: Path) -> str:
    from piecework.base.files import read

    # The variable with the old password must not go before this file.
    text = common.guard(lambda: read(file, common.MAX_PASSWORD_BYTES).decode()).rstrip("\r\n")
    if not text:
        common.fail("the new password is empty")
    return text


async def _rotate(
    place: Home, old: Address, owner: LocalSigner | None, secrets: tuple[str, str], signer: str
) -> RotationReport:
    from piecework.chain.deployment import Deployment
    from piecework_node import config as settings
    from piecework_node.daemon.assembly import connect
    from piecework_node.operations.owning import OwnerHands
    from piecework_node.operations.rotation import Passwords, Rotation
    from piecework_protocol.types import Timestamp

    config = settings.load(place.root)
    async with await connect(config, Deployment.load(place.deployment)) as reader:
        hands = OwnerHands(reader, [] if owner is None else [owner])
        rotation = Rotation(place, config, Passwords(*secrets), hands, signer=signer)
        return await rotation.run(old, Timestamp(int(time.time())))


def _say_rotation(report: RotationReport) -> None:
    from piecework_protocol.types import address_hex

    _say_steps(report.steps)
    common.say(f"the operator is {address_hex(report.operator)}. Next: piecework worker start")
    if report.call is not None:
        say_owner_call(report.call)
    common.say(f"the old stake: piecework worker leave --home {report.old_home}")
