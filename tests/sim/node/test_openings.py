"""Kind `open` through a whole worker: asked for by the payer, held to the leaves, paid, resumed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework_node.disputes.leaves import JournalLeaves
from piecework_node.journal.records import StoredJob
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.kinds.open import OpenContent, OpenOutput, WantedStep
from piecework_protocol.objects import Finish, Kind
from piecework_protocol.pricing import Usage, price
from piecework_protocol.trace import StepRecord, leaf_of
from piecework_protocol.types import Digest, JobId
from tests.sim.node.test_defence_leaves import challenge
from tests.support.node.fake_engine import CANVAS, FACTS, soft_rows
from tests.support.node.harness import DOMAIN, Client, JobStream, WorkerHarness
from tests.support.waiting import until

SEED, TOKENS, PROMPT = 3, 40, len(b"a fox")


async def served(
    folder: Path | None = None, *, profiles: Sequence[str] = (FACTS.profile,)
) -> tuple[WorkerHarness, Client, StoredJob]:
    """A worker that has done a job of several canvases on its last card, and is paid."""
    harness = WorkerHarness(steps_folder=folder, profiles=profiles)
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(SEED, TOKENS, entry=len(profiles) - 1)
    await client.submit(line)
    await client.finish(line)
    (job,) = harness.journal.jobs.values()
    assert len(job.canvases) > 1
    return harness, client, job


def content_of(
    job: StoredJob, canvas: int = 0, /, *, soft: bool = False, **other: Any
) -> OpenContent:
    leaves = job.canvases[canvas].leaves
    steps = tuple(WantedStep(step, leaf) for step, leaf in enumerate(leaves[1:]))
    context = PROMPT + canvas * CANVAS
    return replace(OpenContent(job.id, canvas, context, leaves[0], steps, soft), **other)


def asking(client: Client, content: OpenContent, seed: int = 0, **changes: Any) -> JobStream:
    positions = len(content.steps) * CANVAS
    asked: dict[str, Any] = {"max_steps": 1, "stability_steps": 0, **changes}
    return client.job(seed, asked.pop("max_tokens", positions), prompt=content, **asked)


async def begun(client: Client, content: OpenContent) -> JobStream:
    """An opening whose first step has come."""
    line = asking(client, content)
    await client.submit(line)
    async with asyncio.timeout(30):
        while not line.receipts:
            if not client.read(line):
                await asyncio.sleep(0)
    return line


async def follow(client: Client, line: JobStream) -> None:
    """Trade until the job is over and paid. Openings are served in tasks of their own."""
    async with asyncio.timeout(30):
        while line.ended is None or client.harness.journal.books[client.id].ledger.unpaid:
            if not (client.read(line) or await client.deliver(line)):
                await asyncio.sleep(0)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("soft", [False, True])
async def test_steps_are_opened_and_paid_by_prompt_and_steps(
    tmp_path: Path, kept: bool, soft: bool
) -> None:
    harness, client, job = await served(tmp_path / "steps" if kept else None)
    before = client.book.cumulative
    content = content_of(job, 1, soft=soft)
    line = asking(client, content)
    await client.submit(line)
    await follow(client, line)
    outputs = [output for output in line.outputs if isinstance(output, OpenOutput)]
    assert [leaf_of(o.fields) for o in outputs] == [*job.canvases[1].leaves[1:]]
    assert {leaf_of(o.canvas) for o in outputs} == {job.canvases[1].leaves[0]}
    steps = len(content.steps)
    assert [r.finish for r in line.receipts] == [Finish.MORE] * (steps - 1) + [Finish.END_OF_TEXT]
    assert all((r.steps, r.units) == (1, 0) for r in line.receipts)
    assert line.amount == price(line.model, Usage(PROMPT + CANVAS, 0, steps))
    assert client.book.cumulative - before == line.amount
    assert bool(harness.engine.replayed) is (soft or not kept)
    request = replace(harness.engine.started[0], committed=((),))
    assert {o.soft for o in outputs} == {soft_rows(request, 1) if soft else None}


async def test_the_offer_lists_openings() -> None:
    harness, _, _ = await served()
    assert harness.offer.offer.models[0].kinds & Kind.OPEN.bit


async def test_nobody_else_learns_whether_the_job_is_there() -> None:
    harness, client, job = await served()
    stranger = Client(harness, "a stranger")
    stranger.open_on_chain()
    said = set()
    for who, content in (
        (stranger, content_of(job)),
        (client, content_of(job, job=JobId(bytes(32)))),
        (client, content_of(job, canvas=len(job.canvases))),
        (client, content_of(job, canvas_leaf=Digest(bytes(32)))),
        (client, content_of(job, steps=(WantedStep(0, Digest(bytes(32))),))),
        (client, content_of(job, steps=(WantedStep(200, job.canvases[0].leaves[1]),))),
    ):
        with pytest.raises(Refusal) as refused:
            await who.submit(asking(who, content))
        assert refused.value.reason is Reason.NOT_OPENED
        said.add(str(refused.value))
    assert len(said) == 1
    with pytest.raises(Refusal, match="tokens come before this canvas") as refused:
        await client.submit(asking(client, content_of(job, context=PROMPT + 1)))
    assert refused.value.reason is Reason.NOT_OPENED


async def test_parameters_that_do_not_fit_are_refused() -> None:
    _, client, job = await served()
    for changes, why in (({"max_steps": 2}, "max_steps"), ({"max_tokens": 8}, "max_tokens")):
        with pytest.raises(Refusal, match=why) as refused:
            await client.submit(asking(client, content_of(job, 1), **changes))
        assert refused.value.reason is Reason.BAD_PARAMETERS


async def test_an_opening_of_an_opening_is_refused() -> None:
    harness, client, job = await served()
    line = asking(client, content_of(job))
    await client.submit(line)
    await follow(client, line)
    opened = harness.journal.jobs[line.id]
    with pytest.raises(Refusal, match="no steps of its own"):
        await client.submit(asking(client, content_of(opened, 0), seed=1))


async def test_what_an_engine_of_another_profile_cannot_replay_ends_the_job_unpaid() -> None:
    harness, client, job = await served()
    paid = client.book.cumulative
    harness.engine.numerics = b"another kernel"
    line = asking(client, content_of(job))
    await client.submit(line)
    await follow(client, line)
    assert line.ended is not None and line.ended.reason is Reason.ENGINE_FAILED
    assert client.book.cumulative == paid


async def test_kept_steps_are_opened_without_the_engine_of_then(tmp_path: Path) -> None:
    harness, client, job = await served(tmp_path / "steps")
    harness.engine.numerics = b"another kernel"
    line = asking(client, content_of(job))
    await client.submit(line)
    await follow(client, line)
    assert len(line.outputs) == len(job.canvases[0].leaves) - 1


async def test_an_opening_goes_on_after_a_kill_and_nothing_is_paid_twice() -> None:
    harness, client, job = await served()
    canvas = max(range(len(job.canvases)), key=lambda k: len(job.canvases[k].leaves))
    content = content_of(job, canvas)
    assert len(content.steps) > 3
    line = asking(client, content)
    await client.submit(line)
    async with asyncio.timeout(30):
        while len(line.receipts) < 2:
            if not (client.read(line) or await client.deliver(line)):
                await asyncio.sleep(0)
    client.forget(line)
    await harness.boot()
    await client.submit(line)
    await follow(client, line)
    assert len(line.receipts) == len(content.steps)
    assert line.amount == price(line.model, Usage(content.context, 0, len(content.steps)))


async def test_a_client_that_leaves_pays_for_what_came(tmp_path: Path) -> None:
    harness, client, job = await served(tmp_path / "steps")
    canvas = max(range(len(job.canvases)), key=lambda k: len(job.canvases[k].leaves))
    line = await begun(client, content_of(job, canvas))
    line.cancel()
    await follow(client, line)
    assert 1 <= len(line.receipts) < len(job.canvases[canvas].leaves) - 1
    assert not harness.runtime.sequences


async def halted(steps: int) -> tuple[WorkerHarness, Client, StoredJob, JobStream]:
    """An opening whose engine has taken so many steps of the replay, and waits."""
    harness, client, job = await served()
    harness.engine.halts_at = steps
    line = asking(client, content_of(job, 1))
    await client.submit(line)
    await until(lambda: any(job.progress is not None for job in harness.runtime.sequences.values()))
    client.read(line)
    return harness, client, job, line


@pytest.mark.parametrize("steps", [0, 1])
async def test_an_opening_that_is_cancelled_owes_the_prompt_of_its_replay(steps: int) -> None:
    harness, client, _, line = await halted(steps)
    line.cancel()
    await follow(client, line)
    (receipt,) = line.receipts
    assert (receipt.finish, receipt.steps) == (Finish.CANCELLED, 0)
    assert line.amount == price(line.model, Usage(PROMPT + CANVAS, 0, 0))
    assert harness.engine.dropped == 1 and not harness.runtime.sequences


async def test_an_opening_whose_client_is_gone_finishes_the_step_that_it_computes() -> None:
    harness, client, job, line = await halted(1)
    await client.drop(line)
    harness.engine.goes_on.set()
    await until(lambda: not harness.runtime.sequences)
    assert len(harness.journal.jobs[line.id].canvases) == 1 and harness.engine.dropped == 0
    harness.engine.halts_at = None
    await client.submit(line)
    await follow(client, line)
    assert len(line.receipts) == len(job.canvases[1].leaves) - 1


async def test_an_engine_that_is_lost_meanwhile_costs_a_start(tmp_path: Path) -> None:
    harness, client, job = await served(tmp_path / "steps")
    canvas = max(range(len(job.canvases)), key=lambda k: len(job.canvases[k].leaves))
    line = await begun(client, content_of(job, canvas))
    await harness.engine_event(harness.engine.lose())
    await harness.engine_event(harness.engine.come_back())
    await follow(client, line)
    assert len(line.receipts) == len(job.canvases[canvas].leaves) - 1


TWO_CARDS = (FACTS.profile, "fake-gpu")


@pytest.mark.parametrize("entry", [0, 1])
async def test_the_card_with_the_profile_of_a_job_computes_its_steps_again(entry: int) -> None:
    harness, client, job = await served(profiles=TWO_CARDS)
    line = asking(client, content_of(job, 1), entry=entry)
    await client.submit(line)
    assert harness.runtime.load == {str(entry): 1}, "it has a place on the card that it names"
    await follow(client, line)
    outputs = [output for output in line.outputs if isinstance(output, OpenOutput)]
    assert [leaf_of(o.fields) for o in outputs] == [*job.canvases[1].leaves[1:]]
    assert [len(engine.replayed) for engine in harness.engines] == [0, 1]
    assert not any(r.opening for engine in harness.engines for r in engine.started)


async def test_an_opening_waits_for_its_card_and_fails_if_it_is_on_another_one() -> None:
    harness, client, job = await served(profiles=TWO_CARDS)
    await harness.engine_event(harness.engines[1].lose(), 1)
    elsewhere = asking(client, content_of(job, 1), entry=0)
    await client.submit(elsewhere)
    await follow(client, elsewhere)
    assert elsewhere.ended is not None and elsewhere.ended.reason is Reason.ENGINE_FAILED
    assert elsewhere.amount == 0
    await harness.engine_event(harness.engines[1].come_back(), 1)
    line = asking(client, content_of(job, 1), 1, entry=1)
    await client.submit(line)
    await harness.engine_event(harness.engines[1].lose(), 1)
    await harness.engine_event(harness.engines[1].come_back(), 1)
    await follow(client, line)
    assert len(line.receipts) == len(job.canvases[1].leaves) - 1


async def test_a_challenged_opening_is_answered_when_the_job_that_it_opens_is_gone() -> None:
    harness, client, job = await served()
    line = asking(client, content_of(job))
    await client.submit(line)
    await follow(client, line)
    opened = harness.journal.jobs[line.id]
    del harness.journal.contents[job.id], harness.journal.jobs[job.id]
    await harness.boot()
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    leaves = JournalLeaves(harness.journal, harness.cards, harness.keyring, DOMAIN)
    for canvas, stored in enumerate(opened.canvases):
        for leaf in (0, 1):
            answer = await leaves.open(challenge(opened, canvas, leaf, 0x7F if leaf else 0x3F))
            fields = answer.fields if leaf else answer.fields[:6]
            assert leaf_of(fields) == stored.leaves[leaf]


@pytest.mark.parametrize("damage", ["fields", "canvas", "soft", "no soft", "order"])
def test_an_output_that_does_not_fit_the_leaves_breaks_a_clause(damage: str) -> None:
    job, outputs = asyncio.run(_opened())
    outline = content_of(job, 1, soft=True).outline
    first, second = outputs[:2]
    finish = Finish.MORE
    assert first.fault(outline, 0, CANVAS, finish) is None
    step = StepRecord.parse(first.fields)
    changed = {
        "fields": replace(first, fields=replace(step, after=step.argmax[::-1]).fields()),
        "canvas": replace(first, canvas=(*first.canvas[:5], bytes(4))),
        "soft": replace(first, soft=b"other rows"),
        "no soft": replace(first, soft=None),
        "order": second,
    }[damage]
    assert "not the one that was committed" in (changed.fault(outline, 0, CANVAS, finish) or "")


async def _opened() -> tuple[StoredJob, list[OpenOutput]]:
    _, client, job = await served()
    line = asking(client, content_of(job, 1, soft=True))
    await client.submit(line)
    await follow(client, line)
    return job, [output for output in line.outputs if isinstance(output, OpenOutput)]


async def test_a_worker_that_opens_something_else_is_not_paid() -> None:
    harness, client, job = await served()
    line = asking(client, content_of(job))
    other = job.canvases[1].leaves[1]
    line.outline = replace(line.outline, opened=(line.outline.opened[0], other))
    await client.submit(line)
    paid = client.book.cumulative
    with pytest.raises(ProtocolViolation, match="not the one that was committed"):
        async with asyncio.timeout(30):
            while True:
                if not client.read(line):
                    await asyncio.sleep(0)
    assert client.book.cumulative == paid
    assert harness.runtime.openings is not None
    await harness.runtime.openings.close()
    await harness.runtime.wait_idle()
