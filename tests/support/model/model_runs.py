"""Helpers of the engine tests: requests, running an engine to rest, breaking the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.engine import Engine
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.requests import CanvasEvent, Event, GenerationRequest

MAX_STEPS_TO_REST = 10_000


def make_request(
    prompt: tuple[int, ...], name: str = "job", /, **changes: Any
) -> GenerationRequest:
    """A request for at most three canvases of ten steps; keyword arguments replace fields."""
    fields: dict[str, Any] = {
        "request_id": name,
        "prompt_ids": prompt,
        "seed": 1,
        "max_tokens": 96,
        "max_steps": 10,
        "temperature_start": 0.8,
        "temperature_end": 0.4,
        "entropy_bound": 0.1,
        "confidence_threshold": 0.005,
        "stability_steps": 1,
        "canvas_limit": 99,
    }
    return GenerationRequest(**{**fields, **changes})


def run(engine: Engine) -> dict[str, list[Event]]:
    """Steps until nothing is runnable; the events of each request in order."""
    events: dict[str, list[Event]] = {}
    for _ in range(MAX_STEPS_TO_REST):
        if not engine.has_runnable:
            return events
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
    raise AssertionError("the engine does not come to rest")


def run_alone(loaded: LoadedModel, request: GenerationRequest) -> list[Event]:
    """The events of a request that has an engine to itself."""
    engine = Engine(loaded, max_sequences=1)
    engine.submit(request)
    return run(engine)[request.request_id]


def run_together(
    loaded: LoadedModel, requests: Sequence[GenerationRequest]
) -> dict[str, list[Event]]:
    """The events of requests that begin together in one engine."""
    engine = Engine(loaded, max_sequences=len(requests))
    for request in requests:
        engine.submit(request)
    return run(engine)


def run_readable(loaded: LoadedModel, request: GenerationRequest) -> list[Event]:
    """The events of a request in the executor that is written to be read."""
    executor = ReferenceExecutor(loaded.model, loaded.limits)
    engine = Engine(loaded, max_sequences=1, executor=executor)
    engine.submit(request)
    return run(engine)[request.request_id]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for what torch computes, then one again."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def canvases(events: list[Event]) -> list[CanvasEvent]:
    """Only the committed canvases."""
    return [event for event in events if isinstance(event, CanvasEvent)]


@contextmanager
def broken_head(
    loaded: LoadedModel, breaking: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Passes every output [P, V] of the model's last layer through `breaking`, which may also
    raise."""

    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return breaking(output)

    handle = loaded.model.lm_head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def broken_sequence(
    loaded: LoadedModel, sequence: int, *, from_call: int, breaking: Callable[[torch.Tensor], None]
) -> Iterator[None]:
    """Break one canvas of a pass, that of sequence `sequence`.

    It breaks in call `from_call` (from 1) of the last layer, and again wherever the same canvas
    turns up, alone or among others. `breaking` gets its logits [C, V] and may raise.
    """
    size, calls = loaded.limits.canvas_size, 0
    marked: torch.Tensor | None = None

    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        nonlocal calls, marked
        calls += 1
        blocks = inputs[0].view(-1, size, inputs[0].shape[-1])
        if calls == from_call:
            marked = blocks[sequence].clone()
        output = output.clone()
        for index, block in enumerate(blocks):
            if marked is not None and torch.equal(block, marked):
                breaking(output[index * size : (index + 1) * size])
        return output

    handle = loaded.model.lm_head.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
