"""`piecework client audit`: was a canvas really made by the model that was paid for?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, NoReturn, TypeVar

import typer

from piecework.commands import _common as common
from piecework.commands._client.audit_report import Telling, say, tell
from piecework.commands._client.home import Home, Json, PasswordFile, safe, with_client

if TYPE_CHECKING:
    from piecework.client.auditing import CanvasReport
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.evidence.file import EvidenceFile

T = TypeVar("T")

LEVELS: Final = ("rules", "replay", "forced")
NO_VERDICT: Final = 3
"""The exit code. 2 says that the command was wrong."""


Auditor = Annotated[
    str | None,
    typer.Option(
        "--by", help="self, market, or a worker's address. Default: the setting audit_by."
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
    openings: Annotated[
        Path | None, typer.Option(help="Steps that the worker opened, instead of bought ones.")
    ] = None,
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

    The levels rules and forced need the canvas's steps. The worker that made it opens them, for the
    price of the prompt and of one denoising step for each.

    With --by market another worker replays the canvas, for a price. It reads the prompt and the
    answer. A failure that no second worker confirms is no verdict.

    Exit code 0: it passed. 1: it failed. 3: no verdict is possible here. A report has no text, but
    it shows who paid whom. Opened steps show the tokens.
    """
    telling = Telling(report_to, agent, publish, home, password_file)
    telling.check()
    if (job is None) == (evidence is None):
        common.fail("give a JOB, or --evidence FILE", 2)
    common.one_of("--level", level, LEVELS)
    _check_by(by, job, level)
    common.one_of("--device", device, ("auto", "cpu", "cuda"))
    bought = job is not None and buy and openings is None and level != "replay"
    wish = _Wish(job or "", canvas, level, buy=bought, by=by)
    found = _looked_up(wish, evidence, openings, (home, password_file))
    report = found.report or _audit(found, level, EngineChoice(model, device))
    _finish(found, report, telling, json=json)


def _finish(found: _Found, report: CanvasReport, telling: Telling, *, json: bool) -> NoReturn:
    """Say what was found, tell others if that is wanted, and end the command."""
    code = _exit_code(report)
    told = None
    if telling.wanted and code != NO_VERDICT:
        told = tell(telling, found.file, report, found.opened)
    _print(report, found.missing, told, json=json)
    raise typer.Exit(code)


class _Wish(NamedTuple):
    """What is to be audited, by whom, and whether the worker is to open it."""

    job: str
    canvas: int | None
    level: str
    buy: bool
    by: str | None


class _Found(NamedTuple):
    """The evidence, the canvas, its openings, what is missing, and a report if one was bought."""

    file: EvidenceFile
    canvas: int
    opened: bytes
    missing: str
    report: CanvasReport | None = None


class EngineChoice(NamedTuple):
    """The engine that audits: the checkpoint's folder, None for the bundled one, and the device."""

    model: Path | None
    device: str


def _looked_up(
    wish: _Wish, evidence: Path | None, openings: Path | None, place: tuple[Home, PasswordFile]
) -> _Found:
    """Look up what is audited. A canvas that others audit is audited here."""
    if wish.level == "forced" and openings is None and not wish.buy:
        common.fail("--level forced needs --openings FILE: the steps that the worker opened", 2)
    opened = b"" if openings is None else _or_no_verdict(lambda: _opened(openings))
    if evidence is not None:
        read = _or_no_verdict(lambda: _read(evidence))
        return _Found(read, _drawn(read, wish.canvas), opened, "")
    found: _Found = with_client(*place, lambda client: _export(client, wish))
    found = found._replace(opened=opened or found.opened)
    if wish.level == "forced" and not found.opened:
        common.fail(found.missing, NO_VERDICT)
    return found


