"""Sequences, memory, queue and fairness, with requests that are nothing but numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_model import limits
from piecework_model.engine.scheduler import Capacity, Scheduler, SequenceWork
from piecework_model.errors import DuplicateRequestError, MemoryOverflowError, QueueFullError


def scheduler(
    *,
    sequences: int = 4,
    queued: int = 16,
    memory: int = 100,
    step: int = 64,
    share: int = 32,
    short_sequences: int = 1,
    short_bytes: int = 0,
) -> Scheduler:
    return Scheduler(Capacity(sequences, queued, memory, step, share, short_sequences, short_bytes))


def submit(
    queue: Scheduler,
    name: str,
    *,
    footprint: int = 1,
    chunks: tuple[int, ...] = (),
    limit: int = 99,
    short: bool = False,
) -> None:
    queue.submit(
        name, footprint=footprint, chunks=chunks, canvas=0, canvas_limit=limit, short=short
    )


def test_requests_become_sequences_in_the_order_of_their_arrival() -> None:
    queue = scheduler(sequences=2)
    for name in "abc":
        submit(queue, name)
    assert queue.admit() == ["a", "b"]
    assert (queue.sequences, queue.queued) == (2, 1)
    queue.drop("a")
    assert queue.admit() == ["c"]


def test_a_request_beyond_all_memory_is_refused_with_both_figures() -> None:
    with pytest.raises(MemoryOverflowError) as caught:
        submit(scheduler(memory=100), "giant", footprint=101)
    assert (caught.value.needed, caught.value.available) == (101, 100)


def test_a_request_that_does_not_fit_now_waits_until_memory_is_free() -> None:
    queue = scheduler(memory=100)
    submit(queue, "first", footprint=60)
    submit(queue, "second", footprint=50)
    assert queue.admit() == ["first"]
    assert queue.memory_used == 60
    queue.drop("first")
    assert queue.admit() == ["second"]


def test_a_full_queue_refuses_and_a_free_sequence_does_not() -> None:
    queue = scheduler(sequences=1, queued=0)
    submit(queue, "sequence")
    queue.admit()
    with pytest.raises(QueueFullError):
        submit(queue, "late")
    queue.drop("sequence")
    submit(queue, "next")
    assert queue.admit() == ["next"]


def test_an_id_is_taken_once_at_a_time() -> None:
    queue = scheduler(sequences=1)
    submit(queue, "sequence")
    submit(queue, "waiting")
    queue.admit()
    for name in ("sequence", "waiting"):
        with pytest.raises(DuplicateRequestError):
            submit(queue, name)


def test_small_requests_pass_a_large_one_only_so_often() -> None:
    queue = scheduler(sequences=3, queued=100, memory=100)
    submit(queue, "holder", footprint=50)
    submit(queue, "large", footprint=100)
    passed = []
    for number in range(3 * limits.MAX_OVERTAKES):
        submit(queue, f"small-{number}", footprint=10)
        for name in queue.admit():
            passed.append(name)
            if name != "holder":
                queue.drop(name)
    assert len(passed) == 1 + limits.MAX_OVERTAKES
    queue.drop("holder")
    assert queue.admit() == ["large"]


def test_a_long_prompt_is_prefilled_in_chunks_beside_sequences_that_denoise() -> None:
    queue = scheduler(step=32, share=32)
    submit(queue, "steady")
    submit(queue, "long", chunks=(32, 32, 8))
    queue.admit()
    assert queue.plan() == [SequenceWork("steady", 0, True), SequenceWork("long", 1, False)]
    queue.prefilled("long", 1)
    assert queue.plan() == [SequenceWork("steady", 0, True), SequenceWork("long", 1, False)]
    queue.prefilled("long", 1)
    assert queue.plan() == [SequenceWork("steady", 0, True), SequenceWork("long", 1, True)]


def test_the_oldest_sequence_prefills_even_what_is_beyond_the_steps_budget() -> None:
    queue = scheduler(step=16, share=16)
    submit(queue, "first", chunks=(32,))
    submit(queue, "second", chunks=(8,))
    queue.admit()
    assert queue.plan() == [SequenceWork("first", 1, True)]
    queue.prefilled("first", 1)
    assert queue.plan() == [SequenceWork("first", 0, True), SequenceWork("second", 1, True)]


def test_a_short_prompt_does_not_wait_behind_long_ones() -> None:
    queue = scheduler(sequences=5, step=128, share=32)
    for number in range(4):
        submit(queue, f"long-{number}", chunks=(32,) * 512)
    submit(queue, "short", chunks=(8,))
    queue.admit()
    first = queue.plan()
    assert SequenceWork("short", 1, True) in first
    assert SequenceWork("long-0", 1, False) in first
    assert sum(work.chunks for work in first) == 4


def test_sequences_that_commit_together_all_denoise_in_the_very_next_step() -> None:
    queue = scheduler(sequences=32, queued=32, step=64, share=32)
    submit(queue, "long", chunks=(32,) * 100)
    for number in range(31):
        submit(queue, f"sequence-{number}")
    queue.admit()
    for work in queue.plan():
        queue.prefilled(work.request_id, work.chunks)
    for number in range(31):
        queue.committed(f"sequence-{number}", 32)
    planned = {item.request_id: item for item in queue.plan()}
    assert all(
        planned[f"sequence-{number}"] == SequenceWork(f"sequence-{number}", 1, True)
        for number in range(31)
    )
    assert planned["long"].chunks >= 1


def test_a_paused_sequence_holds_its_place_and_does_nothing() -> None:
    queue = scheduler(sequences=1)
    submit(queue, "paused", limit=0, chunks=(8,))
    submit(queue, "next")
    queue.admit()
    assert queue.plan() == []
    assert not queue.runnable
    queue.allow("paused", 1)
    assert queue.plan() == [SequenceWork("paused", 1, True)]


def test_a_committed_canvas_is_a_chunk_and_counts_towards_the_limit() -> None:
    queue = scheduler()
    submit(queue, "sequence", limit=2)
    queue.admit()
    queue.committed("sequence", 32)
    assert queue.plan() == [SequenceWork("sequence", 1, True)]
    queue.prefilled("sequence", 1)
    queue.committed("sequence", 32)
    assert queue.plan() == []


@pytest.mark.parametrize(
    "field",
    [
        "sequences",
        "queued",
        "memory_bytes",
        "step_tokens",
        "sequence_step_tokens",
        "short_sequences",
        "short_bytes",
    ],
)
def test_a_capacity_out_of_bounds_is_refused(field: str) -> None:
    values = {
        "sequences": 1,
        "queued": 0,
        "memory_bytes": 1,
        "step_tokens": 1,
        "sequence_step_tokens": 1,
    }
    with pytest.raises(ValueError, match="not a capacity"):
        Capacity(**{**values, field: -1})


def test_a_short_request_starts_at_once_although_long_ones_hold_and_await_all_sequences() -> None:
    queue = scheduler(sequences=2, queued=3)
    for name in "abcde":
        submit(queue, name, chunks=(32, 32, 32))
        queue.admit()
    assert (queue.sequences, queue.queued) == (2, 3)
    with pytest.raises(QueueFullError):
        submit(queue, "long")
    submit(queue, "short", chunks=(32,), short=True)
    assert queue.admit() == ["short"]
    assert queue.plan() == [
        SequenceWork("a", 1, denoise=False),  # the oldest always prefills
        SequenceWork("short", 1, denoise=True),
    ]


def test_short_requests_do_not_delay_a_text_whose_prompt_is_shorter() -> None:
    queue = scheduler(queued=33, short_sequences=32, step=128)
    for number in range(32):
        submit(queue, f"short-{number}", chunks=(32,) * 8, short=True)
    submit(queue, "text", chunks=(32,))
    queue.admit()
    assert SequenceWork("text", 1, denoise=True) in queue.plan()


def test_a_short_request_waits_for_short_ones_alone() -> None:
    queue = scheduler(sequences=4, short_sequences=1)
    for name in ("first", "second"):
        submit(queue, name, short=True)
    submit(queue, "long")
    assert queue.admit() == ["first", "long"]
    queue.drop("first")
    assert queue.admit() == ["second"]


def test_long_requests_leave_memory_for_short_ones() -> None:
    queue = scheduler(memory=100, short_bytes=10)
    submit(queue, "a", footprint=60)
    submit(queue, "b", footprint=35)
    submit(queue, "short", footprint=10, short=True)
    assert queue.admit() == ["a", "short"]
    queue.drop("a")
    assert queue.admit() == ["b"]


def test_a_long_request_that_fits_nowhere_else_takes_the_memory_of_short_ones() -> None:
    queue = scheduler(memory=100, short_bytes=10)
    submit(queue, "giant", footprint=100)
    submit(queue, "short", short=True)
    assert queue.admit() == ["giant"]
    queue.drop("giant")
    assert queue.admit() == ["short"]


def test_short_requests_pass_one_that_waits_for_long_ones_as_often_as_they_come() -> None:
    queue = scheduler(memory=100, short_bytes=10)
    submit(queue, "a", footprint=60)
    submit(queue, "b", footprint=40)
    for number in range(limits.MAX_OVERTAKES + 2):
        submit(queue, f"short-{number}", footprint=9, short=True)
        queue.admit()
        assert queue.drop(f"short-{number}")
    submit(queue, "c", footprint=1)  # it may still pass: no long one has
    assert queue.admit() == ["c"]


def test_short_requests_do_not_pass_a_long_one_that_waits_for_them() -> None:
    queue = scheduler(memory=100, short_sequences=2)
    submit(queue, "first", footprint=10, short=True)
    submit(queue, "long", footprint=95)
    submit(queue, "second", footprint=1, short=True)
    assert queue.admit() == ["first"]
    queue.drop("first")
    assert queue.admit() == ["long", "second"]


@given(
    footprints=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    steps=st.integers(1, 5),
    rate=st.integers(1, 3),
)
def test_a_stream_of_short_requests_starves_no_long_one_and_waits_for_none(
    footprints: list[int], steps: int, rate: int
) -> None:
    queue = scheduler(sequences=2, queued=99, short_sequences=4, short_bytes=10)
    left: dict[str, int] = {}
    for number, footprint in enumerate(footprints):
        submit(queue, f"long-{number}", footprint=min(footprint, 90))
        left[f"long-{number}"] = 4 * steps
    for round_ in range(4 * steps * (len(footprints) + 1) * (limits.MAX_OVERTAKES + 1)):
        if not left:
            return
        came = [f"short-{round_}-{number}" for number in range(rate)]
        for name in came:
            submit(queue, name, footprint=2, short=True)
        assert set(came) <= set(queue.admit())
        for work in queue.plan():
            queue.prefilled(work.request_id, work.chunks)
            if work.request_id in left:
                left[work.request_id] -= 1
            if not left.get(work.request_id):
                left.pop(work.request_id, None)
                queue.drop(work.request_id)
    raise AssertionError(f"starved: {left}")


@given(
    footprints=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    chunks=st.lists(st.integers(1, 32), max_size=5),
    steps=st.integers(1, 5),
)
def test_everybody_finishes_within_the_rounds_that_the_rules_promise(
    footprints: list[int], chunks: list[int], steps: int
) -> None:
    """A stream of small requests never ends; those submitted first all finish all the same."""
    queue = scheduler(sequences=3, queued=len(footprints) + 1, memory=100, step=32, share=32)
    left: dict[str, int] = {}
    for number, footprint in enumerate(footprints):
        submit(queue, f"job-{number}", footprint=footprint, chunks=tuple(chunks))
        left[f"job-{number}"] = steps
    wanted, small = set(left), 0
    one_life = len(chunks) + steps
    for _ in range((len(footprints) + 1) * (limits.MAX_OVERTAKES + 2) * one_life):
        if not wanted & left.keys():
            return
        if queue.queued <= len(footprints):
            submit(queue, f"small-{small}")
            left[f"small-{small}"], small = steps, small + 1
        queue.admit()
        assert queue.memory_used <= 100
        assert queue.sequences <= 3
        for work in queue.plan():
            queue.prefilled(work.request_id, work.chunks)
            left[work.request_id] -= work.denoise
            if not left[work.request_id]:
                del left[work.request_id]
                queue.drop(work.request_id)
    raise AssertionError(f"starved: {wanted & left.keys()}")
