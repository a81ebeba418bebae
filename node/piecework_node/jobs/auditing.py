"""Audits that a worker sells: a canvas of somebody else's worker, computed again on its engine."""

from __future__ import annotations

from piecework.base.errors import PieceworkError
from piecework_model.kinds import audit
from piecework_model.requests import CanvasEvent, CanvasFinish, EncodedContent
from piecework_node.engine.link import EngineFacts, EngineLink, ReplayWork
from piecework_node.errors import EngineUnavailable, ReplayDeclined
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.audit import AuditContent


class CannotAudit(PieceworkError):
    """A canvas cannot be audited by this worker as it runs now."""


async def encoded(
    engine: EngineLink, facts: EngineFacts, content: AuditContent, most: int
) -> EncodedContent:
    """Check that a replay here says something about the canvas, and count the job's tokens.

    facts: of the engine, by the entry of the offer. most: more tokens need not be counted.

    Raises:
        Refusal: The engine computes on another profile.
        PromptRejected: It cannot carry what the audited job asked for.
        EngineUnavailable: It does not answer.
    """
    if facts.profile != content.profile:
        raise Refusal(
            Reason.WRONG_PROFILE,
            f"the canvas was computed on {content.profile}, and this engine is {facts.profile}",
        )
    asked = await engine.encode(content.content, max(0, most - content.context))
    return audit.encode(content, asked)


async def audited(
    engine: EngineLink, request_id: str, content: AuditContent, work: ReplayWork
) -> CanvasEvent:
    """Audit a canvas. The event has the report, and the steps that were computed again.

    work: told what is done. A caller that is cancelled ends the audit, and owes that.

    Raises:
        CannotAudit: The engine has another profile by now, or cannot compute the canvas.
    """
    facts = engine.facts
    if facts is None or facts.profile != content.profile:
        raise CannotAudit("the engine runs on another profile than that of the canvas")
    try:
        found = await engine.audit(content, work)
    except (EngineUnavailable, ReplayDeclined) as error:
        raise CannotAudit(str(error)) from error
    return CanvasEvent(
        request_id=request_id,
        canvas=0,
        token_ids=(),
        charged_ids=(),
        segments=(),
        steps=len(found.records),
        step_leaves=tuple(record.leaf() for record in found.records),
        finish=CanvasFinish.END_OF_TEXT,
        records=found.records,
        report=found.report,
    )
