"""The fused sampler against the pure one, in Triton's interpreter; its kernels, compiled for real
targets.

On a machine with an NVIDIA driver the same tests run the compiled kernels (tests/conftest.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from piecework_model import limits
from piecework_model.sampling import sampler, sampler_kernels, sampler_triton
from piecework_model.sampling.sampler import SampleOutput
from piecework_model.sampling.sampler_triton import TILE_TOKENS

CAP = 30.0
DEVICE = "cpu" if isinstance(sampler_kernels.decide, InterpretedFunction) else "cuda"
VOCABULARIES = (
    2,
    129,
    TILE_TOKENS - 1,
    TILE_TOKENS,
    TILE_TOKENS + 1,
    2 * TILE_TOKENS + 809,
    20_000,
)
FIELDS = [field.name for field in dataclasses.fields(SampleOutput)]
ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of NaN and infinity


def sample(raw: Tensor, temperatures: Tensor, uniforms: Tensor) -> SampleOutput:
    """`sampler_triton.sample` of a copy, on the device of these tests; its results on the CPU."""
    given = [x.to(DEVICE, copy=True) for x in (raw, temperatures, uniforms)]
    choice = sampler_triton.sample(given[0], given[1], CAP, given[2])
    return SampleOutput(**{name: getattr(choice, name).cpu() for name in FIELDS})


def some_uniforms(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_logits(positions: int, vocab_size: int, spread: float = 8.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(
        positions, vocab_size, generator=torch.Generator().manual_seed(seed)
    )


def exact(raw: Tensor, temperatures: Tensor) -> Tensor:
    """Scaled logits in float64."""
    return torch.tanh(raw.double() / CAP) * CAP / temperatures.double()[:, None]


@st.composite
def tiles(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Flat, tied, spread or peaked logits of one to four positions; temperatures; uniforms."""
    positions = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**16))
    raw = some_logits(
        positions, draw(st.sampled_from(VOCABULARIES)), draw(st.sampled_from([0, 0.1, 5, 40])), seed
    )
    if draw(st.booleans()):
        raw = raw.round()  # many ties
    if draw(st.booleans()):
        raw[0, draw(st.integers(0, raw.shape[1] - 1))] = (
            100.0  # one token with nearly all of the mass
        )
    temperature = st.floats(limits.MIN_TEMPERATURE, limits.MAX_TEMPERATURE)
    temperatures = torch.tensor(draw(st.lists(temperature, min_size=positions, max_size=positions)))
    raw = raw.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    return raw, temperatures, some_uniforms(positions, seed + 1)


def slack(temperatures: Tensor) -> Tensor:
    """What float32 may lose of a scaled logit: a few units in the last place of the largest
    possible one."""
    return 4 * (CAP / temperatures) * torch.finfo(torch.float32).eps


@settings(max_examples=20, deadline=None)
@given(tiles())
def test_figures_are_those_of_float64(case: tuple[Tensor, Tensor, Tensor]) -> None:
    raw, temperatures, _ = case
    choice = sample(*case)
    scaled = exact(raw, temperatures)
    loss = slack(temperatures)
    log_probabilities = torch.log_softmax(scaled, dim=-1)
    entropy = -(log_probabilities * log_probabilities.exp()).sum(-1)
    # Moving every logit by at most `loss` moves the entropy by at most about loss x (1 + spread of
    # log p under p).
    spread = ((log_probabilities + entropy[:, None]).abs() * log_probabilities.exp()).sum(-1)
    assert ((choice.entropy - entropy).abs() <= 1e-5 + 2 * loss * (1 + spread)).all()
    chosen = log_probabilities.gather(1, choice.sampled[:, None]).squeeze(1)
    assert ((choice.log_probability - chosen).abs() <= 1e-5 + 2 * loss).all()
    top = scaled.topk(2).values
    assert ((choice.gap - (top[:, 0] - top[:, 1])).abs() <= 2 * loss).all()


