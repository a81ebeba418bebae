"""A client for tests: real store on disk, real sockets, a fake chain, a clock that tests move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from piecework.client.config import ClientConfig, load_config
from piecework.client.jobs.events import (
    CanvasText,
    DraftText,
    JobEvent,
    JobFinished,
    JobResuming,
    JobStarted,
)
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.jobs.run import JobRun
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.clock import FakeClock

PAYER = LocalSigner(bytes(keccak256(b"the client")))
MONEY = 10_000_000


def open_client(
    folder: Path,
    chain: FakeChain,
    clock: FakeClock,
    *,
    payer: LocalSigner = PAYER,
    **flags: Any,
) -> PieceworkClient:
    """A client whose journal lies in `folder`; opening the same folder again is a restart."""
    config: ClientConfig = load_config(folder / "config.toml", flags, environment={})
    store = Store(folder / "client.db", chain.domain, payer.address)
    return PieceworkClient(store, chain, Wallet(payer, payer), TOKEN_INFO, config, clock=clock)


def ask(text: str = "Tell me a story.", *, drafts: bool = False, **generation: Any) -> TextRequest:
    """A request for a story."""
    model = generation.pop("model", None)
    max_price = generation.pop("max_price", None)
    best_effort = generation.pop("best_effort", False)
    return TextRequest(
        Conversation((Message("user", text),)),
        model,
        Generation(**generation),
        max_price=max_price,
        drafts=drafts,
        best_effort=best_effort,
    )


async def collect(run: JobRun) -> list[JobEvent]:
    """Every event of a run."""
    async with run:
        return [event async for event in run]


def text_of(events: list[JobEvent]) -> str:
    """The text of the finished canvases."""
    return "".join(e.text for e in events if isinstance(e, CanvasText))


def last(events: list[JobEvent]) -> JobFinished:
    """How the run ended."""
    assert isinstance(events[-1], JobFinished)
    return events[-1]


__all__ = [
    "MONEY",
    "PAYER",
    "CanvasText",
    "DraftText",
    "FakeClock",
    "JobFinished",
    "JobResuming",
    "JobStarted",
    "ask",
    "collect",
    "last",
    "open_client",
    "text_of",
]
