"""The engine's own process: `python -P -m piecework_node.engine.process`.

Commands come on stdin, reports go to stdout. A thread reads commands. It answers tokenizations and
encodes the prompts of audits itself: they never wait for a denoising step, and no step waits for
them. Only the main thread uses the engine. The process ends with its parent, at the end of stdin.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from piecework.base.files import FileError
from piecework_model.requests import EncodedContent
from piecework_node.engine.link import EngineFacts, EnginePaused, EngineResumed
from piecework_node.engine.replays import PreparedAudit, ReplayRunner, prepare
from piecework_node.engine.wire import (
    MAX_LINE_BYTES,
    Allow,
    Audit,
    Beat,
    CannotStart,
    Command,
    Drop,
    Encode,
    Encoded,
    PauseEngine,
    Ready,
    Replay,
    Report,
    ResumeEngine,
    Start,
    Stop,
    decode_command,
    encode_report,
)
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.objects import Kind, Service
from piecework_protocol.types import Digest

if TYPE_CHECKING:
    from piecework_model.checkpoint.loading import LoadedModel
    from piecework_model.engine.batched import BatchedExecutor
    from piecework_model.engine.engine import Engine
    from piecework_model.machine.planning import PlannedModel

MAX_PENDING_COMMANDS: Final = 1024
"""The parent has a few per job, and the number of its jobs is bounded."""
BEAT_S: Final = 5.0
MEMORY_RETRY_S: Final = 1.0
"""Between two tries to take the device's memory back that somebody else still holds."""
END: Final = None
Ordered = Command | PreparedAudit | None
"""What the main thread gets."""


class Parking(Protocol):
    """What holds the device's memory (`BatchedExecutor`)."""

    def park(self) -> int:
        """Free it and keep its bytes on the host. Returns how many those are."""
        ...

    def unpark(self) -> None:
        """Take it back. Raises `RuntimeError` while there is no room."""
        ...


class Reports:
    """The pipe to the parent, shared by both threads."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._lock = pipe, threading.Lock()
        self.last = time.monotonic()

    def send(self, report: Report) -> None:
        """Write one line at once."""
        line = encode_report(report)
        with self._lock:
            self._pipe.write(line)
            self._pipe.flush()
            self.last = time.monotonic()


def read_commands(
    pipe: BinaryIO,
    loaded: LoadedModel,
    commands: queue.Queue[Ordered],
    reports: Reports,
    *,
    max_context: int,
) -> None:
    """Read commands until the parent is gone. Runs in its own thread.

    Images are decoded in one more thread, so that other prompts and commands do not wait for them.

    max_context: tokens. A prompt is not encoded further than that.
    """

    def answer(command: Encode | Audit) -> None:
        if isinstance(command, Audit):
            commands.put(prepare(command, loaded))
        else:
            reports.send(encode(loaded, command, max_context))

    pictures = ThreadPoolExecutor(1, thread_name_prefix="images")
    try:
        while line := pipe.readline(MAX_LINE_BYTES):
            command = decode_command(line)
            if not isinstance(command, Encode | Audit):
                commands.put(command)
            elif _has_images(command):
                pictures.submit(_or_end, answer, command, commands)
            else:
                answer(command)
    except MalformedInput as error:
        print(f"engine: {error}", file=sys.stderr)
    finally:
        pictures.shutdown(wait=False, cancel_futures=True)
        # Whatever ended the reading, the process must not go on as if it still listened.
        commands.put(END)


def _has_images(command: Encode | Audit) -> bool:
    content = command.content
    return (content.content if isinstance(content, AuditContent) else content).has_images


def _or_end(
    answer: Callable[[Encode | Audit], None],
    command: Encode | Audit,
    commands: queue.Queue[Ordered],
) -> None:
    """Answer a question. What goes wrong ends the process, as it does in the thread that reads."""
    try:
        answer(command)
    except BaseException:
        traceback.print_exc()
        commands.put(END)
        raise


def encode(loaded: LoadedModel, command: Encode, context: int) -> Encoded:
    """Encode a content for the engine, up to one id more than the context, or than it asks for.

    A rejected content is an answer, not an error.
    """
    from piecework_model import kinds
    from piecework_model.errors import PromptError

    canvas_size = loaded.limits.canvas_size
    most = context if command.most is None else min(context, command.most)
    try:
        content = kinds.encode(loaded, command.content, canvas_size, context, most)
    except PromptError as error:
        return Encoded(command.number, EncodedContent(()), str(error))
    return Encoded(command.number, content)


class Brake:
    """Whether steps are taken. It stops between two steps, and may free the device's memory."""

    def __init__(self, parking: Parking, reports: Reports) -> None:
        self._parking, self._reports = parking, reports
        self.on = False
        """Whether no step may be taken."""
        self.waits = False
        """Whether steps are wanted again, and the memory is not there yet."""

    def pull(self, *, free_memory: bool) -> None:
        """Stop."""
        self.on, self.waits = True, False
        self._reports.send(EnginePaused(self._parking.park() if free_memory else 0))

    def release(self) -> None:
        """Go on, if the device has room for what was freed. Otherwise call it again later."""
        if not self.on:
            return
        try:
            self._parking.unpark()
        except RuntimeError as error:
            if not self.waits:
                print(f"engine: the memory is not free yet: {error}", file=sys.stderr)
            self.waits = True
            return
        self.on = self.waits = False
        self._reports.send(EngineResumed())


