"""vLLM behind the engine's interface, over real sockets, with every fault that a server can
have."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from piecework.base.clock import SystemClock
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    FailedEvent,
    GenerationRequest,
    StoppedEvent,
)
from piecework_node import logs
from piecework_node.engine.link import (
    EngineEvent,
    EngineLost,
    EnginePaused,
    EngineReady,
    EngineResumed,
)
from piecework_node.errors import (
    ConfigError,
    EndpointLost,
    EngineStartError,
    EngineUnavailable,
    PromptRejected,
)
from piecework_node.vllm import benchmark as vllm_benchmark
from piecework_node.vllm.endpoint import EndpointTimes, VllmEndpoint
from piecework_node.vllm.link import MAX_MOVES, VllmLink, VllmSettings, survey
from piecework_node.vllm.pool import Health, PoolTimes
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.objects import Service
from tests.repo.test_documents import ROOT
from tests.support.model.vllm_server import (
    CANVAS,
    CHECKPOINT,
    EOS,
    MAX_MODEL_LEN,
    VllmServer,
    servers,
    token_at,
)
from tests.support.waiting import until

PROMPT = (9, 8, 7, 6, 5)
TIMES = EndpointTimes(question_s=5.0, silence_s=30.0)
FLEET = PoolTimes(poll_s=0.02, start_s=10.0)
TEST_S = 20


@dataclass
class Running:
    """A link that is up, and its events."""

    link: VllmLink
    stream: AsyncIterator[EngineEvent]
    life: asyncio.Task[None]

    async def next(self) -> EngineEvent:
        """The next event; the link's own end comes out as what ended it."""
        event = asyncio.ensure_future(anext(self.stream))
        await asyncio.wait((event, self.life), return_when=asyncio.FIRST_COMPLETED)
        if not event.done():
            event.cancel()
            await self.life
        return event.result()

    async def canvases(self, sequence: str) -> list[CanvasEvent]:
        """The rest of a sequence, which nothing holds back; no other sequence runs."""
        got: list[CanvasEvent] = []
        while not got or got[-1].finish is CanvasFinish.MORE:
            event = await self.next()
            assert isinstance(event, CanvasEvent) and event.request_id == sequence, event
            got.append(event)
        return got


def settings(urls: list[str], **changes: Any) -> VllmSettings:
    values: dict[str, Any] = {
        "urls": tuple(urls),
        "key": "",
        "model": "",
        "checkpoint": bundled_checkpoint_path(),
        "slots": 4,
        "benchmark_s": 0.01,
        "endpoint_times": TIMES,
        "pool_times": FLEET,
        "move_pause_s": 0.001,
    }
    return VllmSettings(**(values | changes))


@asynccontextmanager
async def running(made: list[VllmServer], **changes: Any) -> AsyncIterator[Running]:
    """A link over these servers, which has reported ready and seen all of them."""
    link = VllmLink(settings([s.url for s in made], **changes), SystemClock(), logs.silent())
    life = asyncio.ensure_future(link.run())
    try:
        async with asyncio.timeout(TEST_S):
            run = Running(link, aiter(link.events()), life)
            assert isinstance(await run.next(), EngineReady)
            await until(lambda: all(m.health is not Health.UNKNOWN for m in link.endpoints))
            for server in made:
                server.bodies.clear()
                server.generated = server.peak = 0
            yield run
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)


def request(
    sequence: str = "sequence",
    max_tokens: int = 3 * CANVAS,
    limit: int = 99,
    prompt: tuple[int, ...] = PROMPT,
) -> GenerationRequest:
    return GenerationRequest(sequence, prompt, 0, max_tokens, 0, 0, 0, 0, 0, 0, limit, (), 0)


def expected(count: int, *, start: int = 0) -> tuple[int, ...]:
    """The tokens that stand behind the prompt."""
    return tuple(token_at(len(PROMPT) + i) for i in range(start, start + count))


