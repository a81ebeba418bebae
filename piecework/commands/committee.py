"""`piecework committee`: what a member of a market's committee types."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.client.disputes.committee import MemberVerdict
    from piecework_protocol.signing import AsyncSigner

app = common.group()
Market = Annotated[Path, typer.Option("--deployment", help="The market's deployment file.")]
Rpc = Annotated[
    str | None,
    typer.Option(help="The chain's node. The file of a development chain names its own."),
]
Key = Annotated[Path, typer.Option("--key-file", help="v3 keystore of the key that signs.")]
PasswordFile = Annotated[Path | None, typer.Option(help="File with the keystore's password.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def _committee() -> None:
    """Judge steps that a challenger has brought to the committee of a market.

    A member computes the step again and signs a verdict. As many verdicts as the threshold take
    effect together.
    """


@app.command()
def judge(
    evidence: Annotated[Path, typer.Argument(help="The job's evidence file, with its text.")],
    *,
    canvas: Annotated[int, typer.Option(min=0, help="The canvas of the challenge.")],
    step: Annotated[int, typer.Option(min=0, help="The step of the challenge.")],
    deployment: Market,
    key_file: Key,
    out: Annotated[Path, typer.Option(help="Where to write the verdict.")] = Path("verdict.json"),
    model: Annotated[
        Path | None, typer.Option(help="The checkpoint's folder. Default: the bundled one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rpc: Rpc = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Compute a step again and sign a verdict.

    It needs the engine on the worker's profile. What differs is computed once more by a fresh
    process. Exit code 0: a verdict was written. 3: nothing can be said here. No file is replaced.
    """
    from piecework.client.errors import DisputeError

    common.one_of("--device", device, ("auto", "cpu", "cuda"))

    async def work() -> dict[str, Any]:
        import asyncio

        from piecework.base.files import read
        from piecework.chain.deployment import Deployment
        from piecework.chain.reading.disputes import DisputeReader
        from piecework.chain.reading.reader import ChainReader
        from piecework.client.audits.engine import EngineAuditor
        from piecework.client.disputes.committee import CommitteeMember, check_place, keep_verdict
        from piecework.client.disputes.walk import DisputedStep
        from piecework_protocol.evidence.file import read_evidence
        from piecework_protocol.limits import MAX_EVIDENCE_BYTES

        market, signer = Deployment.load(deployment), await _signer(key_file, password_file)
        shown = read_evidence(await asyncio.to_thread(read, evidence, MAX_EVIDENCE_BYTES))
        async with await ChainReader.connect(market, rpc_url=rpc) as reader:
            found = DisputeReader(reader.rpc, market)
            try:
                member = CommitteeMember(market, found, EngineAuditor(model, device), signer)
                about = DisputedStep(canvas, step)
                opened = await member.challenge(shown, about)
                await asyncio.to_thread(check_place, out, opened.id)
                given = await member.judge(opened, shown, about)
            except DisputeError as error:
                common.fail(str(error), 3)
        await asyncio.to_thread(keep_verdict, out, given)
        return {**_view(given), "file": str(out)}

    said = common.run(work())
    if json:
        common.print_json(said)
        return
    common.say("guilty" if said["guilty"] else "not guilty")
    common.say(f"verdict {said['file']}")
    common.say("next: piecework committee submit, with the verdicts of the other members")


@app.command()
def submit(
    verdicts: Annotated[list[Path], typer.Argument(help="Verdict files of members that agree.")],
    *,
    deployment: Market,
    key_file: Key,
    rpc: Rpc = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Carry out a verdict of as many members as the threshold.

    Anybody can send it. The key pays the gas.
    """

    async def work() -> dict[str, Any]:
        import asyncio

        from piecework.base.files import read
        from piecework.chain.deployment import Deployment
        from piecework.chain.limits import DEFAULT_POLL_S
        from piecework.chain.reading.disputes import DisputeReader
        from piecework.chain.reading.reader import ChainReader
        from piecework.chain.sending.transactions import TransactionSender
        from piecework.client.disputes.committee import (
            MAX_VERDICT_BYTES,
            MemberVerdict,
            agreed,
        )

        market, signer = Deployment.load(deployment), await _signer(key_file, password_file)
        given = [
            MemberVerdict.read(await asyncio.to_thread(read, file, MAX_VERDICT_BYTES))
            for file in verdicts
        ]
        async with await ChainReader.connect(market, rpc_url=rpc) as reader:
            call = await agreed(market, DisputeReader(reader.rpc, market), given)
            await TransactionSender.of(reader, signer).execute(call, poll_s=DEFAULT_POLL_S)
        return _view(given[0])

    said = common.run(work())
    if json:
        common.print_json(said)
        return
    common.say(f"judged: {'guilty' if said['guilty'] else 'not guilty'}")


async def _signer(key_file: Path, password_file: Path | None) -> AsyncSigner:
    import asyncio

    from piecework.chain.keystore import open_keystore

    return await asyncio.to_thread(open_keystore, key_file, common.password(password_file))


def _view(given: MemberVerdict) -> dict[str, Any]:
    from piecework_protocol.views import members

    return members(given.verdict, "challenge", "guilty", "leaf_root", "deadline")
