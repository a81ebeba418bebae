"""The supervisor over real child processes: a scripted engine that answers, dies or babbles."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.base.clock import SystemClock
from piecework_model.machine.probe import short_profile
from piecework_model.requests import (
    HOLE,
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    EncodedContent,
    FailedEvent,
    GenerationRequest,
    ProgressEvent,
    PromptImage,
    ReadSlot,
    StoppedEvent,
)
from piecework_node import logs
from piecework_node.engine import wire as engine_wire
from piecework_node.engine.environment import child_environment
from piecework_node.engine.link import (
    EngineLost,
    EnginePaused,
    EngineReady,
    EngineResumed,
    ReplayWork,
)
from piecework_node.engine.process import Brake, Reports
from piecework_node.engine.supervisor import (
    EngineCommandLine,
    EngineSupervisor,
    EngineTimeouts,
)
from piecework_node.errors import (
    EngineStartError,
    EngineUnavailable,
    PromptRejected,
    ReplayDeclined,
)
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.read import Label, Question, ReadContent
from piecework_protocol.kinds.text import TextContent, final_segments
from piecework_protocol.limits import MAX_NAME_BYTES
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import EmbeddingType, StepField, leaf_of, soft_field
from tests.support.model.engine_process import cpu_engine
from tests.support.model.prompts import story_prompt
from tests.support.node.fake_engine import FACTS, canvas_event, step_records

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[3]
REQUEST = GenerationRequest(
    request_id="sequence",
    prompt_ids=(1, 2),
    seed=7,
    max_tokens=8,
    max_steps=4,
    temperature_start=0.8,
    temperature_end=0.4,
    entropy_bound=0.1,
    confidence_threshold=0.005,
    stability_steps=1,
    canvas_limit=2,
    committed=((1, 2, 3),),
)
PICTURE = PromptImage(1, 1, 3, 3, bytes(range(256)))
READ = ReadContent(
    Conversation((Message("user", "a story"),)),
    (Question("Is it short?", (Label("yes"), Label("no", "not at all"))),),
)
CHILD = """
import os, sys
sys.path.insert(0, {root!r})
from piecework_node.engine.link import EnginePaused, EngineResumed
from piecework_node.engine.wire import *
from piecework_model.requests import EncodedContent, FailedEvent
from piecework_protocol.openings import StepOpening
from tests.support.node.fake_engine import FACTS, canvas_event, step_records
out = sys.stdout.buffer
def say(report):
    out.write(encode_report(report)); out.flush()
say({first})
for line in sys.stdin.buffer:
    command = decode_command(line)
    if isinstance(command, Encode):
        text = command.content.conversation.messages[0].content
        if text == "die": os._exit(3)
        if text == "deaf": continue
        if text == "babble": out.write(b"not json\\n"); out.flush()
        say(Encoded(command.number, EncodedContent((1, 2)), "no" if text == "reject" else ""))
    elif isinstance(command, PauseEngine):
        say(EnginePaused(7 if command.free_memory else 0))
    elif isinstance(command, ResumeEngine):
        if os.environ.get("DIES_ON_RESUME"): os._exit(3)
        say(EngineResumed())
    elif isinstance(command, Replay):
        say(Prefilled(command.number, 2))
        say(ShownStep(command.number, StepOpening(step_records(command.request, 1)[0].fields())))
    elif isinstance(command, Drop):
        say(FailedEvent(str(command.number), "internal", "dropped"))
    elif isinstance(command, Start):
        if command.request.request_id != "slow":
            say(canvas_event(command.request, len(command.request.committed)))
