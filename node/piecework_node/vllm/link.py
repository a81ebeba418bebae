"""vLLM as the engine: `EngineLink` over one or more OpenAI-compatible endpoints. Best effort
(clause 3.10).

vLLM goes on generating when nobody reads its stream (measured, docs/vllm.md), so a row is not
paused by not reading: it asks for no more tokens than the credit window allows, and asks again,
with everything so far as the prompt, when the window moves. The engine's prefix cache makes that
cheap.

A row whose endpoint is lost goes on at another from its last canvas. When none is left, that is the
loss of the engine (`EngineLost`), and what becomes of the jobs is the worker's decision, as with
our own engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from piecework.base.clock import Clock
from piecework_model.errors import CheckpointError, PromptError
from piecework_model.requests import FailedEvent, GenerationRequest
from piecework_model.text.tokens import TextCodec
from piecework_node.engine.link import EngineEvent, EngineFacts, EngineLost, EngineReady
from piecework_node.errors import (
    ConfigError,
    EndpointLost,
    EndpointUnfit,
    EngineStartError,
    EngineUnavailable,
    PromptRejected,
    RequestDeclined,
)
from piecework_node.vllm import benchmark as vllm_benchmark
from piecework_node.vllm import checkpoint as vllm_checkpoint
from piecework_node.vllm.canvases import CanvasWriter
from piecework_node.vllm.checkpoint import ServedCheckpoint
from piecework_node.vllm.endpoint import EndpointTimes, VllmEndpoint
from piecework_node.vllm.pool import EndpointPool, PooledEndpoint, PoolTimes
from piecework_protocol.content import Message
from piecework_protocol.limits import MAX_NAME_BYTES
from piecework_protocol.objects import Service

MAX_QUEUED_EVENTS: Final = 1024
"""Beyond this the rows wait: canvases of many rows while the disk is slow."""
MAX_MOVES: Final = 3
"""Of a row, without a canvas in between: a request that breaks every endpoint must not break them
for ever."""
KEEP_ALIVE_S: Final = 2.0
"""For idle connections. vLLM's server closes them after 5 s: a request must not meet one that is
closing."""
MAX_ENCODERS: Final = 2
"""Prompts tokenized at once; each keeps a core busy, seconds for the longest."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What the operator says. `model` is the name that the endpoints serve; empty: the only one."""

    urls: tuple[str, ...]
    key: str
    model: str
    checkpoint: Path
    slots: int
    benchmark_s: float
    endpoint_times: EndpointTimes = field(default_factory=EndpointTimes)
    fleet_times: PoolTimes = field(default_factory=PoolTimes)
    move_pause_s: float = 0.5
    """Before a row goes back to an endpoint that it had to leave, times its moves: a restart takes
    a moment."""


@dataclass(slots=True)
class Row:
    """A running job."""

    writer: CanvasWriter
    request_id: str
    limit: int
    moves: int = 0
    left: set[int] = field(default_factory=set)
    """Numbers of the endpoints that were lost under the canvas that is being written."""
    widened: asyncio.Event = field(default_factory=asyncio.Event)
    pooled: PooledEndpoint | None = None
    scope: asyncio.Timeout | None = None
    """Around what it does at `pooled`: rescheduling it to now breaks that off."""


@dataclass(frozen=True, slots=True)
class Running:
    """What there is once the first endpoint was well. An error of ours in a row ends `group`, and
    so the daemon."""

    checkpoint: ServedCheckpoint
    pool: EndpointPool
    facts: EngineFacts
    group: asyncio.TaskGroup


