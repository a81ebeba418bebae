"""The state machines, written a second time by hand: every state with every event."""

from __future__ import annotations

import itertools

import pytest

from piecework_protocol.errors import InvariantBroken
from piecework_protocol.states import (
    CHANNEL_TABLE,
    ENDED_STATES,
    JOB_TABLE,
    ChannelEvent,
    ChannelState,
    JobEvent,
    JobState,
    advance_job,
    channel_path,
)

JOBS = """
             new       accepted   running    suspended  stopping   delivered  paid  cancelled  failed
accept       accepted  -          -          -          -          -          -     -          -
start        -         running    -          running    -          -          -     -          -
canvas       -         -          running    suspended  stopping   -          -     -          -
last canvas  -         -          delivered  delivered  delivered  -          -     -          -
pay          -         -          running    suspended  stopping   delivered  -     cancelled  failed
pay all      -         -          -          -          -          paid       -     -          -
disconnect   -         suspended  suspended  -          stopping   delivered  paid  cancelled  failed
cancel       -         stopping   stopping   stopping   -          delivered  paid  cancelled  failed
stopped      -         -          -          -          cancelled  -          -     -          -
fail         -         failed     failed     failed     -          -          -     -          -
"""  # noqa: E501
CHANNELS = """
                    none  open         withdrawing  closed
fund                open  open         withdrawing  -
settle              -     open         withdrawing  -
request withdrawal  -     withdrawing  -            -
cancel withdrawal   -     -            open         -
withdraw part       -     -            open         -
withdraw            -     -            closed       -
close               -     closed       closed       -
"""
PATHS = """
             none  open  withdrawing               closed
none         .     fund  fund, request withdrawal  fund, close
open         -     .     request withdrawal        close
withdrawing  -     cancel withdrawal  .            withdraw
closed       -     -     -                         .
"""


def cells(table: str) -> dict[tuple[str, str], str]:
    """The cells of a table by row and column; columns stand two spaces apart or more."""
    head, *rows = [
        [c.strip() for c in line.split("  ") if c.strip()]
        for line in table.strip("\n").splitlines()
    ]
    return {
        (row[0], column): cell for row in rows for column, cell in zip(head, row[1:], strict=True)
    }


def test_a_job_moves_as_written_here_or_the_pair_is_impossible() -> None:
    expected = cells(JOBS)
    assert len(expected) == len(JobState) * len(JobEvent)
    for state, event in itertools.product(JobState, JobEvent):
        after = expected[event.value, state.value]
        if after == "-":
            with pytest.raises(InvariantBroken, match=f"{state.value} cannot {event.value}"):
                advance_job(state, event)
        else:
            assert advance_job(state, event).value == after


def test_a_channel_moves_as_written_here_and_not_otherwise() -> None:
    expected = cells(CHANNELS)
    assert len(expected) == len(ChannelState) * len(ChannelEvent)
    for state, event in itertools.product(ChannelState, ChannelEvent):
        after = CHANNEL_TABLE.get((state, event))
        assert (after.value if after else "-") == expected[event.value, state.value]


def test_between_two_looks_a_channel_took_the_path_written_here_or_the_chain_went_back() -> None:
    expected = cells(PATHS)
    assert len(expected) == len(ChannelState) ** 2
    for before, after in itertools.product(ChannelState, repeat=2):
        path = channel_path(before, after)
        text = "-" if path is None else ", ".join(e.value for e in path) or "."
        assert text == expected[before.value, after.value]


def test_a_job_that_ended_never_runs_again() -> None:
    for (before, _), after in JOB_TABLE.items():
        if before in ENDED_STATES:
            assert after in ENDED_STATES


def test_every_state_of_a_job_is_reached_from_the_first() -> None:
    reached = {JobState.NEW}
    for _ in JobState:
        reached |= {after for (before, _), after in JOB_TABLE.items() if before in reached}
    assert reached == set(JobState)
