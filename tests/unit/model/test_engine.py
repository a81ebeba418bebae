"""The engine on the real bundled checkpoint: a sequence alone, beside others, paused, resumed,
broken."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.errors import (
    ContextOverflowError,
    DuplicateRequestError,
    InvalidRequestError,
    QueueFullError,
)
from piecework_model.requests import (
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    Event,
    FailedEvent,
    GenerationRequest,
    ProgressEvent,
    StoppedEvent,
)
from tests.support.model.model_runs import (
    broken_head,
    broken_sequence,
    canvases,
    make_request,
    run,
    run_alone,
)

Prompt = tuple[int, ...]


def test_a_request_gives_the_same_transcript_alone_and_beside_others(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    wanted = make_request(prompt)
    engine = Engine(bundled, max_sequences=4)
    engine.submit(make_request(prompt[:5], "short", seed=8, max_steps=4))
    engine.submit(wanted)
    engine.submit(make_request(prompt * 4, "long", seed=9, temperature_start=2.0))
    assert run(engine)["job"] == run_alone(bundled, wanted)


def test_a_cancelled_neighbour_changes_nothing(bundled: LoadedModel, prompt: Prompt) -> None:
    wanted = make_request(prompt)
    engine = Engine(bundled, max_sequences=2)
    engine.submit(make_request(prompt, "gone", seed=5))
    engine.submit(wanted)
    events = [event for _ in range(3) for event in engine.step()]
    engine.stop("gone")
    rest = run(engine)
    assert "gone" not in rest
    assert [event for event in events if event.request_id == "job"] + rest["job"] == run_alone(
        bundled, wanted
    )
    assert engine.sequences == 0


def without_progress(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, ProgressEvent)]


def test_a_request_resumed_from_its_committed_canvases_goes_on_as_if_never_stopped(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    whole = run_alone(bundled, make_request(prompt))
    committed = tuple(event.token_ids for event in canvases(whole))
    assert len(committed) > 1
    for done in range(1, len(committed)):
        resumed = run_alone(bundled, make_request(prompt, committed=committed[:done]))
        assert without_progress(resumed) == [
            event
            for event in without_progress(whole)
            if not isinstance(event, FailedEvent) and event.canvas >= done
        ]


def test_a_sequence_pauses_before_its_canvas_limit_and_goes_on_identically(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request(prompt, canvas_limit=0))
    assert not engine.has_runnable
    assert engine.step() == []
    events = []
    for limit in range(1, 4):
        engine.allow("job", limit)
        events += run(engine).get("job", [])
        assert len(canvases(events)) == limit or engine.sequences == 0
    assert events == run_alone(bundled, make_request(prompt))


def test_a_canvas_limit_never_goes_down(bundled: LoadedModel, prompt: Prompt) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request(prompt, canvas_limit=1))
    engine.allow("job", 0)
    assert engine.has_runnable


def test_other_seeds_give_other_texts(bundled: LoadedModel, prompt: Prompt) -> None:
    texts = {
        "".join(
            event.text for event in canvases(run_alone(bundled, make_request(prompt, seed=seed)))
        )
        for seed in (1, 2, 2**64 - 1)
    }
    assert len(texts) == 3


def test_every_parameter_is_the_sequences_own(bundled: LoadedModel, prompt: Prompt) -> None:
    base = make_request(prompt, max_tokens=32, max_steps=6)
    changes: list[dict[str, Any]] = [
        {"temperature_start": 3.0, "temperature_end": 3.0},
        {"entropy_bound": 50.0},
        {"max_steps": 3},
        {"confidence_threshold": 100.0, "stability_steps": 0},
    ]
    variants = [
        dataclasses.replace(base, request_id=str(n), **change) for n, change in enumerate(changes)
    ]
    engine = Engine(bundled, max_sequences=8)
    for variant in [base, *variants]:
        engine.submit(variant)
    together = run(engine)
    assert len({canvases(events)[0].step_leaves for events in together.values()}) == 5
    for variant in variants:
        assert together[variant.request_id] == run_alone(bundled, variant)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_ends_its_own_sequence_without_a_canvas(
    bundled: LoadedModel, prompt: Prompt, value: float
) -> None:
    def poison(logits: torch.Tensor) -> None:
        logits[7, 3] = value

    wanted = make_request(prompt)
    engine = Engine(bundled, max_sequences=2)
    engine.submit(wanted)
    engine.submit(make_request(prompt, "poisoned", seed=2, draft_every=0))
    with broken_sequence(bundled, 1, from_call=2, breaking=poison):
        events = run(engine)
    assert without_progress(events["poisoned"]) == [
        FailedEvent("poisoned", "non_finite", "the model produced NaN or infinity")
    ]
    assert events["job"] == run_alone(bundled, wanted)
    assert engine.sequences == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("no memory"), "out_of_memory"),
        (RuntimeError("shapes differ"), "internal"),
    ],
)
def test_a_failing_forward_pass_ends_its_sequence_only(
    bundled: LoadedModel, prompt: Prompt, error: Exception, kind: str
) -> None:
    def fail(logits: torch.Tensor) -> None:
        raise error

    wanted = [
        make_request(prompt, name, seed=seed, max_tokens=32) for seed, name in enumerate("abc")
    ]
    engine = Engine(bundled, max_sequences=4)
    engine.submit(make_request(prompt, "broken", seed=9))
    for request in wanted:
        engine.submit(request)
    with broken_sequence(bundled, 0, from_call=1, breaking=fail):
        events = run(engine)
    (failed,) = events.pop("broken")
    assert isinstance(failed, FailedEvent)
    assert failed.kind == kind
    assert events == {request.request_id: run_alone(bundled, request) for request in wanted}


def test_memory_that_the_cpu_does_not_have_is_told_as_such(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request(prompt))
    with broken_head(bundled, lambda output: torch.empty(2**55)):
        (event,) = engine.step()
    assert isinstance(event, FailedEvent)
    assert event.kind == "out_of_memory"


def test_a_broken_accelerator_is_not_taken_for_a_broken_sequence(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    def lost(output: torch.Tensor) -> torch.Tensor:
        raise torch.AcceleratorError("device lost")

    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request(prompt))
    with broken_head(bundled, lost), pytest.raises(torch.AcceleratorError):
        engine.step()


def test_requests_beyond_the_sequences_wait_and_beyond_the_queue_are_refused(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    engine = Engine(bundled, max_sequences=1, max_queued=2)
    for name in ("a", "b", "c"):
        engine.submit(make_request(prompt, name, max_tokens=20, max_steps=2))
    assert (engine.sequences, engine.queued) == (1, 2)
    with pytest.raises(QueueFullError):
        engine.submit(make_request(prompt, "d"))
    engine.stop("b")
    engine.submit(make_request(prompt, "d", max_tokens=20, max_steps=2))
    events = run(engine)
    assert list(events) == ["a", "c", "d"]
    assert (engine.sequences, engine.queued) == (0, 0)


def test_a_cancelled_sequence_makes_room_at_once(bundled: LoadedModel, prompt: Prompt) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request(prompt, "paused", canvas_limit=0))
    engine.submit(make_request(prompt, "next", max_steps=1, max_tokens=32))
    assert not engine.has_runnable
    engine.stop("paused")
    assert len(canvases(run(engine)["next"])) == 1


def after_steps(bundled: LoadedModel, request: GenerationRequest, steps: int) -> Engine:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(request)
    for _ in range(steps):
        engine.step()
    return engine


def test_a_stopped_sequence_says_what_was_done(bundled: LoadedModel, prompt: Prompt) -> None:
    wanted = make_request(prompt, max_steps=12, confidence_threshold=0.0)
    whole = canvases(run_alone(bundled, wanted))[0]
    engine = after_steps(bundled, wanted, 5)
    (stopped,) = engine.stop("job")
    assert stopped == StoppedEvent("job", 0, 5, len(prompt), whole.step_leaves[:5])
    assert (engine.sequences, engine.stop("job")) == (0, [])


def test_an_event_has_what_its_leaves_commit_to_if_the_request_keeps_it(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    wanted = make_request(prompt, max_steps=6, max_tokens=32, keep_records=True)
    (canvas,) = canvases(run_alone(bundled, wanted))
    assert tuple(record.leaf() for record in canvas.records) == canvas.step_leaves
    assert [record.step for record in canvas.records] == [*range(canvas.steps)]
    (stopped,) = after_steps(bundled, wanted, 3).stop("job")
    assert isinstance(stopped, StoppedEvent)
    assert stopped.records == canvas.records[:3]
    (without,) = canvases(run_alone(bundled, dataclasses.replace(wanted, keep_records=False)))
    assert without == dataclasses.replace(canvas, records=())


def test_a_request_that_never_began_has_done_nothing(bundled: LoadedModel, prompt: Prompt) -> None:
    engine = Engine(bundled, max_sequences=1)
    for name in ("job", "waits"):
        engine.submit(make_request(prompt, name))
    assert engine.stop("waits", finish_canvas=True) == [StoppedEvent("waits", 0, 0, 0, ())]
    assert engine.stop("job", finish_canvas=True) == [StoppedEvent("job", 0, 0, 0, ())]


def test_a_canvas_that_has_begun_can_be_finished_first(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    wanted = make_request(prompt, max_steps=12, max_tokens=96)
    engine = after_steps(bundled, wanted, 2)
    assert engine.stop("job", finish_canvas=True) == []
    events = without_progress(run(engine)["job"])
    assert events[-2] == canvases(run_alone(bundled, wanted))[0]
    assert events[-1] == StoppedEvent("job", 1, 0, len(prompt), ())
    assert engine.sequences == 0


def test_a_sequence_that_was_to_finish_goes_on_when_it_is_allowed_to(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    wanted = make_request(prompt, max_steps=4, max_tokens=64)
    engine = after_steps(bundled, wanted, 2)
    engine.stop("job", finish_canvas=True)
    engine.allow("job", wanted.canvas_limit)
    assert canvases(run(engine)["job"]) == canvases(run_alone(bundled, wanted))


def test_progress_never_lags_the_steps_by_more_than_four(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    wanted = make_request(prompt, max_steps=12, confidence_threshold=0.0, max_tokens=32)
    events = run_alone(bundled, wanted)
    progress = [event for event in events if isinstance(event, ProgressEvent)]
    assert [event.steps for event in progress] == [1, 4, 8]
    assert {event.prompt_tokens for event in progress} == {len(prompt)}


def test_unknown_requests_are_ignored_by_stop_and_allow(bundled: LoadedModel) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.stop("nobody")
    engine.allow("nobody", 3)
    assert not engine.has_runnable


def test_drafts_come_as_often_as_asked_and_never_for_the_last_step(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    changes = {"max_tokens": 32, "max_steps": 9, "confidence_threshold": 0.0}
    for every, steps in ((0, []), (1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [2, 5])):
        events = run_alone(bundled, make_request(prompt, draft_every=every, **changes))
        assert [event.step for event in events if isinstance(event, DraftEvent)] == steps
        assert isinstance(events[-1], CanvasEvent)


def test_a_canvas_carries_one_leaf_a_step_and_what_counts_of_its_ids(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    events = canvases(run_alone(bundled, make_request(prompt, max_tokens=40)))
    for event in events:
        assert len(event.token_ids) == 32
        assert event.steps == len(event.step_leaves)
        assert all(len(leaf) == 32 for leaf in event.step_leaves)
        assert event.charged_ids == event.token_ids[: len(event.charged_ids)]
        assert bundled.eos_ids.isdisjoint(event.charged_ids)
    assert [event.finish for event in events[:-1]] == [CanvasFinish.MORE] * (len(events) - 1)
    assert events[-1].finish is not CanvasFinish.MORE
    assert sum(len(event.charged_ids) for event in events) <= 40


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", ""), ("request_id", "x" * 129), ("prompt_ids", ()), ("prompt_ids", (-1,)),
        ("prompt_ids", (9_999,)), ("seed", -1), ("seed", 2**64), ("max_tokens", 0),
        ("max_steps", 0), ("max_steps", 49), ("temperature_start", float("nan")),
        ("temperature_start", 0.3),
        ("temperature_end", 0.0), ("entropy_bound", -1.0), ("entropy_bound", float("inf")),
        ("confidence_threshold", -0.1), ("stability_steps", 65), ("canvas_limit", -1),
        ("draft_every", -1),
        ("committed", ((0,) * 31,)), ("committed", ((9_999,) * 32,)), ("committed", ((5,) * 32,)),
        ("committed", ((9,) * 32,) * 3),
        ("seed", "7"), ("seed", True), ("seed", None), ("max_tokens", None), ("max_tokens", 1e9),
        ("max_tokens", 2**5000), ("max_steps", 2.5), ("temperature_start", "1"),
        ("temperature_end", None), ("entropy_bound", True), ("stability_steps", 1.0),
        ("prompt_ids", (1.5, 2)), ("prompt_ids", [5, 6]), ("prompt_ids", "56"),
        ("prompt_ids", (5, None)), ("prompt_ids", (True,)), ("committed", None),
        ("committed", ([5] * 32,)), ("committed", ((5.0,) * 32,)), ("request_id", 5),
        ("tenant", b"x"), ("tenant", "x" * 129), ("draft_every", "1"), ("canvas_limit", 1.0),
    ],
)  # fmt: skip
def test_a_request_out_of_bounds_is_refused_by_name(
    bundled: LoadedModel, prompt: Prompt, field: str, value: object
) -> None:
    engine = Engine(bundled, max_sequences=1)
    with pytest.raises(InvalidRequestError) as caught:
        engine.submit(make_request(prompt, **{field: value}))
    assert caught.value.field == field
    assert engine.sequences == engine.queued == 0


def test_a_request_that_cannot_fit_the_context_is_refused(
    bundled: LoadedModel, prompt: Prompt
) -> None:
    engine = Engine(bundled, max_sequences=1)
    with pytest.raises(ContextOverflowError) as caught:
        engine.submit(make_request((9,) * 1000, max_tokens=33))
    assert (caught.value.needed, caught.value.available) == (1064, 1024)


def test_a_request_id_is_taken_once_at_a_time(bundled: LoadedModel, prompt: Prompt) -> None:
    engine = Engine(bundled, max_sequences=1)
    engine.submit(make_request(prompt))
    with pytest.raises(DuplicateRequestError):
        engine.submit(make_request(prompt))
    engine.stop("job")
    engine.submit(make_request(prompt))
