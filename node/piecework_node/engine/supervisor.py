"""Keep the engine process running, and speak for it (`EngineLink`). The parent never imports torch.

When the process dies or falls silent, `EngineLost` goes out, every open question fails, and a new
process starts after a pause. The pause doubles each time. The worker decides what becomes of the
jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.clock import Clock
from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    EncodedContent,
    FailedEvent,
    GenerationRequest,
    StoppedEvent,
)
from piecework_node.engine.complaints import forward
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
from piecework_node.engine.wire import (
    MAX_LINE_BYTES,
    Allow,
    Audit,
    Audited,
    Beat,
    CannotStart,
    Command,
    Drop,
    Encode,
    Encoded,
    PauseEngine,
    Prefilled,
    Ready,
    Replay,
    Replayed,
    Report,
    ResumeEngine,
    ShownStep,
    Start,
    Stop,
    decode_report,
    encode_command,
)
from piecework_node.errors import (
    EngineStartError,
    EngineUnavailable,
    PromptRejected,
    ReplayDeclined,
)
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import Content
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import StepRecord

_Question = Encode | Replay | Audit
_Answer = Encoded | Replayed | Audited

MAX_QUEUED_EVENTS: Final = 1024
"""Beyond this the child waits on its pipe: drafts of many sequences while the disk is slow."""
START_TIMEOUT_S: Final = 900.0
"""Loading 50 GB from a slow disk takes minutes."""
STOOD_STILL_S: Final = 1.0
"""A timer of ours that is so late says that this process did not run."""
FIRST_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 30.0
STABLE_S: Final = 60.0
"""A process that lived this long started well, so the next pause is short again."""
MAX_FAILED_STARTS: Final = 5
"""After so many failed starts without a good one, the daemon gives up and says so."""
STOP_GRACE_S: Final = 5.0
LAST_WORDS_S: Final = 1.0
"""For the end of what a process wrote. A child of its own may hold its stderr open."""


@dataclass(frozen=True, slots=True)
class EngineTimeouts:
    """How long the child may say nothing, in seconds. It sends a beat every five while it can."""

    idle_s: float = 15.0
    """With no sequence it has nothing to do but to send beats."""
    busy_s: float = 180.0
    """A denoising step, with weights in host memory, or a long prefill takes at most this."""
    question_s: float = 30.0
    """For a tokenization. Then no job is taken, and after as long again the child is replaced."""
    replay_s: float = 3600.0
    """For a canvas that is computed again, with its wait for the jobs and for a pause."""


@dataclass(frozen=True, slots=True)
class EngineCommandLine:
    """How to start the engine process."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