async def _export(client: PieceworkClient, wish: _Wish) -> _Found:
    """Return the evidence, and the openings or the report if they could be bought.

    The canvas is drawn before a worker is asked for anything.
    """
    import asyncio

    from piecework.base.errors import PieceworkError
    from piecework.client.openings import buy_steps

    key = await asyncio.to_thread(client.store.job_named, wish.job)
    file, missing = await client.evidence(key)
    drawn = _drawn(file, wish.canvas)
    by = wish.by or client.config.audit_by
    if by != "self" and wish.level == "replay":
        from piecework.commands._client.bought_audit import bought_report

        return _Found(file, drawn, b"", missing, await bought_report(client, file, drawn, by))
    if not wish.buy:
        return _Found(file, drawn, b"", missing)
    try:
        bought = await buy_steps(client, key, drawn, soft=wish.level == "forced")
    except PieceworkError as error:
        why = f"the worker opens no steps: {error}"
        return _Found(file, drawn, b"", f"{missing} and {why}" if missing else why)
    cost = client.payment_token.format(bought.cost)
    common.say(f"the worker opened {len(bought.steps)} steps for {cost}", err=True)
    return _Found(file, drawn, bought.file, missing)


def _check_by(by: str | None, job: str | None, level: str) -> None:
    """End the command if nobody can audit so."""
    from piecework.client.config import check_auditor

    if by is None or by == "self":
        return
    try:
        check_auditor(by)
    except ValueError:
        common.fail("--by is self, market or the address of a worker", 2)
    if job is None:
        common.fail("others audit a JOB of this client, not a file", 2)
    if level != "replay":
        common.fail("others audit by replay. For other levels use --by self", 2)


def _drawn(file: EvidenceFile, canvas: int | None) -> int:
    """Return the canvas that is asked for, or draw one."""
    import secrets

    from piecework.client.auditing import choose_canvas

    drawn = choose_canvas(file, secrets.token_bytes) if canvas is None else canvas
    if drawn is None:
        common.fail("this job has no canvas with a trace", NO_VERDICT)
    if drawn >= len(file.canvases):
        common.fail(f"the job has {len(file.canvases)} canvases, and none of index {drawn}", 2)
    return drawn


def _opened(path: Path) -> bytes:
    from piecework.base.files import read
    from piecework_protocol.openings import MAX_OPENINGS_BYTES

    return read(path, MAX_OPENINGS_BYTES)


def _read(path: Path) -> EvidenceFile:
    from piecework.base.files import read
    from piecework_protocol.evidence.file import read_evidence
    from piecework_protocol.limits import MAX_EVIDENCE_BYTES

    return read_evidence(read(path, MAX_EVIDENCE_BYTES))


def _or_no_verdict(work: Callable[[], T]) -> T:
    """Return what `work` returns. What cannot be read or checked blames no worker."""
    from piecework.base.errors import PieceworkError

    try:
        return work()
    except PieceworkError as error:
        common.fail(str(error), NO_VERDICT)


def _audit(found: _Found, level: str, engine: EngineChoice) -> CanvasReport:
    from piecework.client.auditing import EngineAuditor, audit_rules
    from piecework_protocol.evidence.file import write_evidence
    from piecework_protocol.objects import AuditLevel

    if level == "rules":
        return _or_no_verdict(lambda: audit_rules(found.file, found.canvas, found.opened))
    auditor = EngineAuditor(engine.model, engine.device)
    data = _or_no_verdict(lambda: write_evidence(found.file))
    return common.run(auditor.audit(data, found.canvas, AuditLevel[level.upper()], found.opened))


def _exit_code(report: CanvasReport) -> int:
    from piecework_protocol.objects import AuditOutcome

    return {AuditOutcome.PASS: 0, AuditOutcome.FAIL: 1}.get(report.outcome, NO_VERDICT)


def _print(report: CanvasReport, missing: str, told: dict[str, Any] | None, *, json: bool) -> None:
    from piecework_protocol.types import address_hex, to_hex
    from piecework_protocol.views import members

    level, outcome = report.level.name.lower(), report.outcome.name.lower()
    if json:
        common.print_json(
            {
                "level": level,
                "outcome": outcome,
                **members(report, "canvas", "steps", "findings", "reason", "seconds"),
                **members(report, "by", "jobs", "cost", "remarks"),
                "report": told,
            }
        )
        return
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
    if told is not None:
        say(told)
    if missing and outcome == "no_verdict":
        common.say(f"    the evidence lacks {safe(missing)}", err=True)
