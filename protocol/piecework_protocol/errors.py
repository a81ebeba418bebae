"""Errors of the protocol, sorted by who is to blame.

* `ProtocolViolation`: the peer broke a numbered clause of docs/protocol.md.
* `MalformedInput`: the peer sent bytes that are not a value of the protocol.
* `EvidenceRefused`: an evidence file does not prove what it says.
* `Refusal`: the request is understood and declined, with a typed reason.
* `InvariantBroken`: our own code is wrong. Stop, and do not go on.

The shells have their own errors for what network, disk and chain do to us.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from piecework.base.errors import PieceworkError


class ProtocolViolation(PieceworkError):
    """The peer broke a clause. `clause` is its number in docs/protocol.md, such as "4.3"."""

    def __init__(self, clause: str, message: str) -> None:
        super().__init__(f"clause {clause}: {message}")
        self.clause = clause
        self.message = message


class MalformedInput(PieceworkError):
    """Bytes from outside do not parse into a value of the protocol. The text names the defect.

    It never holds the content.
    """


class EvidenceRefused(PieceworkError):
    """An evidence file does not prove what it says. `member` is what does not hold in it.

    It is a path such as "receipts[2].signature".
    """

    def __init__(self, member: str, message: str) -> None:
        super().__init__(f"{member}: {message}")
        self.member = member
        self.message = message


class InvariantBroken(PieceworkError):
    """A promise of our own code does not hold. Unlike `assert`, this survives `python -O`."""


def invariant(condition: bool, message: str) -> None:
    """Stop when a promise of our own code is broken.

    Raises:
        InvariantBroken: `condition` does not hold.
    """
    if not condition:
        raise InvariantBroken(message)


class GrpcStatus(enum.Enum):
    """The canonical gRPC status names that a refusal may have. The shells translate them."""

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
    """Why a worker declines or ends a job. The name travels in `google.rpc.ErrorInfo.reason`.

    `retryable` says whether the same job may succeed later, or at another worker, unchanged.
    """

    MALFORMED = (GrpcStatus.INVALID_ARGUMENT, False)
    OVERSIZED = (GrpcStatus.RESOURCE_EXHAUSTED, False)
    BAD_SIGNATURE = (GrpcStatus.PERMISSION_DENIED, False)
    WRONG_CHAIN = (GrpcStatus.PERMISSION_DENIED, False)
    WRONG_WORKER = (GrpcStatus.PERMISSION_DENIED, False)
    UNKNOWN_OFFER = (GrpcStatus.FAILED_PRECONDITION, True)
    UNKNOWN_MODEL = (GrpcStatus.NOT_FOUND, False)
    EXPIRED = (GrpcStatus.DEADLINE_EXCEEDED, False)
    BAD_PARAMETERS = (GrpcStatus.INVALID_ARGUMENT, False)
    WRONG_SERVICE = (GrpcStatus.FAILED_PRECONDITION, False)
    WRONG_KIND = (GrpcStatus.FAILED_PRECONDITION, False)
    NO_IMAGES = (GrpcStatus.INVALID_ARGUMENT, False)
    PROMPT_TOO_LONG = (GrpcStatus.INVALID_ARGUMENT, False)
    PROMPT_REFUSED = (GrpcStatus.INVALID_ARGUMENT, False)
    PROMPT_MISMATCH = (GrpcStatus.INVALID_ARGUMENT, False)
    CANNOT_OPEN_PROMPT = (GrpcStatus.INVALID_ARGUMENT, True)
    NOT_OPENED = (GrpcStatus.NOT_FOUND, False)
    PRICE_TOO_LOW = (GrpcStatus.FAILED_PRECONDITION, False)
    TOKEN_NOT_ACCEPTED = (GrpcStatus.FAILED_PRECONDITION, False)
    CHANNEL_UNKNOWN = (GrpcStatus.FAILED_PRECONDITION, False)
    CHANNEL_CLOSED = (GrpcStatus.FAILED_PRECONDITION, False)
    CHANNEL_WITHDRAWING = (GrpcStatus.FAILED_PRECONDITION, False)
    WITHDRAWAL_DELAY_TOO_SHORT = (GrpcStatus.FAILED_PRECONDITION, False)
    UNDERFUNDED = (GrpcStatus.FAILED_PRECONDITION, False)
    FUND_YOURSELF = (GrpcStatus.FAILED_PRECONDITION, False)
    CREDIT_EXHAUSTED = (GrpcStatus.RESOURCE_EXHAUSTED, True)
    UNPAID_RECEIPTS = (GrpcStatus.FAILED_PRECONDITION, False)
    JOB_CONFLICT = (GrpcStatus.ALREADY_EXISTS, False)
    JOB_BUSY = (GrpcStatus.ABORTED, True)
    JOB_ENDED = (GrpcStatus.FAILED_PRECONDITION, False)
    BUSY = (GrpcStatus.RESOURCE_EXHAUSTED, True)
    RATE_LIMITED = (GrpcStatus.RESOURCE_EXHAUSTED, True)
    DRAINING = (GrpcStatus.UNAVAILABLE, True)
    PAUSED = (GrpcStatus.UNAVAILABLE, True)
    CHAIN_UNAVAILABLE = (GrpcStatus.UNAVAILABLE, True)
    ENGINE_UNAVAILABLE = (GrpcStatus.UNAVAILABLE, True)
    ENGINE_FAILED = (GrpcStatus.INTERNAL, True)
    BROKEN_CLAUSE = (GrpcStatus.INVALID_ARGUMENT, False)
    INTERNAL = (GrpcStatus.INTERNAL, True)

    def __new__(cls, status: GrpcStatus, retryable: bool) -> Reason:
        """Number the members: two reasons with one status and one answer are still two."""
        member = object.__new__(cls)
        member._value_ = len(cls.__members__)
        member.status, member.retryable = status, retryable
        return member

    status: GrpcStatus
    retryable: bool

    @classmethod
    def named(cls, name: str) -> Reason:
        """Find a reason by its name. A name that this version does not know is `INTERNAL`."""
        return cls.__members__.get(name, cls.INTERNAL)


class Refusal(PieceworkError):
    """A request is declined. No money moved, and nothing was run for it.

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
        super().__init__(f"{reason.name}: {message}")
        self.reason = reason
        self.code = reason.name.lower()
        self.message = message
        self.retry_after_s = retry_after_s
        self.metadata: Final = dict(metadata or {})
