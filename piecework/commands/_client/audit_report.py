"""The part of `piecework client audit` that tells others: files, and indexes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework.commands import _common as common
from piecework.commands._client.home import safe, with_client

if TYPE_CHECKING:
    from piecework.client.audits.auditor import CanvasReport
    from piecework.client.sdk import PieceworkClient
    from piecework_protocol.evidence.file import EvidenceFile
    from piecework_protocol.evidence.reports import ReportFile
    from piecework_protocol.types import Bytes32


@dataclass(frozen=True, slots=True)
class Telling:
    """What the flags ask for, and whose home it is.

    folder: --report. agent: --agent. publish: --publish.
    """

    folder: Path | None
    agent: str | None
    publish: bool
    home: Path | None
    password_file: Path | None

    def check(self) -> None:
        """One clear line if the flags do not go together."""
        if self.agent is not None:
            from piecework.client.reports import Agent

            if self.folder is None:
                common.fail("--agent goes with --report", 2)
            agent = self.agent
            common.guard(lambda: Agent.parse(agent))

    @property
    def wanted(self) -> bool:
        return self.folder is not None or self.publish


def tell(
    telling: Telling,
    file: EvidenceFile,
    report: CanvasReport,
    opened: bytes,
) -> dict[str, Any]:
    """Sign the report of an audit, write it and publish it. Returns what was done.

    A failure does not end the command, because the verdict stands. It is said on stderr, and is the
    member `error` of what is returned.

    opened: an openings file, or nothing.
    """
    done: dict[str, Any] = {"files": [], "feedback_hash": None, "indexes": {}, "error": None}
    if report.statistical:
        done["error"] = "a report has one canvas, and several made this verdict"
        common.say(f"error: {done['error']}", err=True)
        return done

    async def work(client: PieceworkClient) -> None:
        from piecework.client.reports import export, publish, sign_report
        from piecework_protocol.evidence.reports import AuditFound
        from piecework_protocol.types import to_hex

        found = AuditFound(report.canvas, report.level, report.outcome)
        signed = sign_report(file, found, client.wallet, _without_soft(opened))
        if telling.folder is not None:
            about = await _feedback(client, signed, telling.agent)
            written = await export(telling.folder, signed, about)
            done["files"] = [str(one) for one in written.files]
            if written.feedback_hash is not None:
                done["feedback_hash"] = to_hex(written.feedback_hash)
        if telling.publish:
            done["indexes"] = await publish(signed, client.config.indexes)

    try:
        with_client(telling.home, telling.password_file, work)
    except common.ExitError as failed:
        done["error"] = failed.line
    return done


def _without_soft(opened: bytes) -> dict[str, Any] | None:
    """Return openings without soft embeddings: the rules need none, and they are large."""
    from piecework.base.jsons import loads

    if not opened:
        return None
    body: dict[str, Any] = loads(opened)
    steps = [{"fields": one["fields"], "soft": None} for one in body["steps"]]
    return {"format": body["format"], "canvas": body["canvas"], "steps": steps}


async def _feedback(
    client: PieceworkClient, report: ReportFile, agent: str | None
) -> dict[str, Any] | None:
    from piecework.client.reports import Agent, feedback
    from piecework_protocol.types import Timestamp

    if agent is None:
        return None
    paid = await _settlement(client, report)
    return feedback(report, Agent.parse(agent), Timestamp(int(time.time())), paid)


async def _settlement(client: PieceworkClient, report: ReportFile) -> Bytes32 | None:
    """The last transaction that paid the worker on the job's channel."""
    from piecework_protocol.types import ChannelId

    channel = ChannelId(report.evidence.job.job.channel)
    found = await client.reader.settlements(channel)
    return found[-1].log.transaction if found else None


def say(told: dict[str, Any]) -> None:
    """Print what was done, a line each."""
    for file in told["files"]:
        common.say(f"    wrote {safe(file)}")
    if told["feedback_hash"] is not None:
        common.say(f"    feedbackHash {told['feedback_hash']}")
    for index, line in told["indexes"].items():
        common.say(f"    {safe(index)}: {safe(line)}")
