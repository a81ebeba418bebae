"""One audit of `piecework client audit`: of a job of this client, or of an evidence file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.client.audits.auditor import Auditor, CanvasReport
    from piecework.client.audits.openings import BoughtSteps
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.evidence.file import EvidenceFile
    from piecework_protocol.types import JobId

NO_VERDICT: Final = 3
"""The exit code. 2 says that the command was wrong."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be audited, by whom, and whether the worker is to open it.

    canvas: None draws one. by: None takes the setting. opened: openings files, by canvas.
    """

    level: str
    job: str = ""
    canvas: int | None = None
    by: str | None = None
    buy: bool = False
    opened: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditDone:
    """What was audited and found.

    missing: what of the text the evidence lacks. kept: the file of the evidence of a failure.
    ended: whether the worker gets no more jobs.
    """

    file: EvidenceFile
    opened: bytes
    report: CanvasReport
    missing: str = ""
    kept: Path | None = None
    ended: bool = False


async def audit_file(wish: Wish, place: Path, auditor: Auditor) -> AuditDone:
    """Audit a canvas of an evidence file. It may be anybody's, so no relation ends."""
    import asyncio

    from piecework.base.errors import PieceworkError
    from piecework.base.files import read
    from piecework.client.audits.confirmation import confirmed_audit
    from piecework.client.audits.more_canvases import opened_beside
    from piecework_protocol.evidence.file import read_evidence
    from piecework_protocol.limits import MAX_EVIDENCE_BYTES
    from piecework_protocol.objects import AuditLevel, AuditOutcome

    try:
        file = read_evidence(await asyncio.to_thread(read, place, MAX_EVIDENCE_BYTES))
        level = AuditLevel[wish.level.upper()]
        drawn = _drawn(file, wish)
        opened = wish.opened.get(drawn, b"")
        others = opened_beside(file, drawn, wish.opened)
        report = await confirmed_audit(auditor, file, drawn, level, opened, others=others)
    except PieceworkError as error:  # what cannot be read or checked blames no worker
        common.fail(str(error), NO_VERDICT)
    kept = place if report.outcome is AuditOutcome.FAIL else None
    return AuditDone(file, opened, report, kept=kept)


async def audit_job(client: PieceworkClient, wish: Wish, auditor: Auditor) -> AuditDone:
    """Audit a canvas of a job of this client. A failure that is confirmed ends the relation.

    The canvas is drawn before a worker is asked for anything.

    auditor: who audits unless others are asked.
    """
    import asyncio

    from piecework.base.errors import PieceworkError
    from piecework.client.audits.background import Audits
    from piecework.client.audits.more_canvases import bought_beside, opened_beside
    from piecework.client.config import SELF
    from piecework_protocol.objects import AuditLevel, AuditOutcome

    key = await asyncio.to_thread(client.store.job_named, wish.job)
    file, missing = await client.evidence(key)
    drawn = _drawn(file, wish)
    by = wish.by or client.config.audit_by
    refused, opened = "", wish.opened.get(drawn, b"")
    if by != SELF and wish.level == "replay":
        auditor = await _others(client, file, by)
    elif wish.buy:
        if lacking := await _lacking(wish, file, drawn, auditor):
            return AuditDone(file, b"", lacking, missing)
        opened, refused = await _bought(client, key, drawn, soft=wish.level == "forced")
    if wish.level == "forced" and not opened:
        common.fail(f"{missing} and {refused}" if missing else refused, NO_VERDICT)
    kept: list[Path | None] = []
    audits = Audits(client.context, auditor, on_report=lambda report, place: kept.append(place))
    row = await asyncio.to_thread(client.store.job, key)
    others = (
        bought_beside(client, auditor, file, drawn, partial(_say_cost, client))
        if wish.buy
        else opened_beside(file, drawn, wish.opened)
    )
    try:
        level = AuditLevel[wish.level.upper()]
        # A client that keeps no text still knows the shape of what it asked.
        report = await audits.audit(file, drawn, level, opened, outline=row.outline, others=others)
    except PieceworkError as error:
        common.fail(str(error), NO_VERDICT)
    if report.cost:
        cost = client.payment_token.format(report.cost)
        common.say(f"the auditors were paid {cost}", err=True)
    if refused and report.outcome is AuditOutcome.NO_VERDICT:
        report = replace(report, reason=f"{report.reason}, and {refused}")
    ended = report.outcome is AuditOutcome.FAIL
    return AuditDone(file, opened, report, missing, next(iter(kept), None), ended)


