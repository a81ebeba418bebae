"""What a search has found so far, and who shares it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from piecework.base.clock import Clock
from piecework.base.text import one_line
from piecework.chain.errors import ChainError
from piecework_protocol.types import Address
from piecework_protocol.wire import SignedOffer

MAX_TROUBLE_CHARACTERS: Final = 500
MAX_TROUBLES: Final = 300


@dataclass(frozen=True, slots=True)
class Found:
    """Verified offers, one per operator, and one line for each source or offer left out.

    `stale`: a newer search is under way.
    """

    offers: tuple[SignedOffer, ...]
    troubles: tuple[str, ...]
    stale: bool = False


@dataclass(slots=True)
class SourceAnswer:
    """What one source said. It may still grow after the search has ended."""

    offers: list[SignedOffer] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    answered: bool = False
    chain: ChainError | None = None

    def trouble(self, who: str, error: Exception) -> None:
        """Note why a source or an offer is left out."""
        if len(self.troubles) < MAX_TROUBLES:
            self.troubles.append(one_line(f"{who}: {error}", MAX_TROUBLE_CHARACTERS))


class SearchResult:
    """The answers of one search."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        self._answers: list[SourceAnswer] = []

    @property
    def answered(self) -> bool:
        """Whether a source has answered, if only with nothing."""
        return any(answer.answered for answer in self._answers)

    @property
    def empty(self) -> bool:
        """Whether nobody has shown an offer that can be used."""
        return not any(answer.offers for answer in self._answers)

    def add(self, answer: SourceAnswer) -> None:
        """Take in what a source said."""
        self._answers.append(answer)

    def add_late(self, task: asyncio.Task[SourceAnswer]) -> None:
        """Take in what a source said after the search had ended."""
        if not task.cancelled() and task.exception() is None:
            self.add(task.result())

    def replace(self, signed: SignedOffer) -> None:
        """Take in a newer offer of one worker."""
        self.add(SourceAnswer([signed], answered=True))

    def checked(self) -> SearchResult:
        """Return the result, if anything could be verified at all.

        Raises:
            ChainError: nothing could, because the chain does not answer.
        """
        failures = [answer.chain for answer in self._answers if answer.chain is not None]
        if failures and self.empty:
            raise failures[0]
        return self

    def found(self, *, stale: bool) -> Found:
        """Return the latest offer of each operator, in a fixed order."""
        best: dict[Address, SignedOffer] = {}
        for answer in self._answers:
            for signed in answer.offers:
                known = best.get(signed.offer.operator)
                if known is None or known.offer.sequence < signed.offer.sequence:
                    best[signed.offer.operator] = signed
        lines = [*self.troubles, *(line for answer in self._answers for line in answer.troubles)]
        return Found(tuple(best[key] for key in sorted(best)), tuple(lines), stale)


class Search:
    """The latest result for one model, and the search for a newer one that all callers share."""

    def __init__(self) -> None:
        self._result: SearchResult | None = None
        self._at = -math.inf
        self._task: asyncio.Task[None] | None = None

    def age(self, now: float) -> float:
        """Seconds since the latest search ended."""
        return now - self._at

    def refresh(
        self, gather: Callable[[], Coroutine[Any, Any, SearchResult]], clock: Clock
    ) -> asyncio.Task[None]:
        """Return the search that is under way, or start one."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(gather, clock), name="search")
            self._task.add_done_callback(self._ended)
        return self._task

    def found(self, *, stale: bool = False) -> Found:
        """Return what is known now."""
        return self._result.found(stale=stale) if self._result is not None else Found((), ())

    def replace(self, signed: SignedOffer) -> None:
        """Take in a newer offer of one worker, if anything was found before."""
        if self._result is not None:
            self._result.replace(signed)

    async def close(self) -> None:
        """End the search that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(
        self, gather: Callable[[], Coroutine[Any, Any, SearchResult]], clock: Clock
    ) -> None:
        self._result = await gather()
        self._at = clock.monotonic()  # afterwards: a search is as fresh as its end

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()