class VllmLink:
    """Implements `node.engine_link.EngineBackend`. `run` is its life; cancel it to let go of every
    stream."""

    def __init__(self, settings: VllmSettings, clock: Clock, log: Any) -> None:
        self._settings, self._clock, self._log = settings, clock, log
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue(MAX_QUEUED_EVENTS)
        self._slots = asyncio.Semaphore(settings.slots)
        self._encoders = asyncio.Semaphore(MAX_ENCODERS)
        self._rows: dict[str, Row] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._house: Running | None = None
        self._up = False
        self.losses = 0

    # --- EngineBackend

    @property
    def pid(self) -> int | None:
        """vLLM's processes are not ours."""
        return None

    @property
    def facts(self) -> EngineFacts | None:
        return self._house.facts if self._house is not None and self._up else None

    @property
    def ready(self) -> bool:
        return self._up

    @property
    def pool(self) -> EndpointPool | None:
        """The endpoints; none before the first was well."""
        return self._house.pool if self._house is not None else None

    @property
    def endpoints(self) -> Sequence[PooledEndpoint]:
        """What is known of each endpoint."""
        return self.pool.endpoints if self.pool is not None else ()

    async def encode_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        house = self._house
        if not self._up or house is None:
            raise EngineUnavailable("no vLLM endpoint is well")
        async with self._encoders:
            return await asyncio.to_thread(_encode, house.checkpoint, messages)

    def start(self, request: GenerationRequest) -> None:
        house = self._house
        # Without an endpoint the row is started again when one is well.
        if not self._up or house is None:
            return
        writer = CanvasWriter(request, house.checkpoint.codec, house.checkpoint.canvas_size)
        row = Row(writer, request.request_id, request.canvas_limit)
        self._rows[row.request_id] = row
        self._tasks[row.request_id] = house.group.create_task(
            self._live(row, house), name="vllm row"
        )

    def allow(self, request_id: str, canvas_limit: int) -> None:
        row = self._rows.get(request_id)
        if row is not None and canvas_limit > row.limit:
            row.limit = canvas_limit
            row.widened.set()

    def cancel(self, request_id: str) -> None:
        self._rows.pop(request_id, None)
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self._events.get()

    # --- life

    async def run(self) -> None:
        """Verify, measure, report ready, look after the endpoints. `EngineStartError` when it
        cannot start."""
        try:
            checkpoint = await asyncio.to_thread(vllm_checkpoint.load, self._settings.checkpoint)
        except CheckpointError as error:
            raise EngineStartError(f"the model cannot be loaded: {error}") from None
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(_session())
            pool = _pool(self._settings, checkpoint.codec, session, self._clock, self._log)
            facts = await self._first(pool, checkpoint)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._house, self._up = Running(checkpoint, pool, facts, group), True
            pool.least_context, pool.on_down = facts.max_context, self._break_off
            await self._events.put(EngineReady(facts))
            group.create_task(pool.watch())
            try:
                await self._tell(self._house)
            finally:
                self._up, self._house = False, None

    async def _first(self, pool: EndpointPool, checkpoint: ServedCheckpoint) -> EngineFacts:
        """Wait for an endpoint that is well, and measure it; one that is lost meanwhile is waited
        for again."""
        failed: set[int] = set()
        for _ in range(MAX_MOVES):
            pooled = await pool.start(failed)
            try:
                return await self._measure(pooled, checkpoint)
            except EndpointLost as lost:
                self._log.error("endpoint lost", count=pooled.number, error=str(lost))
                pooled.trouble = str(lost)
                failed.add(pooled.number)
            except (EndpointUnfit, RequestDeclined) as error:
                raise EngineStartError(f"endpoint {pooled.number}: {error}") from None
        raise EngineStartError(f"no vLLM endpoint finishes the benchmark: {pool.troubles}")

    async def _measure(self, pooled: PooledEndpoint, checkpoint: ServedCheckpoint) -> EngineFacts:
        served = pooled.served
        if served is None:
            raise EndpointLost("it serves nothing")
        version = await pooled.endpoint.version()
        speed = await vllm_benchmark.measure(
            pooled.endpoint,
            served,
            checkpoint,
            max_context=served.max_model_len,
            seconds=self._settings.benchmark_s,
            rows=self._settings.slots,
            clock=self._clock,
        )
        return EngineFacts(
            name=checkpoint.name,
            digest=checkpoint.digest,
            profile=f"vllm-{version}"[:MAX_NAME_BYTES],
            device="vllm",
            max_context=served.max_model_len,
            canvas_size=checkpoint.canvas_size,
            max_steps=0,
            vocab_size=checkpoint.vocab_size,
            tokens_per_second=int(speed.tokens_per_second),
            first_canvas_ms=int(speed.first_canvas_ms),
            steps_per_second=0,
            service=Service.BEST_EFFORT,
            details={"engine": "vllm", "version": version, "endpoints": len(self._settings.urls)},
        )

    async def _tell(self, house: Running) -> None:
        """Tell of the loss of every endpoint and of the return of one, for ever: in order, because
        only here.

        A loss that is over before it is told was none: its rows have moved.
        """
        while True:
            await house.pool.until(alive=False)
            self._up = False
            self.losses += 1
            self._log.error("engine lost", error=house.pool.troubles, count=self.losses)
            self._drop_rows()
            await self._events.put(EngineLost("no vLLM endpoint is well"))
            await house.pool.until(alive=True)
            self._up = True
            await self._events.put(EngineReady(house.facts))

    def _break_off(self, pooled: PooledEndpoint) -> None:
        """End what rows do at an endpoint that is down."""
        now = asyncio.get_running_loop().time()
        for row in self._rows.values():
            if row.pooled is pooled and row.scope is not None and not row.scope.expired():
                row.scope.reschedule(now)

    def _drop_rows(self) -> None:
        tasks, self._tasks, self._rows = list(self._tasks.values()), {}, {}
        for task in tasks:
            task.cancel()

    # --- rows

    async def _live(self, row: Row, house: Running) -> None:
        """A row from its start to its end; whatever ends it early is reported for it alone."""
        try:
            while not row.writer.ended:
                if row.writer.room(row.limit):
                    await self._turn(row, house)
                else:
                    await row.widened.wait()
                row.widened.clear()
        except RequestDeclined as declined:
            await self._events.put(FailedEvent(row.request_id, "invalid_request", str(declined)))
        except EndpointLost as lost:
            await self._events.put(FailedEvent(row.request_id, "internal", str(lost)))
        finally:
            if self._rows.get(row.request_id) is row:
                del self._rows[row.request_id], self._tasks[row.request_id]

    async def _turn(self, row: Row, house: Running) -> None:
        """One request for what the credit window has room for; moves on when the endpoint is
        lost."""
        pool = house.pool
        async with self._slots:
            pooled = await pool.acquire(row.left)
            try:
                await self._stream(row, pooled, house.checkpoint)
                return
            except (EndpointLost, EndpointUnfit) as error:
                row.writer.drop_unfinished()
                row.moves += 1
                row.left.add(pooled.number)
                if row.moves > MAX_MOVES:
                    raise EndpointLost(
                        f"lost {row.moves} endpoints under one canvas: {error}"
                    ) from None
                self._log.warning(
                    "endpoint lost under a row", count=pooled.number, error=str(error)
                )
            finally:
                row.pooled = row.scope = None
                pool.release(pooled)
            await pool.suspect(pooled)
        if len(row.left) >= len(pool.endpoints):
            await asyncio.sleep(self._settings.move_pause_s * row.moves)

    async def _stream(self, row: Row, pooled: PooledEndpoint, checkpoint: ServedCheckpoint) -> None:
        writer, served = row.writer, pooled.served
        if served is None:
            raise EndpointLost("it serves nothing")
        tokens = writer.room(row.limit)
        stream = pooled.endpoint.stream(
            served.name, writer.context(), tokens, checkpoint.vocab_size
        )
        try:
            async with asyncio.timeout(None) as row.scope, aclosing(stream) as chunks:
                row.pooled = pooled
                async for chunk in chunks:
                    tokens -= len(chunk.token_ids)
                    if tokens < 0:
                        raise EndpointLost("the endpoint says more than it was asked for")
                    for event in writer.take(chunk):
                        row.moves = 0
                        row.left.clear()
                        await self._events.put(event)
                    if writer.ended:
                        return
        except TimeoutError:
            raise EndpointLost("the endpoint went down") from None
        if tokens:
            raise EndpointLost(
                "the endpoint says less than it was asked for and not that the text ends"
            )