async def _lacking(
    wish: Wish, file: EvidenceFile, drawn: int, auditor: Auditor
) -> CanvasReport | None:
    """Say why a forced audit has no verdict whatever the worker opens, before it is paid for it."""
    import asyncio

    from piecework.base.errors import PieceworkError
    from piecework.client.audits.auditor import CanvasReport
    from piecework_protocol.evidence.file import write_evidence
    from piecework_protocol.objects import AuditLevel, AuditOutcome

    if wish.level != "forced":
        return None
    try:
        reason = await auditor.forced_lacks(await asyncio.to_thread(write_evidence, file), drawn)
    except PieceworkError as error:  # a file that is too long, say
        reason = str(error)
    if not reason:
        return None
    steps = file.canvases[drawn].receipt.steps
    return CanvasReport(
        AuditLevel.FORCED, AuditOutcome.NO_VERDICT, drawn, reason=reason, steps=steps
    )


async def _bought(
    client: PieceworkClient, job: JobId, canvas: int, *, soft: bool
) -> tuple[bytes, str]:
    """Buy the steps of a canvas. Returns the openings file, or why there is none."""
    from piecework.base.errors import PieceworkError
    from piecework.client.audits.openings import buy_steps

    try:
        bought = await buy_steps(client, job, canvas, soft=soft)
    except PieceworkError as error:
        return b"", f"the worker opens no steps: {error}"
    _say_cost(client, bought)
    return bought.file, ""


def _say_cost(client: PieceworkClient, bought: BoughtSteps) -> None:
    cost, canvas = client.payment_token.format(bought.cost), bought.canvas.canvas
    steps = f"{len(bought.steps)} steps of canvas {canvas}"
    common.say(f"the worker opened {steps} for {cost}", err=True)


async def _others(client: PieceworkClient, file: EvidenceFile, by: str) -> Auditor:
    """Return those who audit for money. by: "market", or the worker that is asked first."""
    from piecework.client.auditors.journal import known_canvases
    from piecework.client.auditors.market import auditor_of

    canvases = await known_canvases(client, but=file.job.job.content)
    config = client.config.model_copy(update={"audit_by": by})
    return auditor_of(client, config, canvases)


def _drawn(file: EvidenceFile, wish: Wish) -> int:
    """Return the canvas that is asked for, or draw one. If some are opened, draw among them."""
    import secrets

    from piecework.client.audits.drawing import choose_canvas, judgeable

    given = [number for number in wish.opened if number < len(file.canvases)]
    if not given and wish.level == "forced":
        given = judgeable(file)
    drawn = wish.canvas
    if drawn is None:
        drawn = secrets.choice(given) if given else choose_canvas(file, secrets.token_bytes)
    if drawn is None:
        common.fail("this job has no canvas with a trace", NO_VERDICT)
    if drawn >= len(file.canvases):
        common.fail(f"the job has {len(file.canvases)} canvases, and none of index {drawn}", 2)
    if wish.opened and drawn not in wish.opened:
        opened = ", ".join(map(str, sorted(wish.opened)))
        common.fail(f"the openings are of canvas {opened}, and not of canvas {drawn}", NO_VERDICT)
    return drawn


def read_opened(places: Sequence[Path]) -> dict[int, bytes]:
    """Read openings files, by the canvas that each is of. What cannot be read blames no worker."""
    from piecework.base.errors import PieceworkError
    from piecework.base.files import read
    from piecework_protocol.openings import MAX_OPENINGS_BYTES, read_openings

    found: dict[int, bytes] = {}
    for place in places:
        try:
            data = read(place, MAX_OPENINGS_BYTES)
            canvas = read_openings(data).canvas
        except PieceworkError as error:
            common.fail(f"{place.name}: {error}", NO_VERDICT)
        if canvas is None:
            common.fail(f"{place.name} does not say which canvas it is of", NO_VERDICT)
        if canvas.canvas in found:
            common.fail(f"two openings files are of canvas {canvas.canvas}", 2)
        found[canvas.canvas] = data
    return found
