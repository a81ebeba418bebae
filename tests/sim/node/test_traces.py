"""The leaves of a canvas on their way: made, signed for, journaled, delivered again, pruned."""

from __future__ import annotations

from dataclasses import replace

import pytest

from piecework_model.requests import HOLE, CanvasEvent, StoppedEvent
from piecework_node.engine.link import EngineEvent
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.errors import Reason
from piecework_protocol.frames import CanvasDelivered
from piecework_protocol.kinds.read import Label, Question, ReadContent
from piecework_protocol.kinds.text import Fixed, Hole, TextContent
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import Finish, Kind
from piecework_protocol.trace import CanvasRecord, pinned_root, trace_root
from piecework_protocol.wire import decode_worker_frame
from piecework_protocol.worker_session import StoredCanvas
from tests.support.node.fake_engine import CANVAS, FACTS, FakeEngine, canvas_event, encoded
from tests.support.node.harness import Client, JobStream, WorkerHarness

ASKED = Conversation((Message("user", "a fox"),))
PROMPT_TOKENS = len(b"a fox")
FORM = TextContent(ASKED, (Fixed("The hero is "), Hole(3), Fixed(", I say.")))
QUESTION = Question("Is it a fox?", (Label("yes"), Label("no")))
READ = ReadContent(ASKED, (QUESTION,) * 2, draws=2)


async def ready(make_engine: type[FakeEngine] = FakeEngine) -> tuple[WorkerHarness, Client]:
    harness = WorkerHarness(make_engine=make_engine)
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    return harness, client


def delivered(line: JobStream) -> list[CanvasDelivered]:
    """The canvases that lie in the stream, unread."""
    assert line.sink is not None
    frames = [decode_worker_frame(data) for data in line.sink.frames]
    return [frame for frame in frames if isinstance(frame, CanvasDelivered)]


def record(line: JobStream, canvas: int, pins: dict[int, int]) -> CanvasRecord:
    """The canvas record that the job and its content decide."""
    job = line.job
    return CanvasRecord(
        canvas=canvas,
        size=CANVAS,
        vocab_size=FACTS.vocab_size,
        kind=job.kind,
        seed=job.parameters.seed,
        parameters=job.parameters.struct_hash(),
        content=job.content,
        pinned=pinned_root(sorted(pins.items())),
        prompt_tokens=PROMPT_TOKENS,
    )


async def test_a_canvas_comes_with_its_canvas_leaf_and_its_step_leaves() -> None:
    harness, client = await ready()
    line = client.job(3)
    await client.submit(line)
    await harness.run_engine()
    (request,) = harness.engine.started
    frames = delivered(line)
    assert frames
    for index, frame in enumerate(frames):
        steps = canvas_event(request, index).step_leaves
        assert frame.leaves == (record(line, index, {}).leaf(), *steps)
        assert frame.receipt.steps == len(steps)
        assert frame.receipt.trace_root == trace_root(frame.leaves)


async def test_the_canvas_leaf_of_a_template_binds_its_pinned_positions() -> None:
    harness, client = await ready()
    line = client.job(3, 23, prompt=FORM)
    await client.submit(line)
    await harness.run_engine()
    template = encoded(FORM).template
    for index, frame in enumerate(delivered(line)):
        entries = enumerate(template[index * CANVAS : (index + 1) * CANVAS])
        pins = {position: token for position, token in entries if token != HOLE}
        assert pins and frame.leaves[0] == record(line, index, pins).leaf()


async def test_the_canvas_leaf_of_a_read_says_its_kind() -> None:
    harness, client = await ready()
    line = client.job(
        3, READ.canvases(CANVAS) * CANVAS, prompt=READ, max_steps=1, stability_steps=0
    )
    await client.submit(line)
    await harness.run_engine()
    frames = delivered(line)
    assert len(frames) == 2 and line.job.kind is Kind.READ
    for index, frame in enumerate(frames):
        assert frame.leaves[0] == record(line, index, {}).leaf() and len(frame.leaves) == 2


async def test_leaves_come_again_after_a_restart_as_they_were() -> None:
    harness, client = await ready()
    line = client.job(3)
    await client.submit(line)
    await harness.run_engine()
    first = delivered(line)
    await harness.boot()
    again = line.without_text()
    await client.submit(again)
    assert [frame.leaves for frame in delivered(again)] == [frame.leaves for frame in first]


async def test_the_last_canvas_of_a_broken_stream_has_its_canvas_leaf_too() -> None:
    harness, client = await ready()
    line = client.job(3, 23, prompt=FORM)
    await client.submit(line, drafts=True)
    await harness.engine_step(harness.engine.runnable()[0])
    await client.drop(line)
    await harness.run_engine()
    await client.submit(line)
    await client.finish(line)
    assert line.finished


async def test_a_cancelled_canvas_with_steps_has_leaves_and_one_without_has_none() -> None:
    harness, client = await ready()
    for begun, count in ((True, 2), (False, 0)):
        line = client.job(3 + begun)
        await client.submit(line, drafts=True)
        if begun:
            await harness.engine_step(harness.engine.runnable()[0])
        line.cancel()
        while await client.deliver(line):
            pass
        await harness.run_engine()
        frames = [f for f in delivered(line) if f.receipt.finish is Finish.CANCELLED]
        assert [len(frame.leaves) for frame in frames] == [count] * begun
        await client.finish(line)
    assert trace_root(()) == EMPTY_ROOT


class ShortEngine(FakeEngine):
    """An engine whose step leaves are no digests."""

    def step(self, row: str) -> EngineEvent:
        event = super().step(row)
        if isinstance(event, CanvasEvent | StoppedEvent):
            return replace(event, step_leaves=tuple(leaf[:31] for leaf in event.step_leaves))
        return event


async def test_a_job_ends_whose_engine_commits_to_no_digests() -> None:
    harness, client = await ready(ShortEngine)
    line = client.job(3)
    await client.submit(line)
    await harness.run_engine()
    while client.read(line):
        pass
    assert line.ended is not None and line.ended.reason is Reason.ENGINE_FAILED
    assert not line.receipts


async def test_the_journal_holds_the_leaves_of_each_canvas() -> None:
    harness, client = await ready()
    line = client.job(3)
    await client.submit(line)
    await harness.run_engine()
    stored = await harness.journal.job(line.id)
    assert stored is not None and all(isinstance(c, StoredCanvas) for c in stored.canvases)
    assert [c.leaves for c in stored.canvases] == [f.leaves for f in delivered(line)]


@pytest.mark.parametrize("leaves", [(), (bytes(32),)])
async def test_a_canvas_without_one_leaf_a_step_is_not_signed(leaves: tuple[bytes, ...]) -> None:
    class FewLeaves(FakeEngine):
        def step(self, row: str) -> EngineEvent:
            event = super().step(row)
            return (
                replace(event, steps=2, step_leaves=leaves)
                if isinstance(event, CanvasEvent)
                else event
            )

    harness, client = await ready(FewLeaves)
    line = client.job(3)
    await client.submit(line)
    await harness.run_engine()
    assert not delivered(line)
