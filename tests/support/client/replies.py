"""Answers of a gateway that prove themselves, out of jobs that never ran."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from piecework.client.gateway.answers import Answers, read
from piecework.client.gateway.bill import Bill
from piecework.client.gateway.endpoints import CHAT, COMPLETIONS, RESPONSES, TextFormat
from piecework.client.gateway.exhibits import Exhibits, SelfProving, signed
from piecework.client.gateway.formats import decisions
from piecework.client.gateway.formats.common import FormatOptions, Head
from piecework.client.gateway.metrics import GatewayMetrics
from piecework.client.gateway.replies import CheckedJob, events_of
from piecework.client.gateway.turns import RunningJob
from piecework.client.jobs.events import JobStarted
from piecework.client.jobs.requests import JobRequest, ReadRequest, TextRequest
from piecework.client.jobs.run import Caller, JobRun
from piecework.client.journal.records import Part
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.types import JobId
from tests.support.chain.fake_chain import DOMAIN, TOKEN_INFO
from tests.support.protocol.evidence import PAYER, Story, evidence, read_evidence_of

FORMATS: Mapping[str, TextFormat] = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "responses": RESPONSES,
}


class ScriptedJobs:
    """Runs each job as the next story says. Implements `JobSource`."""

    def __init__(self, stories: Sequence[Story] = (), read: Sequence[tuple[int, ...]] = ()) -> None:
        """`read`: what a read job answers on each canvas."""
        self._stories, self._read = list(stories), read
        self.files: dict[JobId, EvidenceFile] = {}

    def part(self, number: int = 0) -> Part:
        """The part of this number."""
        return Part(number=number)

    @asynccontextmanager
    async def parts(self, requests: Sequence[TextRequest]) -> AsyncIterator[tuple[Part, ...]]:
        """A part for each request."""
        yield tuple(self.part(n) for n in range(len(requests)))

    @asynccontextmanager
    async def job(self, request: JobRequest, part: Part) -> AsyncIterator[RunningJob]:
        """Make the evidence of the next story, asked what the request asks."""
        if isinstance(request, ReadRequest):
            file = read_evidence_of(request.content, self._read)
        else:
            assert isinstance(request, TextRequest)
            story = replace(self._stories.pop(0), seed=part.number)
            file = evidence(story, request.content)
        proven = check_evidence(file)
        self.files[proven.job] = file
        events = events_of(CheckedJob(file, proven))

        async def drive(caller: Caller) -> None:
            for event in events:
                await caller.emit(event)

        async with JobRun(drive, lambda _: None) as run:
            passing = aiter(run)
            started = await anext(passing)
            assert isinstance(started, JobStarted)
            yield RunningJob(started, passing, run)

    async def source(
        self, job: JobId, content: bytes, outputs: Mapping[int, bytes]
    ) -> EvidenceFile:
        """The evidence of a job that has ended."""
        file = self.files[job]
        assert file.content == content
        assert [canvas.output for canvas in file.canvases] == [*outputs.values()]
        return file


async def answered(
    form: str, request: dict[str, Any], stories: Sequence[Story], *, stream: bool = False
) -> dict[str, Any]:
    """The answer that a gateway would give to a request, or a stream's last frame with evidence."""
    shape = FORMATS[form]
    body = {**request, "piecework": {**request.get("piecework", {}), "evidence": True}}
    ask = shape.parse(body, FormatOptions())
    jobs, bill = ScriptedJobs(stories), Bill(TOKEN_INFO, None, ask.ignored)
    exhibits = Exhibits(jobs.source, body)
    reply = SelfProving(shape.reply(ask), exhibits, DOMAIN, PAYER)
    async with Answers(ask, jobs, GatewayMetrics(), bill, exhibits).running() as pieces:
        first = await anext(pieces)
        assert bill.first is not None
        head = Head(shape.prefix + bill.first.job.hex()[:32], 1_700_000_000, bill.first.model)
        for _ in (*reply.opening(head), *reply.take(first)):
            pass
        async for piece in pieces:
            for _ in reply.take(piece):
                pass
    whole: Any = reply.whole(head, bill.totals(), bill.ours())
    if stream:
        frames = [dict(frame.data) for frame in reply.closing(bill.totals(), bill.ours())]
        whole = next(f for f in frames if "piecework" in f or "piecework" in f.get("response", {}))
    found: dict[str, Any] = json.loads(json.dumps(whole))
    return found


async def decided(
    form: str, request: dict[str, Any], answers: Sequence[tuple[int, ...]]
) -> dict[str, Any]:
    """The answer that a gateway would give to a decision whose canvases say this."""
    parse, render = {
        "decisions": (decisions.parse_decision, decisions.decision),
        "systemone": (decisions.parse_systemone, decisions.systemone),
    }[form]
    body = {**request, "piecework": {**request.get("piecework", {}), "evidence": True}}
    ask = parse(body, FormatOptions())
    jobs, bill = ScriptedJobs(read=answers), Bill(TOKEN_INFO, None, ask.ignored)
    exhibits = Exhibits(jobs.source, body)
    means = await read(ask, jobs, GatewayMetrics(), bill, exhibits)
    assert bill.first is not None
    ours = exhibits.beside(bill.ours())
    answer = render(bill.first.model, ask.asked, means, bill.totals(), ours)
    found: dict[str, Any] = json.loads(json.dumps(signed(answer, DOMAIN, PAYER)))
    return found
