"""vLLM as the engine: `EngineLink` over OpenAI-compatible endpoints. Best effort (clause 3.10).

vLLM goes on generating when its stream is not read (measured, docs/vllm.md). So a sequence is not
paused by not reading. It requests no more tokens than the credit window allows. When the window
moves, it makes another request with everything so far as the prompt. The engine's prefix cache
makes that cheap.

A sequence whose endpoint is lost goes on at another one, after its last canvas. When no endpoint is
left, the engine is lost (`EngineLost`). The worker then decides what becomes of the jobs, as with
our own engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp

from piecework.base.clock import Clock
from piecework_model.errors import CheckpointError, PromptError
from piecework_model.requests import EncodedContent, FailedEvent, GenerationRequest, StoppedEvent
from piecework_node.engine.link import (
    AuditedCanvas,
    EngineEvent,
    EngineFacts,
    EngineLost,
    EnginePaused,
    EngineReady,
    EngineResumed,
    ReplayedTrace,
    ReplayWork,
)
from piecework_node.errors import (
    ConfigError,
    EndpointLost,
    EndpointUnfit,
    EngineStartError,
    EngineUnavailable,
    PromptRejected,
    ReplayDeclined,
    RequestDeclined,
)
from piecework_node.vllm import benchmark as vllm_benchmark
from piecework_node.vllm import checkpoint as vllm_checkpoint
from piecework_node.vllm.canvases import CanvasWriter
from piecework_node.vllm.checkpoint import ServedCheckpoint, Shape
from piecework_node.vllm.endpoint import EndpointTimes, VllmEndpoint
from piecework_node.vllm.forms import FormWriter, label_ids
from piecework_node.vllm.pool import EndpointPool, PooledEndpoint, PoolTimes
from piecework_node.vllm.wire import MAX_LABEL_IDS
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.limits import MAX_NAME_BYTES
from piecework_protocol.objects import Kind, Service

MAX_QUEUED_EVENTS: Final = 1024
"""Beyond this the sequences wait: canvases of many sequences while the disk is slow."""
MAX_MOVES: Final = 3
"""Of a sequence, without a canvas in between. A request that breaks every endpoint must not break
them again and again.
"""
KEEP_ALIVE_S: Final = 2.0
"""For idle connections. vLLM's server closes them after 5 s, and a request must not meet one that
is closing.
"""
MAX_ENCODERS: Final = 2
"""Prompts tokenized at once. Each keeps a core busy, for seconds if it is long."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What the operator configures. `model` is the name that the endpoints serve. Empty: the only
    one.
    """

    urls: tuple[str, ...]
    key: str
    model: str
    checkpoint: Path
    slots: int
    benchmark_s: float
    endpoint_times: EndpointTimes = field(default_factory=EndpointTimes)
    pool_times: PoolTimes = field(default_factory=PoolTimes)
    move_pause_s: float = 0.5
    """Before a sequence goes back to an endpoint that it had to leave, times its moves. A restart
    takes a moment.
    """


@dataclass(slots=True)
class RunningSequence:
    """A job that runs on the endpoints."""

    writer: CanvasWriter | FormWriter
    request_id: str
    limit: int
    moves: int = 0
    begun: bool = False
    """Whether the canvas in progress was asked for at an endpoint."""
    finishing: bool = False
    """Whether the sequence ends with the canvas in progress."""
    left: set[int] = field(default_factory=set)
    """Numbers of the endpoints that were lost under the current canvas."""
    widened: asyncio.Event = field(default_factory=asyncio.Event)
    pooled: PooledEndpoint | None = None
    scope: asyncio.Timeout | None = None
    """The timeout around its stream at `pooled`. Rescheduling it to now breaks the stream off."""

    @property
    def finished(self) -> bool:
        """Whether it was to end with a canvas, and that canvas is done."""
        return self.finishing and not self.begun


@dataclass(frozen=True, slots=True)
class Running:
    """What exists once the first endpoint was healthy.

    An error of ours in a sequence ends `group`, and so the daemon.
    """

    checkpoint: ServedCheckpoint
    pool: EndpointPool
    facts: EngineFacts
    group: asyncio.TaskGroup


class VllmLink:
    """`EngineBackend` over vLLM endpoints. `run` keeps them. Cancel it to close every stream."""

    def __init__(self, settings: VllmSettings, clock: Clock, log: Any) -> None:
        self._settings, self._clock, self._log = settings, clock, log
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue(MAX_QUEUED_EVENTS)
        self._slots = asyncio.Semaphore(settings.slots)
        self._encoders = asyncio.Semaphore(MAX_ENCODERS)
        self._sequences: dict[str, RunningSequence] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reports: set[asyncio.Future[None]] = set()
        """Reports of ours that wait for room among the events."""
        self._running: Running | None = None
        self._up = False
        self._may_run = asyncio.Event()
        """Clear while the owner needs the machine."""
        self._may_run.set()
        self._takes_canvases = False
        self.losses = 0

    # --- EngineBackend

    @property
    def pid(self) -> int | None:
        """None: vLLM's processes are not ours."""
        return None

    def give_up(self) -> None:
        """Nothing: a server without its GPU fails its next look."""

    @property
    def facts(self) -> EngineFacts | None:
        return self._running.facts if self._running is not None and self._up else None

    @property
    def ready(self) -> bool:
        return self._up

    @property
    def pool(self) -> EndpointPool | None:
        """The endpoints. None before the first was healthy."""
        return self._running.pool if self._running is not None else None

    @property
    def endpoints(self) -> Sequence[PooledEndpoint]:
        """What is known of each endpoint."""
        return self.pool.endpoints if self.pool is not None else ()

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        running = self._running
        if not self._up or running is None:
            raise EngineUnavailable("no vLLM endpoint is healthy")
        async with self._encoders:
            context = running.facts.max_context
            held = context if most is None else min(most, context)
            encoded = await asyncio.to_thread(_encode, running.checkpoint, content, context, held)
        if encoded.template and not running.pool.needs_canvases:
            raise PromptRejected("the servers of this worker fill no templates")
        if any(len(label_ids(canvas)) > MAX_LABEL_IDS for canvas in encoded.reads):
            raise PromptRejected(
                f"the questions of a canvas have at most {MAX_LABEL_IDS} different labels here"
            )
        return encoded

    async def replay(
        self,
        request: GenerationRequest,
        *,
        steps: int,
        wanted: Sequence[int],
        soft: bool = False,
        work: ReplayWork | None = None,
    ) -> ReplayedTrace:
        raise ReplayDeclined("vLLM makes no trace, so no step can be computed again")

    async def audit(self, content: AuditContent, work: ReplayWork | None = None) -> AuditedCanvas:
        raise ReplayDeclined("vLLM makes no trace, so no canvas can be audited")

    def start(self, request: GenerationRequest) -> None:
        running = self._running
        # Without an endpoint the sequence is started again when one is healthy.
        if not self._up or running is None:
            return
        shape = running.checkpoint.shape
        writer: CanvasWriter | FormWriter
        if request.template:
            writer = FormWriter(request, shape.codec, shape.canvas_size, shape.vocab_size)
        else:
            writer = CanvasWriter(request, shape.codec, shape.canvas_size)
        sequence = RunningSequence(writer, request.request_id, request.canvas_limit)
        self._sequences[sequence.request_id] = sequence
        self._tasks[sequence.request_id] = running.group.create_task(
            self._run_sequence(sequence, running), name="vllm sequence"
        )

    def allow(self, request_id: str, canvas_limit: int) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        sequence.finishing = False
        if canvas_limit > sequence.limit:
            sequence.limit = canvas_limit
            sequence.widened.set()

    def stop(self, request_id: str, *, finish_canvas: bool) -> None:
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        if finish_canvas and sequence.begun:
            sequence.finishing = True
            return
        del self._sequences[request_id]
        self._tasks.pop(request_id).cancel()
        self._report_soon(self._report_stop(sequence))

    async def _report_stop(self, sequence: RunningSequence) -> None:
        """Say what was done: nobody counts the steps, and no draft was shown (clause 3.10)."""
        writer = sequence.writer
        worked = sequence.begun or writer.canvas > writer.first_canvas
        prompt_tokens = writer.prompt_tokens if worked else 0
        await self._events.put(
            StoppedEvent(sequence.request_id, writer.canvas, 0, prompt_tokens, ())
        )

    def pause(self, *, free_memory: bool) -> None:
        """Abort every request. The servers keep their memory: vLLM gives it back to nobody.

        A canvas that was begun is asked for again afterwards.
        """
        self._may_run.clear()
        for sequence in self._sequences.values():
            _break_off(sequence)
        self._report_soon(self._events.put(EnginePaused()))

    def resume(self) -> None:
        self._may_run.set()
        self._report_soon(self._events.put(EngineResumed()))

    def _report_soon(self, report: Coroutine[Any, Any, None]) -> None:
        reporting = asyncio.ensure_future(report)
        self._reports.add(reporting)
        reporting.add_done_callback(self._reports.discard)

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self._events.get()

    # --- life

    async def run(self) -> None:
        """Verify, measure, report ready, and watch the endpoints.

        Raises `EngineStartError` if it cannot start.
        """
        try:
            checkpoint = await asyncio.to_thread(vllm_checkpoint.load, self._settings.checkpoint)
        except CheckpointError as error:
            raise EngineStartError(f"the model cannot be loaded: {error}") from None
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(_session())
            pool = _pool(self._settings, checkpoint.shape, session, self._clock, self._log)
            facts = await self._measure_first(pool, checkpoint)
            group = await stack.enter_async_context(asyncio.TaskGroup())
            self._running, self._up = Running(checkpoint, pool, facts, group), True
            pool.least_context, pool.on_down = facts.max_context, self._break_off
            pool.needs_canvases = self._takes_canvases
            await self._events.put(EngineReady(facts))
            group.create_task(pool.watch())
            try:
                await self._report_outages(self._running)
            finally:
                self._up, self._running = False, None

    async def _measure_first(self, pool: EndpointPool, checkpoint: ServedCheckpoint) -> EngineFacts:
        """Wait for a healthy endpoint and measure it. If it is lost meanwhile, try again."""
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
        self._takes_canvases = pooled.takes_canvases
        version = await pooled.endpoint.version()
        speed = await vllm_benchmark.measure(
            pooled.endpoint,
            served,
            checkpoint,
            max_context=served.max_model_len,
            seconds=self._settings.benchmark_s,
            sequences=self._settings.slots,
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
            details={
                "engine": "vllm",
                "version": version,
                "endpoints": len(self._settings.urls),
                "images": False,  # servers get token ids alone
            },
            kinds=(Kind.TEXT, Kind.READ) if pooled.takes_canvases else (Kind.TEXT,),
            end_ids=checkpoint.shape.codec.eos_ids,
        )

    async def _report_outages(self, running: Running) -> None:
        """Report when all endpoints are down and when one is back.

        Only this task reports, so events stay in order. An outage that ends before it is reported
        is skipped: its sequences have already moved.
        """
        while True:
            await running.pool.until(alive=False)
            self._up = False
            self.losses += 1
            self._log.error("engine lost", error=running.pool.troubles, count=self.losses)
            self._drop_sequences()
            await self._events.put(EngineLost("no vLLM endpoint is healthy"))
            await running.pool.until(alive=True)
            self._up = True
            await self._events.put(EngineReady(running.facts))

    def _break_off(self, pooled: PooledEndpoint) -> None:
        """Break off the streams of an endpoint that is down."""
        for sequence in self._sequences.values():
            if sequence.pooled is pooled:
                _break_off(sequence)

    def _drop_sequences(self) -> None:
        tasks, self._tasks, self._sequences = list(self._tasks.values()), {}, {}
        for task in tasks:
            task.cancel()

    # --- sequences

    async def _run_sequence(self, sequence: RunningSequence, running: Running) -> None:
        """Run a sequence to its end. A failure is reported for this sequence alone."""
        try:
            while not sequence.writer.ended and not sequence.finished:
                await self._may_run.wait()
                if sequence.writer.room(sequence.limit):
                    event = sequence.writer.fill()
                    if event is not None:
                        await self._events.put(event)
                        continue
                    await self._generate(sequence, running)
                else:
                    await sequence.widened.wait()
                sequence.widened.clear()
        except RequestDeclined as declined:
            await self._events.put(
                FailedEvent(sequence.request_id, "invalid_request", str(declined))
            )
        except EndpointLost as lost:
            await self._events.put(FailedEvent(sequence.request_id, "internal", str(lost)))
        else:
            if not sequence.writer.ended:
                await self._report_stop(sequence)
        finally:
            if self._sequences.get(sequence.request_id) is sequence:
                del self._sequences[sequence.request_id], self._tasks[sequence.request_id]

    async def _generate(self, sequence: RunningSequence, running: Running) -> None:
        """Request what the credit window has room for. If the endpoint is lost, move to another."""
        pool = running.pool
        async with self._slots:
            pooled = await pool.acquire(sequence.left)
            try:
                await self._may_run.wait()
                if isinstance(sequence.writer, FormWriter):
                    await self._fill(sequence, sequence.writer, pooled, running.checkpoint)
                else:
                    await self._stream(sequence, sequence.writer, pooled, running.checkpoint)
                return
            except (EndpointLost, EndpointUnfit) as error:
                sequence.writer.drop_unfinished()
                if not self._may_run.is_set():
                    return
                sequence.moves += 1
                sequence.left.add(pooled.number)
                if sequence.moves > MAX_MOVES:
                    raise EndpointLost(
                        f"lost {sequence.moves} endpoints under one canvas: {error}"
                    ) from None
                self._log.warning(
                    "endpoint lost under a sequence", count=pooled.number, error=str(error)
                )
            finally:
                sequence.pooled = sequence.scope = None
                pool.release(pooled)
            await pool.suspect(pooled)
        if len(sequence.left) >= len(pool.endpoints):
            await asyncio.sleep(self._settings.move_pause_s * sequence.moves)

    async def _fill(
        self,
        sequence: RunningSequence,
        writer: FormWriter,
        pooled: PooledEndpoint,
        checkpoint: ServedCheckpoint,
    ) -> None:
        """Have one canvas of a template or a read denoised."""
        served, size = pooled.served, checkpoint.canvas_size
        if served is None:
            raise EndpointLost("it serves nothing")
        try:
            async with asyncio.timeout(None) as sequence.scope:
                sequence.pooled, sequence.begun = pooled, True
                answer = await pooled.endpoint.canvas(
                    served.name, writer.next(), size, checkpoint.vocab_size
                )
        except TimeoutError:
            raise EndpointLost("the endpoint went down") from None
        event = writer.take(answer)
        sequence.moves, sequence.begun = 0, False
        sequence.left.clear()
        await self._events.put(event)

    async def _stream(
        self,
        sequence: RunningSequence,
        writer: CanvasWriter,
        pooled: PooledEndpoint,
        checkpoint: ServedCheckpoint,
    ) -> None:
        served = pooled.served
        if served is None:
            raise EndpointLost("it serves nothing")
        tokens = writer.room(sequence.limit)
        stream = pooled.endpoint.stream(
            served.name, writer.context(), tokens, checkpoint.vocab_size
        )
        try:
            async with asyncio.timeout(None) as sequence.scope, aclosing(stream) as chunks:
                sequence.pooled, sequence.begun = pooled, True
                async for chunk in chunks:
                    tokens -= len(chunk.token_ids)
                    if tokens < 0:
                        raise EndpointLost("the endpoint says more than it was asked for")
                    for event in writer.take(chunk):
                        sequence.moves = 0
                        sequence.left.clear()
                        sequence.begun = False
                        await self._events.put(event)
                        if sequence.finished:
                            return
                    if writer.ended:
                        return
                    sequence.begun = tokens > 0
        except TimeoutError:
            raise EndpointLost("the endpoint went down") from None
        if tokens:
            raise EndpointLost(
                "the endpoint says less than it was asked for and not that the text ends"
            )


