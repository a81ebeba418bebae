"""Which expert has which slot: bounded, never two in one, and better than LRU where LRU is
worst."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_model.layers.residency import Residency

LOOKS = st.lists(st.integers(0, 11), max_size=200)


@given(st.integers(1, 14), LOOKS)
def test_every_key_has_a_slot_of_its_own_and_finds_what_it_left_there(
    slots: int, looks: list[int]
) -> None:
    residency, content = Residency(slots, 12), dict[int, int]()
    for key in looks:
        slot, present = residency.place(key)
        assert 0 <= slot < slots
        assert present == (content.get(slot) == key)
        content[slot] = key
    assert len(residency) <= slots
    assert residency.hits + residency.misses == len(looks)


@given(st.integers(12, 20), LOOKS)
def test_with_room_for_all_each_key_is_missed_once(slots: int, looks: list[int]) -> None:
    residency = Residency(slots, 12)
    for key in looks:
        residency.place(key)
    assert residency.misses == len(set(looks))


def test_on_a_loop_it_keeps_what_fits_where_lru_keeps_nothing() -> None:
    keys, slots, rounds = 30, 20, 10
    residency, lru, lru_hits = Residency(slots, keys), OrderedDict[int, None](), 0
    for key in list(range(keys)) * rounds:
        residency.place(key)
        lru_hits += key in lru
        lru.pop(key, None)
        lru[key] = None
        if len(lru) > slots:
            lru.popitem(last=False)
    assert lru_hits == 0
    best = (rounds - 1) * (
        slots - 1
    )  # Belady's optimum: one slot is given up to what passes through
    assert residency.hits >= 0.95 * best


def test_keys_that_nobody_asks_for_any_more_give_way() -> None:
    residency = Residency(4, 8)
    for key in range(4):
        residency.place(("old", key))
    for _ in range(8):
        for key in range(4):
            residency.place(("new", key))
    hits = residency.hits
    for key in range(4):
        residency.place(("new", key))
    assert residency.hits == hits + 4


def test_a_key_whose_content_did_not_arrive_is_not_there() -> None:
    residency = Residency(2, 4)
    slot, _ = residency.place("a")
    residency.forget("a")
    assert residency.place("a") == (slot, False)


def test_a_cache_without_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Residency(0, 4)
