"""The engine's own process: `python -P -m piecework_node.engine.process`.

Commands come on stdin, reports go to stdout. A thread reads commands and answers tokenizations
itself, so that they never wait for a denoising step. Only the main thread uses the engine. The
process ends with its parent, at the end of stdin.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from piecework.base.files import FileError
from piecework_model.requests import EncodedContent
from piecework_node.engine.link import EngineFacts
from piecework_node.engine.wire import (
    MAX_LINE_BYTES,
    Allow,
    Beat,
    CannotStart,
    Command,
    Encode,
    Encoded,
    Ready,
    Report,
    Start,
    Stop,
    decode_command,
    encode_report,
)
from piecework_protocol.errors import MalformedInput
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
END: Final = None


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
    commands: queue.Queue[Command | None],
    reports: Reports,
    *,
    max_context: int,
) -> None:
    """Read commands until the parent is gone. Runs in its own thread.

    max_context: tokens. A prompt is not encoded further than that.
    """
    try:
        while line := pipe.readline(MAX_LINE_BYTES):
            command = decode_command(line)
            if isinstance(command, Encode):
                reports.send(encode(loaded, command, max_context))
            else:
                commands.put(command)
    except MalformedInput as error:
        print(f"engine: {error}", file=sys.stderr)
    finally:
        # Whatever ended the reading, the process must not go on as if it still listened.
        commands.put(END)


def encode(loaded: LoadedModel, command: Encode, most: int) -> Encoded:
    """Encode a content for the engine, up to one id more than `most`.

    A rejected content is an answer, not an error.
    """
    from piecework_model import kinds
    from piecework_model.errors import PromptError

    canvas_size = loaded.limits.canvas_size
    try:
        content = kinds.encode(loaded, command.content, canvas_size, most)
    except PromptError as error:
        return Encoded(command.number, EncodedContent(()), str(error))
    return Encoded(command.number, content)


def run(engine: Engine, commands: queue.Queue[Command | None], reports: Reports) -> None:
    """Carry out commands and denoise until the parent is gone."""
    while True:
        idle = not engine.has_runnable
        try:
            command = commands.get(block=idle, timeout=BEAT_S if idle else None)
        except queue.Empty:
            if idle or time.monotonic() - reports.last > BEAT_S:
                reports.send(Beat())
            for event in engine.step():
                reports.send(event)
            continue
        if command is END:
            return
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
        tokens_per_second=int(measured.tokens_per_second),
        first_canvas_ms=int(measured.first_canvas_ms),
        steps_per_second=int(measured.steps_per_second),
        service=Service.REPLAYABLE,
        kinds=(Kind.TEXT, Kind.READ),
        details={
            "hardware": asdict(hardware),
            "profile": profile,
            "precision": planned.choice.reason,
            "fast_paths": describe(executor.fast_paths),
            "steps_per_canvas": round(measured.steps_per_canvas, 1),
            "defaults": asdict(loaded.defaults),
        },
    )


def main(arguments: list[str]) -> int:
    """Load, measure, report ready, and run."""
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
    planned = load(chosen, reports)
    if planned is None:
        return 1
    from piecework_model.engine.batched import BatchedExecutor
    from piecework_model.engine.engine import Engine

    commands: queue.Queue[Command | None] = queue.Queue(MAX_PENDING_COMMANDS)
    loaded, choice = planned.loaded, planned.choice
    executor = BatchedExecutor(loaded.model, loaded.limits)
    executor.record(chosen.slots)
    facts = measure(planned, executor, chosen.benchmark_seconds, chosen.slots)
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
    run(engine, commands, reports)
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