def _break_off(sequence: RunningSequence) -> None:
    """Break off a sequence's stream, if it has one."""
    if sequence.scope is not None and not sequence.scope.expired():
        sequence.scope.reschedule(asyncio.get_running_loop().time())


def _session() -> aiohttp.ClientSession:
    # Rows are bounded by slots, not by connections.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
    )


def _pool(
    settings: VllmSettings, shape: Shape, session: aiohttp.ClientSession, clock: Clock, log: Any
) -> EndpointPool:
    endpoints = [
        VllmEndpoint(
            url, session, key=settings.key, model=settings.model, times=settings.endpoint_times
        )
        for url in settings.urls
    ]
    return EndpointPool(endpoints, shape, settings.pool_times, clock, log)


async def survey(settings: VllmSettings, clock: Clock, log: Any) -> str:
    """Describe what the endpoints serve, for `worker check`. Raises `ConfigError` for one that
    cannot work.
    """
    shape = await asyncio.to_thread(vllm_checkpoint.load_shape, settings.checkpoint)
    async with _session() as session:
        endpoints = await _pool(settings, shape, session, clock, log).survey()
    troubles = [f"endpoint {m.number}: {m.trouble}" for m in endpoints if m.trouble]
    if troubles:
        raise ConfigError("; ".join(troubles))
    served = [m.served for m in endpoints if m.served is not None]
    shortest = min(s.max_model_len for s in served)
    return f"{len(served)} well, {shortest} tokens of context, their tokenizer is the checkpoint's"


def _encode(
    checkpoint: ServedCheckpoint, content: Content, context: int, most: int
) -> EncodedContent:
    from piecework_model import kinds

    try:
        return kinds.encode(checkpoint.codec, content, checkpoint.canvas_size, context, most)
    except PromptError as error:
        raise PromptRejected(str(error)) from None