def said(events: list[CanvasEvent]) -> tuple[int, ...]:
    return tuple(token for event in events for token in event.charged_ids)


# --- the good case


@pytest.mark.parametrize("tokens_a_chunk", [1, 7, CANVAS, 3 * CANVAS])
async def test_a_job_comes_in_canvases_without_steps_and_trace(tokens_a_chunk: int) -> None:
    async with servers(tokens_a_chunk=tokens_a_chunk) as made, running(made) as run:
        run.link.start(request(max_tokens=2 * CANVAS + 5))
        events = await run.canvases("sequence")
    assert said(events) == expected(2 * CANVAS + 5)
    assert [len(e.charged_ids) for e in events] == [CANVAS, CANVAS, 5]
    assert events[-1].finish is CanvasFinish.TOKEN_LIMIT
    assert "".join(e.text for e in events) == CHECKPOINT.codec.decode(said(events))
    assert all(e.steps == 0 and not e.step_leaves for e in events)


async def test_the_end_of_the_text_ends_the_job_and_is_not_charged() -> None:
    async with servers(ends_at=len(PROMPT) + CANVAS + 3) as made, running(made) as run:
        run.link.start(request())
        events = await run.canvases("sequence")
    assert [len(e.charged_ids) for e in events] == [CANVAS, 3]
    assert events[-1].finish is CanvasFinish.END_OF_TEXT
    assert EOS not in said(events)


async def test_the_facts_say_best_effort_and_what_was_measured() -> None:
    async with servers(2) as made, running(made) as run:
        facts = run.link.facts
        assert facts is not None and run.link.ready
    assert (facts.service, facts.max_steps, facts.steps_per_second) == (Service.BEST_EFFORT, 0, 0)
    assert (facts.name, facts.digest) == (CHECKPOINT.name, CHECKPOINT.digest)
    assert (facts.profile, facts.max_context, facts.canvas_size) == (
        "vllm-0.32.0",
        MAX_MODEL_LEN,
        CANVAS,
    )
    assert facts.tokens_per_second > 0 and facts.first_canvas_ms >= 0
    own = {"engine": "vllm", "version": "0.32.0", "endpoints": 2, "images": False}
    assert facts.details == own and not facts.images
    assert run.link.pid is None and not run.link.ready and run.link.facts is None


async def test_a_sequence_asks_for_no_more_than_the_window_and_goes_on_from_its_canvases() -> None:
    async with servers() as made, running(made) as run:
        (server,) = made
        run.link.start(request(limit=2))
        first = [await run.next(), await run.next()]
        await server.until(lambda: server.running == 0)
        assert server.generated == 2 * CANVAS
        run.link.allow("sequence", 2)  # not wider than it is
        run.link.allow("sequence", 3)
        last = await run.next()
        assert [len(b["prompt"]) for b in server.bodies] == [len(PROMPT), len(PROMPT) + 2 * CANVAS]
        assert [b["max_tokens"] for b in server.bodies] == [2 * CANVAS, CANVAS]
        assert all("seed" not in b and "temperature" not in b for b in server.bodies)
        events = [e for e in (*first, last) if isinstance(e, CanvasEvent)]
        assert said(events) == expected(3 * CANVAS)
        assert events[-1].finish is CanvasFinish.TOKEN_LIMIT


async def test_a_sequence_that_is_resumed_starts_behind_its_committed_canvases() -> None:
    async with servers() as made, running(made) as run:
        whole = GenerationRequest(
            "sequence", PROMPT, 0, 3 * CANVAS, 0, 0, 0, 0, 0, 0, 99, (expected(CANVAS),), 0
        )
        run.link.start(whole)
        events = await run.canvases("sequence")
    assert [e.canvas for e in events] == [1, 2]
    assert said(events) == expected(2 * CANVAS, start=CANVAS)


