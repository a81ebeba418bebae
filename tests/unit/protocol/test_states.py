"""The state machines against what clauses 3.6 and 6.2 say, written down a second time as grids."""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable
from typing import Any

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
    advance_channel,
    advance_job,
)

# Rows: the state before. Columns: the event. "-" is a pair that cannot happen.
JOB_GRID = """
           accept   start   canvas  last_canvas pay       pay_all disconnect cancel    fail
new        accepted -       -       -           -         -       -          -         -
accepted   -        running -       -           -         -       suspended  cancelled failed
running    -        -       running delivered   running   -       suspended  cancelled failed
suspended  -        running -       -           suspended -       -          cancelled failed
delivered  -        -       -       -           delivered paid    delivered  delivered -
paid       -        -       -       -           -         -       paid       paid      -
cancelled  -        -       -       -           cancelled -       cancelled  cancelled -
failed     -        -       -       -           failed    -       failed     failed    -
"""
CHANNEL_GRID = """
            authorize fund        settle      request_withdrawal withdraw close
none        pending   open        -           -                  -        -
pending     pending   open        -           -                  -        -
open        open      open        open        withdrawing        -        closed
withdrawing -         withdrawing withdrawing -                  closed   closed
closed      -         -           -           -                  -        -
"""
MACHINES: list[tuple[Any, Any, str, Any]] = [
    (JobState, JobEvent, JOB_GRID, advance_job),
    (ChannelState, ChannelEvent, CHANNEL_GRID, advance_channel),
]


def parsed(grid: str) -> dict[tuple[str, str], str]:
    """(state, event) to the state after it, by name."""
    head, *rows = [line.split() for line in grid.strip().splitlines()]
    moves: dict[tuple[str, str], str] = {}
    for state, *cells in rows:
        moves |= {(state, event): cell for event, cell in zip(head, cells, strict=True)}
    return moves


@pytest.mark.parametrize(("states", "events", "grid", "advance"), MACHINES, ids=["job", "channel"])
def test_every_state_with_every_event_moves_as_the_protocol_says_or_is_impossible(
    states: type[enum.Enum], events: type[enum.Enum], grid: str, advance: Callable[[Any, Any], Any]
) -> None:
    after = parsed(grid)
    for state, event in itertools.product(states, events):
        cell = after.pop((state.name.lower(), event.name.lower()))
        if cell == "-":
            with pytest.raises(InvariantBroken):
                advance(state, event)
        else:
            assert advance(state, event).name.lower() == cell, (state, event)
    assert not after


def test_a_job_that_ended_never_runs_again() -> None:
    assert {state.value for state in ENDED_STATES} == {"delivered", "paid", "cancelled", "failed"}
    for (before, _), after in JOB_TABLE.items():
        if before in ENDED_STATES:
            assert after in ENDED_STATES


def test_a_closed_channel_stays_closed() -> None:
    assert not [event for (state, event) in CHANNEL_TABLE if state is ChannelState.CLOSED]
