"""The fast executor against the readable one, bit for bit, under random requests and schedules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.engine import Engine
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.requests import Event, GenerationRequest
from tests.support.model.model_runs import make_request, run
from tests.support.model.model_strategies import reads, templated

few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])

shared: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**64 - 1),
    "temperature_start": st.floats(0.5, 2.0),
    "entropy_bound": st.floats(0.0, 20.0),
    "draft_every": st.integers(0, 2),
    "tenant": st.sampled_from(["", "one", "two"]),
}
free = st.builds(
    lambda prompt, **fields: make_request(tuple(prompt), **fields),
    st.lists(
        st.integers(6, 700), min_size=1, max_size=200
    ),  # chunks are 64 tokens, and so is the window
    max_tokens=st.integers(1, 70),
    max_steps=st.integers(1, 5),
    **shared,
)
requests = free | templated(max_steps=st.integers(1, 5), **shared) | reads(**shared)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def loaded(request: pytest.FixtureRequest) -> LoadedModel:
    """The bundled checkpoint as a CPU takes it by itself, and in its own type."""
    return load(device="cpu", dtype=request.param)


def reference(loaded: LoadedModel, request: GenerationRequest) -> list[Event]:
    """The request's events from the readable executor."""
    engine = Engine(
        loaded, max_sequences=1, executor=ReferenceExecutor(loaded.model, loaded.limits)
    )
    engine.submit(request)
    return run(engine)[request.request_id]


@few
@given(
    batch=st.lists(requests, min_size=1, max_size=4),
    arrivals=st.lists(st.integers(0, 4), min_size=4, max_size=4),
    cancelled=st.integers(0, 3),
    cancel_at=st.integers(1, 8),
)
def test_every_row_has_the_trace_that_the_reference_gives_it_alone(
    loaded: LoadedModel,
    batch: list[GenerationRequest],
    arrivals: list[int],
    cancelled: int,
    cancel_at: int,
) -> None:
    named = [
        replace(request, request_id=f"sequence-{number}") for number, request in enumerate(batch)
    ]
    engine = Engine(loaded, max_sequences=3)
    events: dict[str, list[Event]] = {request.request_id: [] for request in named}
    for step in range(10):
        for request, arrival in zip(named, arrivals, strict=False):
            if arrival == step:
                engine.submit(request)
        if step == cancel_at:
            engine.stop(f"sequence-{cancelled}")
        for event in engine.step():
            events[event.request_id].append(event)
    for request_id, rest in run(engine).items():
        events[request_id] += rest
    for number, request in enumerate(named):
        alone = reference(loaded, request)
        if number != cancelled:
            assert events[request.request_id] == alone
        else:
            assert events[request.request_id] == alone[: len(events[request.request_id])]