async def test_a_stopped_sequence_closes_its_stream_and_says_what_was_read() -> None:
    async with servers(holds_at=len(PROMPT) + 3) as made, running(made) as run:
        (server,) = made
        run.link.start(request())
        await server.until(lambda: server.running == 1 and server.generated == 3)
        run.link.stop("sequence", finish_canvas=False)
        run.link.stop("sequence", finish_canvas=False)
        run.link.allow("sequence", 9)
        assert await run.next() == StoppedEvent("sequence", 0, 0, len(PROMPT), ())
        await server.until(lambda: server.running == 0)
        assert server.aborted == 1
        server.holds_at = None
        run.link.start(request("other", max_tokens=1))
        assert [e.request_id for e in await run.canvases("other")] == ["other"]


async def test_a_pause_aborts_the_request_and_the_canvas_is_asked_for_again_afterwards() -> None:
    async with servers() as made, running(made) as run:
        (server,) = made
        server.holds_at = len(PROMPT) + CANVAS + 3
        run.link.start(request())
        first = await run.next()
        await server.until(lambda: server.generated == CANVAS + 3)
        run.link.pause(free_memory=False)
        assert await run.next() == EnginePaused()
        await server.until(lambda: server.running == 0)
        assert server.aborted == 1
        server.holds_at = None
        run.link.resume()
        assert await run.next() == EngineResumed()
        assert isinstance(first, CanvasEvent)
        assert said([first, *await run.canvases("sequence")]) == expected(3 * CANVAS)


async def test_a_sequence_that_starts_in_a_pause_asks_for_nothing_before_its_end() -> None:
    async with servers() as made, running(made) as run:
        (server,) = made
        run.link.pause(free_memory=False)
        run.link.start(request(max_tokens=CANVAS))
        assert await run.next() == EnginePaused()
        for _ in range(50):
            await asyncio.sleep(0)
        assert not server.bodies
        run.link.resume()
        assert await run.next() == EngineResumed()
        assert len(await run.canvases("sequence")) == 1


async def test_the_least_loaded_endpoint_takes_the_next_sequence() -> None:
    async with servers(3, holds_at=len(PROMPT) + 1) as made, running(made, slots=6) as run:
        for i in range(6):
            run.link.start(request(f"sequence {i}", max_tokens=CANVAS))
        for server in made:
            await server.until_running(2)
            server.go.set()
        sequences = {(await run.next()).request_id for _ in range(6)}  # type: ignore[union-attr]
        assert len(sequences) == 6


async def test_sequences_beyond_the_slots_wait_their_turn_and_a_paused_sequence_holds_no_slot() -> (
    None
):
    async with servers() as made, running(made, slots=1) as run:
        (server,) = made
        run.link.start(request("paused", limit=1))
        assert isinstance(await run.next(), CanvasEvent)
        server.holds_at = len(PROMPT) + 2
        run.link.start(request("first", max_tokens=CANVAS))
        await server.until(lambda: server.running == 1)
        run.link.start(request("second", max_tokens=CANVAS))
        await server.until_looked_at(2)  # by then it would have come
        server.go.set()
        names = [(await run.next()).request_id for _ in range(2)]  # type: ignore[union-attr]
        assert names == ["first", "second"]
        assert server.peak == 1


def asked(message: Message) -> TextContent:
    return TextContent(Conversation((message,)))


async def test_prompts_are_encoded_here_and_typed_control_tokens_stay_text() -> None:
    async with servers() as made, running(made) as run:
        typed = await run.link.encode(asked(Message("user", "a <eos> fox <bos>")))
        plain = await run.link.encode(asked(Message("user", "a fox")))
        assert sum(t in CHECKPOINT.codec.control_ids for t in typed.prompt_ids) == sum(
            t in CHECKPOINT.codec.control_ids for t in plain.prompt_ids
        )
        with pytest.raises(PromptRejected):
            await run.link.encode(asked(Message("user", "\ud800")))
        assert not made[0].bodies


# --- one sequence's faults


