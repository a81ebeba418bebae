"""What can go wrong for a client, sorted by who can do something about it.

Every error has a text for a person and a `code` for programs (see `PieceworkError`). Errors from
below pass through as they are, and are public names here: `Refusal` (the worker declines),
`ProtocolViolation` (it cheats), `ChainError`, `SettingsError` and those of what you give.
"""

from __future__ import annotations

from collections.abc import Sequence

from piecework.base.amounts import AmountError, TokenAmount, TokenMismatch
from piecework.base.errors import PieceworkError, SettingsError, UsageError
from piecework.base.text import one_line
from piecework.chain.errors import ChainError, EarlierCallMined
from piecework_protocol.errors import (
    EvidenceRefused,
    MalformedInput,
    ProtocolViolation,
    Reason,
    Refusal,
)
from piecework_protocol.types import JobId

__all__ = [
    "AmountError",
    "BudgetExceeded",
    "ChainError",
    "ClientError",
    "DisputeError",
    "EarlierCallMined",
    "EvidenceRefused",
    "FeeOverLimit",
    "HomeError",
    "InsufficientFunds",
    "JobFailed",
    "JobFollowed",
    "JobInterrupted",
    "MalformedInput",
    "NoWorkerFits",
    "PieceworkError",
    "ProtocolViolation",
    "Reason",
    "Refusal",
    "RequestDiffers",
    "RequestFollowed",
    "RequestRefused",
    "SettingsError",
    "StoreError",
    "TokenMismatch",
    "TooManyRequests",
    "UsageError",
    "WalletError",
    "WorkerUnreachable",
]

MAX_REASON_CHARACTERS = 300
"""A worker's own words in an error line."""
MAX_WHY_CHARACTERS = 500
"""What is said of one worker. Its model's name is the worker's own text."""


class ClientError(PieceworkError):
    """The root of the client's own errors."""


class HomeError(ClientError):
    """The client's home is missing, or cannot be used as asked.

    Raised by `PieceworkClient.open` and `client init`. The text says what differs and what to edit.
    """


class WalletError(ClientError):
    """A key file is missing or damaged, or does not open with this password.

    Raised by `PieceworkClient.open` and `client init`.
    """


class StoreError(ClientError):
    """The client's journal cannot be used, contradicts itself, or lacks a job or channel.

    Raised by everything that reads or writes the journal. Two copies of one home that were both in
    use contradict each other.
    """


class DisputeError(ClientError):
    """A dispute cannot be begun or go on: evidence, time, or another challenge stand against it.

    Raised by `piecework client dispute`.
    """


class WorkerUnreachable(ClientError):
    """A worker or an index gave no answer, or the connection to it broke. Trying again may help.

    Raised by a run before its job was accepted, and by closing a channel.
    """


class JobFollowed(ClientError):
    """Another living process of this client follows the job.

    Raised by `resume`. The lock of that process is released when it ends.

    Attributes:
        job: The job's id.
    """

    def __init__(self, job: JobId) -> None:
        super().__init__(
            f"another process of this client follows job 0x{job.hex()}. "
            "Wait until it ends, or stop that process"
        )
        self.job = job


class NoWorkerFits(ClientError):
    """Nobody can take the request. Raised by `quote`, `ask` and `run`.

    Attributes:
        why: One line for each worker that was considered.
        retry_after_s: Set if somebody is only busy. Then `code` is "workers_busy".
        unknown_model: Whether nobody serves the model at all. Then `code` is "model_not_found".
    """

    def __init__(
        self,
        message: str,
        why: Sequence[str] = (),
        *,
        retry_after_s: float | None = None,
        unknown_model: bool = False,
    ) -> None:
        self.message = message
        self.why = tuple(one_line(line, MAX_WHY_CHARACTERS) for line in why)
        super().__init__(": ".join([message, "; ".join(self.why)] if why else [message]))
        self.retry_after_s = retry_after_s
        self.unknown_model = unknown_model
        if retry_after_s is not None:
            self.code = "workers_busy"
        elif unknown_model:
            self.code = "model_not_found"


class RequestRefused(NoWorkerFits):
    """No worker that serves the model can take such a request. Sending it again does not help.

    Raised by `quote`, `ask` and `run`. `code` says what is wrong, such as "max_tokens_too_large".

    Attributes:
        param: The member of the request that is to blame, as the gateway names it.
    """

    def __init__(self, message: str, why: Sequence[str], *, code: str, param: str) -> None:
        super().__init__(message, why)
        self.code = code
        self.param = param


class FeeOverLimit(ClientError):
    """A worker asks more for sending a transaction than `max_fee` allows.

    Raised by a run and by closing a channel.

    Attributes:
        fee: What it asks.
        limit: What the settings allow.
    """

    def __init__(self, fee: TokenAmount, limit: TokenAmount, also: str = "") -> None:
        super().__init__(
            f"the worker asks {fee} for sending a transaction, and max_fee is {limit}{also}. "
            "Raise max_fee, or send the transaction yourself"
        )
        self.fee = fee
        self.limit = limit


class InsufficientFunds(ClientError):
    """There is less money than is needed. Raised by a run, a deposit and a withdrawal.

    Attributes:
        needed: What the step takes.
        available: What is there for it.
    """

    def __init__(self, needed: TokenAmount, available: TokenAmount, where: str = "") -> None:
        place = where or " are free in the escrow. Deposit more: piecework client deposit AMOUNT"
        super().__init__(f"{needed} are needed, and {available}{place}")
        self.needed = needed
        self.available = available


class BudgetExceeded(ClientError):
    """A job may cost more than what a budget has left. Raised by `ask`, `run` and `reserve_many`.

    Nothing was signed. `code` is "insufficient_quota".

    Attributes:
        needed: What the job, or all jobs of the request, may cost.
        left: What the budget has left. What running jobs may still cost is not in it.
    """

    code = "insufficient_quota"

    def __init__(self, which: str, needed: TokenAmount, left: TokenAmount) -> None:
        super().__init__(f"{needed} may be needed, and {which} has {left} left")
        self.needed = needed
        self.left = left


class RequestDiffers(ClientError):
    """An Idempotency-Key came with another body before. Raised by the gateway. Nothing started."""


class RequestFollowed(ClientError):
    """Another living process works on this Idempotency-Key. Raised by the gateway.

    Nothing started. Sending the request again later finds its answer.
    """


class TooManyRequests(ClientError):
    """More Idempotency-Keys were used within a day than are kept. Raised by the gateway.

    The request was not started, because it could not be found again.
    """


class JobInterrupted(ClientError):
    """The stream broke and the worker did not come back in time. The job can be resumed.

    Raised by `ask`, `run` and `resume`. What was delivered is paid and in the journal.

    Attributes:
        job: What to hand to `PieceworkClient.resume`.
    """

    def __init__(self, job: JobId, message: str) -> None:
        super().__init__(
            f"job 0x{job.hex()}: {message}. Resume it: piecework client run --resume 0x{job.hex()}"
        )
        self.job = job


class JobFailed(ClientError):
    """The worker ended the job before its end. Only delivered canvases were paid.

    Raised by `ask`, `run` and `resume`. `code` is the reason in snake_case, such as
    "engine_failed".

    Attributes:
        job: The job's id.
        reason: Why the worker ended it.
    """

    def __init__(self, job: JobId, reason: Reason, message: str) -> None:
        words = one_line(message, MAX_REASON_CHARACTERS)
        super().__init__(f"the worker ended job 0x{job.hex()}: {reason.name} {words}".rstrip())
        self.job = job
        self.reason = reason
        self.code = reason.name.lower()