"""


@asynccontextmanager
async def running(
    folder: Path,
    first: str = "Ready(FACTS)",
    timeouts: EngineTimeouts | None = None,
    log: Any = None,
    **variables: str,
) -> AsyncIterator[EngineSupervisor]:
    script = folder / "child.py"
    script.write_text(CHILD.format(root=str(ROOT), first=first))
    environment = {**child_environment(dict(os.environ)), **variables}
    command = EngineCommandLine((sys.executable, "-P", str(script)), environment)
    supervisor = EngineSupervisor(command, SystemClock(), log or logs.silent(), timeouts)
    task = asyncio.ensure_future(supervisor.run())
    try:
        yield supervisor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def message(text: str) -> TextContent:
    return TextContent(Conversation((Message("user", text),)))


async def test_the_engine_answers_through_its_process(tmp_path: Path) -> None:
    async with running(tmp_path) as engine, asyncio.timeout(20):
        events = aiter(engine.events())
        ready = await anext(events)
        assert ready == EngineReady(FACTS)
        assert await engine.encode(message("hello")) == EncodedContent((1, 2))
        with pytest.raises(PromptRejected):
            await engine.encode(message("reject"))
        engine.start(REQUEST)
        assert await anext(events) == canvas_event(REQUEST, 1)


async def test_what_the_process_writes_on_stderr_is_logged_like_everything_else(
    tmp_path: Path,
) -> None:
    out = io.StringIO()
    log = logs.logger(form="json", stream=out)
    words = b"a\x1b[2J \xe2\x80\xaeb\rTraceback\n\n  KeyError\nlast"
    first = f"os.write(2, {words!r}) and Ready(FACTS)"
    async with running(tmp_path, first, log=log) as engine:
        assert isinstance(await anext(aiter(engine.events())), EngineReady)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    said = [line["reason"] for line in lines if line["event"] == "engine process wrote"]
    assert said == ["a[2J b", "Traceback", "KeyError", "last"]
    assert {line["level"] for line in lines if line["reason"] in said} == {"warning"}


async def test_a_replay_that_nobody_waits_for_is_dropped_and_what_was_done_is_known(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as engine, asyncio.timeout(20):
        events, seen = aiter(engine.events()), asyncio.Event()
        await anext(events)
        work = ReplayWork(lambda: seen.set() if work.records else None)
        replay = asyncio.ensure_future(engine.replay(REQUEST, steps=4, wanted=(0,), work=work))
        await seen.wait()
        assert (work.prompt_tokens, work.records) == (2, [step_records(REQUEST, 1)[0]])
        replay.cancel()
        dropped = await anext(events)
        assert isinstance(dropped, FailedEvent) and dropped.message == "dropped"
        again = asyncio.ensure_future(engine.replay(REQUEST, steps=4, wanted=(0,), work=work))
        while len(work.records) < 2:
            seen.clear()
            await seen.wait()
        again.cancel()
        assert replay.cancelled()
        assert isinstance(await anext(events), FailedEvent)


@pytest.mark.parametrize("how", ["die", "babble", "kill", "give up"])
async def test_a_lost_process_is_reported_and_started_again(tmp_path: Path, how: str) -> None:
    async with running(tmp_path) as engine, asyncio.timeout(30):
        events = aiter(engine.events())
        await anext(events)
        if how == "kill":
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGKILL)
        elif how == "give up":
            engine.give_up()
        else:
            with pytest.raises(EngineUnavailable):
                await engine.encode(message(how))
        assert isinstance(await anext(events), EngineLost)
        assert isinstance(await anext(events), EngineReady)
        assert engine.losses == 1
        assert await engine.encode(message("hello")) == EncodedContent((1, 2))


class StandstillLoop(asyncio.SelectorEventLoop):
    """A loop whose process stood still for `stood_s` seconds, as after SIGSTOP."""

    stood_s = 0.0

    def time(self) -> float:
        return super().time() + self.stood_s


def test_an_engine_is_not_taken_for_silent_while_the_worker_itself_stood_still(
    tmp_path: Path,
) -> None:
    async def scene() -> None:
        timeouts = EngineTimeouts(idle_s=30, question_s=30)
        async with running(tmp_path, timeouts=timeouts) as engine:
            events = aiter(engine.events())
            assert await anext(events) == EngineReady(FACTS)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, StandstillLoop)
            loop.stood_s = 3600
            assert await engine.encode(message("hello")) == EncodedContent((1, 2))
            assert engine.losses == 0

    with asyncio.Runner(loop_factory=StandstillLoop) as runner:
        runner.run(scene())


async def test_a_pause_and_its_end_are_confirmed_by_the_process(tmp_path: Path) -> None:
    async with running(tmp_path) as engine, asyncio.timeout(20):
        events = aiter(engine.events())
        await anext(events)
        engine.pause(free_memory=True)
        assert await anext(events) == EnginePaused(7)
        assert await engine.encode(message("hello")) == EncodedContent((1, 2))
        engine.resume()
        assert await anext(events) == EngineResumed()


async def test_a_process_that_dies_in_a_pause_is_started_again_after_it(tmp_path: Path) -> None:
    async with running(tmp_path) as engine, asyncio.timeout(30):
        events = aiter(engine.events())
        await anext(events)
        engine.pause(free_memory=False)
        assert await anext(events) == EnginePaused(0)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        assert isinstance(await anext(events), EngineLost)
        waiting = asyncio.ensure_future(anext(events))
        assert not (await asyncio.wait({waiting}, timeout=1.0))[0], "no model is loaded in a pause"
        engine.resume()
        assert await waiting == EngineResumed()
        assert await anext(events) == EngineReady(FACTS)


async def test_a_process_that_dies_on_its_way_back_from_a_pause_ends_the_pause(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, DIES_ON_RESUME="1") as engine, asyncio.timeout(30):
        events = aiter(engine.events())
        await anext(events)
        engine.pause(free_memory=True)
        engine.resume()
        assert await anext(events) == EnginePaused(7)
        assert isinstance(await anext(events), EngineLost)
        assert await anext(events) == EngineResumed()
        assert await anext(events) == EngineReady(FACTS)


async def test_a_process_that_becomes_ready_in_a_pause_is_paused_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as engine, asyncio.timeout(20):
        events = aiter(engine.events())
        while engine.pid is None:  # noqa: ASYNC110  nothing tells that a process was started
            await asyncio.sleep(0)
        engine.pause(free_memory=True)
        assert {type(await anext(events)) for _ in range(2)} == {EngineReady, EnginePaused}


class BusyDevice:
    """Implements `Parking`: the memory comes back at the third try."""

    def __init__(self) -> None:
        self.tries, self.parked = 0, False

    def park(self) -> int:
        self.parked = True
        return 64

    def unpark(self) -> None:
        self.tries += 1
        if self.parked and self.tries < 3:
            raise RuntimeError("out of memory")
        self.parked = False


def test_steps_begin_again_only_once_the_memory_is_there() -> None:
    pipe = io.BytesIO()
    brake = Brake(BusyDevice(), Reports(pipe))
    brake.pull(free_memory=True)
    for waits in (True, True, False):
        brake.release()
        assert brake.on is brake.waits is waits
    brake.release()
    said = [engine_wire.decode_report(line) for line in pipe.getvalue().splitlines()]
    assert said == [EnginePaused(64), EngineResumed()]


@pytest.mark.slow
async def test_the_real_engine_paused_between_two_steps_ends_in_the_same_canvases() -> None:
    assert await real_events(paused=True) == await real_events(paused=False)


@pytest.mark.slow
async def test_the_real_engine_process_replays_a_canvas_with_the_leaves_of_the_job() -> None:
    engine = cpu_engine()
    life, canvases = asyncio.ensure_future(engine.run()), list[CanvasEvent]()
    request = _story()
    try:
        async with asyncio.timeout(120):
            async for event in engine.events():
                if isinstance(event, EngineReady):
                    engine.start(request)
                elif isinstance(event, CanvasEvent):
                    canvases.append(event)
                    if len(canvases) == 2:
                        break
            again = replace(request, committed=(canvases[0].token_ids,))
            steps = canvases[1].steps
            replayed = await engine.replay(again, steps=steps, wanted=(0, steps - 1), soft=True)
            assert replayed.step_leaves == canvases[1].step_leaves
            for opening, step in zip(replayed.steps, (0, -1), strict=True):
                field = opening.fields[StepField.SOFT]
                assert leaf_of(opening.fields) == canvases[1].step_leaves[step]
                assert opening.soft is not None
                assert soft_field(EmbeddingType(field[0]), opening.soft) == field
            with pytest.raises(ReplayDeclined, match="it ends after"):
                await engine.replay(again, steps=steps, wanted=(steps,))
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


def _story() -> GenerationRequest:
    """Two canvases for the bundled model. A word in the second one is given, so there is one."""
    template = (*[HOLE] * 32, 300, *[HOLE] * 31)
    return replace(
        REQUEST,
        prompt_ids=story_prompt(),
        template=template,
        committed=(),
        max_tokens=64,
        max_steps=16,
    )


async def real_events(*, paused: bool) -> list[object]:
    """What the engine's own process says of one request, without pauses."""
    engine = cpu_engine()
    life, seen = asyncio.ensure_future(engine.run()), list[object]()
    try:
        async with asyncio.timeout(120):
            async for event in engine.events():
                if isinstance(event, EngineReady):
                    engine.start(_story())
                elif isinstance(event, EnginePaused):
                    engine.resume()
                elif isinstance(event, CanvasEvent | DraftEvent | ProgressEvent):
                    if paused and len(seen) == 3:
                        engine.pause(free_memory=True)
                    seen.append(event)
                    if len([e for e in seen if isinstance(e, CanvasEvent)]) == 2:
                        return seen
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
    return seen


