"""How many canvases that look wrong are a verdict, and how often an honest worker meets one."""

from __future__ import annotations

import random
from itertools import product

import pytest

from piecework.client.audits.suspicion import MOST_CANVASES, chance_of_verdict, is_verdict


def fails(canvases: tuple[bool, ...]) -> bool:
    """Look at canvases in their order, as an audit does, and say whether it fails."""
    wrong = 0
    for seen, looks_wrong in enumerate(canvases, 1):
        wrong += looks_wrong
        if looks_wrong and is_verdict(wrong, seen):
            return True
        if not wrong:
            return False
    return False


def test_one_canvas_is_never_a_verdict() -> None:
    assert not is_verdict(1, 1)
    assert not any(is_verdict(1, seen) for seen in range(1, MOST_CANVASES + 1))


def test_the_first_two_or_three_of_six_are() -> None:
    assert is_verdict(2, 2)
    assert not any(is_verdict(2, seen) for seen in range(3, MOST_CANVASES + 1))
    assert all(is_verdict(3, seen) for seen in range(3, MOST_CANVASES + 1))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.8, 1.0])
def test_the_chance_of_a_verdict_is_that_of_every_course_of_an_audit(share: float) -> None:
    chance = sum(
        share ** sum(course) * (1 - share) ** (MOST_CANVASES - sum(course))
        for course in product((False, True), repeat=MOST_CANVASES)
        if fails(course)
    )
    assert chance_of_verdict(share) == pytest.approx(chance, abs=1e-12)


def test_an_honest_worker_hardly_ever_fails_and_a_cheat_nearly_always() -> None:
    assert chance_of_verdict(0.005) < 3e-5
    assert (1 - chance_of_verdict(0.8)) ** 10 < 1e-6


def test_a_worker_that_cheats_in_every_second_canvas_is_found() -> None:
    """It could show a good canvas beside each bad one, if two were all that is looked at."""
    draw = random.Random(3)
    courses = [tuple(draw.random() < 0.5 for _ in range(MOST_CANVASES)) for _ in range(2000)]
    found = sum(map(fails, courses)) / len(courses)
    assert found == pytest.approx(chance_of_verdict(0.5), abs=0.04)
    assert found > 0.35
