"""`piecework verify-reply`: whether a saved answer or an evidence file proves what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.commands._evidence import Checked


def command(
    file: Annotated[
        Path, typer.Argument(help="A gateway's saved answer with evidence, or an evidence file.")
    ],
    *,
    rpc: Annotated[
        str | None, typer.Option(help="A chain node: also check the stake and the escrow's code.")
    ] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="The market's deployment file, for --rpc.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a saved answer or an evidence file.

    It needs no wallet, database or network. Exit code 0: it holds. 1: something in it was changed,
    and the line names it.
    """
    from piecework.commands._evidence import check_document, lines_of, read_document, view_of

    if (rpc is None) != (deployment is None):
        common.fail("--rpc and --deployment go together", 2)

    async def work() -> tuple[Checked, list[str]]:
        found, document = read_document(file)
        checked = await check_document(document, found)
        if rpc is None or deployment is None:
            return checked, []
        return checked, await _on_chain(checked, rpc, deployment)

    checked, standing = common.run(work())
    if json:
        view: dict[str, Any] = {**view_of(checked), "chain": standing}
        common.print_json(view)
        return
    for line in (*lines_of(checked), *standing):
        common.say(line)
    common.say("it holds")


async def _on_chain(checked: Checked, rpc: str, deployment: Path) -> list[str]:
    """Ask a node for what a file cannot say. It compares the code of the contracts by itself."""
    from piecework.chain.deployment import Deployment
    from piecework.chain.reading.reader import ChainReader
    from piecework_protocol.errors import EvidenceRefused
    from piecework_protocol.types import to_hex

    market = Deployment.load(deployment)
    lines = []
    async with await ChainReader.connect(market, rpc_url=rpc) as reader:
        for file, _ in checked.jobs:
            if file.domain != market.domain:
                raise EvidenceRefused("escrow", "it is not that of the deployment file")
            operator, signer = file.channel.operator, file.offer.signer
            if signer != operator and not await reader.is_signer(operator, signer):
                raise EvidenceRefused("offer.signer", "the registry does not list it today")
            worker = await reader.worker(operator)
            if worker is None:
                lines.append(f"chain      {to_hex(operator)} has no stake today")
                continue
            bonded = "is bonded" if worker.active else "is not active"
            stake = market.payment_token.format(worker.stake)
            lines.append(f"chain      {to_hex(operator)} {bonded} with {stake} today")
            if worker.payout != file.channel.receiver:
                lines.append("chain      its payout address is another one today")
    return ["chain      the contracts have the code that this program knows", *lines]