async def test_an_idle_engine_that_is_silent_is_replaced(tmp_path: Path) -> None:
    timeouts = EngineTimeouts(idle_s=0.3, busy_s=60)
    async with running(tmp_path, timeouts=timeouts) as engine, asyncio.timeout(30):
        events = aiter(engine.events())
        assert isinstance(await anext(events), EngineReady)
        lost = await anext(events)
        assert isinstance(lost, EngineLost) and "silent" in lost.message


async def test_an_engine_with_a_sequence_may_be_silent_for_longer(tmp_path: Path) -> None:
    timeouts = EngineTimeouts(idle_s=0.3, busy_s=60)
    async with running(tmp_path, timeouts=timeouts) as engine, asyncio.timeout(30):
        events = aiter(engine.events())
        await anext(events)
        engine.start(replace(REQUEST, request_id="slow"))
        assert engine.ready
        waiting = asyncio.ensure_future(anext(events))
        assert not (await asyncio.wait({waiting}, timeout=1.0))[0], "it works, and is not lost"
        waiting.cancel()


async def test_a_tokenization_without_an_answer_unlists_the_worker_at_once(tmp_path: Path) -> None:
    timeouts = EngineTimeouts(idle_s=60, busy_s=60, question_s=0.3)
    async with running(tmp_path, timeouts=timeouts) as engine, asyncio.timeout(30):
        events = aiter(engine.events())
        await anext(events)
        with pytest.raises(EngineUnavailable):
            await engine.encode(message("deaf"))
        assert not engine.ready and engine.facts is not None
        assert await engine.encode(message("hello")) == EncodedContent((1, 2))
        assert engine.ready, "it answers again"
        with pytest.raises(EngineUnavailable):
            await engine.encode(message("deaf"))
        lost = await anext(events)
        assert isinstance(lost, EngineLost) and "answers no question" in lost.message
        assert isinstance(await anext(events), EngineReady)
        assert engine.ready


