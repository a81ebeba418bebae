"""A canvas that other workers audit for `piecework client audit --by`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.commands import _common as common

if TYPE_CHECKING:
    from piecework.client.auditing import CanvasReport
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.evidence.file import EvidenceFile


async def bought_report(
    client: PieceworkClient, file: EvidenceFile, canvas: int, by: str
) -> CanvasReport:
    """Have a canvas audited. A failure that is confirmed ends the relation with its worker.

    by: "market", or the address of the worker that is asked first.
    """
    from piecework.client.auditing import Audits
    from piecework.client.auditors.journal import known_canvases
    from piecework.client.auditors.market import auditor_of

    canvases = await known_canvases(client, but=file.job.job.content)
    config = client.config.model_copy(update={"audit_by": by})
    audits = Audits(client.context, auditor_of(client, config, canvases))
    report = await audits.audit(file, canvas)
    if report.cost:
        cost = client.payment_token.format(report.cost)
        common.say(f"the auditors were paid {cost}", err=True)
    return report