def run(
    engine: Engine,
    commands: queue.Queue[Ordered],
    reports: Reports,
    brake: Brake,
    replays: ReplayRunner,
) -> None:
    """Carry out commands and denoise until the parent is gone."""
    while True:
        idle = brake.on or not (engine.has_runnable or replays.is_due)
        wait_s = MEMORY_RETRY_S if brake.waits else BEAT_S
        try:
            command = commands.get(block=idle, timeout=wait_s if idle else None)
        except queue.Empty:
            if idle or time.monotonic() - reports.last > BEAT_S:
                reports.send(Beat())
            if brake.waits:
                brake.release()
            for event in () if brake.on else engine.step():
                reports.send(event)
            if not brake.on and replays.is_due:
                replays.step()
            continue
        if command is END:
            return
        if isinstance(command, PauseEngine):
            brake.pull(free_memory=command.free_memory)
        elif isinstance(command, ResumeEngine):
            brake.release()
        elif isinstance(command, Replay | PreparedAudit):
            replays.take(command)
        elif isinstance(command, Drop):
            replays.drop(command.number)
        else:
            obey(engine, command, reports)


def obey(engine: Engine, command: Command, reports: Reports) -> None:
    """Carry out one command. A request that cannot run ends in a report."""
    from piecework_model.errors import QueueFullError, RequestError
    from piecework_model.requests import FailedEvent

    if isinstance(command, Start):
        try:
            engine.submit(command.request)
        except QueueFullError as error:
            reports.send(FailedEvent(command.request.request_id, "internal", str(error)))
        except RequestError as error:
            reports.send(FailedEvent(command.request.request_id, "invalid_request", str(error)))
    elif isinstance(command, Allow):
        engine.allow(command.request_id, command.limit)
    elif isinstance(command, Stop):
        for event in engine.stop(command.request_id, finish_canvas=command.finish_canvas):
            reports.send(event)