async def test_a_declined_request_ends_its_own_sequence_and_no_other() -> None:
    async with servers() as made, running(made) as run:
        run.link.start(request("too long", max_tokens=MAX_MODEL_LEN))
        event = await run.next()
        assert isinstance(event, FailedEvent)
        assert (event.request_id, event.kind) == ("too long", "invalid_request")
        run.link.start(request("bad token", prompt=(CHECKPOINT.vocab_size,)))
        event = await run.next()
        assert isinstance(event, FailedEvent) and event.kind == "invalid_request"
        run.link.start(request("good", max_tokens=CANVAS))
        assert said(await run.canvases("good")) == expected(CANVAS)
        assert run.link.endpoints[0].load == 0


FAULTS = [
    "dies",
    "fails",
    "resets",
    "ends early",
    "stops before its time",
    "ends without a word",
    "aborts",
    "babbles",
    "is no stream of events",
    "never ends a line",
    "makes up a token",
    "says too much",
]


@pytest.mark.parametrize("how", FAULTS)
async def test_a_sequence_goes_on_elsewhere_from_its_last_canvas_when_its_endpoint(
    how: str,
) -> None:
    async with servers(2) as made, running(made) as run:
        bad, good = made
        bad.breaks_at, bad.how = len(PROMPT) + CANVAS + 2, how
        run.link.start(request())
        first = await run.next()
        assert isinstance(first, CanvasEvent)
        # The first endpoint may be found well again; it must not finish the job after all.
        bad.completion_status = 500
        events = [first, *await run.canvases("sequence")]
        assert said(events) == expected(3 * CANVAS)
        assert [e.canvas for e in events] == [0, 1, 2]
        assert [len(b["prompt"]) for b in good.bodies] == [len(PROMPT) + CANVAS]
        assert run.link.losses == 0


@pytest.mark.parametrize("how", ["stops before its time", "resets"])
async def test_losing_an_endpoint_again_and_again_is_borne_while_canvases_come(how: str) -> None:
    canvases = MAX_MOVES + 3
    async with servers() as made, running(made) as run:
        made[0].breaks_once, made[0].how = (
            {len(PROMPT) + i * CANVAS + 2 for i in range(canvases)},
            how,
        )
        run.link.start(request(max_tokens=canvases * CANVAS))
        assert said(await run.canvases("sequence")) == expected(canvases * CANVAS)
        assert not made[0].breaks_once and run.link.losses == 0


async def test_a_broken_stream_has_its_endpoint_looked_at_at_once() -> None:
    async with (
        servers() as made,
        running(made, pool_times=PoolTimes(poll_s=600, start_s=10)) as run,
    ):
        made[0].breaks_at, made[0].how = len(PROMPT) + 2, "dies"
        run.link.start(request())
        assert isinstance(await run.next(), EngineLost)


async def test_an_endpoint_that_is_well_again_is_not_tried_twice_for_one_canvas() -> None:
    async with servers(2) as made, running(made, slots=1) as run:
        bad, good = made
        bad.breaks_once, bad.how = {len(PROMPT) + 2}, "fails"
        good.holds_at = len(PROMPT) + 2
        run.link.start(request("first", max_tokens=CANVAS))
        run.link.start(request("second", max_tokens=CANVAS))
        await good.until_running(1)  # the second, while the first waits for the slot
        await until(lambda: run.link.endpoints[0].health is Health.HEALTHY)
        good.go.set()
        assert [(await run.next()).request_id for _ in range(2)] == ["second", "first"]  # type: ignore[union-attr]
        assert (len(bad.bodies), len(good.bodies)) == (1, 2)


async def test_a_silent_endpoint_is_given_up_after_its_time() -> None:
    quick = EndpointTimes(question_s=5.0, silence_s=0.1)
    async with servers(2) as made, running(made, endpoint_times=quick) as run:
        made[0].breaks_at, made[0].how = len(PROMPT) + 2, "falls silent"
        run.link.start(request(max_tokens=CANVAS))
        assert said(await run.canvases("sequence")) == expected(CANVAS)