class EngineSupervisor:
    """`EngineLink` over a child process. `run` keeps the child. Cancel it to stop the child."""

    def __init__(
        self,
        command: EngineCommandLine,
        clock: Clock,
        log: Any,
        timeouts: EngineTimeouts | None = None,
    ) -> None:
        self._command, self._clock, self._log = command, clock, log
        self._timeouts = timeouts or EngineTimeouts()
        self._sequences: set[str] = set()
        """Those that the child may be working on."""
        self._heard_at = 0.0
        """Time of the loop at the child's last line."""
        self._mute_since: float | None = None
        """Time of the loop since which tokenizations get no answer."""
        self._events: asyncio.Queue[EngineEvent] = asyncio.Queue(MAX_QUEUED_EVENTS)
        self._questions: dict[int, asyncio.Future[_Answer]] = {}
        self._opened: dict[int, list[StepOpening]] = {}
        """What the replay that runs has shown, by its question."""
        self._work: dict[int, ReplayWork] = {}
        """Who wants to know what is done of it, by its question."""
        self._replays = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._pictures = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._facts: EngineFacts | None = None
        self._may_start = asyncio.Event()
        """Clear while the owner needs the machine. Loading a model would be in the way."""
        self._may_start.set()
        self._pause: PauseEngine | None = None
        """What a process is told that becomes ready in a pause."""
        self._moving = False
        """Whether the child may be copying the device's memory, which takes it as long as a step.
        """
        self._told: set[asyncio.Task[None]] = set()
        """Reports of ours that wait for room among the events."""
        self._ends: Callable[[], None] | None = None
        """Kills the running child."""
        self.losses = 0
        self.pid: int | None = None
        """The process id of the running child."""

    # --- EngineLink

    @property
    def facts(self) -> EngineFacts | None:
        return self._facts

    @property
    def ready(self) -> bool:
        return self._loaded and self._mute_since is None

    @property
    def _loaded(self) -> bool:
        return self._facts is not None and self._writer is not None

    async def encode(self, content: Content, most: int | None = None) -> EncodedContent:
        if not content.has_images:
            return await self._ask(content, most)
        # One prompt's images at a time: the child decodes no more, and a second one would wait
        # there as if the child did not answer.
        async with self._pictures:
            return await self._ask(content, most)

    async def _ask(self, content: Content, most: int | None) -> EncodedContent:
        """Ask the child to encode a content."""
        try:
            encoded = await self._answer(
                Encode(next(self._numbers), content, most), self._timeouts.question_s
            )
        except TimeoutError:
            if self._loaded and self._mute_since is None:
                self._mute_since = asyncio.get_running_loop().time()
                self._log.error("engine does not answer")
            raise EngineUnavailable("the engine does not answer in time") from None
        if not isinstance(encoded, Encoded):
            raise EngineUnavailable("the engine answers another question")
        if encoded.refused:
            raise PromptRejected(encoded.refused)
        return encoded.content

    async def _answer(self, question: _Question, seconds: float) -> _Answer:
        """Ask the child. Raises `TimeoutError` when there is no answer after so many seconds."""
        answer: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._questions[question.number] = answer
        try:
            if not self._send(question):
                raise EngineUnavailable("the engine is starting")
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            del self._questions[question.number]

    async def replay(
        self,
        request: GenerationRequest,
        *,
        steps: int,
        wanted: Sequence[int],
        soft: bool = False,
        work: ReplayWork | None = None,
    ) -> ReplayedTrace:
        question = Replay(next(self._numbers), request, steps, tuple(wanted), soft)
        replayed, opened = await self._computed_again(question, work)
        if not isinstance(replayed, Replayed):
            raise EngineUnavailable("the engine answers another question")
        if replayed.refused or len(opened) != len(wanted):
            raise ReplayDeclined(replayed.refused or "the engine does not show every step")
        return ReplayedTrace(replayed.step_leaves, opened)

    async def audit(self, content: AuditContent, work: ReplayWork | None = None) -> AuditedCanvas:
        audited, opened = await self._computed_again(Audit(next(self._numbers), content), work)
        if not isinstance(audited, Audited):
            raise EngineUnavailable("the engine answers another question")
        if audited.refused:
            raise ReplayDeclined(audited.refused)
        records = tuple(StepRecord.parse(one.fields) for one in opened)
        if len(records) != audited.report.steps:
            raise ReplayDeclined("the engine does not show every step")
        return AuditedCanvas(audited.report, records)

    async def _computed_again(
        self, question: Replay | Audit, work: ReplayWork | None
    ) -> tuple[_Answer, tuple[StepOpening, ...]]:
        """Have a canvas computed again. Returns the answer and the steps that were shown."""
        # One at a time: the child ends one replay for the next.
        async with self._replays:
            opened: list[StepOpening] = []
            self._opened[question.number] = opened
            if work is not None:
                self._work[question.number] = work
            answered = False
            try:
                answer = await self._answer(question, self._timeouts.replay_s)
                answered = True
                return answer, tuple(opened)
            except TimeoutError:
                raise EngineUnavailable("the engine did not replay the canvas in time") from None
            finally:
                del self._opened[question.number]
                self._work.pop(question.number, None)
                if not answered:  # nobody pays for what is computed from now on
                    self._send(Drop(question.number))

    def start(self, request: GenerationRequest) -> None:
        # Without a process the worker starts the request again when the next one is ready.
        if self._send(Start(request)):
            self._sequences.add(request.request_id)

    def allow(self, request_id: str, canvas_limit: int) -> None:
        self._send(Allow(request_id, canvas_limit))

    def stop(self, request_id: str, *, finish_canvas: bool) -> None:
        # Without a process `EngineLost` has told the worker what there was to tell.
        self._send(Stop(request_id, finish_canvas))

    def pause(self, *, free_memory: bool) -> None:
        self._may_start.clear()
        self._pause = PauseEngine(free_memory)
        self._moving = self._send(self._pause)

    def resume(self) -> None:
        self._pause = None
        self._may_start.set()
        self._moving = self._send(ResumeEngine())
        if not self._moving:
            # Nothing runs that could say so. A process that becomes ready now is not paused.
            telling = asyncio.ensure_future(self._events.put(EngineResumed()))
            self._told.add(telling)
            telling.add_done_callback(self._told.discard)

    async def events(self) -> AsyncIterator[EngineEvent]:
        while True:
            yield await self._events.get()

    def give_up(self) -> None:
        if self._ends is not None:
            self._log.error("engine ended", reason="its GPU is gone")
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                self._ends()

    # --- life of the child

    async def run(self) -> None:
        """Keep a process running until cancelled. Raises `EngineStartError` if it cannot start at
        all.
        """
        pause, failures = FIRST_BACKOFF_S, 0
        while True:
            await self._may_start.wait()
            born = self._clock.monotonic()
            started = await self._run_process()
            failures = 0 if started else failures + 1
            if failures >= MAX_FAILED_STARTS:
                raise EngineStartError(
                    f"the engine process failed to start {failures} times in a row"
                )
            pause = FIRST_BACKOFF_S if self._clock.monotonic() - born > STABLE_S else pause
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_BACKOFF_S)

    async def _run_process(self) -> bool:
        """Run one process from start to end. Returns whether it ever became ready."""
        process = await asyncio.create_subprocess_exec(
            *self._command.arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(self._command.environment),
            limit=MAX_LINE_BYTES,
            start_new_session=True,
        )
        self.pid, self._ends = process.pid, process.kill
        reason = "the engine process ended"
        complaints = self._forwarding(process)
        try:
            reason = await self._follow(process)
        finally:
            was_ready, self._writer = self._loaded, None
            resuming = self._moving and self._pause is None
            self._facts, self._mute_since, self._moving = None, None, False
            self._sequences.clear()
            self.pid = self._ends = None
            await _end(process, complaints)
            self._fail_questions()
        if was_ready:
            self.losses += 1
            self._log.error("engine lost", error=reason, count=self.losses)
            await self._events.put(EngineLost(reason))
        if resuming:
            # It died on the way back. The next process is not paused, and cannot say so.
            await self._events.put(EngineResumed())
        return was_ready

    def _forwarding(self, process: asyncio.subprocess.Process) -> asyncio.Task[None]:
        if process.stderr is None:
            raise EngineStartError("the engine process has no pipes")
        return asyncio.create_task(forward(process.stderr, self._log))

    async def _follow(self, process: asyncio.subprocess.Process) -> str:
        """Read reports until the process ends. Returns why it did."""
        reader, writer = process.stdout, process.stdin
        if reader is None or writer is None:
            raise EngineStartError("the engine process has no pipes")
        self._heard_at = asyncio.get_running_loop().time()
        while True:
            try:
                line = await self._read_line(reader)
                if line is None:
                    return self._silence()
                if not line:
                    return f"the engine process ended with code {await process.wait()}"
                report = decode_report(line)
            except (
                ValueError,
                MalformedInput,
            ) as error:  # ValueError: a line beyond the reader's limit
                return f"the engine process broke its protocol: {error}"
            if isinstance(report, Ready):
                self._writer, self._facts = writer, report.facts
                if self._pause is not None:
                    self._moving = self._send(self._pause)
            self._take_note(report)
            await self._report(report)

    async def _read_line(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next line. None: the child has been silent for too long."""
        loop = asyncio.get_running_loop()
        look_s = min(self._timeouts.idle_s, self._timeouts.question_s)
        while (left := self._may_be_silent_until() - loop.time()) > 0:
            # Looked at again in between: a sequence that starts gives the child more time.
            until = loop.time() + min(left, look_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    line = await reader.readline()
                self._heard_at = loop.time()
                return line
            if loop.time() - until >= STOOD_STILL_S:
                # This process heard nothing: Ctrl-Z, a frozen container. The child has its time
                # again.
                self._heard_at = loop.time()
                if self._mute_since is not None:
                    self._mute_since = self._heard_at
        return None

    def _may_be_silent_until(self) -> float:
        """The time of the loop at which the child counts as hanging."""
        if not self._loaded:
            return self._heard_at + START_TIMEOUT_S
        busy = bool(self._sequences) or self._moving or self._replays.locked()
        until = self._heard_at + (self._timeouts.busy_s if busy else self._timeouts.idle_s)
        if self._mute_since is None:
            return until
        return min(until, self._mute_since + self._timeouts.question_s)

    def _silence(self) -> str:
        if self._mute_since is not None:
            return "the engine process answers no question"
        silent_s = asyncio.get_running_loop().time() - self._heard_at
        return f"the engine process was silent for {silent_s:.0f} s"

    def _take_note(self, report: Report) -> None:
        """Keep count of what the child is working on."""
        if isinstance(report, Encoded):
            self._mute_since = None
            return
        match report:
            # An answer to a command before the last one says nothing of the last one.
            case EnginePaused() if self._pause is not None:
                self._moving = False
            case EngineResumed() if self._pause is None:
                self._moving = False
            case FailedEvent(request_id=ended) | StoppedEvent(request_id=ended):
                self._sequences.discard(ended)
            case CanvasEvent(request_id=ended) if report.finish is not CanvasFinish.MORE:
                self._sequences.discard(ended)

    async def _report(self, report: Report) -> None:
        if isinstance(report, CannotStart):
            raise EngineStartError(f"the model cannot be loaded: {report.message}")
        if isinstance(report, Ready):
            facts = report.facts
            self._log.info(
                "engine ready",
                model=facts.name,
                profile=facts.profile,
                reason=facts.details.get("precision"),
                fast_paths=facts.details.get("fast_paths"),
                images=facts.images or facts.details.get("without_images"),
            )
            await self._events.put(EngineReady(facts))
        elif isinstance(report, Prefilled | ShownStep):
            self._computed(report)
        elif isinstance(report, Encoded | Replayed | Audited):
            question = self._questions.get(report.number)
            if question is not None and not question.done():
                question.set_result(report)
        elif not isinstance(report, Beat):
            if isinstance(report, FailedEvent):
                self._log.error("sequence failed", kind=report.kind)
            await self._events.put(report)

    def _computed(self, report: Prefilled | ShownStep) -> None:
        """Take a part of the replay that runs. One that was dropped says a little more."""
        work = self._work.get(report.number)
        if isinstance(report, ShownStep):
            if report.number in self._opened:
                self._opened[report.number].append(report.opening)
            if work is not None:
                work.records.append(StepRecord.parse(report.opening.fields))
        elif work is not None:
            work.prompt_tokens = report.tokens
        if work is not None:
            work.changed()

    def _send(self, command: Command) -> bool:
        writer = self._writer
        if writer is None or writer.is_closing():
            return False
        writer.write(encode_command(command))
        return True

    def _fail_questions(self) -> None:
        for question in self._questions.values():
            if not question.done():
                question.set_exception(EngineUnavailable("the engine process was lost"))


async def _end(process: asyncio.subprocess.Process, complaints: asyncio.Task[None]) -> None:
    """Wait for the child to end by itself when its stdin closes, then kill it.

    complaints: what passes its last words on.
    """
    if process.stdin is not None:
        process.stdin.close()
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_S):
                await process.wait()
        if process.returncode is not None:
            await asyncio.wait((complaints,), timeout=LAST_WORDS_S)
    finally:
        complaints.cancel()
        # Also if we are cancelled: nothing else would reap the child.
        if process.returncode is None:
            process.kill()
            await process.wait()


def engine_arguments(
    python: str,
    *,
    model: str,
    device: str,
    precision: str,
    planned_context: int,
    slots: int,
    queue: int,
    threads: int,
    benchmark_s: float,
    digests: str = "",
) -> Sequence[str]:
    """Build the command line of the engine process.

    digests: the file that remembers what checkpoint files hash to, or empty for none. `-P` keeps
    the current folder off its import path, so that a file there is never run.
    """
    return (
        python,
        "-P",
        "-m",
        "piecework_node.engine.process",
        f"--model={model}",
        f"--device={device}",
        f"--precision={precision}",
        f"--planned-context={planned_context}",
        f"--slots={slots}",
        f"--queue={queue}",
        f"--threads={threads}",
        f"--benchmark-seconds={benchmark_s}",
        f"--digests={digests}",
    )
