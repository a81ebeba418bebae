"""The choice of a sampler: the fused one is used only where it runs, agrees and keeps positions
apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from piecework_model import limits
from piecework_model.sampling import (
    sampler,
    sampler_backends,
    sampler_kernels,
    sampler_triton,
)
from piecework_model.sampling.sampler import SampleOutput

CPU = torch.device("cpu")
DEVICE = torch.device("cpu" if isinstance(sampler_kernels.decide, InterpretedFunction) else "cuda")
VOCAB_TOKENS = 4999


def another_token(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    output = sampler.sample(raw, temperatures, cap, uniforms)
    return replace(output, sampled=output.sampled + 1)


def too_flat(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    output = sampler.sample(raw, temperatures, cap, uniforms)
    return replace(output, entropy=output.entropy + 0.01)


def of_the_batch(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    output = sampler.sample(raw, temperatures, cap, uniforms)
    return replace(output, gap=output.gap + 1e-4 * len(raw))


def broken(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    raise RuntimeError("no kernel image is available for execution on the device\nmore")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_sampler_is_admitted_where_it_runs(dtype: torch.dtype) -> None:
    assert sampler_backends.why_rejected(sampler_triton.sample, DEVICE, dtype, VOCAB_TOKENS) == ""


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (another_token, "its sampled is another"),
        (too_flat, "its entropy differs by 0.01"),
        (of_the_batch, "its gap has other bits in a batch of 1 than in one of 8"),
        (broken, "it does not run: no kernel image is available for execution on the device"),
    ],
)
def test_a_sampler_that_is_wrong_is_refused_with_the_reason(
    sample: sampler_backends.SampleFn, reason: str
) -> None:
    assert sampler_backends.why_rejected(sample, CPU, torch.float32, VOCAB_TOKENS).startswith(
        reason
    )


def test_on_a_cpu_the_pure_sampler_runs() -> None:
    chosen = sampler_backends.sampler_for(CPU, torch.float32, VOCAB_TOKENS)
    assert (chosen.name, chosen.sample, chosen.reason) == (
        "pure",
        sampler.sample,
        "no kernels for cpu",
    )


def test_the_fused_sampler_takes_as_many_sequences_as_the_pure_ones_copies_would() -> None:
    released = 256 * 262_144
    pure = sampler_backends.SamplerBackend("pure", sampler.sample, "")
    fused = sampler_backends.SamplerBackend("fused", sampler_triton.sample, "")
    assert pure.sequences_at_once(released, 2) == 1
    assert fused.sequences_at_once(released, 2) == 10
    assert fused.sequences_at_once(released, 4) == 5
    for values in (1, 5000, 2**19, released):
        planned = limits.LOGIT_COPIES * 4 * pure.sequences_at_once(values, 2) * values
        assert fused.sequences_at_once(values, 2) * values * 2 <= planned