DEAF_CHILD = """
import os, sys, threading
sys.path.insert(0, {root!r})
from piecework_node.engine.wire import Ready, encode_report
from tests.support.node.fake_engine import FACTS
sys.stdout.buffer.write(encode_report(Ready(FACTS))); sys.stdout.buffer.flush()
threading.Event().wait()  # hears neither the end of its stdin nor anything else
"""


async def test_a_process_that_does_not_end_is_killed_even_when_the_stop_itself_is_cancelled(
    tmp_path: Path,
) -> None:
    script = tmp_path / "child.py"
    script.write_text(DEAF_CHILD.format(root=str(ROOT)))
    command = EngineCommandLine(
        (sys.executable, "-P", str(script)), child_environment(dict(os.environ))
    )
    supervisor = EngineSupervisor(command, SystemClock(), logs.silent())
    life = asyncio.ensure_future(supervisor.run())
    async with asyncio.timeout(20):
        await anext(aiter(supervisor.events()))
        pid = supervisor.pid
        assert pid is not None
        life.cancel()
        while supervisor.pid is not None:  # noqa: ASYNC110  until it waits for the child to end by itself
            await asyncio.sleep(0)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_question_without_a_process_is_answered_at_once(tmp_path: Path) -> None:
    command = EngineCommandLine((sys.executable, "-P", "-c", ""), {})
    engine = EngineSupervisor(command, SystemClock(), logs.silent())
    with pytest.raises(EngineUnavailable):
        await engine.encode(message("hello"))
    engine.start(REQUEST)
    engine.allow("sequence", 3)
    engine.stop("sequence", finish_canvas=True)
    assert not engine.ready


