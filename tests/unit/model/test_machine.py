"""Probe, profile and benchmark on whatever machine runs the tests."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.errors import BenchmarkError, DeviceError
from piecework_model.machine.benchmark import PROMPT, measure
from piecework_model.machine.probe import (
    SMALL_MODEL_PARAMETERS,
    choose_threads,
    engine_profile,
    host_memory_bytes,
    probe,
)
from piecework_model.requests import GenerationRequest
from piecework_model.text.chat import encode_prompt
from tests.support.model.model_runs import broken_head, make_request
from tests.support.protocol.conversations import said


def test_the_probe_describes_this_machine() -> None:
    hardware = probe()
    assert hardware.cores >= 1
    assert hardware.host_memory_bytes > 2**28
    assert hardware.name
    assert hardware.device == ("cuda" if hardware.accelerators else "cpu")


@pytest.mark.parametrize(
    ("written", "expected"), [("1048576\n", 2**20), ("max\n", None), (str(2**60), None)]
)
def test_a_containers_limit_counts_if_it_is_the_smaller(
    tmp_path: Path, written: str, expected: int | None
) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(written)
    assert host_memory_bytes(limit) == (expected or host_memory_bytes(tmp_path / "nothing"))


def test_the_profile_is_short_stable_and_names_what_decides_the_last_bits(
    bundled: LoadedModel,
) -> None:
    hardware = probe()
    profile = engine_profile(bundled, hardware, "pure")
    assert profile == engine_profile(bundled, probe(), "pure")
    assert re.fullmatch(r"[a-z0-9.+/-]{10,160}", profile)
    others = {
        engine_profile(replace(bundled, dtype="bfloat16"), hardware, "pure"),
        engine_profile(replace(bundled, quantization="int8"), hardware, "pure"),
        engine_profile(bundled, replace(hardware, cpu="Other CPU"), "pure"),
        engine_profile(bundled, hardware, "fused"),
        engine_profile(
            replace(bundled, device="cuda"), replace(hardware, name="NVIDIA H100"), "pure"
        ),
    }
    assert len(others | {profile}) == 6


def test_a_measurement_comes_from_real_canvases(bundled: LoadedModel) -> None:
    ticks = itertools.count()
    executor = BatchedExecutor(bundled.model, bundled.limits)
    clock = lambda: float(next(ticks))  # noqa: E731  each look is a second
    measured = measure(bundled, executor, seconds=1.0, sequences=2, clock=clock)
    assert measured.canvases >= 2
    assert measured.sequences == 2
    assert measured.first_canvas_ms == 1000.0
    assert 1 <= measured.steps_per_canvas <= bundled.defaults.max_steps
    assert measured.steps_per_second > 0
    assert measured.tokens_per_second > 0
    # Its stories end by themselves.
    assert measured.answer_tokens is not None
    assert 0 < measured.answer_tokens <= measured.canvases * bundled.limits.canvas_size


def _short_request(loaded: LoadedModel, canvases: int) -> GenerationRequest:
    size = loaded.limits.canvas_size
    return make_request(encode_prompt(loaded, said(PROMPT)), max_tokens=canvases * size)


def test_a_short_planned_context_is_measured_with_the_canvases_that_fit(
    bundled: LoadedModel,
) -> None:
    """On a card that holds hardly more than the weights, a short context is what fits."""
    executor = BatchedExecutor(bundled.model, bundled.limits)
    room = executor.footprint(_short_request(bundled, 2))
    measured = measure(bundled, executor, seconds=0.1, memory_bytes=room)
    assert 1 <= measured.canvases <= 2


def test_a_model_of_a_short_context_is_measured(bundled: LoadedModel) -> None:
    tokens = bundled.limits.sequence_tokens(_short_request(bundled, 1))
    short = replace(bundled, limits=replace(bundled.limits, max_context=tokens))
    measured = measure(short, BatchedExecutor(short.model, short.limits), seconds=0.1)
    assert measured.canvases == 1


def test_memory_that_holds_no_canvas_is_named(bundled: LoadedModel) -> None:
    executor = BatchedExecutor(bundled.model, bundled.limits)
    room = executor.footprint(_short_request(bundled, 1)) - 1
    with pytest.raises(DeviceError, match="Plan a longer context"):
        measure(bundled, executor, seconds=0.1, memory_bytes=room)


def test_answers_that_never_end_have_no_length(bundled: LoadedModel) -> None:
    endless = replace(bundled, eos_ids=frozenset())
    measured = measure(
        endless, BatchedExecutor(bundled.model, bundled.limits), seconds=0.1, sequences=1
    )
    assert measured.answer_tokens is None


def test_a_model_that_fails_cannot_be_measured(bundled: LoadedModel) -> None:
    with (
        broken_head(bundled, lambda output: torch.full_like(output, float("nan"))),
        pytest.raises(BenchmarkError, match="non_finite"),
    ):
        measure(bundled, BatchedExecutor(bundled.model, bundled.limits), seconds=1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, 301.0])
def test_a_budget_out_of_bounds_is_refused(bundled: LoadedModel, seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds"):
        measure(bundled, BatchedExecutor(bundled.model, bundled.limits), seconds=seconds)


def test_a_small_model_runs_on_one_thread_and_a_large_one_as_torch_likes() -> None:
    assert choose_threads(SMALL_MODEL_PARAMETERS - 1, 0, 16) == 1
    assert choose_threads(SMALL_MODEL_PARAMETERS, 0, 16) == 16


def test_the_operators_choice_counts_for_every_model() -> None:
    assert choose_threads(1, 5, 16) == choose_threads(SMALL_MODEL_PARAMETERS, 5, 16) == 5
