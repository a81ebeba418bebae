"""`piecework worker evidence`: what this worker holds of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from piecework.commands import _common as common

NAME_DIGITS = 16
"""Of the job's id, in the name of a file."""


def register(app: typer.Typer) -> None:
    """Add the command to `piecework worker`."""
    app.command()(evidence)


def evidence(
    *,
    job: Annotated[
        str, typer.Option(help="The job's id, or its first digits. Without it: how much is kept.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="The file. Default: evidence-JOB.json in this folder.")
    ] = None,
    canvas: Annotated[
        int | None,
        typer.Option(min=0, help="Write the kept steps of this canvas instead, as openings."),
    ] = None,
    without_text: Annotated[
        bool, typer.Option("--without-text", help="Leave the prompt out.")
    ] = False,
    home: Annotated[Path | None, common.home_option("worker")] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="File with the key's password.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write what this worker holds of a job, as an evidence file.

    It says what it lacks. The worker may run or not. Check the file with: piecework verify-reply
    FILE.
    """
    from piecework_node.daemon.evidence import EvidenceWish, evidence_of

    if canvas is not None and not job:
        common.fail("--canvas is of a job: give --job", 2)
    wish = EvidenceWish(job, canvas, with_text=not without_text)
    root = common.home("worker", home)
    shown = common.run(evidence_of(root, lambda: common.password(password_file), wish))
    if not job:
        _print_kept(shown["kept"], json)
        return
    view = common.guard(lambda: _written(shown, job, canvas, output))
    if json:
        common.print_json(view)
        return
    common.say(f"{view['file']}  {view['what']}")
    for line in view["lacking"]:
        common.say(f"lacks {line}", err=True)


def _print_kept(kept: dict[str, int], json: bool) -> None:
    if json:
        common.print_json(kept)
        return
    common.say(f"canvases  {kept['canvases']} with their steps")
    common.say(f"bytes     {kept['used_bytes']} of {kept['budget_bytes']} (evidence_bytes)")


def _written(
    shown: dict[str, Any], job: str, canvas: int | None, output: Path | None
) -> dict[str, Any]:
    """Write the file that was asked for. Return what to say of it."""
    from piecework.base.files import write_private
    from piecework_protocol.evidence.file import canonical, evidence_of, write_evidence

    name = shown.get("job", job).removeprefix("0x")[:NAME_DIGITS]
    if canvas is not None:
        body = shown["openings"]
        target = output or Path(f"openings-{name}-{canvas}.json")
        write_private(target, canonical(body))
        count = len(body["steps"])
        lacking = ["the soft embeddings, which only the engine can compute again"]
        return {
            "file": str(target),
            "what": f"{count} steps of canvas {canvas}",
            "lacking": lacking,
        }
    file = evidence_of(shown["evidence"])
    target = output or Path(f"evidence-{name}.json")
    write_private(target, write_evidence(file))
    what = f"{len(file.canvases)} canvases of job {shown['job']}"
    return {"file": str(target), "what": what, "lacking": shown["lacking"]}
