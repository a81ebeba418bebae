"""`piecework client dispute`: from a job's evidence to payout."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._client.home import Earlier, Home, Json, PasswordFile, with_client

if TYPE_CHECKING:
    from piecework.base.amounts import Token
    from piecework.client.disputes.walk import DisputeCost, DisputeReport, DisputeWalk
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.evidence.file import EvidenceFile


def register(app: typer.Typer) -> None:
    """Add this command to `piecework client`."""
    app.command()(dispute)


def dispute(
    job: Annotated[
        str, typer.Argument(help="The job's id, its first digits, or its evidence file.")
    ],
    *,
    canvas: Annotated[int | None, typer.Option(min=0, help="The canvas to challenge.")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="The step of it to challenge.")] = None,
    escalate: Annotated[
        bool, typer.Option("--escalate", help="Take an answered challenge to the committee.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay until the dispute is over. That may take days.")
    ] = False,
    poll_seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="With --wait: seconds between two looks.")
    ] = 60.0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before money is spent.")] = False,
    deployment: Earlier = None,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Take a worker's stake for a proven wrong, or challenge it.

    Run it again after the deadline that it prints: the chain holds the state. What the evidence
    proves alone needs no challenge. A challenge costs two bonds in the chain's coin, which come
    back if the worker is silent. With --escalate the committee takes a bond in the stake token, and
    its members read the prompt. Before anything is sent you are told the amounts and asked.
    """
    if (canvas is None) != (step is None):
        common.fail("give --canvas and --step together", 2)

    async def work(client: PieceworkClient) -> dict[str, Any]:
        walk = await _walk_of(client, job, canvas, step, escalate=escalate)
        if not yes:
            await _ask(walk, client.payment_token)
        report = await walk.advance()
        while wait and not report.over:
            if not json:
                _print(report)
            await asyncio.sleep(poll_seconds)
            report = await walk.advance()
        return _view(report)

    found = with_client(home, password_file, work, earlier=deployment)
    if json:
        common.print_json(found)
    else:
        common.say(_line(found))


async def _walk_of(
    client: PieceworkClient, job: str, canvas: int | None, step: int | None, *, escalate: bool
) -> DisputeWalk:
    from piecework.client.disputes.port import ChainDisputePort
    from piecework.client.disputes.walk import DisputedStep, DisputeWalk

    evidence = await _evidence_of(client, job)
    about = None if canvas is None or step is None else DisputedStep(canvas, step)
    port = ChainDisputePort(client.reader, client.wallet.payer)
    return DisputeWalk(port, evidence, about, escalate=escalate)


async def _evidence_of(client: PieceworkClient, job: str) -> EvidenceFile:
    """Return what a file holds, or the evidence of a job of this client."""
    from piecework.base.files import read
    from piecework_protocol.evidence.file import read_evidence
    from piecework_protocol.limits import MAX_EVIDENCE_BYTES

    file = Path(job)
    if await asyncio.to_thread(file.is_file):
        return read_evidence(await asyncio.to_thread(read, file, MAX_EVIDENCE_BYTES))
    evidence, _ = await client.evidence(await asyncio.to_thread(client.store.job_named, job))
    return evidence


async def _ask(walk: DisputeWalk, token: Token) -> None:
    cost = await walk.cost()
    fault = None if walk.proof is None else walk.proof.fault
    if not common.agrees(consent_text(fault, cost, token)):
        common.fail("nothing was sent")


def consent_text(fault: str | None, cost: DisputeCost, token: Token) -> str:
    """Say what a person agrees to: what is spent, and who reads what.

    fault: what the evidence proves alone. token: the stake token.
    """
    from piecework.base.amounts import native_coin

    if fault is not None:
        return f"The evidence proves: {fault}. Send the proof?"
    texts = []
    if cost.bonds:
        bonds = "2 bonds" if cost.bonds > 1 else "1 bond"
        coins = native_coin().format(cost.coins)
        texts.append(
            f"Up to {coins} ({bonds} at the base fee of now) go to the worker if it answers, and "
            "what it opens shows tokens to everybody"
        )
    if cost.before_committee:
        fees = token.format(cost.escalation)
        texts.append(
            f"The committee takes another bond of {fees}, which is lost if it judges the worker "
            "not guilty. Its members read the prompt"
        )
    return ". ".join((*(texts or ["Only gas is spent from here on"]), "Go on?"))


def _print(report: DisputeReport) -> None:
    common.say(_line(_view(report)))


def _view(report: DisputeReport) -> dict[str, Any]:
    from piecework_protocol.views import members

    return members(report, "stage", "text", "deadline", "over")


def _line(view: dict[str, Any]) -> str:
    if view["deadline"] is None:
        return f"{view['stage']}: {view['text']}"
    until = datetime.fromtimestamp(view["deadline"], UTC).isoformat()
    return f"{view['stage']}: {view['text']}. Until {until}. Run the command again after that"
