"""`piecework worker earnings`: what came in, in sums or as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from piecework.base.errors import UsageError
from piecework.commands import _common as common
from piecework.commands._worker.changes import HomeOption, Json


def register(app: typer.Typer) -> None:
    """Add this command to `piecework worker`."""
    app.command()(earnings)


def earnings(
    *,
    csv: Annotated[bool, typer.Option("--csv", help="Print a table of days, in UTC.")] = False,
    jobs: Annotated[bool, typer.Option("--jobs", help="With --csv: a row for each job.")] = False,
    first: Annotated[str, typer.Option("--from", help="First day, as YYYY-MM-DD.")] = "",
    last: Annotated[str, typer.Option("--to", help="Last day, as YYYY-MM-DD.")] = "",
    chain: Annotated[
        bool,
        typer.Option(
            "--chain",
            help="With --csv: take fees and payments from the chain, and compare with the journal.",
        ),
    ] = False,
    home: HomeOption = None,
    json: Json = False,
) -> None:
    """Show all earnings so far, or a table of them by day.

    The table counts in base units. The worker must be stopped for it. With --chain the exit code is
    1 if journal and chain do not agree.
    """
    if (jobs or chain) and not csv:
        raise UsageError("--jobs and --chain belong to --csv")
    if jobs and chain:
        raise UsageError(
            "--jobs has no figures from the chain. Leave one of --jobs and --chain out"
        )
    if csv:
        _print_table(common.home("worker", home), first, last, jobs=jobs, chain=chain)
        return
    from piecework_node.home import Home

    body = common.run(_earnings(common.home("worker", home)))
    token = common.market_token(Home(common.home("worker", home)).deployment)
    if json:
        common.print_json({**body, "token": common.token_json(token)})
        return
    for name in ("charged", "accepted", "settled", "unpaid", "waiting"):
        common.say(f"{name:10} {token.format(body[name])}")
    common.say(f"{'canvases':10} {body['canvases']}")
    for state, count in body["jobs"].items():
        common.say(f"{'jobs':10} {count} {state}")


def _print_table(root: Path, first: str, last: str, *, jobs: bool, chain: bool) -> None:
    import csv
    import sys

    from piecework_node.operations.earnings import Period, table, with_chain

    period = common.guard(lambda: Period.parse(first, last))
    if not chain:
        csv.writer(sys.stdout).writerows(common.run(table(root, period, jobs=jobs)))
        return
    rows, held = common.run(with_chain(root, period))
    csv.writer(sys.stdout).writerows(rows)
    common.say(
        f"all days: {held.gross} promised = {held.settled} settled + {held.waiting} waiting + "
        f"{held.lost} lost, and {held.fees} of fees (base units)",
        err=True,
    )
    for line in (*held.losses, *held.troubles):
        common.say(line, err=True)
    if held.troubles:
        raise typer.Exit(1)


async def _earnings(root: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from piecework.chain.deployment import Deployment
    from piecework_node.daemon.admin import ask_daemon
    from piecework_node.errors import JournalLocked
    from piecework_node.home import Home
    from piecework_node.journal.sqlite import SqliteJournal
    from piecework_node.keys.operator import keystore_address
    from piecework_node.settlement.payouts import META
    from piecework_protocol.types import parse_address

    place = Home(root)
    operator = parse_address("0x" + keystore_address(place.operator))
    deployment = Deployment.load(place.deployment)
    domain, token = deployment.domain, deployment.token
    try:
        journal = await SqliteJournal.open(place.journal, domain, operator)
    except JournalLocked:
        status = await ask_daemon(root, "GET", "/status")
        return {**status["earnings"], "waiting": sum(status["waiting"].values())}
    try:
        waits = await journal.meta(META + token.hex())
        return {**asdict(await journal.earnings()), "waiting": int(waits or 0)}
    finally:
        await journal.close()
