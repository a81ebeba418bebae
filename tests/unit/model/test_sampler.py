"""The pure sampler on small numbers that can be checked by hand, and against a straightforward float64
version.
"""

import math

import pytest
import torch

from model import sampler

CPU = torch.device("cpu")


def test_the_temperature_falls_linearly_from_start_to_just_above_end() -> None:
    values = [float(sampler.temperature(0.8, 0.4, remaining, 4, CPU)) for remaining in (4, 3, 2, 1)]
    assert values == pytest.approx([0.8, 0.7, 0.6, 0.5])


def test_equal_temperatures_give_a_constant() -> None:
    assert float(sampler.temperature(0.5, 0.5, 7, 48, CPU)) == 0.5


def test_entropy_of_a_uniform_position_is_the_logarithm_of_the_vocabulary() -> None:
    entropy, log_probabilities = sampler.token_entropy(
        torch.tensor([[2.0, 2.0, 2.0, 2.0], [60.0, 0.0, 0.0, 0.0]])
    )
    assert entropy.tolist() == pytest.approx([math.log(4), 0.0], abs=1e-6)
    assert float(log_probabilities[0, 0]) == pytest.approx(-math.log(4))


def test_positions_are_accepted_from_the_lowest_entropy_while_those_before_stay_in_the_bound() -> None:
    entropy = torch.tensor([0.5, 0.01, 0.06, 0.05])
    assert sampler.accept(entropy, 0.1).tolist() == [False, True, True, True]
    assert sampler.accept(entropy, 0.2).tolist() == [True, True, True, True]
    assert sampler.accept(entropy, 0.0).tolist() == [False, True, False, False]


def test_the_most_certain_position_is_always_accepted() -> None:
    assert sampler.accept(torch.tensor([9.0, 8.0]), 0.0).tolist() == [False, True]


@pytest.mark.parametrize("vocab_size", [3, 512, 513, 5000])
def test_sampling_agrees_with_a_plain_cumulative_sum(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    probabilities = torch.softmax(4 * torch.randn(64, vocab_size, generator=generator), dim=-1)
    uniforms = torch.rand(64, generator=generator, dtype=torch.float64)
    cumulative = probabilities.double().cumsum(-1)
    expected = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True).squeeze(1)
    assert torch.equal(sampler.sample(probabilities, uniforms), expected)


@pytest.mark.parametrize("uniform", [0.5 / 2**32, 1 - 0.5 / 2**32])
def test_the_extreme_uniforms_pick_a_token_that_has_mass(uniform: float) -> None:
    probabilities = torch.zeros(3, 1100)
    probabilities[0, 0] = probabilities[1, 511] = probabilities[2, 1030] = 1.0
    assert sampler.sample(probabilities, torch.full((3,), uniform, dtype=torch.float64)).tolist() == [
        0,
        511,
        1030,
    ]


def test_a_step_keeps_what_it_accepts_and_renoises_the_rest() -> None:
    logits = torch.zeros(2, 4)
    logits[0, 3] = 10.0
    renoise = torch.tensor([1, 2])
    choice = sampler.choose(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), renoise, entropy_bound=0.0)
    assert choice.accepted.tolist() == [True, False]
    assert choice.after.tolist() == [3, 2]
    assert choice.argmax.tolist() == [3, 0]
    assert choice.fingerprint[0].tolist() == pytest.approx([0.0015, -0.0001, 10.0], abs=1e-3)
    assert choice.fingerprint[1].tolist() == pytest.approx([math.log(4), -math.log(4), 0.0], abs=1e-3)


def test_confidence_is_the_mean_entropy_strictly_below_the_threshold() -> None:
    entropy = torch.tensor([0.25, 0.75])
    assert sampler.is_confident(entropy, 0.51)
    assert not sampler.is_confident(entropy, 0.5)
