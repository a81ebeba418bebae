"""`piecework client evidence`: what proves a job to somebody who has nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from piecework.commands import _common as common
from piecework.commands._client.home import Home, Json, PasswordFile, safe, with_client

if TYPE_CHECKING:
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.evidence.file import EvidenceFile
    from piecework_protocol.types import JobId

app = common.group()

NAME_DIGITS = 16
"""Of the job's id, in the name of a file."""


@app.callback()
def _evidence() -> None:
    """Export what proves a job."""


@app.command()
def export(
    job: Annotated[str, typer.Argument(help="The job's id, or its first digits.")],
    *,
    output: Annotated[
        Path | None, typer.Option(help="The file. Default: evidence-JOB.json in this folder.")
    ] = None,
    without_text: Annotated[
        bool, typer.Option("--without-text", help="Leave the prompt and the answer out.")
    ] = False,
    openings: Annotated[
        bool,
        typer.Option("--open", help="Have the worker open the steps of every canvas, for a price."),
    ] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Write one file that proves a job without this client.

    With --open each canvas's steps are bought from the worker and written beside it, for audits.
    Check it with: piecework verify-reply FILE. A client that keeps no text asks the worker for the
    answer again, and leaves the prompt out.
    """

    async def work(client: PieceworkClient) -> dict[str, Any]:
        import asyncio

        from piecework.base.files import write_private
        from piecework_protocol.evidence.file import write_evidence
        from piecework_protocol.types import to_hex

        key = await asyncio.to_thread(client.store.job_named, job)
        file, missing = await client.evidence(key, with_text=not without_text)
        target = output or Path(f"evidence-{key.hex()[:NAME_DIGITS]}.json")
        await asyncio.to_thread(write_private, target, write_evidence(file))
        opened = await _open_all(client, key, file, target) if openings else []
        facts = {"file": str(target), "job": to_hex(key), "canvases": len(file.canvases)}
        shown = {"contradictions": len(file.contradictions), "missing": missing}
        return {**facts, **shown, "openings": opened}

    view = with_client(home, password_file, work)
    if json:
        common.print_json(view)
        return
    common.say(f"{view['file']}  {view['canvases']} canvases of job {view['job']}")
    for name in view["openings"]:
        common.say(f"{name}  the steps of a canvas, with their soft embeddings")
    if view["contradictions"]:
        common.say(f"it has {view['contradictions']} contradictions of the worker", err=True)
    if view["missing"]:
        common.say(f"left out: {safe(view['missing'])}", err=True)


async def _open_all(
    client: PieceworkClient, job: JobId, file: EvidenceFile, target: Path
) -> list[str]:
    """Write the openings of every canvas with steps beside the file. Return the files' names."""
    import asyncio

    from piecework.base.files import write_private
    from piecework.client.audits.openings import buy_steps

    names = []
    for canvas in (shown.receipt.canvas for shown in file.canvases if shown.leaves):
        bought = await buy_steps(client, job, canvas, soft=True)
        place = target.with_name(f"{target.stem}-openings-{canvas}.json")
        await asyncio.to_thread(write_private, place, bought.file)
        names.append(str(place))
    return names
