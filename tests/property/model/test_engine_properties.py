"""The engine under random requests and schedules: whatever the neighbours do, a transcript is its
own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.requests import HOLE, CanvasFinish, DraftEvent, Event, GenerationRequest
from tests.support.model.model_runs import canvases, make_request, run, run_alone
from tests.support.model.model_strategies import reads, templated

shared: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**64 - 1),
    "temperature_start": st.floats(0.5, 2.0),
    "temperature_end": st.floats(0.1, 0.5),
    "entropy_bound": st.floats(0.0, 20.0),
    "confidence_threshold": st.floats(0.0, 5.0),
    "draft_every": st.integers(0, 3),
}
stepped = {**shared, "max_steps": st.integers(1, 6), "stability_steps": st.integers(0, 3)}
free = st.builds(
    lambda prompt, **fields: make_request(tuple(prompt), **fields),
    st.lists(st.integers(6, 700), min_size=1, max_size=90),
    max_tokens=st.integers(1, 70),
    **stepped,
)
forms = templated(**stepped)
requests = free | forms | reads(**shared)
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(request=free)
def test_charged_ids_and_text_of_all_canvases_are_one_text(
    bundled: LoadedModel, request: GenerationRequest
) -> None:
    events = canvases(run_alone(bundled, request))
    charged = tuple(id_ for event in events for id_ in event.charged_ids)
    assert len(charged) <= request.max_tokens
    assert bundled.eos_ids.isdisjoint(charged)
    assert "".join(event.text for event in events) == bundled.tokenizer.decode(charged)
    assert [event.canvas for event in events] == list(range(len(events)))
    assert all(event.charged_ids == event.token_ids for event in events[:-1])
    assert all(1 <= event.steps == len(event.step_leaves) <= request.max_steps for event in events)
    if events[-1].finish is CanvasFinish.TOKEN_LIMIT:
        assert len(charged) == request.max_tokens


@few
@given(request=forms)
def test_a_template_keeps_every_pinned_token_in_every_draft_and_canvas(
    bundled: LoadedModel, request: GenerationRequest
) -> None:
    events = run_alone(bundled, request)
    fixed = [entry for entry in request.template if entry not in {HOLE, *bundled.eos_ids}]
    charged = [id_ for event in canvases(events) for id_ in event.charged_ids]
    whole = [id_ for event in canvases(events) for id_ in event.token_ids]
    assert all(entry in {HOLE, id_} for entry, id_ in zip(request.template, whole, strict=True))
    rest = iter(charged)
    assert all(entry in rest for entry in fixed)  # in this order
    assert bundled.eos_ids.isdisjoint(charged)
    for event in events:
        if isinstance(event, DraftEvent):
            rest = iter(event.token_ids)
            start = event.canvas * 32
            assert all(
                entry in rest
                for entry in request.template[start : start + 32]
                if entry not in {HOLE, *bundled.eos_ids}
            )
    assert [event.finish for event in canvases(events)][-1] is CanvasFinish.END_OF_TEXT
    assert all(event.steps >= 1 for event in canvases(events))


@few
@given(
    wanted=requests,
    others=st.lists(requests, max_size=3),
    cancels=st.dictionaries(st.integers(0, 9), st.integers(0, 2), max_size=2),
    limit=st.integers(0, 2),
)
def test_a_transcript_does_not_depend_on_what_happens_around_it(
    bundled: LoadedModel,
    wanted: GenerationRequest,
    others: list[GenerationRequest],
    cancels: dict[int, int],
    limit: int,
) -> None:
    engine = Engine(bundled, max_sequences=3)
    engine.submit(replace(wanted, canvas_limit=limit))
    for index, other in enumerate(others):
        engine.submit(replace(other, request_id=f"other-{index}"))
    seen: list[Event] = []
    for step in range(10):
        if step in cancels:
            engine.stop(f"other-{cancels[step]}")
        seen += [event for event in engine.step() if event.request_id == "job"]
    engine.allow("job", 99)
    seen += run(engine).get("job", [])
    assert seen == run_alone(bundled, wanted)


@few
@given(request=requests, cut=st.integers(1, 2))
def test_a_resume_after_any_canvas_gives_the_rest(
    bundled: LoadedModel, request: GenerationRequest, cut: int
) -> None:
    whole = canvases(run_alone(bundled, request))
    if cut < len(whole):
        committed = tuple(event.token_ids for event in whole[:cut])
        assert canvases(run_alone(bundled, replace(request, committed=committed))) == whole[cut:]
