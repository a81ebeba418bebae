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
        BudgetExceeded,
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
        ReadAnswers,
        StepOpened,
    )
    from piecework.client.jobs.reads import Decision, ReadResult
    from piecework.client.jobs.requests import Generation, OpenRequest, ReadRequest, TextRequest
    from piecework.client.jobs.run import JobRun
    from piecework.client.journal.records import Part
    from piecework.client.sdk import Balance, PieceworkClient, Quote
    from piecework_protocol.conversation import Conversation, Image, Message, Tool, ToolCall
    from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
    from piecework_protocol.kinds.read import Label, Question
    from piecework_protocol.kinds.text import Fixed, Hole, OutputSegment, SegmentKind

__all__ = [
    "Balance",
    "BudgetExceeded",
    "CanvasText",
    "ChainError",
    "ClientConfig",
    "ClientError",
    "ClientHome",
    "Completion",
    "Conversation",
    "Decision",
    "DraftText",
    "FinishReason",
    "Fixed",
    "Funds",
    "Generation",
    "Hole",
    "HomeError",
    "Image",
    "InsufficientFunds",
    "JobFailed",
    "JobFinished",
    "JobInterrupted",
    "JobResuming",
    "JobRun",
    "JobStarted",
    "Label",
    "Message",
    "NoWorkerFits",
    "OpenRequest",
    "OutputSegment",
    "Part",
    "PieceworkClient",
    "PieceworkError",
    "ProtocolViolation",
    "Question",
    "Quote",
    "ReadAnswers",
    "ReadRequest",
    "ReadResult",
    "Reason",
    "Refusal",
    "RequestRefused",
    "SegmentKind",
    "SettingsError",
    "StepOpened",
    "StoreError",
    "TextRequest",
    "Token",
    "TokenAmount",
    "Tool",
    "ToolCall",
    "WalletError",
    "WorkerUnreachable",
]

_EVENTS: Final = "piecework.client.jobs.events"
_ERRORS: Final = "piecework.client.errors"
_PLACES: Final = {
    "Balance": "piecework.client.sdk",
    "BudgetExceeded": _ERRORS,
    "CanvasText": _EVENTS,
    "ChainError": "piecework.chain.errors",
    "ClientConfig": "piecework.client.config",
    "ClientError": _ERRORS,
    "ClientHome": "piecework.client.config",
    "Completion": "piecework.client.jobs.completion",
    "Conversation": "piecework_protocol.conversation",
    "Decision": "piecework.client.jobs.reads",
    "DraftText": _EVENTS,
    "FinishReason": _EVENTS,
    "Fixed": "piecework_protocol.kinds.text",
    "Funds": "piecework.client.funds",
    "Generation": "piecework.client.jobs.requests",
    "Hole": "piecework_protocol.kinds.text",
    "Image": "piecework_protocol.conversation",
    "HomeError": _ERRORS,
    "InsufficientFunds": _ERRORS,
    "JobFailed": _ERRORS,
    "JobFinished": _EVENTS,
    "JobInterrupted": _ERRORS,
    "JobResuming": _EVENTS,
    "JobRun": "piecework.client.jobs.run",
    "JobStarted": _EVENTS,
    "Label": "piecework_protocol.kinds.read",
    "Message": "piecework_protocol.conversation",
    "NoWorkerFits": _ERRORS,
    "OpenRequest": "piecework.client.jobs.requests",
    "OutputSegment": "piecework_protocol.kinds.text",
    "Part": "piecework.client.journal.records",
    "PieceworkClient": "piecework.client.sdk",
    "PieceworkError": "piecework.base.errors",
    "ProtocolViolation": "piecework_protocol.errors",
    "Question": "piecework_protocol.kinds.read",
    "Quote": "piecework.client.sdk",
    "ReadAnswers": _EVENTS,
    "ReadRequest": "piecework.client.jobs.requests",
    "ReadResult": "piecework.client.jobs.reads",
    "Reason": "piecework_protocol.errors",
    "Refusal": "piecework_protocol.errors",
    "RequestRefused": _ERRORS,
    "SegmentKind": "piecework_protocol.kinds.text",
    "SettingsError": "piecework.base.settings",
    "StepOpened": _EVENTS,
    "StoreError": _ERRORS,
    "TextRequest": "piecework.client.jobs.requests",
    "Token": "piecework.base.amounts",
    "TokenAmount": "piecework.base.amounts",
    "Tool": "piecework_protocol.conversation",
    "ToolCall": "piecework_protocol.conversation",
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
