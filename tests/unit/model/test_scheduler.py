"""Rows, memory, queue and fairness, with requests that are nothing but numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_model import limits
from piecework_model.engine.scheduler import Capacity, RowWork, Scheduler
from piecework_model.errors import DuplicateRequestError, MemoryOverflowError, QueueFullError


def scheduler(
    rows: int = 4, queued: int = 16, memory: int = 100, step: int = 64, row: int = 32
) -> Scheduler:
    return Scheduler(Capacity(rows, queued, memory, step, row))


def submit(
    places: Scheduler,
    name: str,
    *,
    footprint: int = 1,
    chunks: tuple[int, ...] = (),
    limit: int = 99,
) -> None:
    places.submit(name, footprint=footprint, chunks=chunks, canvas=0, canvas_limit=limit)


def test_requests_become_rows_in_the_order_of_their_arrival() -> None:
    places = scheduler(rows=2)
    for name in "abc":
        submit(places, name)
    assert places.admit() == ["a", "b"]
    assert (places.rows, places.queued) == (2, 1)
    places.drop("a")
    assert places.admit() == ["c"]


def test_a_request_beyond_all_memory_is_refused_with_both_figures() -> None:
    with pytest.raises(MemoryOverflowError) as caught:
        submit(scheduler(memory=100), "giant", footprint=101)
    assert (caught.value.needed, caught.value.available) == (101, 100)


def test_a_request_that_does_not_fit_now_waits_until_memory_is_free() -> None:
    places = scheduler(memory=100)
    submit(places, "first", footprint=60)
    submit(places, "second", footprint=50)
    assert places.admit() == ["first"]
    assert places.memory_used == 60
    places.drop("first")
    assert places.admit() == ["second"]


def test_a_full_queue_refuses_and_a_free_row_does_not() -> None:
    places = scheduler(rows=1, queued=0)
    submit(places, "row")
    places.admit()
    with pytest.raises(QueueFullError):
        submit(places, "late")
    places.drop("row")
    submit(places, "next")
    assert places.admit() == ["next"]


def test_an_id_is_taken_once_at_a_time() -> None:
    places = scheduler(rows=1)
    submit(places, "row")
    submit(places, "waiting")
    places.admit()
    for name in ("row", "waiting"):
        with pytest.raises(DuplicateRequestError):
            submit(places, name)


def test_small_requests_pass_a_large_one_only_so_often() -> None:
    places = scheduler(rows=3, queued=100, memory=100)
    submit(places, "holder", footprint=50)
    submit(places, "large", footprint=100)
    passed = []
    for number in range(3 * limits.MAX_OVERTAKES):
        submit(places, f"small-{number}", footprint=10)
        for name in places.admit():
            passed.append(name)
            if name != "holder":
                places.drop(name)
    assert len(passed) == 1 + limits.MAX_OVERTAKES
    places.drop("holder")
    assert places.admit() == ["large"]


def test_a_long_prompt_is_prefilled_in_chunks_beside_rows_that_denoise() -> None:
    places = scheduler(step=32, row=32)
    submit(places, "steady")
    submit(places, "long", chunks=(32, 32, 8))
    places.admit()
    assert places.plan() == [RowWork("steady", 0, True), RowWork("long", 1, False)]
    places.prefilled("long", 1)
    assert places.plan() == [RowWork("steady", 0, True), RowWork("long", 1, False)]
    places.prefilled("long", 1)
    assert places.plan() == [RowWork("steady", 0, True), RowWork("long", 1, True)]


def test_the_oldest_row_prefills_even_what_is_beyond_the_steps_budget() -> None:
    places = scheduler(step=16, row=16)
    submit(places, "first", chunks=(32,))
    submit(places, "second", chunks=(8,))
    places.admit()
    assert places.plan() == [RowWork("first", 1, True)]
    places.prefilled("first", 1)
    assert places.plan() == [RowWork("first", 0, True), RowWork("second", 1, True)]


def test_a_short_prompt_does_not_wait_behind_long_ones() -> None:
    places = scheduler(rows=5, step=128, row=32)
    for number in range(4):
        submit(places, f"long-{number}", chunks=(32,) * 512)
    submit(places, "short", chunks=(8,))
    places.admit()
    first = places.plan()
    assert RowWork("short", 1, True) in first
    assert RowWork("long-0", 1, False) in first
    assert sum(work.chunks for work in first) == 4


def test_rows_that_commit_together_all_denoise_in_the_very_next_step() -> None:
    places = scheduler(rows=32, queued=32, step=64, row=32)
    submit(places, "long", chunks=(32,) * 100)
    for number in range(31):
        submit(places, f"row-{number}")
    places.admit()
    for work in places.plan():
        places.prefilled(work.request_id, work.chunks)
    for number in range(31):
        places.committed(f"row-{number}", 32)
    planned = {item.request_id: item for item in places.plan()}
    assert all(
        planned[f"row-{number}"] == RowWork(f"row-{number}", 1, True) for number in range(31)
    )
    assert planned["long"].chunks >= 1


def test_a_paused_row_holds_its_place_and_does_nothing() -> None:
    places = scheduler(rows=1)
    submit(places, "paused", limit=0, chunks=(8,))
    submit(places, "next")
    places.admit()
    assert places.plan() == []
    assert not places.runnable
    places.allow("paused", 1)
    assert places.plan() == [RowWork("paused", 1, True)]


def test_a_committed_canvas_is_a_chunk_and_counts_towards_the_limit() -> None:
    places = scheduler()
    submit(places, "row", limit=2)
    places.admit()
    places.committed("row", 32)
    assert places.plan() == [RowWork("row", 1, True)]
    places.prefilled("row", 1)
    places.committed("row", 32)
    assert places.plan() == []


@pytest.mark.parametrize("field", ["rows", "queued", "memory_bytes", "step_tokens", "row_tokens"])
def test_a_capacity_out_of_bounds_is_refused(field: str) -> None:
    values = {"rows": 1, "queued": 0, "memory_bytes": 1, "step_tokens": 1, "row_tokens": 1}
    with pytest.raises(ValueError, match="not a capacity"):
        Capacity(**{**values, field: -1})


@given(
    footprints=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    chunks=st.lists(st.integers(1, 32), max_size=5),
    steps=st.integers(1, 5),
)
def test_everybody_finishes_within_the_rounds_that_the_rules_promise(
    footprints: list[int], chunks: list[int], steps: int
) -> None:
    """A stream of small requests never ends; those submitted first all finish all the same."""
    places = scheduler(rows=3, queued=len(footprints) + 1, memory=100, step=32, row=32)
    left: dict[str, int] = {}
    for number, footprint in enumerate(footprints):
        submit(places, f"job-{number}", footprint=footprint, chunks=tuple(chunks))
        left[f"job-{number}"] = steps
    wanted, small = set(left), 0
    one_life = len(chunks) + steps
    for _ in range((len(footprints) + 1) * (limits.MAX_OVERTAKES + 2) * one_life):
        if not wanted & left.keys():
            return
        if places.queued <= len(footprints):
            submit(places, f"small-{small}")
            left[f"small-{small}"], small = steps, small + 1
        places.admit()
        assert places.memory_used <= 100
        assert places.rows <= 3
        for work in places.plan():
            places.prefilled(work.request_id, work.chunks)
            left[work.request_id] -= work.denoise
            if not left[work.request_id]:
                del left[work.request_id]
                places.drop(work.request_id)
    raise AssertionError(f"starved: {wanted & left.keys()}")
