"""Buy text from the workers of a Piecework market, and pay for it canvas by canvas.

Example:
    ```python
    from piecework.client import ClientHome, PieceworkClient

    async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        answer = await client.ask("Tell me a story.", max_tokens=256)
        print(answer.text, answer.cost)
    ```

`piecework client init` makes the home. Streaming, quotes, resuming, deposits and receipts are in
the folder `examples/`.

Every error has a text for a person and a `code` for programs, such as "insufficient_funds".
Amounts that you give are numbers of tokens, such as "1.5", or a `TokenAmount`. Amounts in events
are base units, whole numbers. `client.payment_token.format` shows them.

Names are loaded when they are first used, so importing this package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from piecework.base.amounts import Token, TokenAmount
    from piecework.base.errors import PieceworkError
    from piecework.base.settings import SettingsError
    from piecework.chain.errors import ChainError
    from piecework.client.config import ClientConfig, ClientHome
    from piecework.client.errors import (
        ClientError,
        HomeError,
        InsufficientFunds,
        JobFailed,
        JobInterrupted,
        NoWorkerFits,
        RequestRefused,
        StoreError,
        WalletError,
        WorkerUnreachable,
    )
    from piecework.client.funds import Funds
    from piecework.client.jobs.completion import Completion
    from piecework.client.jobs.events import (
        CanvasText,
        DraftText,
        FinishReason,
        JobFinished,
        JobResuming,
        JobStarted,
    )
    from piecework.client.jobs.requests import Generation, TextRequest
    from piecework.client.jobs.run import JobRun
    from piecework.client.sdk import Balance, PieceworkClient, Quote
    from piecework_protocol.conversation import Message
    from piecework_protocol.errors import ProtocolViolation, Reason, Refusal

__all__ = [
    "Balance",
    "CanvasText",
    "ChainError",
    "ClientConfig",
    "ClientError",
    "ClientHome",
    "Completion",
    "DraftText",
    "FinishReason",
    "Funds",
    "Generation",
    "HomeError",
    "InsufficientFunds",
    "JobFailed",
    "JobFinished",
    "JobInterrupted",
    "JobResuming",
    "JobRun",
    "JobStarted",
    "Message",
    "NoWorkerFits",
    "PieceworkClient",
    "PieceworkError",
    "ProtocolViolation",
    "Quote",
    "Reason",
    "Refusal",
    "RequestRefused",
    "SettingsError",
    "StoreError",
    "TextRequest",
    "Token",
    "TokenAmount",
    "WalletError",
    "WorkerUnreachable",
]

_EVENTS: Final = "piecework.client.jobs.events"
_ERRORS: Final = "piecework.client.errors"
_PLACES: Final = {
    "Completion": "piecework.client.jobs.completion",
    "Balance": "piecework.client.sdk",
    "CanvasText": _EVENTS,
    "ChainError": "piecework.chain.errors",
    "ClientConfig": "piecework.client.config",
    "ClientError": _ERRORS,
    "ClientHome": "piecework.client.config",
    "DraftText": _EVENTS,
    "FinishReason": _EVENTS,
    "Funds": "piecework.client.funds",
    "Generation": "piecework.client.jobs.requests",
    "HomeError": _ERRORS,
    "InsufficientFunds": _ERRORS,
    "JobFailed": _ERRORS,
    "JobFinished": _EVENTS,
    "JobInterrupted": _ERRORS,
    "JobResuming": _EVENTS,
    "JobRun": "piecework.client.jobs.run",
    "JobStarted": _EVENTS,
    "Message": "piecework_protocol.conversation",
    "NoWorkerFits": _ERRORS,
    "PieceworkClient": "piecework.client.sdk",
    "PieceworkError": "piecework.base.errors",
    "ProtocolViolation": "piecework_protocol.errors",
    "Quote": "piecework.client.sdk",
    "Reason": "piecework_protocol.errors",
    "Refusal": "piecework_protocol.errors",
    "RequestRefused": _ERRORS,
    "SettingsError": "piecework.base.settings",
    "StoreError": _ERRORS,
    "TextRequest": "piecework.client.jobs.requests",
    "Token": "piecework.base.amounts",
    "TokenAmount": "piecework.base.amounts",
    "WalletError": _ERRORS,
    "WorkerUnreachable": _ERRORS,
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
