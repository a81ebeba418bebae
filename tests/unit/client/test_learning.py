"""What is remembered of workers, and how long a client waits for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from piecework.client.jobs.watchdog import Watchdog
from piecework.client.journal.learning import (
    is_resting,
    learn,
    learn_length,
    learn_silence,
    usual_length,
)
from piecework.client.journal.records import AnswerLength, Experience
from piecework.client.limits import (
    EXPERIENCE_HALF_LIFE_S,
    FIRST_CANVAS_SLACK,
    LONGEST_SILENT_REST_S,
    QUEUE_PATIENCE_S,
    SILENT_REST_S,
)
from piecework.client.network.rests import Rests
from piecework_protocol.types import Address, Digest, Timestamp

WHO = Experience(Address(bytes(20)))
NOW = 1_800_000_000


def at(seconds: float) -> Timestamp:
    return Timestamp(NOW + int(seconds))


def test_a_silent_worker_rests_longer_each_time_and_a_finished_job_makes_up_for_it() -> None:
    memory, rests = WHO, []
    for _ in range(12):
        memory = learn_silence(memory, at(0))
        rests.append(next(s for s in range(0, 10**5, 10) if not is_resting(memory, at(s))))
    assert rests[0] == SILENT_REST_S
    assert rests == sorted(rests)
    assert rests[-1] == LONGEST_SILENT_REST_S
    assert not is_resting(learn(memory, at(1), success=True), at(1))


def test_silences_fade() -> None:
    memory = learn_silence(learn_silence(WHO, at(0)), at(30 * 86400))
    assert memory.silences < 1.01


def test_a_source_that_works_again_starts_over() -> None:
    rests = Rests(5, 300)
    for pause in (5, 10, 20, 40, 80, 160, 300, 300):
        rests.failed("index", 100)
        assert rests.left("index", 100) == pause
    rests.worked("index")
    assert rests.left("index", 100) == 0


def patience(canvases: int = 0) -> Watchdog:
    return Watchdog(0.0, stall_s=5, start_s=20, first_canvas_s=1.0, canvases=canvases)


def test_silence_after_acceptance_is_death() -> None:
    waiting = patience()
    assert waiting.left(0) > 20
    waiting.frame(2)
    waiting.accepted(2)
    assert waiting.left(3) == 4
    waiting.frame(6)
    assert waiting.left(7) == 4


def test_a_worker_that_only_says_that_it_lives_is_left() -> None:
    waiting = patience()
    waiting.accepted(0)
    for second in range(100):
        waiting.frame(second)
        waiting.working(second, 0, 3)
        if waiting.left(second) <= 0:
            break
    assert second == 20
    assert "no progress" in waiting.why


def test_a_drip_of_steps_does_not_hold_a_job_either() -> None:
    waiting = patience()
    waiting.accepted(0)
    for second in range(1000):
        waiting.frame(second)
        waiting.working(second, 0, second // 15)
        if waiting.left(second) <= 0:
            break
    assert second <= 20 + FIRST_CANVAS_SLACK
    assert "too slow" in waiting.why


def test_a_queue_is_waited_for_within_a_bound() -> None:
    waiting = patience()
    waiting.accepted(0)
    for second in range(1000):
        waiting.frame(second)
        waiting.queued(second)
        if waiting.left(second) <= 0:
            break
    assert QUEUE_PATIENCE_S <= second <= QUEUE_PATIENCE_S + 40
    assert "too long" in waiting.why


def test_a_pause_is_waited_for_as_announced() -> None:
    waiting = patience()
    waiting.accepted(0)
    waiting.paused(0, 50)
    for second in range(60):
        waiting.frame(second)
        assert waiting.left(second) > 0
    for second in range(60, 80):
        waiting.frame(second)
    assert waiting.left(80) <= 0


def test_after_the_first_canvas_only_silence_ends_a_stream() -> None:
    waiting = patience(canvases=1)
    waiting.accepted(0)
    waiting.frame(500)
    assert waiting.left(500) == 5


SIGNS = st.lists(
    st.tuples(
        st.sampled_from(["frame", "working", "queued", "paused"]),
        st.floats(0, 5, allow_nan=False),
        st.integers(0, 50),
    ),
    max_size=400,
)


@given(SIGNS)
def test_whatever_a_worker_says_a_first_canvas_comes_within_a_bound(
    signs: list[tuple[str, float, int]],
) -> None:
    waiting, now = patience(), 0.0
    waiting.accepted(0.0)
    for sign, after, number in signs:
        now += after
        if waiting.left(now) <= 0:
            break
        waiting.frame(now)
        if sign == "working":
            waiting.working(now, 0, number)
        elif sign == "queued":
            waiting.queued(now)
        elif sign == "paused":
            waiting.paused(now, number)
    assert now + min(0.0, waiting.left(now)) <= QUEUE_PATIENCE_S + 20 + FIRST_CANVAS_SLACK + 5


def test_an_answer_that_a_limit_cut_teaches_only_that_answers_are_longer() -> None:
    memory = AnswerLength(Digest(bytes(32)))
    memory = learn_length(memory, at(0), 32, ended=False)
    assert usual_length(memory, at(0), None) is None
    memory = learn_length(memory, at(0), 100, ended=True)
    memory = learn_length(memory, at(0), 32, ended=False)
    assert usual_length(memory, at(0), None) == 100
    memory = learn_length(memory, at(0), 200, ended=False)
    assert usual_length(memory, at(0), None) == 150


def test_lengths_that_are_long_ago_count_less() -> None:
    memory = learn_length(AnswerLength(Digest(bytes(32))), at(0), 100, ended=True)
    later = at(10 * EXPERIENCE_HALF_LIFE_S)
    memory = learn_length(memory, later, 400, ended=True)
    length = usual_length(memory, later, None)
    assert length is not None and 399 < length < 400