@pytest.mark.parametrize("status", [302, 401, 404, 429, 500, 503])
async def test_a_status_that_is_the_endpoints_own_moves_the_sequence(status: int) -> None:
    async with servers(2) as made, running(made) as run:
        made[0].completion_status = status
        run.link.start(request(max_tokens=CANVAS))
        assert said(await run.canvases("sequence")) == expected(CANVAS)


async def test_a_request_that_breaks_every_endpoint_fails_alone() -> None:
    async with servers(2, breaks_at=len(PROMPT) + 2, how="fails") as made:
        for server in made:
            server.breaks_at = None
        async with running(made) as run:
            for server in made:
                server.breaks_at = len(PROMPT) + 2
            run.link.start(request("poison"))
            event = await run.next()
            assert isinstance(event, FailedEvent)
            assert (event.request_id, event.kind) == ("poison", "internal")
            assert sum(len(server.bodies) for server in made) == MAX_MOVES + 1
            for server in made:
                server.breaks_at = None
            run.link.start(request("next", max_tokens=CANVAS))
            assert said(await run.canvases("next")) == expected(CANVAS)


# --- losing endpoints


async def test_sequences_leave_an_endpoint_that_goes_down_without_waiting_for_its_streams() -> None:
    async with servers(2) as made, running(made) as run:
        sick, well = made
        sick.holds_at = len(PROMPT) + 2
        run.link.start(request(max_tokens=CANVAS))
        await sick.until(lambda: sick.running == 1)
        sick.health = 503
        assert said(await run.canvases("sequence")) == expected(CANVAS)
        assert len(well.bodies) == 1
        await sick.until(lambda: sick.running == 0)


async def test_losing_every_endpoint_is_the_loss_of_the_engine_until_one_is_back() -> None:
    async with servers(2) as made, running(made) as run:
        facts = run.link.facts
        for server in made:
            server.holds_at = len(PROMPT) + 2
        run.link.start(request())
        await until(lambda: any(server.running for server in made))
        for server in made:
            await server.stop()
        assert isinstance(await run.next(), EngineLost)
        assert (run.link.ready, run.link.facts, run.link.losses) == (False, None, 1)
        with pytest.raises(EngineUnavailable):
            await run.link.encode(asked(Message("user", "anyone?")))
        run.link.start(request("while it is gone"))
        made[1].holds_at = None
        await made[1].start()
        assert await run.next() == EngineReady(facts)  # type: ignore[arg-type]
        run.link.start(request("again", max_tokens=CANVAS))
        assert said(await run.canvases("again")) == expected(CANVAS)


@pytest.mark.parametrize(
    "change",
    [{"shift": 1}, {"max_model_len": MAX_MODEL_LEN - 1}, {"key": "another key"}],
    ids=["tokenizer", "context", "key"],
)
async def test_an_endpoint_that_comes_back_as_another_gets_no_work(change: dict[str, Any]) -> None:
    async with servers(2) as made, running(made) as run:
        changed, same = made
        await changed.stop()
        await until(lambda: run.link.endpoints[0].health is Health.DOWN)
        for name, value in change.items():
            setattr(changed, name, value)
        await changed.start()
        trouble = run.link.endpoints[0].trouble
        await until(lambda: run.link.endpoints[0].trouble != trouble)
        for i in range(3):
            run.link.start(request(f"sequence {i}", max_tokens=CANVAS))
            await run.canvases(f"sequence {i}")
        assert (len(changed.bodies), len(same.bodies)) == (0, 3)
        assert run.link.endpoints[0].health is Health.DOWN


async def test_losses_and_returns_alternate_however_the_endpoints_flap() -> None:
    chance = random.Random(11)
    async with servers(2) as made, running(made) as run:
        for _ in range(40):
            server = chance.choice(made)
            server.health = 503 if server.health == 200 else 200
            await server.until_looked_at(1)
        for server in made:
            server.health = 200
            await server.until_looked_at(2)
        await until(lambda: all(m.health is Health.HEALTHY for m in run.link.endpoints))
        run.link.start(request(max_tokens=CANVAS))
        told: list[type] = []
        while CanvasEvent not in told:
            told.append(type(await run.next()))
        told.remove(CanvasEvent)
        assert told == [EngineLost, EngineReady] * run.link.losses
        assert run.link.losses > 0


