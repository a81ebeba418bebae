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

Here are the names that most programs need. `piecework.client.content` has messages, images, tools,
questions and templates. `requests`, `events` and `errors` have all of their kind, and `funds` moves
money.

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
    from piecework.client.config import ClientConfig, ClientHome
    from piecework.client.errors import (
        BudgetExceeded,
        InsufficientFunds,
        JobFailed,
        JobInterrupted,
        NoWorkerFits,
    )
    from piecework.client.jobs.completion import Completion
    from piecework.client.jobs.events import CanvasText, DraftText, JobFinished, JobStarted
    from piecework.client.jobs.reads import Decision, ReadResult
    from piecework.client.jobs.requests import ReadRequest, TextRequest
    from piecework.client.jobs.run import JobRun
    from piecework.client.sdk import Balance, PieceworkClient, Quote
    from piecework_protocol.errors import ProtocolViolation, Refusal

__all__ = [
    "Balance",
    "BudgetExceeded",
    "CanvasText",
    "ClientConfig",
    "ClientHome",
    "Completion",
    "Decision",
    "DraftText",
    "InsufficientFunds",
    "JobFailed",
    "JobFinished",
    "JobInterrupted",
    "JobRun",
    "JobStarted",
    "NoWorkerFits",
    "PieceworkClient",
    "PieceworkError",
    "ProtocolViolation",
    "Quote",
    "ReadRequest",
    "ReadResult",
    "Refusal",
    "TextRequest",
    "Token",
    "TokenAmount",
]

_EVENTS: Final = "piecework.client.jobs.events"
_ERRORS: Final = "piecework.client.errors"
_PLACES: Final = {
    "Balance": "piecework.client.sdk",
    "BudgetExceeded": _ERRORS,
    "CanvasText": _EVENTS,
    "ClientConfig": "piecework.client.config",
    "ClientHome": "piecework.client.config",
    "Completion": "piecework.client.jobs.completion",
    "Decision": "piecework.client.jobs.reads",
    "DraftText": _EVENTS,
    "InsufficientFunds": _ERRORS,
    "JobFailed": _ERRORS,
    "JobFinished": _EVENTS,
    "JobInterrupted": _ERRORS,
    "JobRun": "piecework.client.jobs.run",
    "JobStarted": _EVENTS,
    "NoWorkerFits": _ERRORS,
    "PieceworkClient": "piecework.client.sdk",
    "PieceworkError": "piecework.base.errors",
    "ProtocolViolation": "piecework_protocol.errors",
    "Quote": "piecework.client.sdk",
    "ReadRequest": "piecework.client.jobs.requests",
    "ReadResult": "piecework.client.jobs.reads",
    "Refusal": "piecework_protocol.errors",
    "TextRequest": "piecework.client.jobs.requests",
    "Token": "piecework.base.amounts",
    "TokenAmount": "piecework.base.amounts",
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
