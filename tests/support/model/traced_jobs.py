"""Jobs that the real engine runs and a real session signs for, with every step of their trace.

It is what an honest worker does, without its network and its disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from piecework_model import templates
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.jobs import generation_request
from piecework_model.requests import (
    HOLE,
    CanvasEvent,
    EncodedContent,
    GenerationRequest,
    StoppedEvent,
)
from piecework_node.runtime.traces import RunningRequest, leaves_of
from piecework_protocol.content import output_digest
from piecework_protocol.kinds import Output
from piecework_protocol.kinds.read import ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Finish, Job, Kind, ModelOffer, Parameters
from piecework_protocol.outlines import Outline
from piecework_protocol.rules import Case, Vocabulary
from piecework_protocol.trace import CanvasRecord, StepField, StepRecord
from piecework_protocol.types import Timestamp, Uint32
from piecework_protocol.worker_session import (
    AcceptedJob,
    CanvasResult,
    StoppedEngine,
    StoredCanvas,
    WorkerSession,
)
from tests.support.protocol import pair
from tests.support.protocol.pair import DOMAIN

MANY = 10_000


@dataclass
class Records:
    """Every step that the engine made, by canvas."""

    steps: dict[int, list[StepRecord]] = field(default_factory=lambda: defaultdict(list))

    def observe(self, _: str, record: StepRecord, __: Tensor) -> None:
        """Take a step in."""
        self.steps[record.canvas].append(record)


@dataclass(frozen=True)
class TracedJob:
    """What is asked, and how it may be cut short.

    stop_after: end the job after so many engine steps, or None.
    """

    parameters: Parameters
    content: EncodedContent
    kind: Kind
    outline: Outline
    stop_after: int | None = None


def job_of(asked: TracedJob) -> tuple[Job, ModelOffer]:
    """Sign nothing, but name everything: the job, and the offer's entry for the bundled model."""
    job = pair.job(0, 1).replace(parameters=asked.parameters, kind=asked.kind)
    return job, pair.MODEL.replace(canvas_size=Uint32(32), max_steps=Uint32(48))


def honest_cases(loaded: LoadedModel, asked: TracedJob) -> list[Case]:
    """Run a job in the readable engine and return the case of each of its canvases."""
    job, model = job_of(asked)
    accepted = AcceptedJob(
        job.id(DOMAIN), job, pair.channel(), model, len(asked.content.prompt_ids), Timestamp(1)
    )
    session = WorkerSession(accepted, DOMAIN)
    ledger = WorkerLedger(job.channel)
    session.open(0, ledger)
    request = generation_request(
        "job", asked.content, job.parameters, canvas_limit=MANY, committed=(), drafts=False
    )
    running = RunningRequest(request, loaded.limits.vocab_size, loaded.eos_ids)
    records, outputs, stored = Records(), [], []
    committed: list[tuple[int, ...]] = []
    for event in _events(loaded, request, records, asked.stop_after):
        record = running.canvas_record(accepted, committed)
        leaves = leaves_of(record, event.step_leaves) if event.step_leaves else ()
        output = _output(event, asked.kind)
        digest = output_digest(accepted.id, event.canvas, output.encode())
        if isinstance(event, CanvasEvent):
            result = CanvasResult(
                event.canvas,
                digest,
                leaves,
                event.steps,
                output.units,
                Finish(int(event.finish)),
                b"",
                b"",
            )
            outcome, ledger = session.canvas_finished(result, ledger)
            committed.append(event.token_ids)
        else:
            session.cancel()
            stopped = StoppedEngine(
                event.canvas, event.prompt_tokens, event.steps, leaves, digest, output.units, b""
            )
            outcome, ledger = session.stopped(stopped, ledger)
        made = [record for record in outcome.records if isinstance(record, StoredCanvas)]
        stored += made
        outputs += [output] * len(made)
    receipts = tuple(canvas.receipt for canvas in stored)
    return [
        Case(
            DOMAIN,
            job,
            model,
            receipts[: index + 1],
            prompt_tokens=accepted.prompt_tokens,
            outline=asked.outline,
            leaves=canvas.leaves,
            record=_record(running, accepted, committed[:index], canvas),
            steps={
                step.step: dict(zip(StepField, step.fields(), strict=True))
                for step in records.steps[index]
            },
            pins=pins_of(request, committed[:index], model.canvas_size, loaded.eos_ids),
            output=outputs[index],
            vocabulary=Vocabulary(loaded.eos_ids, loaded.tokenizer.control_ids),
        )
        for index, canvas in enumerate(stored)
    ]


def _record(
    running: RunningRequest,
    accepted: AcceptedJob,
    committed: Sequence[tuple[int, ...]],
    canvas: StoredCanvas,
) -> CanvasRecord | None:
    return running.canvas_record(accepted, committed) if canvas.receipt.steps else None


def _events(
    loaded: LoadedModel, request: GenerationRequest, records: Records, stop_after: int | None
) -> list[CanvasEvent | StoppedEvent]:
    executor = ReferenceExecutor(loaded.model, loaded.limits, observe=records.observe)
    engine = Engine(loaded, max_sequences=1, executor=executor)
    engine.submit(request)
    events: list[CanvasEvent | StoppedEvent] = []
    for step in range(MANY):
        if not engine.has_runnable:
            return events
        made = engine.stop(request.request_id) if step == stop_after else engine.step()
        events += [event for event in made if isinstance(event, CanvasEvent | StoppedEvent)]
    raise AssertionError("the engine does not come to rest")


def _output(event: CanvasEvent | StoppedEvent, kind: Kind) -> Output:
    if kind is Kind.READ:
        return ReadOutput(event.answers if isinstance(event, CanvasEvent) else ())
    if isinstance(event, CanvasEvent):
        return TextOutput(event.charged_ids, event.segments)
    return TextOutput((), ())


def pins_of(
    request: GenerationRequest,
    committed: Sequence[tuple[int, ...]],
    size: int,
    end_ids: frozenset[int],
) -> dict[int, int]:
    """The pinned positions of the canvas behind those that are committed, with their ids."""
    end = templates.end_before(request, committed, end_ids)
    entries = templates.held(request, len(committed), size, end)
    return {place: token for place, token in enumerate(entries) if token != HOLE}
