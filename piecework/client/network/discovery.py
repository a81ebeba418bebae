"""Finding workers: signed offers from indexes, or from the workers themselves through the registry.

An index is not believed. Every offer is verified here against its signature, the clock and the
registry. An index can hide workers, so several may be asked, and the registry alone is enough.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from piecework.base.clock import Clock
from piecework.chain.errors import ChainError
from piecework.chain.reading.reader import ChannelOnChain, RegisteredWorker
from piecework.client.errors import WorkerUnreachable
from piecework.client.journal.learning import is_resting
from piecework.client.journal.records import Experience
from piecework.client.limits import (
    ASK_TIMEOUT_S,
    EMPTY_GRACE_S,
    ENOUGH_WORKERS,
    MAX_DIALS,
    MAX_INDEX_OFFERS,
    MAX_REGISTRY_WORKERS,
    MAX_SEARCHES,
    OFFERS_FRESH_S,
    OFFERS_STALE_S,
    REGISTRY_FRESH_S,
    REGISTRY_PARALLEL,
    SEARCH_GRACE_S,
    STANDING_LIFETIME_S,
    STANDINGS_BY_PAGE,
)
from piecework.client.network.dialing import Background, first_answers
from piecework.client.network.indexes import IndexReader
from piecework.client.network.links import Links
from piecework.client.network.reachability import Reachability
from piecework.client.network.searches import Found, Search, SearchResult, SourceAnswer
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Refusal
from piecework_protocol.objects import ModelOffer, Offer
from piecework_protocol.offers import OfferRejected, check_standing, check_terms, offer_signer
from piecework_protocol.types import Address, Amount, ChannelId, Timestamp, address_hex
from piecework_protocol.wire import SignedOffer

_REGISTRY: Final = "registry"
_T = TypeVar("_T")


class ChainView(Protocol):
    """What a client reads from the chain; `chain.reader.ChainReader` is one."""

    @property
    def domain(self) -> Domain: ...

    async def worker(self, operator: Address) -> RegisteredWorker | None: ...

    def every_worker(self, maximum: int = ...) -> AsyncIterator[RegisteredWorker]: ...

    async def is_signer(self, operator: Address, key: Address) -> bool: ...

    async def channel(
        self, channel_id: ChannelId, *, block: int | None = None
    ) -> ChannelOnChain: ...

    async def finalized_block(self) -> int: ...

    async def pooled_balance(self, token: Address, owner: Address) -> Amount: ...

    async def token_balance(self, token: Address, owner: Address) -> Amount: ...

    async def opening_domain(self, token: Address) -> Domain | None:
        """Return the domain of authorizations to receive tokens. None: the token takes none."""
        ...


def serves(model: ModelOffer, wanted: str | None) -> bool:
    """Whether a model is the one that is wanted, by its name or digest. None wants any."""
    if wanted is None or model.name == wanted:
        return True
    return model.digest.hex() == wanted.removeprefix("0x").lower()


class Discovery:
    """The client's view of who offers what.

    Nobody waits for a source that does not answer, and nobody waits behind anybody else: searches
    for one model are shared, those for different models are not.
    """

    def __init__(
        self,
        chain: ChainView,
        indexes: IndexReader,
        links: Links,
        clock: Clock,
        reachability: Reachability,
    ) -> None:
        self._chain, self._links, self._clock = chain, links, clock
        self._reachability = reachability
        self._indexes = indexes
        self._standings: dict[Address, tuple[float, RegisteredWorker | None]] = {}
        self._searches: dict[str | None, Search] = {}
        self._asking: dict[tuple[str, str | None], asyncio.Task[SourceAnswer]] = {}
        self._registry = (-math.inf, SourceAnswer())
        self._background = Background()

    async def close(self) -> None:
        """Drop what still runs, and the HTTP connections."""
        await self._background.close()
        for search in self._searches.values():
            await search.close()
        await self._indexes.close()

    async def offers(self, model: str | None = None) -> Found:
        """Return every usable offer, or those that serve one model, by its name or digest.

        What was found a few seconds ago is returned at once, what is older while a new search is
        under way. Callers at the same time share one search.

        Raises:
            ChainError: the chain does not answer, so no offer can be verified.
        """
        search = self._searches.pop(model, None) or Search()
        self._searches[model] = search  # the longest unused stands first
        while len(self._searches) > MAX_SEARCHES:
            await self._searches.pop(next(iter(self._searches))).close()
        age = search.age(self._clock.monotonic())
        if age > OFFERS_FRESH_S:
            refresh = search.refresh(lambda: self._gather(model), self._clock)
            if age > OFFERS_STALE_S:
                await asyncio.shield(refresh)
        return search.found(stale=search.age(self._clock.monotonic()) > OFFERS_FRESH_S)

    async def newer_offers(self, model: str | None = None) -> Found:
        """Return what the search finds that is under way or starts now."""
        search = self._searches.setdefault(model, Search())
        await asyncio.shield(search.refresh(lambda: self._gather(model), self._clock))
        return search.found()

    async def fresh_offer(self, offer: Offer) -> SignedOffer:
        """Return the offer that the worker itself shows now, when its last one no longer fits.

        Raises:
            WorkerUnreachable: the worker does not answer, or another one answers.
            OfferRejected: the new offer must not be used.
        """
        link = await self._links.to(offer)
        signed = await link.get_offer()
        await self.verify(signed)
        if signed.offer.operator != offer.operator:
            raise WorkerUnreachable("another worker answers at this endpoint now")
        for search in self._searches.values():
            search.replace(signed)
        return signed

    async def offer_of(self, operator: Address) -> SignedOffer | None:
        """Return the current offer of one worker, or None if it is not registered.

        Raises:
            WorkerUnreachable: the worker does not answer at its registered endpoint.
        """
        found = await self.offers()
        known = next((s for s in found.offers if s.offer.operator == operator), None)
        if known is not None:
            return known
        worker = await self._chain.worker(operator)
        return await self._ask_worker(worker) if worker is not None else None

    async def verify(self, signed: SignedOffer) -> None:
        """Check an offer.

        Raises:
            OfferRejected: it must not be used.
        """
        offer = signed.offer
        check_terms(offer, Timestamp(int(self._clock.wall())))
        signer = offer_signer(self._chain.domain, signed)
        standing = await self._standing_of(offer.operator)
        session_key = signer != offer.operator and await self._chain.is_signer(
            offer.operator, signer
        )
        check_standing(offer, signer, standing, session_key=session_key)

    # --- searching

    async def _gather(self, model: str | None) -> SearchResult:
        """Ask every source side by side. Those that are slow add to the result later."""
        result = SearchResult()
        waiting = set()
        for index in self._indexes.urls:
            rest = self._indexes.rests(index)
            if rest:
                result.troubles.append(f"{index}: {rest}")
            else:
                waiting.add(self._shared(index, model))
        loop = asyncio.get_running_loop()
        started, registry_asked = loop.time(), False
        while True:
            passed = loop.time() - started
            if (
                not result.answered
                and not registry_asked
                and (not waiting or passed >= SEARCH_GRACE_S)
            ):
                waiting.add(self._shared(_REGISTRY, model))
                registry_asked = True
            patience = SEARCH_GRACE_S if not result.empty else EMPTY_GRACE_S
            if not waiting or (result.answered and passed >= patience):
                break
            needs_clock = result.answered or not registry_asked
            pause = max(0.0, (patience if result.answered else SEARCH_GRACE_S) - passed)
            done, waiting = await asyncio.wait(
                waiting,
                timeout=pause if needs_clock else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                result.add(task.result())
        for task in waiting:
            task.add_done_callback(result.add_late)
        return result.checked()

    def _shared(self, source: str, model: str | None) -> asyncio.Task[SourceAnswer]:
        """The question to one source. A source that is still thinking is not asked twice."""
        key = (source, model)
        task = self._asking.get(key)
        if task is None:
            work = (
                self._ask_registry(model) if source == _REGISTRY else self._ask_index(source, model)
            )
            task = self._asking[key] = asyncio.create_task(work, name=f"search {source}")
            task.add_done_callback(lambda _: self._asking.pop(key))
            self._background.keep(task)
        return task

    async def _ask_index(self, index: str, model: str | None) -> SourceAnswer:
        answer = SourceAnswer()
        try:
            candidates = await self._indexes.read(index, model)
        except (WorkerUnreachable, MalformedInput) as error:
            answer.trouble(index, error)
            return answer
        self._reachability.heard(None)
        await self._judge(candidates, answer)
        return answer

    async def _judge(self, candidates: Sequence[SignedOffer], answer: SourceAnswer) -> None:
        """Verify what an index shows."""
        gate = asyncio.Semaphore(REGISTRY_PARALLEL)

        async def judge(signed: SignedOffer) -> None:
            async with gate:
                who = f"offer of {address_hex(signed.offer.operator)}"
                if await self._attempt(self._verified(signed), who, answer):
                    answer.offers.append(signed)

        try:
            if len([c for c in candidates if not self._is_known(c)]) > STANDINGS_BY_PAGE:
                await self._read_registry()
            await _together(judge(signed) for signed in candidates)
            answer.answered = True
        except ChainError as error:
            answer.chain = error

    async def _ask_registry(self, model: str | None) -> SourceAnswer:
        """Ask the registered workers themselves, those that answered last first.

        All models share what they said in the last seconds: a caller who makes up names makes
        nobody dial.
        """
        asked_at, answer = self._registry
        if self._clock.monotonic() <= asked_at + REGISTRY_FRESH_S:
            return answer
        answer = SourceAnswer()
        try:
            workers = [w for w in await self._read_registry() if w.active]
            memories = await self._reachability.memory.run(self._reachability.memory.experience)
            now = self._now()

            def promise(worker: RegisteredWorker) -> tuple[bool, int]:
                memory = memories.get(worker.operator, Experience(worker.operator))
                return is_resting(memory, now), -memory.answered_at

            async def ask(worker: RegisteredWorker) -> bool | None:
                return await self._ask_for(worker, model, answer)

            found = await first_answers(
                sorted(workers, key=promise),
                ask,
                enough=MAX_DIALS if model is None else ENOUGH_WORKERS,
                grace_s=SEARCH_GRACE_S,
                background=self._background,
            )
            answer.answered = bool(found) or not workers
            self._registry = (self._clock.monotonic(), answer)
        except ChainError as error:
            answer.chain = error
        return answer

    async def _ask_for(
        self, worker: RegisteredWorker, model: str | None, answer: SourceAnswer
    ) -> bool | None:
        """Take in one worker's offer. True if it serves the model."""
        since, who = self._clock.monotonic(), f"worker {address_hex(worker.operator)}"
        signed = await self._attempt(self._ask_worker(worker), who, answer)
        if signed is None:
            self._reachability.silent(worker.operator, since)
            return None
        self._reachability.heard(worker.operator)
        answer.offers.append(signed)
        return True if any(serves(m, model) for m in signed.offer.models) else None

    async def _ask_worker(self, worker: RegisteredWorker) -> SignedOffer:
        """The offer at a registered endpoint: signed by the operator, and naming the certificate of
        this very connection, which is kept for the job."""
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                link = await self._links.connect(worker.endpoint, worker.operator, None)
                try:
                    signed = await link.get_offer()
                except BaseException:
                    link.retire()
                    raise
        except TimeoutError:
            raise WorkerUnreachable("the worker does not show its offer") from None
        try:
            if signed.offer.operator != worker.operator:
                raise WorkerUnreachable("another worker answers at the registered endpoint")
            if signed.offer.tls_certificate != link.certificate_digest:
                raise WorkerUnreachable("the offer names another certificate than the endpoint")
            await self.verify(signed)
        except BaseException:
            link.retire()
            raise
        if worker.endpoint in (e.address for e in signed.offer.endpoints):
            self._links.adopt(signed.offer, link)
        else:
            link.retire()
        return signed

    async def _verified(self, signed: SignedOffer) -> bool:
        await self.verify(signed)
        return True

    # --- standing

    def _is_known(self, signed: SignedOffer) -> bool:
        known = self._standings.get(signed.offer.operator)
        return known is not None and self._clock.monotonic() <= known[0] + STANDING_LIFETIME_S

    async def _read_registry(self) -> list[RegisteredWorker]:
        workers = [w async for w in self._chain.every_worker(MAX_REGISTRY_WORKERS)]
        now = self._clock.monotonic()
        self._standings.update((w.operator, (now, w)) for w in workers)
        return workers

    async def _standing_of(self, operator: Address) -> RegisteredWorker | None:
        known, now = self._standings.get(operator), self._clock.monotonic()
        if known is None or now > known[0] + STANDING_LIFETIME_S:
            if len(self._standings) >= 2 * MAX_INDEX_OFFERS:
                self._standings.clear()
            known = (now, await self._chain.worker(operator))
            self._standings[operator] = known
        return known[1]

    def _now(self) -> Timestamp:
        return Timestamp(int(self._clock.wall()))

    async def _attempt(self, work: Awaitable[_T], what: str, answer: SourceAnswer) -> _T | None:
        """The result, or None and a line that says why. One bad source does not end the search."""
        try:
            return await work
        except (
            WorkerUnreachable,
            OfferRejected,
            ProtocolViolation,
            Refusal,
            MalformedInput,
        ) as error:
            answer.trouble(what, error)
            return None


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them at once. The first failure ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
