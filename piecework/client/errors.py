"""What can go wrong for a client, sorted by who can do something about it.

`protocol.errors.Refusal` (the worker declines) and `ProtocolViolation` (the worker cheats) pass
through as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from piecework.base.errors import PieceworkError
from piecework_protocol.errors import Reason
from piecework_protocol.types import Amount, JobId


class ClientError(PieceworkError):
    """The root of the client's own errors."""


class ConfigError(ClientError):
    """The configuration or the home directory is not usable; says which key and what to do."""


class WalletError(ClientError):
    """The key file is missing, damaged or closed to this password."""


class StoreError(ClientError):
    """The client's journal cannot be used, or contradicts itself."""


class WorkerUnreachable(ClientError):
    """No connection, or one that broke: the network's or the worker's fault, and worth another
    try."""


class NoWorkerFits(ClientError):
    """Nobody can take the request. `why` has one line for each worker that was considered.

    `retry_after_s` is set when somebody is only busy; `unknown_model` when nobody serves the model
    at all.
    """

    def __init__(
        self,
        message: str,
        why: Sequence[str] = (),
        *,
        retry_after_s: float | None = None,
        unknown_model: bool = False,
    ) -> None:
        super().__init__(message + "".join(f"\n  {line}" for line in why))
        self.message = message
        self.why = tuple(why)
        self.retry_after_s = retry_after_s
        self.unknown_model = unknown_model


class InsufficientFunds(ClientError):
    """There is less than is needed. Amounts are base units; `where` says what holds the rest."""

    def __init__(self, needed: Amount, available: Amount, where: str = "") -> None:
        default = (
            "{available} are free in the escrow. Deposit more: piecework client deposit AMOUNT"
        )
        have = (where or default).format(available=available)
        super().__init__(f"{needed} base units are needed and {have}")
        self.needed = needed
        self.available = available


class JobInterrupted(ClientError):
    """The stream broke and the worker did not come back in time; the job can be resumed."""

    def __init__(self, job: JobId, message: str) -> None:
        super().__init__(
            f"job 0x{job.hex()}: {message}. Resume it: piecework client run --resume 0x{job.hex()}"
        )
        self.job = job


class JobFailed(ClientError):
    """The worker ended the job before its end; only delivered canvases were paid."""

    def __init__(self, job: JobId, reason: Reason, message: str) -> None:
        super().__init__(f"the worker ended job 0x{job.hex()}: {reason.name} {message}".rstrip())
        self.job = job
        self.reason = reason