@settings(max_examples=20, deadline=None)
@given(tiles())
def test_ids_are_those_of_the_pure_version(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """Up to what rounding decides: an argmax within the rounding of a logit, a sample whose share
    of the cumulative probability is met within the rounding of that probability.
    """
    raw, temperatures, uniforms = case
    choice = sample(*case)
    scaled = exact(raw, temperatures)
    top, runner_up = scaled.topk(2).values.unbind(1)
    reached = scaled.gather(1, choice.argmax[:, None]).squeeze(1)
    assert (reached >= top - slack(temperatures)).all()
    clear = (top == runner_up) | (top - runner_up > slack(temperatures))
    assert torch.equal(choice.argmax[clear], raw.float().argmax(-1)[clear])
    cumulative = torch.softmax(scaled, dim=-1).cumsum(-1)
    after = cumulative.gather(1, choice.sampled[:, None]).squeeze(1)
    before = after - torch.softmax(scaled, dim=-1).gather(1, choice.sampled[:, None]).squeeze(1)
    loss = 1e-6 + 2 * slack(temperatures)
    assert ((before - loss <= uniforms) & (uniforms <= after + loss)).all()


@settings(max_examples=15, deadline=None)
@given(tiles())
def test_probabilities_are_those_that_the_soft_embedding_multiplies(
    case: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Between the bounds that follow when every logit is rounded to the weights' type from a little
    below or from a little above.
    """
    raw, temperatures, _ = case
    probabilities = sample(*case).probabilities
    assert probabilities.dtype == raw.dtype
    scaled, loss = exact(raw, temperatures), slack(temperatures).double()[:, None]
    low = (scaled - loss).to(raw.dtype).double()
    high = (scaled + loss).to(raw.dtype).double()
    shift = high.amax(-1, keepdim=True)
    least = (low - shift).exp() / (high - shift).exp().sum(-1, keepdim=True)
    most = (high - shift).exp() / (low - shift).exp().sum(-1, keepdim=True)
    rounding = torch.finfo(raw.dtype).eps + 1e-5
    smallest = torch.finfo(raw.dtype).tiny
    assert (probabilities.double() >= least * (1 - rounding) - smallest).all()
    assert (probabilities.double() <= most * (1 + rounding) + smallest).all()


@settings(max_examples=8, deadline=None)
@given(tiles())
def test_a_position_has_the_same_bits_in_any_company(case: tuple[Tensor, Tensor, Tensor]) -> None:
    whole, positions = sample(*case), len(case[1])
    turned = sample(*(x.flip(0).contiguous() for x in case))
    for position in range(positions):
        alone = sample(*(x[position : position + 1].clone() for x in case))
        for name in FIELDS:
            expected = getattr(whole, name)[position]
            assert torch.equal(getattr(alone, name)[0], expected), name
            assert torch.equal(getattr(turned, name)[positions - 1 - position], expected), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probabilities_take_the_place_of_the_logits(dtype: torch.dtype) -> None:
    raw = some_logits(3, TILE_TOKENS + 100).to(DEVICE, dtype)
    temperatures = torch.tensor([0.4, 0.8, 1.0], device=DEVICE)
    choice = sampler_triton.sample(raw, temperatures, CAP, some_uniforms(3).to(DEVICE))
    assert choice.probabilities is raw
    assert raw.float().sum(-1).tolist() == pytest.approx([1.0] * 3, rel=0.01)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, TILE_TOKENS + 7])
def test_a_logit_that_is_not_finite_shows_at_its_position_alone(value: float, token: int) -> None:
    raw = some_logits(3, TILE_TOKENS + 100)
    temperatures, uniforms = torch.full((3,), 0.5), some_uniforms(3)
    sound = sample(raw, temperatures, uniforms)
    raw[1, token] = value
    broken = sample(raw, temperatures, uniforms)
    assert broken.entropy.isfinite().tolist() == [True, False, True]
    assert broken.probabilities.isnan().all(-1).tolist() == [False, True, False]
    for ids in (broken.argmax, broken.sampled):
        assert ((ids >= 0) & (ids < raw.shape[1])).all()
    for name in FIELDS:
        assert torch.equal(getattr(broken, name)[::2], getattr(sound, name)[::2]), name


def test_a_position_of_nothing_but_nan_has_ids_in_the_vocabulary() -> None:
    broken = sample(
        torch.full((2, 5), math.nan, dtype=torch.bfloat16), torch.ones(2), some_uniforms(2)
    )
    assert not broken.entropy.isfinite().any()
    assert ((broken.argmax < 5) & (broken.sampled < 5)).all()


@pytest.mark.parametrize("uniform", [0.5 / 2**32, 0.5, 1 - 0.5 / 2**32])
def test_a_token_that_has_all_of_the_mass_is_sampled(uniform: float) -> None:
    tokens = [0, TILE_TOKENS - 1, TILE_TOKENS, TILE_TOKENS + 99]
    raw = torch.full((4, TILE_TOKENS + 100), -100.0)
    raw[range(4), tokens] = 100.0
    chosen = sample(raw, torch.full((4,), 0.1), torch.full((4,), uniform, dtype=torch.float64))
    assert chosen.sampled.tolist() == chosen.argmax.tolist() == tokens
    assert chosen.entropy.tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    assert chosen.log_probability.tolist() == pytest.approx([0.0] * 4, abs=1e-6)


def test_among_equal_logits_the_lowest_id_is_the_argmax_and_the_gap_is_zero() -> None:
    raw = torch.zeros(3, 2 * TILE_TOKENS)
    raw[0, [TILE_TOKENS + 5, 7, 9]] = 3.0  # in two tiles
    raw[1, [TILE_TOKENS + 5, TILE_TOKENS + 4]] = 3.0  # in one
    raw[2, 3], raw[2, 2] = 1e4, 2e4  # not equal, but both at the cap
    chosen = sample(raw, torch.ones(3), some_uniforms(3))
    assert chosen.argmax.tolist() == [7, TILE_TOKENS + 4, 2]
    assert chosen.gap.tolist() == [0.0, 0.0, 0.0]


def test_samples_are_those_of_the_pure_version() -> None:
    """Token by token: no uniform here is so close to an edge that rounding decides."""
    raw, temperatures, uniforms = (
        some_logits(12, 2 * TILE_TOKENS + 809, 3.0),
        torch.ones(12),
        some_uniforms(12),
    )
    expected = sampler.inverse_cdf_sample(
        torch.softmax(exact(raw, temperatures).float(), dim=-1), uniforms
    )
    assert len({int(token) // TILE_TOKENS for token in expected}) == 3
    assert torch.equal(sample(raw, temperatures, uniforms).sampled, expected)


def test_equal_logits_are_sampled_in_proportion_to_the_uniform() -> None:
    vocab_size = 2 * TILE_TOKENS
    uniforms = torch.tensor(
        [0.0001, 0.25, 0.5, 0.75, 0.9999], dtype=torch.float64
    )  # the middle ones: on edges
    chosen = sample(torch.zeros(5, vocab_size), torch.ones(5), uniforms)
    assert chosen.sampled.tolist() == [int(u * vocab_size) for u in uniforms.tolist()]
    assert chosen.entropy.tolist() == pytest.approx([math.log(vocab_size)] * 5, rel=1e-6)


def test_the_hyperbolic_tangent_is_good_to_its_last_bits() -> None:
    values = torch.cat(
        [torch.logspace(-6, 2.3, 60), torch.linspace(18.5, 19.0, 10)]
    )  # 0.625 x 30 = 18.75
    raw = torch.stack([torch.zeros_like(values), values], dim=1)
    gaps = sample(raw, torch.ones(len(values)), some_uniforms(len(values))).gap
    expected = [math.tanh(value / CAP) * CAP for value in values.tolist()]
    assert gaps.tolist() == pytest.approx(expected, rel=4 * torch.finfo(torch.float32).eps)


def unaligned(raw: Tensor) -> Tensor:
    """The same logits in memory that does not start at a multiple of 16 bytes."""
    room = torch.empty(raw.numel() + 1, dtype=raw.dtype)[1:].view_as(raw)
    return room.copy_(raw)


@pytest.mark.parametrize(
    ("raw", "temperatures", "uniforms", "named"),
    [
        (
            torch.zeros(2, 8, dtype=torch.float16),
            torch.ones(2),
            some_uniforms(2),
            "float32 or bfloat16",
        ),
        (torch.zeros(2, 8, 2), torch.ones(2), some_uniforms(2), r"\[P, V\]"),
        (torch.zeros(0, 8), torch.ones(0), some_uniforms(0), r"\[P, V\]"),
        (torch.zeros(2, 1), torch.ones(2), some_uniforms(2), "a vocabulary of 1"),
        (torch.zeros(1, 262_145), torch.ones(1), some_uniforms(1), "a vocabulary of 262145"),
        (torch.zeros(2, 8), torch.ones(1), some_uniforms(2), "temperatures"),
        (torch.zeros(2, 8), torch.ones(2), torch.rand(2), "uniforms"),
        (torch.zeros(8, 2).T, torch.ones(2), some_uniforms(2), "logits must be contiguous"),
        (unaligned(torch.zeros(2, 8)), torch.ones(2), some_uniforms(2), "aligned to 16 bytes"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(
    raw: Tensor, temperatures: Tensor, uniforms: Tensor, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        sampler_triton.sample(raw, temperatures, CAP, uniforms)


@pytest.mark.process
def test_the_kernels_compile_for_gpus_to_wide_accesses_and_without_atomics(tmp_path: Path) -> None:
    """On Ampere and Hopper. It shows that they compile, not that they run."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "tests.support.model.kernels", "80", "90"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    kernels = json.loads(result.stdout)
    assert len(kernels) == 2 * 2 * 3
    for kernel in kernels:
        assert kernel["cubin_bytes"] > 0, kernel
        assert kernel["wide_loads"] > 0, kernel
        assert kernel["wide_stores"] > 0 or kernel["kernel"] != "soften", kernel
        assert not kernel["atomics"] and not kernel["local_memory"], kernel
