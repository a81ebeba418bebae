"""The state machines of a job and of a channel, as tables.

A pair that is not in a table cannot happen. A job is moved by its events (`advance_job`). A channel
is moved by the escrow, and we see its state only when we look (`channel_path`). The diagrams in
docs/protocol.md are generated from these tables.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from piecework_protocol.errors import InvariantBroken


class JobState(enum.Enum):
    """A job at the worker (clause 3.6). Durable: the journal holds it."""

    NEW = "new"
    ACCEPTED = "accepted"
    RUNNING = "running"
    SUSPENDED = "suspended"
    STOPPING = "stopping"
    DELIVERED = "delivered"
    PAID = "paid"
    CANCELLED = "cancelled"
    FAILED = "failed"


class JobEvent(enum.Enum):
    """What moves a job."""

    ACCEPT = "accept"
    START = "start"
    CANVAS = "canvas"
    LAST_CANVAS = "last canvas"
    PAY = "pay"
    PAY_ALL = "pay all"
    DISCONNECT = "disconnect"
    CANCEL = "cancel"
    STOPPED = "stopped"
    FAIL = "fail"


J, E = JobState, JobEvent
JOB_TABLE: Mapping[tuple[JobState, JobEvent], JobState] = {
    (J.NEW, E.ACCEPT): J.ACCEPTED,
    (J.ACCEPTED, E.START): J.RUNNING,
    (J.ACCEPTED, E.CANCEL): J.STOPPING,
    (J.ACCEPTED, E.DISCONNECT): J.SUSPENDED,
    (J.ACCEPTED, E.FAIL): J.FAILED,
    (J.RUNNING, E.CANVAS): J.RUNNING,
    (J.RUNNING, E.LAST_CANVAS): J.DELIVERED,
    (J.RUNNING, E.PAY): J.RUNNING,
    (J.RUNNING, E.DISCONNECT): J.SUSPENDED,
    (J.RUNNING, E.CANCEL): J.STOPPING,
    (J.RUNNING, E.FAIL): J.FAILED,
    (J.SUSPENDED, E.START): J.RUNNING,
    (J.SUSPENDED, E.CANVAS): J.SUSPENDED,
    (J.SUSPENDED, E.LAST_CANVAS): J.DELIVERED,
    (J.SUSPENDED, E.PAY): J.SUSPENDED,
    (J.SUSPENDED, E.CANCEL): J.STOPPING,
    (J.SUSPENDED, E.FAIL): J.FAILED,
    (J.STOPPING, E.CANVAS): J.STOPPING,
    (J.STOPPING, E.LAST_CANVAS): J.DELIVERED,
    (J.STOPPING, E.PAY): J.STOPPING,
    (J.STOPPING, E.DISCONNECT): J.STOPPING,
    (J.STOPPING, E.STOPPED): J.CANCELLED,
    (J.DELIVERED, E.PAY): J.DELIVERED,
    (J.DELIVERED, E.PAY_ALL): J.PAID,
    (J.DELIVERED, E.DISCONNECT): J.DELIVERED,
    (J.DELIVERED, E.CANCEL): J.DELIVERED,
    (J.PAID, E.DISCONNECT): J.PAID,
    (J.PAID, E.CANCEL): J.PAID,
    (J.CANCELLED, E.PAY): J.CANCELLED,
    (J.CANCELLED, E.DISCONNECT): J.CANCELLED,
    (J.CANCELLED, E.CANCEL): J.CANCELLED,
    (J.FAILED, E.PAY): J.FAILED,
    (J.FAILED, E.DISCONNECT): J.FAILED,
    (J.FAILED, E.CANCEL): J.FAILED,
}
ENDED_STATES = frozenset({J.DELIVERED, J.PAID, J.CANCELLED, J.FAILED})
"""States in which no further canvas is made."""


class ChannelState(enum.Enum):
    """A channel as the escrow reports it (clause 6.2)."""

    NONE = "none"
    OPEN = "open"
    WITHDRAWING = "withdrawing"
    CLOSED = "closed"


class ChannelEvent(enum.Enum):
    """A call of the escrow that moves a channel or its money."""

    FUND = "fund"
    SETTLE = "settle"
    REQUEST_WITHDRAWAL = "request withdrawal"
    CANCEL_WITHDRAWAL = "cancel withdrawal"
    WITHDRAW_PART = "withdraw part"
    WITHDRAW = "withdraw"
    CLOSE = "close"


C, V = ChannelState, ChannelEvent
CHANNEL_TABLE: Mapping[tuple[ChannelState, ChannelEvent], ChannelState] = {
    (C.NONE, V.FUND): C.OPEN,
    (C.OPEN, V.FUND): C.OPEN,
    (C.OPEN, V.SETTLE): C.OPEN,
    (C.OPEN, V.REQUEST_WITHDRAWAL): C.WITHDRAWING,
    (C.OPEN, V.CLOSE): C.CLOSED,
    (C.WITHDRAWING, V.FUND): C.WITHDRAWING,
    (C.WITHDRAWING, V.SETTLE): C.WITHDRAWING,
    (C.WITHDRAWING, V.CANCEL_WITHDRAWAL): C.OPEN,
    (C.WITHDRAWING, V.WITHDRAW_PART): C.OPEN,
    (C.WITHDRAWING, V.WITHDRAW): C.CLOSED,
    (C.WITHDRAWING, V.CLOSE): C.CLOSED,
}


def advance_job(state: JobState, event: JobEvent) -> JobState:
    """Give the job's next state.

    Raises:
        InvariantBroken: A job in this state cannot have this event.
    """
    try:
        return JOB_TABLE[state, event]
    except KeyError:
        raise InvariantBroken(f"a job that is {state.value} cannot {event.value}") from None


def channel_path(before: ChannelState, after: ChannelState) -> tuple[ChannelEvent, ...] | None:
    """Give the shortest list of events that leads from one observed state to another.

    Between two looks at the chain any number of calls may have been mined. The list is empty when
    the state is the same. It is None when no events of the table lead there: then the chain went
    back, or it is not the chain that we knew.
    """
    paths: dict[ChannelState, tuple[ChannelEvent, ...]] = {before: ()}
    waiting = [before]
    for state in waiting:
        for (source, event), target in CHANNEL_TABLE.items():
            if source is state and target not in paths:
                paths[target] = (*paths[state], event)
                waiting.append(target)
    return paths.get(after)


def mermaid(table: Mapping[tuple[enum.Enum, enum.Enum], enum.Enum]) -> str:
    """Draw a table as a Mermaid state diagram, for docs/protocol.md."""
    lines = [f"    {a.value} --> {b.value}: {event.value}" for (a, event), b in table.items()]
    return "\n".join(["stateDiagram-v2", *lines])
