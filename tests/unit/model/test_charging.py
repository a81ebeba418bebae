"""What of a filled template is charged, and the answers of a read in fixed point."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_model.charging import Charge, charge_of
from piecework_model.requests import HOLE, CanvasFinish, ReadSlot
from piecework_model.sampling.answers import probabilities
from piecework_protocol.kinds.read import ONE, ReadOutput
from tests.support.model.model_runs import make_request

EOS, CONTROL, WORD = 1, 2, 9
_ = HOLE


def form(*template: int) -> Charge:
    """Canvases of four."""
    request = make_request((7,), template=template)
    return charge_of(request, 4, frozenset({EOS}), frozenset({EOS, CONTROL}))


def test_fixed_and_free_tokens_are_charged_up_to_the_templates_end() -> None:
    charge = form(20, _, _, 21, 22, EOS, EOS, EOS)
    assert charge.append((20, 8, 9, 21)) == ((20, 8, 9, 21), CanvasFinish.MORE)
    assert charge.append((22, EOS, EOS, EOS)) == ((22,), CanvasFinish.END_OF_TEXT)


def test_what_stands_behind_an_end_mark_is_left_out_of_that_hole_only() -> None:
    charge = form(_, _, _, 20, _, _, 21, EOS)
    assert charge.append((8, EOS, 9, 20)) == ((8, 20), CanvasFinish.MORE)
    assert charge.append((EOS, 9, 21, EOS)) == ((21,), CanvasFinish.END_OF_TEXT)


def test_a_hole_that_ended_stays_ended_on_the_next_canvas() -> None:
    charge = form(20, _, _, _, _, _, 21, _)
    assert charge.append((20, 8, EOS, 9))[0] == (20, 8)
    assert charge.append((7, 7, 21, 6)) == ((21, 6), CanvasFinish.END_OF_TEXT)


def test_other_control_tokens_in_a_hole_are_dropped() -> None:
    assert form(_, _, _, 20).append((8, CONTROL, 9, 20))[0] == (8, 9, 20)


def test_a_preview_of_a_form_takes_nothing_in() -> None:
    charge = form(20, _, _, _, _, _, 21, 22)
    assert charge.preview((20, EOS, 9, 9)) == (20,)
    assert charge.append((20, 8, 9, 9))[0] == (20, 8, 9, 9)
    assert charge.preview((8, 9, 21, 22)) == (8, 9, 21, 22)


def test_a_read_charges_nothing_and_ends_with_its_last_canvas() -> None:
    reads = ((ReadSlot(0, (8, 9)),),)
    request = make_request((7,), template=(_, 9, 9, 9), reads=reads, max_tokens=8, max_steps=1)
    charge = charge_of(request, 4, frozenset({EOS}), frozenset({EOS}))
    assert charge.preview((8, 9, 9, 9)) == ()
    assert charge.append((8, 9, 9, 9)) == ((), CanvasFinish.MORE)
    assert charge.append((8, 9, 9, 9)) == ((), CanvasFinish.END_OF_TEXT)


@given(
    template=st.lists(st.sampled_from([HOLE, 20, 21]), min_size=1, max_size=40),
    noise=st.lists(st.sampled_from([EOS, CONTROL, WORD]), min_size=44, max_size=44),
)
def test_all_fixed_tokens_come_out_in_their_order_whatever_the_holes_hold(
    template: list[int], noise: list[int]
) -> None:
    entries = (*template, *[EOS] * (-len(template) % 4))
    canvas = tuple(
        there if entry == HOLE else entry for entry, there in zip(entries, noise, strict=False)
    )
    charge = form(*entries)
    parts = [charge.append(canvas[at : at + 4]) for at in range(0, len(entries), 4)]
    charged = [token for ids, _finish in parts for token in ids]
    assert [token for token in charged if token != WORD] == [e for e in template if e != HOLE]
    assert charged.count(WORD) <= template.count(HOLE)
    assert [finish for _ids, finish in parts] == [
        *[CanvasFinish.MORE] * (len(parts) - 1),
        CanvasFinish.END_OF_TEXT,
    ]


@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=255),
    cap=st.sampled_from([5.0, 30.0]),
)
def test_probabilities_add_up_to_one_and_keep_the_order_of_the_logits(
    logits: list[float], cap: float
) -> None:
    shares = probabilities(logits, cap)
    ReadOutput((shares,))  # which takes nothing that does not add up
    exact = [math.exp(cap * math.tanh(logit / cap)) for logit in logits]
    for share, weight in zip(shares, exact, strict=True):
        assert abs(share - ONE * weight / math.fsum(exact)) <= 1
    ranked = sorted(range(len(logits)), key=lambda index: logits[index])
    assert all(shares[low] <= shares[high] + 1 for low, high in itertools.pairwise(ranked))


@pytest.mark.parametrize(
    ("logits", "shares"),
    [
        ([0.0, 0.0, 0.0], (21_846, 21_845, 21_845)),
        ([0.0, 0.0], (ONE // 2, ONE // 2)),
        ([1e30, -1e30], (ONE, 0)),
    ],
)
def test_what_rounding_leaves_goes_to_the_largest_remainder_and_of_equal_ones_to_the_first(
    logits: list[float], shares: tuple[int, ...]
) -> None:
    assert probabilities(logits, 30.0) == shares
