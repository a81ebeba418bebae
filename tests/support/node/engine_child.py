"""A stand-in for the engine process: the same wire, canvases that are a function of (seed, canvas)
alone.

It loads in a fraction of a second, so that a test can kill the daemon many times. Started as
`python -m tests.support.node.engine_child PACE_S [LIE]`; a canvas takes PACE_S seconds. With LIE,
in hex, its audits of others' canvases come to other numbers. Who wants drafts gets one of each
canvas, which takes as long as the canvas itself.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    GenerationRequest,
    StoppedEvent,
)
from piecework_node.engine.link import EnginePaused, EngineResumed
from piecework_node.engine.process import BEAT_S
from piecework_node.engine.wire import (
    MAX_LINE_BYTES,
    Allow,
    Audit,
    Audited,
    Beat,
    Command,
    Drop,
    Encode,
    Encoded,
    PauseEngine,
    Ready,
    Replay,
    Replayed,
    ResumeEngine,
    ShownStep,
    Start,
    Stop,
    decode_command,
    encode_report,
)
from piecework_protocol.kinds.read import ReadContent
from piecework_protocol.kinds.text import TextContent
from piecework_protocol.openings import StepOpening
from tests.support.node.fake_engine import (
    FACTS,
    audited_canvas,
    canvas_event,
    draft_event,
    encoded,
    soft_rows,
    step_records,
)


def main() -> None:
    pace, lie = float(sys.argv[1]), bytes.fromhex("".join(sys.argv[2:3]))
    commands: queue.Queue[Command | None] = queue.Queue(maxsize=1024)
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    _send(Ready(FACTS))
    rows: dict[str, GenerationRequest] = {}
    limits: dict[str, int] = {}
    done: dict[str, int] = {}
    drafted: set[tuple[str, int]] = set()
    paused = False
    while True:
        runnable = [row for row in rows if done[row] < limits[row] and not paused]
        try:
            command = commands.get(timeout=pace if runnable else BEAT_S)
        except queue.Empty:
            if not runnable:
                _send(Beat())
            for row in runnable:
                event = _next(rows[row], done[row], drafted)
                done[row] += isinstance(event, CanvasEvent)
                if isinstance(event, CanvasEvent) and event.finish is not CanvasFinish.MORE:
                    del rows[row]
                _send(event)
            continue
        if command is None:
            return
        if isinstance(command, PauseEngine | ResumeEngine):
            paused = isinstance(command, PauseEngine)
            _send(EnginePaused() if paused else EngineResumed())
        elif isinstance(command, Start):
            request = command.request
            rows[request.request_id], limits[request.request_id] = request, request.canvas_limit
            done[request.request_id] = len(request.committed)
        elif isinstance(command, Allow):
            limits[command.request_id] = max(limits.get(command.request_id, 0), command.limit)
        elif isinstance(command, Stop):
            if rows.pop(command.request_id, None) is not None:
                _send(StoppedEvent(command.request_id, done[command.request_id], 0, 0, ()))
        elif not isinstance(command, Drop):  # every answer is whole by then
            _send(*_answers(command, lie))


def _next(
    request: GenerationRequest, canvas: int, drafted: set[tuple[str, int]]
) -> CanvasEvent | DraftEvent:
    """A canvas, or its draft if that is wanted and was not there yet."""
    shown = (request.request_id, canvas)
    if request.draft_every and shown not in drafted:
        drafted.add(shown)
        return draft_event(request, canvas)
    return _canvas(request, canvas)


def _canvas(request: GenerationRequest, canvas: int) -> CanvasEvent:
    event = canvas_event(request, canvas)
    return replace(event, records=step_records(request, canvas)) if request.keep_records else event


def _answers(
    command: Encode | Replay | Audit, lie: bytes
) -> Iterator[Encoded | ShownStep | Replayed | Audited]:
    if isinstance(command, Audit):
        audited = audited_canvas(command.content, lie)
        for record in audited.records:
            yield ShownStep(command.number, StepOpening(record.fields()))
        yield Audited(command.number, audited.report)
        return
    if isinstance(command, Encode):
        assert isinstance(command.content, TextContent | ReadContent)
        yield Encoded(command.number, encoded(command.content))
        return
    request = command.request
    canvas = len(request.committed)
    records = step_records(request, canvas)
    for step in command.wanted:
        rows = soft_rows(request, canvas) if command.soft else None
        yield ShownStep(command.number, StepOpening(records[step].fields(), rows))
    yield Replayed(command.number, tuple(r.leaf() for r in records[: command.steps]))


def _send(*reports: object) -> None:
    for report in reports:
        sys.stdout.buffer.write(encode_report(report))  # type: ignore[arg-type]
    sys.stdout.buffer.flush()


def _read(commands: queue.Queue[Command | None]) -> None:
    while line := sys.stdin.buffer.readline(MAX_LINE_BYTES):
        commands.put(decode_command(line))
    commands.put(None)


if __name__ == "__main__":
    main()
