from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Mapping
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

MACHINES: list[tuple[Any, Any, Any, Any]] = [
    (JobState, JobEvent, JOB_TABLE, advance_job),
    (ChannelState, ChannelEvent, CHANNEL_TABLE, advance_channel),
]


@pytest.mark.parametrize(("states", "events", "table", "advance"), MACHINES, ids=["job", "channel"])
def test_every_state_with_every_event_moves_as_the_table_says_or_is_impossible(
    states: type[enum.Enum],
    events: type[enum.Enum],
    table: Mapping[Any, Any],
    advance: Callable[[Any, Any], Any],
) -> None:
    for pair in itertools.product(states, events):
        if pair in table:
            assert advance(*pair) is table[pair]
        else:
            with pytest.raises(InvariantBroken):
                advance(*pair)


@pytest.mark.parametrize(("states", "events", "table", "advance"), MACHINES, ids=["job", "channel"])
def test_every_state_is_reached_from_the_first(
    states: type[enum.Enum], events: type[enum.Enum], table: Mapping[Any, Any], advance: object
) -> None:
    reached = {next(iter(states))}
    for _ in states:
        reached |= {after for (before, _), after in table.items() if before in reached}
    assert reached == set(states)


def test_a_job_that_ended_never_runs_again() -> None:
    for (before, _), after in JOB_TABLE.items():
        if before in ENDED_STATES:
            assert after in ENDED_STATES


def test_a_closed_channel_stays_closed() -> None:
    assert not [event for (state, event) in CHANNEL_TABLE if state is ChannelState.CLOSED]
