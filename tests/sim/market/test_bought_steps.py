"""The shipped client buys the steps of its canvases from the shipped worker."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from piecework.client.audits.auditor import CanvasReport, CanvasToAudit, NotOpened
from piecework.client.audits.more_canvases import bought_beside, opened_beside
from piecework.client.audits.openings import BoughtSteps, NothingToOpen, buy_steps
from piecework.client.audits.rules import audit_rules
from piecework.client.errors import JobFailed
from piecework.client.evidence import NO_TEXTS, Texts, make_evidence
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.events import JobFinished, StepOpened
from piecework.client.jobs.preparing import prepare
from piecework.client.jobs.requests import Filters, JobRequest, OpenRequest
from piecework.client.jobs.run import Caller, JobRun
from piecework.client.jobs.selection import rank
from piecework.client.journal.records import Memories
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import EvidenceFile, read_evidence
from piecework_protocol.kinds.text import Fixed, Hole, TextContent
from piecework_protocol.limits import MAX_OPENED_STEPS
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.openings import read_openings
from piecework_protocol.pricing import Usage, price
from piecework_protocol.trace import leaf_of
from piecework_protocol.types import JobId
from tests.support.chain.fake_chain import TOKEN_INFO
from tests.support.client.client_side import ask
from tests.support.market.shipped import EventList, ShippedMarket
from tests.support.node.fake_engine import CANVAS
from tests.support.node.harness import OPERATOR
from tests.support.protocol.conversations import said
from tests.support.protocol.evidence import Story, evidence

if TYPE_CHECKING:
    from piecework.client.journal.store import Store

TOKENS = 40


class ShippedBuyer:
    """Implements `more_canvases.JobKeeper` over a market in one process."""

    def __init__(self, market: ShippedMarket) -> None:
        self.market = market
        self.asked: list[OpenRequest] = []

    @property
    def store(self) -> Store:
        return self.market.store

    def run(self, request: JobRequest) -> JobRun:
        async def drive(caller: Caller) -> None:
            assert isinstance(request, OpenRequest)
            self.asked.append(request)
            filters = Filters(now=self.market.harness.clock.now(), token=TOKEN_INFO)
            (choice,) = rank(request, [self.market.harness.offer], Memories(), filters).choices
            job, channel = await prepare(self.market.context(), choice, request)
            from piecework.client.jobs.driver import JobDriver

            await JobDriver(self.market.context(), job, caller, admitted=channel).run()

        return JobRun(drive, lambda run: None)

    @property
    def context(self) -> JobContext:
        return self.market.context()


async def traded(market: ShippedMarket, prompt: str = "a fox", seed: int = 3) -> JobId:
    """A job of several canvases that was paid."""
    if not market.store.jobs():
        await market.open_channel()
    job = await market.prepare(ask(prompt, max_tokens=TOKENS, seed=seed))
    await market.driver(job, EventList()).run()
    return job.id


async def test_bought_steps_fit_the_leaves_and_the_rules_read_them(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path) as market, asyncio.timeout(60):
        job = await traded(market)
        buyer = ShippedBuyer(market)
        receipts = {r.receipt.canvas: r for r in market.store.receipts(job=job)}
        for canvas, row in receipts.items():
            bought = await buy_steps(buyer, job, canvas, soft=canvas == 1)
            assert bought.canvas.leaf() == row.leaves[0]
            assert [leaf_of(step.fields) for step in bought.steps] == [*row.leaves[1:]]
            assert all((step.soft is not None) is (canvas == 1) for step in bought.steps)
            model = market.harness.offer.offer.models[0]
            prompt = market.store.job(job).prompt_tokens or 0
            usage = Usage(prompt + canvas * CANVAS, 0, len(bought.steps))
            assert bought.cost == price(model, usage)
            opened = read_openings(bought.file)
            assert opened.steps == bought.steps and opened.canvas == bought.canvas
            evidence = await make_evidence(market.context(), job, NO_TEXTS)
            # The fake engine's ids are not Philox's, which only opened steps can show.
            found = audit_rules(evidence, canvas, bought.file)
            assert found.outcome is AuditOutcome.FAIL
            assert all("(leaves)" not in line for line in found.findings)
        assert {request.operator for request in buyer.asked} == {OPERATOR.address}


async def test_an_opening_goes_to_the_worker_of_the_job_alone(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path) as market, asyncio.timeout(60):
        job = await traded(market)
        buyer = ShippedBuyer(market)
        await buy_steps(buyer, job, 0, soft=False)
        (request,) = buyer.asked
        filters = Filters(now=market.harness.clock.now(), token=TOKEN_INFO)
        offers = [market.harness.offer]
        assert rank(request, offers, Memories(), filters).choices
        other = OpenRequest(request.content, market.signer.address, request.model)
        assert not rank(other, offers, Memories(), filters).choices
        assert len(request.content.steps) <= MAX_OPENED_STEPS


async def test_an_opening_keeps_no_text_and_its_evidence_is_whole(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path, keep_text=True) as market, asyncio.timeout(60):
        job = await traded(market)
        await buy_steps(ShippedBuyer(market), job, 0, soft=True)
        (opening,) = {r.receipt.job for r in market.store.receipts()} - {job}
        kept = market.store.texts(JobId(opening))
        assert kept.content is None and not kept.outputs
        file = await make_evidence(market.context(), JobId(opening), NO_TEXTS)
        assert file.acceptance is not None and file.payments


async def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path) as market, asyncio.timeout(60):
        job = await traded(market)
        with pytest.raises(NothingToOpen, match="canvas 99"):
            await buy_steps(ShippedBuyer(market), job, 99, soft=False)
        market.harness.engine.numerics = b"another kernel"
        with pytest.raises(JobFailed):
            await buy_steps(ShippedBuyer(market), job, 0, soft=False)


async def test_a_client_that_follows_an_opening_again_sees_all_of_its_steps(
    tmp_path: Path,
) -> None:
    async with ShippedMarket(tmp_path) as market, asyncio.timeout(60):
        job = await traded(market)
        await buy_steps(ShippedBuyer(market), job, 0, soft=True)
        (opening,) = {r.receipt.job for r in market.store.receipts()} - {job}
        row, caller = market.store.job(JobId(opening)), EventList()
        market.restart_client()
        await market.driver(row, caller, replay=True).run()
        steps = [event for event in caller.events if isinstance(event, StepOpened)]
        assert len(steps) == market.store.receipts(job=job)[0].receipt.steps
        assert all(event.again and event.soft is not None for event in steps)
        assert isinstance(caller.events[-1], JobFinished)


class Judge:
    """Implements `Auditor`, and judges nothing. `lacks`: canvases that it has no thresholds for."""

    def __init__(self, *lacks: int) -> None:
        self.lacks, self.asked = lacks, list[int]()

    async def audit(self, *args: Any, **more: Any) -> CanvasReport:
        raise AssertionError("it is asked for no audit here")

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        check_evidence(read_evidence(evidence))
        self.asked.append(canvas)
        return "no thresholds" if canvas in self.lacks else ""


async def test_no_canvas_is_bought_that_the_auditor_cannot_judge(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path, keep_text=True) as market, asyncio.timeout(60):
        jobs = [await traded(market, prompt) for prompt in ("a fox", "a hen")]
        file, buyer = await kept(market, jobs[0]), ShippedBuyer(market)
        others, judge = range(1, len(file.canvases)), Judge(*range(99))
        found = [one async for one in bought_beside(buyer, judge, file, 0, lambda _: None)]
        assert buyer.asked == [] and len(found) == len(judge.asked) == len(others) + 1
        for one, canvas in zip(found, judge.asked, strict=True):
            assert isinstance(one, NotOpened)
            assert re.fullmatch(
                f"canvas {canvas} of job [0-9a-f]{{16}} was not opened: no thresholds", one.reason
            )
        paid, some = list[BoughtSteps](), Judge(1)
        beside = bought_beside(buyer, some, file, 0, paid.append)
        first = [await anext(beside) for _ in others]
        await beside.aclose()
        assert [one.canvas for one in first if isinstance(one, CanvasToAudit)] == [
            one.canvas.canvas for one in paid
        ]
        assert sorted(one.canvas.canvas for one in paid) == [*others[1:]]


async def kept(market: ShippedMarket, job: JobId) -> EvidenceFile:
    texts = market.store.texts(job)
    known = NO_TEXTS if texts.content is None else Texts(texts.content, texts.outputs)
    return await make_evidence(market.context(), job, known)


async def test_more_canvases_of_a_worker_are_those_of_its_job_and_then_of_others(
    tmp_path: Path,
) -> None:
    async with ShippedMarket(tmp_path, keep_text=True) as market, asyncio.timeout(60):
        asked = [("a fox", 3), ("a hen", 3), ("a hen", 4), ("a cow", 3), ("a fox", 5)]
        jobs = [await traded(market, *one) for one in asked]
        buyer, paid = ShippedBuyer(market), list[BoughtSteps]()
        file = await kept(market, jobs[0])
        beside = bought_beside(buyer, Judge(), file, 0, paid.append)
        first = await anext(beside)
        assert len(paid) == 1, "the next one is bought when it is asked for"
        every = [first, *[one async for one in beside]]
        found = [one for one in every if isinstance(one, CanvasToAudit)]
        mine = [one.canvas for one in found if one.evidence == file]
        assert sorted(mine) == list(range(1, len(file.canvases)))
        # How far off a canvas is depends on its prompt: one of each, and none of the same.
        others = found[len(mine) :]
        named = [one.evidence.job.job.id(file.domain) for one in others]
        assert len(named) == 2 and jobs[3] in named and {jobs[1], jobs[2]} & set(named)
        for one, steps in zip(found, paid, strict=True):
            assert one.openings == steps.file
            opened = read_openings(one.openings)
            assert opened.canvas is not None and opened.canvas.canvas == one.canvas
            assert all(step.soft is not None for step in opened.steps)


async def test_openings_are_no_jobs_to_look_at_and_crowd_out_none(tmp_path: Path) -> None:
    async with ShippedMarket(tmp_path, keep_text=True) as market, asyncio.timeout(60):
        jobs = [await traded(market, prompt) for prompt in ("a fox", "a hen")]
        buyer = ShippedBuyer(market)
        for canvas in range(len(market.store.receipts(job=jobs[1]))):
            await buy_steps(buyer, jobs[1], canvas, soft=False)
        beside = bought_beside(buyer, Judge(), await kept(market, jobs[0]), 0, lambda _: None)
        found = [one async for one in beside if isinstance(one, CanvasToAudit)]
        assert {one.evidence.job.job.id(one.evidence.domain) for one in found} == set(jobs)


async def test_a_job_whose_text_is_not_kept_is_left_out_and_a_refusal_is_told(
    tmp_path: Path,
) -> None:
    async with ShippedMarket(tmp_path) as market, asyncio.timeout(60):
        job, _ = [await traded(market, prompt) for prompt in ("a fox", "a hen")]
        buyer, file = ShippedBuyer(market), await kept(market, job)
        beside = len(file.canvases) - 1
        found = [one async for one in bought_beside(buyer, Judge(), file, 0, lambda _: None)]
        assert [one.evidence for one in found if isinstance(one, CanvasToAudit)] == [file] * beside
        market.harness.engine.numerics = b"another kernel"
        refused = [one async for one in bought_beside(buyer, Judge(), file, 0, lambda _: None)]
        assert len(refused) == beside and all(isinstance(one, NotOpened) for one in refused)


async def test_of_an_answer_with_a_form_only_the_first_canvas_can_be_judged() -> None:
    content = TextContent(said("a fox"), (Fixed("Once "), Hole(400)))
    file = evidence(Story(steps=(2, 2, 2), sentences=tuple("abc")), content)
    opened = dict.fromkeys(range(3), b"")
    for canvas, others in ((0, []), (1, [0]), (2, [0])):
        found = [one async for one in opened_beside(file, canvas, opened)]
        assert [one.canvas for one in found if isinstance(one, CanvasToAudit)] == others