async def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    async with running(tmp_path, 'CannotStart("no such folder")') as engine:
        task = asyncio.ensure_future(engine.run())
        with pytest.raises(EngineStartError, match="no such folder"):
            await asyncio.wait_for(task, 20)


async def test_the_real_engine_process_says_why_it_cannot_start() -> None:
    supervisor = cpu_engine("/nonexistent")
    with pytest.raises(EngineStartError, match="this folder does not exist"):
        await asyncio.wait_for(supervisor.run(), 120)


@pytest.mark.parametrize(
    "report",
    [
        engine_wire.Ready(FACTS),
        engine_wire.CannotStart("why"),
        engine_wire.Encoded(1, EncodedContent((1, 2), (HOLE, 5), ((ReadSlot(0, (1, 2)),),), 2)),
        engine_wire.Encoded(1, EncodedContent((1, 2), images=(PICTURE,))),
        engine_wire.ShownStep(3, StepOpening(step_records(REQUEST, 1)[0].fields())),
        engine_wire.ShownStep(3, StepOpening(step_records(REQUEST, 1)[0].fields(), b"soft")),
        engine_wire.Replayed(3, (bytes(32), bytes([1]) * 32)),
        engine_wire.Replayed(3, (), "why"),
        engine_wire.Prefilled(3, 512),
        engine_wire.Beat(),
        EnginePaused(4096),
        EngineResumed(),
        DraftEvent("sequence", 0, 1, (1, 2), final_segments("text")),
        CanvasEvent(
            "sequence",
            0,
            (1, 2),
            (1,),
            final_segments("t"),
            1,
            (bytes(32),),
            CanvasFinish.END_OF_TEXT,
        ),
        CanvasEvent(
            "sequence", 0, (1, 2), (), (), 1, (bytes(32),), CanvasFinish.MORE, ((1 << 16, 0),)
        ),
        FailedEvent("sequence", "non_finite", "why"),
        ProgressEvent("sequence", 1, 8, 23),
        StoppedEvent("sequence", 1, 2, 23, (bytes(32), bytes(32))),
    ],
)
def test_reports_survive_the_line(report: engine_wire.Report) -> None:
    assert engine_wire.decode_report(engine_wire.encode_report(report)) == report


@pytest.mark.parametrize(
    "command",
    [
        engine_wire.Start(REQUEST),
        engine_wire.Start(
            replace(REQUEST, template=(5, -1, 6), reads=((ReadSlot(1, (7, 8)),), ()))
        ),
        engine_wire.Allow("sequence", 3),
        engine_wire.Stop("sequence", True),
        engine_wire.Stop("sequence", False),
        engine_wire.Drop(3),
        engine_wire.PauseEngine(True),
        engine_wire.ResumeEngine(),
        engine_wire.Start(replace(REQUEST, template=(HOLE, 5), reads=((ReadSlot(0, (1, 2)),),))),
        engine_wire.Encode(1, message("hi")),
        engine_wire.Encode(2, READ),
        engine_wire.Encode(3, READ, most=7),
        engine_wire.Replay(3, replace(REQUEST, images=(PICTURE,)), 4, (1, 2), soft=True),
        engine_wire.Start(replace(REQUEST, images=(PICTURE, replace(PICTURE, start=4)))),
    ],
)
def test_commands_survive_the_line(command: engine_wire.Command) -> None:
    assert engine_wire.decode_command(engine_wire.encode_command(command)) == command


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"op":"what"}', b'{"op":"canvas"}', b"\xff", b"[" * 10000]
)
def test_other_lines_are_malformed(line: bytes) -> None:
    with pytest.raises(MalformedInput):
        engine_wire.decode_report(line)
    with pytest.raises(MalformedInput):
        engine_wire.decode_command(line)


def test_a_long_profile_keeps_its_start_and_stays_distinct() -> None:
    first, second = short_profile("x" * 200 + "a"), short_profile("x" * 200 + "b")
    assert len(first) == len(second) == MAX_NAME_BYTES
    assert first != second
    assert short_profile("short") == "short"
