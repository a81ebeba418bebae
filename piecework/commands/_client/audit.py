"""`piecework client audit`: was a canvas really made by the model that was paid for?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, NoReturn

import typer

from piecework.commands import _common as common
from piecework.commands._client.audit_report import Telling, say, tell
from piecework.commands._client.audited import (
    NO_VERDICT,
    AuditDone,
    Wish,
    audit_file,
    audit_job,
    read_opened,
)
from piecework.commands._client.home import Home, Json, PasswordFile, safe, with_client

if TYPE_CHECKING:
    from piecework.client.audits.auditor import CanvasReport

LEVELS: Final = ("rules", "replay", "forced")

Auditor = Annotated[
    str | None,
    typer.Option(
        "--by", help="self, market, or a worker's address. Default: the setting audit_by."
    ),
]
Openings = Annotated[
    list[Path] | None,
    typer.Option(
        help="Steps of a canvas that the worker opened, instead of bought ones. Once for each "
        "canvas."
    ),
]
Buy = Annotated[
    bool,
    typer.Option("--buy/--no-buy", help="Whether the worker opens the steps, for a price."),
]


def register(app: typer.Typer) -> None:
    """Add the command to `piecework client`."""
    app.command()(audit)


def audit(
    job: Annotated[str | None, typer.Argument(help="The job's id, or its first digits.")] = None,
    *,
    evidence: Annotated[
        Path | None, typer.Option(help="An evidence file instead of a job of this client.")
    ] = None,
    canvas: Annotated[
        int | None, typer.Option(min=0, help="Number of the canvas. Default: one at random.")
    ] = None,
    level: Annotated[
        str, typer.Option(help="What is checked: rules, replay or forced.")
    ] = "replay",
    by: Auditor = None,
    openings: Openings = None,
    buy: Buy = True,
    model: Annotated[
        Path | None, typer.Option(help="The checkpoint's folder. Default: the bundled one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    report_to: Annotated[
        Path | None,
        typer.Option("--report", help="Folder for a signed report, its evidence, and feedback."),
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(help="The worker in ERC-8004: eip155:CHAIN:REGISTRY/ID. For --report."),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Give the signed report to the indexes.")
    ] = False,
    home: Home = None,
    password_file: PasswordFile = None,
    json: Json = False,
) -> None:
    """Audit one canvas of a job.

    The levels rules and forced need all steps of the canvas. The worker that made it opens them,
    for the price of the prompt and of one denoising step for each. Without them nothing passes. If
    a forced audit finds other weights, up to nine other canvases of the worker are opened too.

    With --by market another worker replays the canvas, for a price. It reads the prompt and the
    answer. A failure that no second audit confirms is not a verdict. A confirmed one ends the
    relation with the worker, and its evidence is kept in the home.

    Exit code 0: it passed. 1: it failed. 3: no verdict is possible here. A report that fails does
    not change it. A report has no text, but it shows who paid whom. Opened steps show the tokens.
    """
    telling = Telling(report_to, agent, publish, home, password_file)
    telling.check()
    if (job is None) == (evidence is None):
        common.fail("give a JOB, or --evidence FILE", 2)
    common.one_of("--device", device, ("auto", "cpu", "cuda"))
    _check_by(by, job, level)
    bought = job is not None and buy and not openings and level != "replay"
    wish = Wish(level, job or "", canvas, by, bought, _opened(openings or (), level, bought=bought))
    found = _audited(wish, evidence, EngineChoice(model, device), (home, password_file))
    _finish(found, telling, json=json)


def _opened(openings: Sequence[Path], level: str, *, bought: bool) -> dict[int, bytes]:
    """Return the openings files by canvas. End the command if a forced audit gets none."""
    if level == "rules" and len(openings) > 1:
        common.fail("give the openings of one canvas", 2)
    if level == "forced" and not (bought or openings):
        common.fail("--level forced needs --openings FILE: the steps that the worker opened", 2)
    return read_opened(openings)


def _audited(
    wish: Wish, evidence: Path | None, engine: EngineChoice, place: tuple[Home, PasswordFile]
) -> AuditDone:
    from piecework.client.audits.engine import EngineAuditor

    auditor = EngineAuditor(engine.model, engine.device)
    if evidence is not None:
        return common.run(audit_file(wish, evidence, auditor))
    found: AuditDone = with_client(*place, lambda client: audit_job(client, wish, auditor))
    return found


def _finish(found: AuditDone, telling: Telling, *, json: bool) -> NoReturn:
    """Say what was found, tell others if that is wanted, and end the command.

    The words come first: telling others may take long. The exit code is the verdict's, also if
    others could not be told.
    """
    code = _exit_code(found.report)
    if not json:
        _print(found)
    told = None
    if telling.wanted and code != NO_VERDICT:
        told = tell(telling, found.file, found.report, found.opened)
    if json:
        common.print_json(_view(found, told))
    elif told is not None:
        say(told)
    raise typer.Exit(code)


class EngineChoice(NamedTuple):
    """The engine that audits: the checkpoint's folder, None for the bundled one, and the device."""

    model: Path | None
    device: str


def _check_by(by: str | None, job: str | None, level: str) -> None:
    """End the command if nobody can audit so."""
    common.one_of("--level", level, LEVELS)
    from piecework.client.config import SELF, check_auditor

    if by is None or by == SELF:
        return
    try:
        check_auditor(by)
    except ValueError:
        common.fail("--by is self, market or the address of a worker", 2)
    if job is None:
        common.fail("others audit a JOB of this client, not a file", 2)
    if level != "replay":
        common.fail("others audit by replay. For other levels use --by self", 2)


def _exit_code(report: CanvasReport) -> int:
    from piecework_protocol.objects import AuditOutcome

    return {AuditOutcome.PASS: 0, AuditOutcome.FAIL: 1}.get(report.outcome, NO_VERDICT)


def _view(found: AuditDone, told: dict[str, Any] | None) -> dict[str, Any]:
    from piecework_protocol.views import members

    report = found.report
    return {
        "level": report.level.name.lower(),
        "outcome": report.outcome.name.lower(),
        **members(report, "canvas", "steps", "findings", "reason", "seconds"),
        **members(report, "by", "jobs", "cost", "remarks"),
        "report": told,
        "evidence": None if found.kept is None else str(found.kept),
    }


def _print(found: AuditDone) -> None:
    from piecework_protocol.types import address_hex, to_hex

    report = found.report
    level, outcome = report.level.name.lower(), report.outcome.name.lower()
    words = {"pass": "passed", "fail": "FAILED", "no_verdict": "no verdict"}
    common.say(
        f"canvas {report.canvas}, {level}: {words[outcome]}"
        f"  ({report.steps} steps, {report.seconds:.2f} s)"
    )
    if report.by:
        for operator, job in zip(report.by, report.jobs, strict=True):
            common.say(f"    by {address_hex(operator)} in job {to_hex(job)}")
    for finding in report.findings:
        common.say(f"    {safe(finding)}")
    if report.reason:
        common.say(f"    {safe(report.reason)}")
    for remark in report.remarks:
        common.say(f"    auditor {safe(remark)}")
    if found.ended:
        common.say("    the worker gets no more jobs")
    if found.kept is not None:
        common.say(f"    its evidence: {safe(str(found.kept))}")
    if found.missing and outcome == "no_verdict":
        common.say(f"    the evidence lacks {safe(found.missing)}", err=True)
