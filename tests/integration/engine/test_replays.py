"""The runner that replays a canvas on the real engine, beside its jobs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from piecework_model.audit.replay import Replayer
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.requests import CanvasEvent, GenerationRequest
from piecework_node.engine.replays import PATIENCE_S, ReplayRunner
from piecework_node.engine.wire import Audited, Prefilled, Replay, Replayed, ShownStep
from piecework_protocol.openings import StepOpening
from piecework_protocol.trace import EmbeddingType, StepField, leaf_of, soft_field
from tests.support.model.prompts import story_prompt

pytestmark = pytest.mark.model

JOB = GenerationRequest(
    request_id="job-1",
    prompt_ids=story_prompt(),
    seed=7,
    max_tokens=64,
    max_steps=6,
    temperature_start=0.8,
    temperature_end=0.4,
    entropy_bound=0.1,
    confidence_threshold=0.005,
    stability_steps=1,
    canvas_limit=2,
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(device="cpu", dtype="float32")


@dataclass
class Workplace:
    """One engine, its runner, and what the runner said."""

    loaded: LoadedModel
    memory_bytes: int = 1 << 28
    time: float = 0.0
    said: list[Replayed | Audited] = field(default_factory=list)
    shown: list[StepOpening] = field(default_factory=list)
    prefilled: list[Prefilled] = field(default_factory=list)

    def __post_init__(self) -> None:
        executor = BatchedExecutor(self.loaded.model, self.loaded.limits)
        self.engine = Engine(
            self.loaded, max_sequences=2, memory_bytes=self.memory_bytes, executor=executor
        )
        self.runner = ReplayRunner(
            Replayer(self.loaded, executor),
            executor,
            self.engine,
            self.hear,
            monotonic=lambda: self.time,
        )
        self.footprint = executor.footprint(JOB)

    def hear(self, report: Prefilled | ShownStep | Replayed | Audited) -> None:
        if isinstance(report, Prefilled):
            self.prefilled.append(report)
        elif isinstance(report, ShownStep):
            self.shown.append(report.opening)
        else:
            self.said.append(report)

    def serve(self, request: GenerationRequest) -> list[CanvasEvent]:
        """Run a job to its end, with the runner at work wherever it may."""
        self.engine.submit(request)
        events: list[CanvasEvent] = []
        while self.engine.has_runnable:
            events += [e for e in self.engine.step() if isinstance(e, CanvasEvent)]
            if self.runner.is_due:
                self.runner.step()
        return events

    def answer(self) -> Replayed:
        """Let the runner go on until it says how a replay ends."""
        self.shown.clear()
        while not self.said:
            assert self.runner.is_due
            self.runner.step()
        said = self.said.pop()
        assert isinstance(said, Replayed)
        return said


def asked(canvases: list[CanvasEvent], canvas: int, step: int) -> Replay:
    committed = tuple(event.token_ids for event in canvases[:canvas])
    return Replay(5, replace(JOB, committed=committed), canvases[canvas].steps, (step,))


def test_a_replayed_canvas_has_the_leaves_of_the_job(loaded: LoadedModel) -> None:
    place = Workplace(loaded)
    canvases = place.serve(JOB)
    for canvas in range(len(canvases)):
        for step in {0, canvases[canvas].steps - 1}:
            place.runner.take(asked(canvases, canvas, step))
            answer = place.answer()
            assert answer.step_leaves == canvases[canvas].step_leaves
            (opening,) = place.shown
            assert leaf_of(opening.fields) == canvases[canvas].step_leaves[step]
            assert opening.soft is None


def test_a_replay_shows_the_soft_embeddings_of_the_steps_that_are_wanted(
    loaded: LoadedModel,
) -> None:
    place = Workplace(loaded)
    canvases = place.serve(JOB)
    wanted = tuple(range(canvases[0].steps))
    place.runner.take(replace(asked(canvases, 0, 0), wanted=wanted, soft=True))
    assert place.answer().step_leaves == canvases[0].step_leaves
    assert [leaf_of(opening.fields) for opening in place.shown] == [*canvases[0].step_leaves]
    for opening in place.shown:
        made = opening.fields[StepField.SOFT]
        assert opening.soft is not None
        assert soft_field(EmbeddingType(made[0]), opening.soft) == made


def test_a_replay_waits_for_the_jobs_and_then_goes_on_beside_them(loaded: LoadedModel) -> None:
    place = Workplace(loaded)
    canvases = place.serve(JOB)
    other = replace(JOB, request_id="job-2", seed=8)
    alone = Workplace(loaded).serve(other)
    place.runner.take(asked(canvases, 0, 0))
    place.engine.submit(replace(other, request_id="job-3"))
    assert not place.runner.is_due
    place.time += PATIENCE_S
    assert place.runner.is_due
    beside = place.serve(other)
    assert [e.step_leaves for e in beside if e.request_id == "job-2"] == [
        e.step_leaves for e in alone
    ]
    assert place.answer().step_leaves == canvases[0].step_leaves


def test_a_replay_that_cannot_be_done_says_why_and_leaves_the_desk_free(
    loaded: LoadedModel,
) -> None:
    place = Workplace(loaded)
    canvases = place.serve(JOB)
    place.runner.take(replace(asked(canvases, 0, 0), wanted=(0, 200)))
    assert "it ends after" in place.answer().refused
    place.runner.take(Replay(6, replace(JOB, prompt_ids=()), 1, (0,)))
    assert place.answer().refused
    place.runner.take(asked(canvases, 0, 0))
    place.runner.step()
    place.runner.take(asked(canvases, 1, 0))
    assert "another canvas" in place.said.pop().refused
    assert place.answer().step_leaves == canvases[1].step_leaves


def test_a_replay_that_has_begun_stands_still_for_no_job(loaded: LoadedModel) -> None:
    place = Workplace(loaded)
    canvases = place.serve(JOB)
    place.runner.take(asked(canvases, 1, 0))
    place.runner.step()
    place.engine.submit(replace(JOB, request_id="job-6", canvas_limit=1))
    assert place.engine.has_runnable and place.runner.is_due
    assert place.answer().step_leaves == canvases[1].step_leaves
    beside = [e for e in place.serve(replace(JOB, request_id="job-7")) if e.request_id == "job-6"]
    assert [e.step_leaves for e in beside] == [canvases[0].step_leaves]


def test_a_replay_that_is_dropped_says_nothing_more_and_holds_nothing(
    loaded: LoadedModel,
) -> None:
    place = Workplace(loaded)
    canvases = place.serve(JOB)
    second = asked(canvases, 1, 0)
    place.runner.take(second)
    while not place.prefilled:
        place.runner.step()
    place.runner.drop(second.number + 1)
    assert place.runner.is_due, "it is another one that was dropped"
    place.runner.drop(second.number)
    assert not place.runner.is_due and not place.said
    place.runner.take(second)
    assert place.answer().step_leaves == canvases[1].step_leaves
    known = len(JOB.prompt_ids) + len(canvases[0].token_ids)
    assert place.prefilled[-1] == Prefilled(second.number, known)
    assert [part.tokens for part in place.prefilled[1:]] == sorted(
        {part.tokens for part in place.prefilled}
    )


def test_a_replay_takes_no_memory_that_the_jobs_hold(loaded: LoadedModel) -> None:
    place = Workplace(loaded, memory_bytes=Workplace(loaded).footprint * 3 // 2)
    canvases = place.serve(JOB)
    waiting = replace(JOB, request_id="job-4", canvas_limit=1)
    place.engine.submit(waiting)
    while place.engine.has_runnable:
        place.engine.step()
    place.runner.take(asked(canvases, 0, 0))
    assert "memory" in place.answer().refused
    place.engine.stop("job-4")
    place.runner.take(asked(canvases, 0, 0))
    place.runner.step()
    place.engine.submit(replace(JOB, request_id="job-5"))
    place.engine.step()
    assert place.engine.queued == 1, "what the replay reserved is not given to a job"
    place.time += PATIENCE_S
    assert place.answer().step_leaves == canvases[0].step_leaves
    place.engine.step()
    assert place.engine.queued == 0
