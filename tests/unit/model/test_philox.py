"""The counter-based generator against its published answers and against plain integers."""

from __future__ import annotations

import numpy as np
import pytest

from piecework_model.sampling import philox
from piecework_model.sampling.philox import Moment

# Known answers for philox4x32 with 10 rounds from the authors' Random123 distribution
# (kat_vectors).
KNOWN = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """The same function in plain Python integers: what somebody without numpy would write."""
    x, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [
            (second >> 32) ^ x[1] ^ k[0],
            second & 0xFFFFFFFF,
            (first >> 32) ^ x[3] ^ k[1],
            first & 0xFFFFFFFF,
        ]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return x


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    key_words = words(key)
    output = philox.philox4x32(
        np.array([words(counter)], dtype=np.uint32),
        (np.uint64(key_words[0]), np.uint64(key_words[1])),
    )
    assert output[0].tolist() == words(answer)


def test_a_draw_depends_on_seed_canvas_step_position_and_purpose_only() -> None:
    seed = 0xFEDCBA9876543210
    drawn = philox.draws([Moment(seed, 3, 5)], 8, philox.Purpose.RENOISE)[0, 0]
    expected = [
        plain_philox([3, 5, position, 2], [0x76543210, 0xFEDCBA98])[0] for position in range(8)
    ]
    assert drawn.tolist() == expected


def uniforms(moment: Moment, positions: int) -> list[float]:
    drawn: list[float] = philox.step_draws([moment], positions, 7).uniforms[0].tolist()
    return drawn


def test_more_positions_do_not_change_the_earlier_ones() -> None:
    assert uniforms(Moment(9, 0, 1), 4) == uniforms(Moment(9, 0, 1), 64)[:4]


def test_uniforms_lie_strictly_between_zero_and_one() -> None:
    extremes = (np.array([0, 2**32 - 1]).astype(np.float64) + 0.5) / 2.0**32
    assert 0.0 < extremes[0] < extremes[1] < 1.0
    drawn = philox.step_draws([Moment(1, 0, 0)], 20_000, 7).uniforms
    assert 0.0 < drawn.min() < drawn.max() < 1.0
    assert abs(drawn.mean() - 0.5) < 0.01


def test_ids_cover_the_vocabulary_evenly() -> None:
    ids = philox.initial_ids([Moment(5, 0, 0)], 70_000, 7)[0]
    counts = np.bincount(ids, minlength=7)
    assert len(counts) == 7
    assert counts.min() > 9_500


def test_initial_ids_and_renoised_ids_are_different_draws() -> None:
    moment = [Moment(5, 0, 0)]
    drawn = philox.step_draws(moment, 32, 1000).renoise
    assert philox.initial_ids(moment, 32, 1000).tolist() != drawn.tolist()


def test_many_rows_draw_what_each_draws_alone() -> None:
    moments = [Moment(2**64 - 1, 3, 5), Moment(0, 0, 0), Moment(7, 2**32 - 1, 47)]
    together = philox.step_draws(moments, 16, 1000)
    for row, moment in enumerate(moments):
        alone = philox.step_draws([moment], 16, 1000)
        assert together.uniforms[row].tolist() == alone.uniforms[0].tolist()
        assert together.renoise[row].tolist() == alone.renoise[0].tolist()
