"""Kind `audit` through a whole worker: bounded, computed again, signed, paid, and challenged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework_node.disputes.leaves import JournalLeaves
from piecework_node.engine.link import ReplayWork
from piecework_node.jobs import auditing
from piecework_node.jobs.auditing import CannotAudit
from piecework_node.journal.records import StoredJob
from piecework_node.runtime.opener import CannotOpen
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import AuditLevel, AuditOutcome, Finish, Kind
from piecework_protocol.pricing import Usage, price
from piecework_protocol.trace import leaf_of, trace_root
from piecework_protocol.types import Digest, Uint32, keccak256
from tests.sim.node.test_defence_leaves import challenge
from tests.sim.node.test_openings import PROMPT, SEED, TOKENS, follow
from tests.support.node.fake_engine import CANVAS, FACTS
from tests.support.node.harness import DOMAIN, Client, JobStream, WorkerHarness
from tests.support.protocol.conversations import said
from tests.support.waiting import until

ASKED = TextContent(said("a fox"))
"""What the client of the harness asks."""


async def served(folder: Path | None = None) -> tuple[WorkerHarness, Client, JobStream]:
    """A worker that has done a job of several canvases, and is paid."""
    harness = WorkerHarness(steps_folder=folder)
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(SEED, TOKENS)
    await client.submit(line)
    await client.finish(line)
    return harness, client, line


def claim(harness: WorkerHarness, line: JobStream, canvas: int, **other: Any) -> AuditContent:
    """What the client would claim of a canvas of that job, with some members changed."""
    stored: StoredJob = harness.journal.jobs[line.id]
    job, receipt = stored.submission.job, line.receipts[canvas]
    outputs = [output for output in line.outputs if isinstance(output, TextOutput)]
    content = AuditContent(
        level=AuditLevel.REPLAY,
        profile=FACTS.profile,
        job_kind=Kind.TEXT,
        parameters=job.parameters,
        job_content=job.content,
        asked=ASKED.encode(),
        canvas=canvas,
        committed=tuple(output.token_ids for output in outputs[:canvas]),
        output=outputs[canvas].encode(),
        steps=receipt.steps,
        finish=receipt.finish,
        prompt_tokens=receipt.total_prompt_tokens,
        trace_root=receipt.trace_root,
    )
    return replace(content, **other)


def asking(client: Client, content: AuditContent, seed: int = 0, **changes: Any) -> JobStream:
    asked: dict[str, Any] = {"max_steps": content.steps, "stability_steps": 0, **changes}
    return client.job(seed, asked.pop("max_tokens", CANVAS), prompt=content, **asked)


async def audited(client: Client, content: AuditContent) -> tuple[JobStream, AuditOutput]:
    line = asking(client, content)
    await client.submit(line)
    await follow(client, line)
    (output,) = line.outputs
    assert isinstance(output, AuditOutput)
    return line, output


@pytest.mark.parametrize("canvas", [0, 1])
async def test_an_honest_canvas_passes_and_is_paid_by_its_context_and_steps(canvas: int) -> None:
    harness, client, job = await served()
    before = client.book.cumulative
    content = claim(harness, job, canvas)
    line, report = await audited(client, content)
    assert report.outcome is AuditOutcome.PASS and report.prompt_tokens == PROMPT
    (receipt,) = line.receipts
    assert (receipt.finish, receipt.units) == (Finish.END_OF_TEXT, 0)
    leaves = harness.journal.jobs[line.id].canvases[0].leaves
    assert leaves[1:] == harness.journal.jobs[job.id].canvases[canvas].leaves[1:]
    assert report.leaves_fault(leaves) is None
    usage = Usage(PROMPT + canvas * CANVAS, 0, content.steps)
    assert line.amount == price(line.model, usage)
    assert client.book.cumulative - before == line.amount


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"output": TextOutput.plain((1,), "no").encode()}, "tokens"),
        ({"trace_root": Digest(keccak256(b"another"))}, "trace"),
        ({"prompt_tokens": PROMPT + 1}, "prompt tokens"),
        ({"finish": Finish.END_OF_TEXT}, "tokens"),
    ],
)
async def test_what_is_not_so_fails_and_the_report_names_it(
    changed: dict[str, Any], why: str
) -> None:
    harness, client, job = await served()
    _, report = await audited(client, claim(harness, job, 0, **changed))
    assert report.outcome is AuditOutcome.FAIL
    assert any(why in line for line in report.findings)


async def test_anybody_may_ask_about_a_canvas_of_anybody() -> None:
    harness, _, job = await served()
    stranger = Client(harness, "a stranger")
    stranger.open_on_chain()
    _, report = await audited(stranger, claim(harness, job, 0))
    assert report.outcome is AuditOutcome.PASS


async def test_the_offer_lists_audits() -> None:
    harness, _, _ = await served()
    assert harness.offer.offer.models[0].kinds & Kind.AUDIT.bit


async def test_a_canvas_of_another_profile_is_refused_before_anything_is_paid() -> None:
    harness, client, job = await served()
    paid = client.book.cumulative
    with pytest.raises(Refusal, match="was computed on a bigger card") as refused:
        await client.submit(asking(client, claim(harness, job, 0, profile="a bigger card")))
    assert refused.value.reason is Reason.WRONG_PROFILE
    assert client.book.cumulative == paid and not harness.engine.replayed


async def test_an_engine_that_has_another_profile_by_now_audits_nothing() -> None:
    harness, _, job = await served()
    content = claim(harness, job, 0)
    harness.engine.known = replace(FACTS, profile="another")
    with pytest.raises(CannotAudit, match="another profile"):
        await auditing.audited(harness.engine, "audit", content, ReplayWork(lambda: None))


async def test_a_replay_that_fails_ends_the_audit_unpaid() -> None:
    harness, client, job = await served()
    paid = client.book.cumulative
    harness.engine.breaks.add(SEED)
    line = asking(client, claim(harness, job, 0))
    await client.submit(line)
    await follow(client, line)
    assert line.ended is not None and line.ended.reason is Reason.ENGINE_FAILED
    assert client.book.cumulative == paid


async def halted(steps: int) -> tuple[WorkerHarness, Client, JobStream, AuditContent]:
    """An audit whose engine has taken so many steps and takes no more by itself."""
    harness, client, job = await served()
    content = claim(harness, job, 1)
    assert content.steps > steps
    harness.engine.halts_at = steps
    line = asking(client, content)
    await client.submit(line)
    await until(
        lambda: any(
            job.progress is not None and job.progress.steps == steps
            for job in harness.runtime.sequences.values()
        )
    )
    client.read(line)
    return harness, client, line, content


@pytest.mark.parametrize("steps", [0, 2])
async def test_an_audit_that_is_cancelled_owes_what_was_computed(steps: int) -> None:
    harness, client, line, _ = await halted(steps)
    before = client.book.cumulative
    line.cancel()
    await follow(client, line)
    (receipt,) = line.receipts
    assert (receipt.finish, receipt.steps) == (Finish.CANCELLED, steps)
    assert line.amount == price(line.model, Usage(PROMPT + CANVAS, 0, steps))
    assert client.book.cumulative - before == line.amount
    assert line.outputs == [AuditOutput()]
    assert harness.engine.dropped == 1 and not harness.runtime.sequences
    stored = harness.journal.jobs[line.id]
    if steps:
        harness.engine.halts_at = None
        leaves = JournalLeaves(harness.journal, harness.cards, harness.keyring, DOMAIN)
        answer = await leaves.open(challenge(stored, 0, steps, 0x7F))
        assert leaf_of(answer.fields) == stored.canvases[0].leaves[steps]
    else:
        assert stored.canvases[0].leaves == ()


async def test_an_audit_whose_client_is_gone_goes_on_to_its_end_and_is_owed() -> None:
    harness, client, line, content = await halted(2)
    await client.drop(line)
    harness.engine.goes_on.set()
    await until(lambda: bool(harness.journal.jobs[line.id].canvases))
    assert harness.engine.dropped == 0
    await client.submit(line)
    await follow(client, line)
    (receipt,) = line.receipts
    assert (receipt.finish, receipt.steps) == (Finish.END_OF_TEXT, content.steps)


async def test_a_client_that_returns_while_its_audit_is_being_stopped_gets_it_whole() -> None:
    harness, client, job = await served()
    harness.engine.halts_at = -1
    line = asking(client, claim(harness, job, 1))
    await client.submit(line)
    await until(lambda: bool(harness.runtime.sequences))
    (sequence,) = harness.runtime.sequences
    openings = harness.runtime.openings
    assert openings is not None
    openings.stop(sequence, finish_canvas=True)
    openings.allow(sequence, 1)
    harness.engine.halts_at = None
    await follow(client, line)
    (receipt,) = line.receipts
    assert receipt.finish is Finish.END_OF_TEXT


async def test_an_audit_that_has_not_begun_is_owed_nothing() -> None:
    harness, client, job = await served()
    before = client.book.cumulative
    harness.engine.halts_at = -1
    line = asking(client, claim(harness, job, 1))
    await client.submit(line)
    line.cancel()
    await follow(client, line)
    assert not line.receipts and client.book.cumulative == before


async def test_parameters_that_do_not_fit_are_refused() -> None:
    harness, client, job = await served()
    content = claim(harness, job, 0)
    for changes, why in (
        ({"max_steps": content.steps + 1}, "max_steps"),
        ({"max_tokens": 2 * CANVAS}, "max_tokens"),
    ):
        with pytest.raises(Refusal, match=why) as refused:
            await client.submit(asking(client, content, **changes))
        assert refused.value.reason is Reason.BAD_PARAMETERS


async def test_what_the_engine_cannot_read_or_hold_is_refused() -> None:
    harness, client, job = await served()
    for words, reason in (
        ("reject this", Reason.PROMPT_REFUSED),
        ("a" * 5000, Reason.PROMPT_TOO_LONG),
    ):
        asked = TextContent(said(words)).encode()
        with pytest.raises(Refusal) as refused:
            await client.submit(asking(client, claim(harness, job, 0, asked=asked)))
        assert refused.value.reason is reason


async def test_an_audit_goes_on_after_a_kill_and_is_paid_once() -> None:
    harness, client, job = await served()
    before = client.book.cumulative
    line = asking(client, claim(harness, job, 1))
    await client.submit(line)
    client.forget(line)
    await harness.boot()
    await client.submit(line)
    await follow(client, line)
    assert client.book.cumulative - before == line.amount > 0


@pytest.mark.parametrize("kept", [False, True])
async def test_a_challenged_audit_is_answered_with_the_steps_that_were_computed(
    tmp_path: Path, kept: bool
) -> None:
    harness, client, job = await served(tmp_path / "steps" if kept else None)
    line, _ = await audited(client, claim(harness, job, 0))
    del harness.journal.contents[job.id]
    stored = harness.journal.jobs[line.id]
    await harness.boot()
    leaves = JournalLeaves(harness.journal, harness.cards, harness.keyring, DOMAIN, harness.steps)
    known = stored.canvases[0].leaves
    for leaf in (0, 1, len(known) - 1):
        answer = await leaves.open(challenge(stored, 0, leaf, 0x7F if leaf else 0x3F))
        assert leaf_of(answer.fields if leaf else answer.fields[:6]) == known[leaf]
    assert trace_root(known) == stored.canvases[0].receipt.trace_root


async def test_an_audit_that_cannot_be_computed_again_says_so() -> None:
    harness, client, job = await served()
    line, _ = await audited(client, claim(harness, job, 0))
    stored = harness.journal.jobs[line.id]
    leaves = JournalLeaves(harness.journal, harness.cards, harness.keyring, DOMAIN)
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    with pytest.raises(CannotOpen, match="fake-gpu"):
        await leaves.open(challenge(stored, 0, 1, 0x7F))
    assert stored.submission.job.parameters.max_tokens == Uint32(CANVAS)