async def test_one_late_answer_is_no_death_and_two_are() -> None:
    async with servers() as made, running(made) as run:
        made[0].late_looks = 1
        await made[0].until_looked_at(4)
        assert (run.link.ready, run.link.losses) == (True, 0)
        made[0].late_looks = 2
        assert isinstance(await run.next(), EngineLost)
        assert isinstance(await run.next(), EngineReady)


async def test_one_broken_stream_is_no_death() -> None:
    async with servers() as made, running(made) as run:
        made[0].breaks_at, made[0].how = len(PROMPT) + 2, "resets"
        run.link.start(request(max_tokens=CANVAS))
        await made[0].until(lambda: len(made[0].bodies) >= 1)
        made[0].breaks_at = None
        assert said(await run.canvases("sequence")) == expected(CANVAS)
        assert run.link.losses == 0


# --- the start


@pytest.mark.parametrize(
    ("knobs", "changes", "words"),
    [
        (
            {"name": "other"},
            {"model": "wanted"},
            "endpoint 1: the endpoint serves other; set vllm_model",
        ),
        ({"shift": 1}, {}, "another tokenizer"),
        ({"key": "secret"}, {}, "code 401"),
        ({"omits_ids": True}, {}, "does not return token ids"),
        ({"max_model_len": 20}, {}, "no room for a canvas"),
        ({"completion_status": 400}, {}, "code 400"),
        (
            {"padding": 2_000_000},
            {"pool_times": PoolTimes(0.01, 0.05)},
            "answers more than 1048576 bytes",
        ),
        (
            {"completion_status": 500},
            {},
            "finishes the benchmark: endpoint 1: the endpoint fails with code 500",
        ),
        ({"health": 503}, {"pool_times": PoolTimes(0.01, 0.05)}, "endpoint 1: the engine behind"),
    ],
)
async def test_a_start_that_cannot_succeed_says_why(
    knobs: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    async with servers(**knobs) as made:
        with pytest.raises(EngineStartError, match=words):
            async with running(made, **changes):
                raise AssertionError("it started")


async def test_a_start_takes_another_endpoint_when_the_first_fails_the_benchmark() -> None:
    async with servers(2) as made:
        made[0].completion_status = 500
        async with running(made) as run:
            run.link.start(request(max_tokens=CANVAS))
            assert said(await run.canvases("sequence")) == expected(CANVAS)


async def test_the_benchmark_measures_whole_canvases_whatever_the_text() -> None:
    async with servers() as made, aiohttp.ClientSession() as session:
        prompt = len(CHECKPOINT.codec.encode_content(vllm_benchmark.PROMPT))
        made[0].ends_at = prompt + 1
        endpoint = VllmEndpoint(made[0].url, session, key="", model="", times=TIMES)
        speed = await vllm_benchmark.measure(
            endpoint,
            await endpoint.probe(),
            CHECKPOINT,
            max_context=prompt + 2 * CANVAS,
            seconds=0.001,
            sequences=3,
            clock=SystemClock(),
        )
        assert [b["max_tokens"] for b in made[0].bodies] == [CANVAS, CANVAS, *[2 * CANVAS] * 3]
        assert made[0].generated == 8 * CANVAS and speed.tokens_per_second > 0


async def test_endpoints_of_this_machine_are_asked_directly_and_others_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    async with servers() as made, aiohttp.ClientSession() as session:
        # A server of ours stands for the proxy: it takes requests with a whole address.
        monkeypatch.setenv("http_proxy", made[0].url)
        for url in ("http://gpu.invalid", made[0].url):
            endpoint = VllmEndpoint(url, session, key="", model="", times=TIMES)
            assert (await endpoint.probe()).name == made[0].name
        assert made[0].hosts == ["gpu.invalid"] * 2 + [made[0].url.removeprefix("http://")] * 2
        monkeypatch.setenv("http_proxy", "socks5://proxy.invalid:1")
        with pytest.raises(EndpointLost, match="proxy of the environment cannot be used"):
            await VllmEndpoint("http://gpu.invalid", session, key="", model="", times=TIMES).probe()


@pytest.mark.parametrize("how", ["ends early", "ends without a word"])
async def test_a_stream_that_ends_without_saying_why_is_lost(how: str) -> None:
    async with servers(breaks_at=8, how=how) as made, aiohttp.ClientSession() as session:
        endpoint = VllmEndpoint(made[0].url, session, key="", model="", times=TIMES)
        got: list[int] = []
        with pytest.raises(EndpointLost, match="broke off"):
            async for chunk in endpoint.stream(made[0].name, PROMPT, CANVAS, CHECKPOINT.vocab_size):
                got += chunk.token_ids
        assert tuple(got) == expected(3)


async def test_an_endpoint_that_is_to_be_avoided_is_taken_only_if_there_is_no_other() -> None:
    async with servers(2) as made, running(made) as run:
        assert run.link.pool is not None
        none: set[int] = set()
        for avoid, chosen in ((none, 1), ({1}, 2), ({1, 2}, 1)):
            pooled = await run.link.pool.acquire(avoid)
            assert pooled.number == chosen
            run.link.pool.release(pooled)


async def test_a_start_waits_for_a_server_that_still_loads_its_model() -> None:
    async with servers(health=503) as made:
        starting = running(made)
        entering = asyncio.ensure_future(starting.__aenter__())
        await made[0].until_looked_at(2)
        made[0].health = 200
        run = await entering
        assert run.link.ready
        await starting.__aexit__(None, None, None)


async def test_a_survey_says_what_the_endpoints_serve_or_what_is_wrong_with_each() -> None:
    async with servers(2) as made:
        asked = settings([server.url for server in made])
        line = await survey(asked, SystemClock(), logs.silent())
        assert line.startswith(f"2 well, {MAX_MODEL_LEN} tokens of context")
        made[1].shift = 1
        await made[0].stop()
        with pytest.raises(ConfigError) as caught:
            await survey(asked, SystemClock(), logs.silent())
        assert "endpoint 1: nothing listens there; endpoint 2: serves" in str(caught.value)


async def test_a_key_is_shown_to_every_door() -> None:
    async with servers(key="a long key") as made, running(made, key="a long key") as run:
        run.link.start(request(max_tokens=CANVAS))
        assert said(await run.canvases("sequence")) == expected(CANVAS)


async def test_a_folder_that_is_no_checkpoint_is_refused_before_anybody_is_asked(
    tmp_path: Any,
) -> None:
    async with servers() as made:
        with pytest.raises(EngineStartError, match=r"config\.json"):
            async with running(made, checkpoint=tmp_path):
                raise AssertionError("it started")


async def test_nothing_is_answered_before_the_start() -> None:
    link = VllmLink(settings(["http://127.0.0.1:9"]), SystemClock(), logs.silent())
    assert (link.ready, link.facts, link.losses) == (False, None, 0)
    link.start(request())
    link.allow("sequence", 3)
    link.stop("sequence", finish_canvas=True)
    with pytest.raises(EngineUnavailable):
        await link.encode(asked(Message("user", "anyone?")))


@pytest.mark.process
def test_a_worker_before_vllm_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; "
        "import piecework_node.daemon.daemon, piecework_node.operations.checks, "
        "piecework_node.vllm.link; "
        "from piecework_model.text.chat import encode_prompt; "
        "from tests.support.protocol.conversations import said; "
        "from tests.support.model.vllm_server import CHECKPOINT; "
        "print(len(encode_prompt(CHECKPOINT.codec, said('a fox'))))"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert result.returncode == 0 and int(result.stdout) > 0, result.stderr
