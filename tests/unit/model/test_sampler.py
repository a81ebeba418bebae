"""The pure sampler on small numbers that can be checked by hand, and against a straightforward
float64 version.
"""

from __future__ import annotations

import math

import pytest
import torch

from piecework_model.sampling import sampler


def test_the_temperature_falls_linearly_from_start_to_just_above_end() -> None:
    values = [float(sampler.temperature(0.8, 0.4, remaining, 4)) for remaining in (4, 3, 2, 1)]
    assert values == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_equal_temperatures_give_a_constant() -> None:
    assert float(sampler.temperature(0.5, 0.5, 7, 48)) == 0.5


def sample(
    logits: list[list[float]], cap: float = 1000.0, temperature: float = 1.0
) -> sampler.SampleOutput:
    """A output with uniforms of one half."""
    raw = torch.tensor(logits)
    half = torch.full((len(logits),), 0.5, dtype=torch.float64)
    return sampler.sample(raw, torch.full((len(logits),), temperature), cap, half)


def test_entropy_of_a_uniform_position_is_the_logarithm_of_the_vocabulary() -> None:
    output = sample([[2.0, 2.0, 2.0, 2.0], [60.0, 0.0, 0.0, 0.0]])
    assert output.entropy.tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)
    assert float(output.log_probability[0]) == pytest.approx(-math.log(4))


def test_logits_are_capped_before_the_temperature_divides_them() -> None:
    output = sample([[90.0, 0.0]], cap=30.0, temperature=0.5)
    assert float(output.gap[0]) == pytest.approx(2 * 30 * math.tanh(3))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_makes_the_entropy_of_its_position_none(value: float) -> None:
    entropy = sample([[1.0, 2.0], [1.0, value]]).entropy
    assert torch.isfinite(entropy).tolist() == [True, False]


def test_the_probabilities_for_the_next_step_are_rounded_as_the_weights_are() -> None:
    raw = torch.randn(3, 700, generator=torch.Generator().manual_seed(1)).bfloat16()
    temperatures = torch.tensor([0.5, 1.0, 2.0])
    output = sampler.sample(raw, temperatures, 30.0, torch.full((3,), 0.5, dtype=torch.float64))
    scaled = torch.tanh(raw.float() / 30.0) * 30.0 / temperatures[:, None]
    expected = scaled.bfloat16().softmax(-1, dtype=torch.float32).bfloat16()
    assert torch.equal(output.probabilities, expected)


def test_a_position_is_sampled_alike_whatever_stands_beside_it() -> None:
    raw = torch.randn(40, 1127, generator=torch.Generator().manual_seed(2))
    temperatures = torch.rand(40) + 0.1
    uniforms = torch.rand(40, dtype=torch.float64)
    together = sampler.sample(raw, temperatures, 30.0, uniforms)
    for start, stop in ((0, 1), (7, 20), (39, 40)):
        part = sampler.sample(raw[start:stop], temperatures[start:stop], 30.0, uniforms[start:stop])
        for name in ("argmax", "sampled", "entropy", "log_probability", "gap", "probabilities"):
            assert torch.equal(getattr(part, name), getattr(together, name)[start:stop]), name


def test_positions_are_accepted_from_the_lowest_entropy_while_those_before_stay_in_the_bound() -> (
    None
):
    entropy = torch.tensor([[0.5, 0.01, 0.06, 0.05]] * 3)
    assert sampler.accept(entropy, torch.tensor([0.1, 0.2, 0.0])).tolist() == [
        [False, True, True, True],
        [True, True, True, True],
        [False, True, False, False],
    ]


def test_the_most_certain_position_is_always_accepted() -> None:
    assert sampler.accept(torch.tensor([[9.0, 8.0]]), torch.tensor([0.0])).tolist() == [
        [False, True]
    ]


@pytest.mark.parametrize("vocab_size", [3, 512, 513, 5000])
def test_sampling_agrees_with_a_plain_cumulative_sum(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    probabilities = torch.softmax(4 * torch.randn(64, vocab_size, generator=generator), dim=-1)
    uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
    cumulative = probabilities.double().cumsum(-1)
    expected = torch.searchsorted(
        cumulative, (uniforms * cumulative[:, -1])[:, None], right=True
    ).squeeze(1)
    assert torch.equal(sampler.inverse_cdf_sample(probabilities, uniforms), expected)


@pytest.mark.parametrize("uniform", [0.5 / 2**32, 1 - 0.5 / 2**32])
def test_the_extreme_uniforms_pick_a_token_that_has_mass(uniform: float) -> None:
    probabilities = torch.zeros(3, 1100)
    probabilities[0, 0] = probabilities[1, 511] = probabilities[2, 1030] = 1.0
    assert sampler.inverse_cdf_sample(
        probabilities, torch.full((3,), uniform, dtype=torch.float64)
    ).tolist() == [
        0,
        511,
        1030,
    ]


def test_the_fingerprint_holds_entropy_log_probability_and_gap() -> None:
    fingerprint = sample([[0.0, 0.0, 0.0, 10.0], [0.0, 0.0, 0.0, 0.0]]).fingerprint
    assert fingerprint.dtype is torch.float16
    assert fingerprint[0].tolist() == pytest.approx([0.0015, -0.0001, 10.0], abs=1e-3)
    assert fingerprint[1].tolist() == pytest.approx([math.log(4), -math.log(4), 0.0], abs=1e-3)


def test_confidence_is_the_mean_entropy_strictly_below_the_threshold() -> None:
    entropy = torch.tensor([[0.25, 0.75]] * 2)
    assert sampler.confident(entropy, torch.tensor([0.51, 0.5])).tolist() == [True, False]