def _session() -> aiohttp.ClientSession:
    # Rows are bounded by slots, not by connections.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    )


def _pool(
    settings: VllmSettings, codec: TextCodec, session: aiohttp.ClientSession, clock: Clock, log: Any
) -> EndpointPool:
    endpoints = [
        VllmEndpoint(
            url, session, key=settings.key, model=settings.model, times=settings.endpoint_times
        )
        for url in settings.urls
    ]
    return EndpointPool(endpoints, codec, settings.fleet_times, clock, log)


async def survey(settings: VllmSettings, clock: Clock, log: Any) -> str:
    """What the endpoints serve, for `worker check`; `ConfigError` names what keeps one from
    work."""
    codec = await asyncio.to_thread(vllm_checkpoint.load_tokenizer, settings.checkpoint)
    async with _session() as session:
        endpoints = await _pool(settings, codec, session, clock, log).survey()
    troubles = [f"endpoint {m.number}: {m.trouble}" for m in endpoints if m.trouble]
    if troubles:
        raise ConfigError("; ".join(troubles))
    served = [m.served for m in endpoints if m.served is not None]
    shortest = min(s.max_model_len for s in served)
    return f"{len(served)} well, {shortest} tokens of context, their tokenizer is the checkpoint's"


def _encode(checkpoint: ServedCheckpoint, messages: tuple[Message, ...]) -> tuple[int, ...]:
    from piecework_model.text import chat

    turns = [chat.ChatMessage(m.role, m.content) for m in messages]  # type: ignore[arg-type]
    try:
        return chat.encode_prompt(checkpoint.codec, turns)
    except PromptError as error:
        raise PromptRejected(str(error)) from None