def measure(
    planned: PlannedModel, executor: BatchedExecutor, seconds: float, sequences: int
) -> EngineFacts:
    """Measure what the offer says about this engine."""
    from piecework_model.fast_paths import describe
    from piecework_model.machine.benchmark import measure
    from piecework_model.machine.probe import engine_profile, probe, short_profile

    loaded, hardware = planned.loaded, probe()
    measured = measure(
        loaded,
        executor,
        seconds=seconds,
        sequences=sequences,
        memory_bytes=planned.choice.kv_budget_bytes,
    )
    profile = engine_profile(loaded, hardware, executor.kernels)
    return EngineFacts(
        name=loaded.name,
        digest=Digest(loaded.digest),
        profile=short_profile(profile),
        device=loaded.device,
        # What does not fit into memory is refused before it is accepted, by the offer's own figure.
        max_context=executor.max_context(planned.choice.kv_budget_bytes),
        canvas_size=loaded.limits.canvas_size,
        max_steps=loaded.limits.max_steps,
        vocab_size=loaded.limits.vocab_size,
        end_ids=loaded.eos_ids,
        tokens_per_second=int(measured.tokens_per_second),
        first_canvas_ms=int(measured.first_canvas_ms),
        steps_per_second=int(measured.steps_per_second),
        service=Service.REPLAYABLE,
        answer_tokens=measured.answer_tokens,
        kinds=(Kind.TEXT, Kind.READ, Kind.AUDIT, Kind.OPEN),
        images=loaded.images is not None,
        details={
            "hardware": asdict(hardware),
            "profile": profile,
            "precision": planned.choice.reason,
            "fast_paths": describe(executor.fast_paths),
            "images": loaded.images is not None,
            "without_images": loaded.without_images,
            "steps_per_canvas": round(measured.steps_per_canvas, 1),
            "defaults": asdict(loaded.defaults),
        },
    )


Loads = Callable[[argparse.Namespace, "Reports"], "PlannedModel | None"]
"""Load the model, or report why it cannot be."""


def main(arguments: list[str], loads: Loads | None = None) -> int:
    """Load, measure, report ready, and run.

    loads: what loads the model. None: `load`.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--planned-context", type=int, default=0)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--queue", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--benchmark-seconds", type=float, required=True)
    parser.add_argument("--digests", default="")
    chosen = parser.parse_args(arguments)
    # Libraries print. stdout is ours alone.
    reports = Reports(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    planned = (loads or load)(chosen, reports)
    if planned is None:
        return 1
    from piecework_model.audit.replay import Replayer
    from piecework_model.engine.batched import BatchedExecutor
    from piecework_model.engine.engine import Engine
    from piecework_model.errors import DeviceError

    commands: queue.Queue[Ordered] = queue.Queue(MAX_PENDING_COMMANDS)
    loaded, choice = planned.loaded, planned.choice
    executor = BatchedExecutor(loaded.model, loaded.limits)
    executor.record(chosen.slots)
    try:
        facts = measure(planned, executor, chosen.benchmark_seconds, chosen.slots)
    except DeviceError as error:
        reports.send(CannotStart(str(error)))
        return 1
    engine = Engine(
        loaded,
        max_sequences=chosen.slots,
        # The worker bounds its jobs. Memory decides how many of them run at once.
        max_queued=chosen.slots + chosen.queue,
        memory_bytes=choice.kv_budget_bytes,
        executor=executor,
    )
    reader = threading.Thread(
        target=read_commands,
        args=(sys.stdin.buffer, loaded, commands, reports),
        kwargs={"max_context": facts.max_context},
        daemon=True,
    )
    reader.start()
    reports.send(Ready(facts))
    replays = ReplayRunner(Replayer(loaded, executor), executor, engine, reports.send)
    run(engine, commands, reports, Brake(executor, reports), replays)
    return 0


def load(chosen: argparse.Namespace, reports: Reports) -> PlannedModel | None:
    """Load the model in the precision that fits. Errors that the operator can mend are reported,
    not raised.
    """
    from piecework_model.checkpoint.digests import DigestStore
    from piecework_model.errors import ModelError
    from piecework_model.machine.planning import load_planned
    from piecework_model.machine.probe import use_threads

    digests = DigestStore(Path(chosen.digests) if chosen.digests else None)
    try:
        path = Path(chosen.model) if chosen.model else None
        planned = load_planned(
            path,
            device=chosen.device,
            precision=chosen.precision,
            sequences=chosen.slots,
            context_tokens=chosen.planned_context,
            digests=digests,
        )
        digests.save()
    except FileError as error:
        reports.send(CannotStart(f"the worker's home cannot be written: {error}"))
        return None
    except ModelError as error:
        reports.send(CannotStart(str(error)))
        return None
    use_threads(planned.loaded, chosen.threads)
    return planned


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
