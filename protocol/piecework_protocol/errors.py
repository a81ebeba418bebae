"""Errors, sorted by who is to blame.

* `ProtocolViolation`: the peer broke a numbered clause of docs/protocol.md.
* `Refusal`: the request is well understood and declined, with a typed reason and whether to try
  again.
* `InvariantBroken`: we are wrong; stop rather than go on.

What the world does to us (network, disk, chain) belongs to the shells, which have their own errors.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from piecework.base.errors import PieceworkError

__all__ = [
    "GrpcStatus",
    "InvariantBroken",
    "MalformedInput",
    "PieceworkError",
    "ProtocolViolation",
    "Reason",
    "Refusal",
]


class ProtocolViolation(PieceworkError):
    """The peer broke a clause. `clause` is its number in docs/protocol.md, such as "4.3"."""

    def __init__(self, clause: str, message: str) -> None:
        super().__init__(f"clause {clause}: {message}")
        self.clause = clause
        self.message = message


class MalformedInput(PieceworkError):
    """Bytes from outside that do not parse into a value of the protocol; never carries the
    content."""


class InvariantBroken(PieceworkError):
    """A promise of our own code does not hold. Unlike `assert`, this survives `python -O`."""


def invariant(condition: bool, message: str) -> None:
    """Stop when a promise of our own is broken."""
    if not condition:
        raise InvariantBroken(message)


class GrpcStatus(enum.Enum):
    """The canonical gRPC status names that a refusal may map to; the shells translate them."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNAVAILABLE = "UNAVAILABLE"
    ABORTED = "ABORTED"
    INTERNAL = "INTERNAL"


class Reason(enum.Enum):
    """Why a worker declines or ends a job. The name travels in `google.rpc.ErrorInfo.reason`."""

    MALFORMED = ("MALFORMED", GrpcStatus.INVALID_ARGUMENT, False)
    OVERSIZED = ("OVERSIZED", GrpcStatus.RESOURCE_EXHAUSTED, False)
    BAD_SIGNATURE = ("BAD_SIGNATURE", GrpcStatus.PERMISSION_DENIED, False)
    WRONG_CHAIN = ("WRONG_CHAIN", GrpcStatus.PERMISSION_DENIED, False)
    WRONG_WORKER = ("WRONG_WORKER", GrpcStatus.PERMISSION_DENIED, False)
    UNKNOWN_OFFER = ("UNKNOWN_OFFER", GrpcStatus.FAILED_PRECONDITION, True)
    UNKNOWN_MODEL = ("UNKNOWN_MODEL", GrpcStatus.NOT_FOUND, False)
    EXPIRED = ("EXPIRED", GrpcStatus.DEADLINE_EXCEEDED, False)
    BAD_PARAMETERS = ("BAD_PARAMETERS", GrpcStatus.INVALID_ARGUMENT, False)
    WRONG_SERVICE = ("WRONG_SERVICE", GrpcStatus.FAILED_PRECONDITION, False)
    PROMPT_TOO_LONG = ("PROMPT_TOO_LONG", GrpcStatus.INVALID_ARGUMENT, False)
    PROMPT_MISMATCH = ("PROMPT_MISMATCH", GrpcStatus.INVALID_ARGUMENT, False)
    CANNOT_OPEN_PROMPT = ("CANNOT_OPEN_PROMPT", GrpcStatus.INVALID_ARGUMENT, True)
    PRICE_TOO_LOW = ("PRICE_TOO_LOW", GrpcStatus.FAILED_PRECONDITION, False)
    TOKEN_NOT_ACCEPTED = ("TOKEN_NOT_ACCEPTED", GrpcStatus.FAILED_PRECONDITION, False)
    CHANNEL_UNKNOWN = ("CHANNEL_UNKNOWN", GrpcStatus.FAILED_PRECONDITION, False)
    CHANNEL_CLOSED = ("CHANNEL_CLOSED", GrpcStatus.FAILED_PRECONDITION, False)
    CHANNEL_WITHDRAWING = ("CHANNEL_WITHDRAWING", GrpcStatus.FAILED_PRECONDITION, False)
    WITHDRAWAL_DELAY_TOO_SHORT = (
        "WITHDRAWAL_DELAY_TOO_SHORT",
        GrpcStatus.FAILED_PRECONDITION,
        False,
    )
    UNDERFUNDED = ("UNDERFUNDED", GrpcStatus.FAILED_PRECONDITION, False)
    UNPAID_RECEIPTS = ("UNPAID_RECEIPTS", GrpcStatus.FAILED_PRECONDITION, False)
    JOB_CONFLICT = ("JOB_CONFLICT", GrpcStatus.ALREADY_EXISTS, False)
    JOB_BUSY = ("JOB_BUSY", GrpcStatus.ABORTED, True)
    JOB_ENDED = ("JOB_ENDED", GrpcStatus.FAILED_PRECONDITION, False)
    BUSY = ("BUSY", GrpcStatus.RESOURCE_EXHAUSTED, True)
    RATE_LIMITED = ("RATE_LIMITED", GrpcStatus.RESOURCE_EXHAUSTED, True)
    DRAINING = ("DRAINING", GrpcStatus.UNAVAILABLE, True)
    CHAIN_UNAVAILABLE = ("CHAIN_UNAVAILABLE", GrpcStatus.UNAVAILABLE, True)
    ENGINE_UNAVAILABLE = ("ENGINE_UNAVAILABLE", GrpcStatus.UNAVAILABLE, True)
    ENGINE_FAILED = ("ENGINE_FAILED", GrpcStatus.INTERNAL, True)
    BROKEN_CLAUSE = ("BROKEN_CLAUSE", GrpcStatus.INVALID_ARGUMENT, False)
    INTERNAL = ("INTERNAL", GrpcStatus.INTERNAL, True)

    def __init__(self, label: str, status: GrpcStatus, retryable: bool) -> None:
        self.label = label
        self.status = status
        self.retryable = retryable
        """Whether the same job may succeed later, or at another worker, unchanged."""


class Refusal(PieceworkError):
    """A request that is declined. No money moved and nothing was run on its account.

    `code` is the reason in snake_case, such as "prompt_too_long".
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{reason.label}: {message}")
        self.reason = reason
        self.code = reason.name.lower()
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata: Final = dict(metadata or {})
