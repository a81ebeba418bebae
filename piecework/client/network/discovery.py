"""Finding workers: signed offers from indexes, or from the workers themselves through the registry.

Nothing an index says is believed: every offer is verified here against its signature, the clock and
the registry. An index can hide workers, which is why several may be asked, and why the registry
alone is enough.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import aiohttp

from piecework.base.jsons import loads
from piecework.chain.reader import ChannelOnChain, RegisteredWorker
from piecework.client.errors import WorkerUnreachable
from piecework.client.limits import (
    CONNECT_TIMEOUT_S,
    MAX_INDEX_BYTES,
    MAX_INDEX_OFFERS,
    MAX_OPEN_LINKS,
    MAX_REGISTRY_WORKERS,
    OFFERS_FRESH_S,
    REGISTRY_PARALLEL,
    STANDING_LIFETIME_S,
    UNARY_TIMEOUT_S,
)
from piecework.client.network.transport import WorkerLink
from piecework_protocol import wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Refusal
from piecework_protocol.objects import Offer
from piecework_protocol.offers import OfferRejected, check_standing, check_terms, offer_signer
from piecework_protocol.types import Address, Amount, ChannelId, Digest, Timestamp, address_hex
from piecework_protocol.wire import SignedOffer

Clock = Callable[[], float]
_T = TypeVar("_T")


class ChainView(Protocol):
    """What a client reads from the chain; `chain.reader.ChainReader` is one."""

    @property
    def domain(self) -> Domain: ...

    async def worker(self, operator: Address) -> RegisteredWorker | None: ...

    def every_worker(self, maximum: int = ...) -> AsyncIterator[RegisteredWorker]: ...

    async def is_signer(self, operator: Address, key: Address) -> bool: ...

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain: ...

    async def pooled_balance(self, token: Address, owner: Address) -> Amount: ...


@dataclass(frozen=True, slots=True)
class Found:
    """Verified offers, one per operator, and one line for each source or offer that was no good."""

    offers: tuple[SignedOffer, ...]
    troubles: tuple[str, ...]


class Links:
    """Open connections, one per worker endpoint and certificate; the longest unused goes first."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, Digest], WorkerLink] = {}

    async def to(self, offer: Offer) -> WorkerLink:
        """A connection to the worker of a verified offer."""
        key = (offer.endpoint, offer.tls_certificate)
        link = self._open.pop(key, None)
        if link is None:
            link = await WorkerLink.connect(*key)
            if key in self._open:  # somebody else connected meanwhile
                await link.close()
                link = self._open.pop(key)
        self._open[key] = link
        while len(self._open) > MAX_OPEN_LINKS:
            await self._open.pop(next(iter(self._open))).close()
        return link

    async def drop(self, offer: Offer) -> None:
        """Forget a connection that failed."""
        link = self._open.pop((offer.endpoint, offer.tls_certificate), None)
        if link is not None:
            await link.close()

    async def close(self) -> None:
        """Drop all."""
        while self._open:
            _, link = self._open.popitem()
            await link.close()


class Discovery:
    """The client's view of who offers what."""

    def __init__(
        self, chain: ChainView, indexes: tuple[str, ...], links: Links, clock: Clock
    ) -> None:
        self._chain, self._indexes, self._links, self._clock = chain, indexes, links, clock
        self._standing: dict[Address, tuple[float, RegisteredWorker | None]] = {}
        self._found: tuple[float, Found] | None = None
        self._http: aiohttp.ClientSession | None = None
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Drop the HTTP connections."""
        if self._http is not None:
            await self._http.close()

    async def offers(self) -> Found:
        """Every usable offer. Answers from memory for a few seconds; concurrent callers share one
        search."""
        async with self._lock:
            if self._found is None or self._clock() > self._found[0] + OFFERS_FRESH_S:
                self._found = (self._clock(), await self._search())
            return self._found[1]

    async def fresh_offer(self, offer: Offer) -> SignedOffer:
        """The offer that the worker itself shows now: for a job that its last one no longer
        fits."""
        link = await self._links.to(offer)
        signed = await link.get_offer()
        await self.verify(signed)
        if signed.offer.operator != offer.operator:
            raise WorkerUnreachable("another worker answers at this endpoint now")
        if self._found is not None:
            kept = [s for s in self._found[1].offers if s.offer.operator != offer.operator]
            self._found = (self._found[0], Found((*kept, signed), self._found[1].troubles))
        return signed

    async def offer_of(self, operator: Address) -> SignedOffer | None:
        """The current offer of one worker: from the last search, else from its registered
        endpoint."""
        found = await self.offers()
        known = next((s for s in found.offers if s.offer.operator == operator), None)
        if known is not None:
            return known
        worker = await self._chain.worker(operator)
        return await self._ask(worker) if worker is not None else None

    async def verify(self, signed: SignedOffer) -> None:
        """`OfferRejected` for an offer that must not be used."""
        offer = signed.offer
        check_terms(offer, Timestamp(int(self._clock())))
        signer = offer_signer(self._chain.domain, signed)
        standing = await self._standing_of(offer.operator)
        session_key = signer != offer.operator and await self._chain.is_signer(
            offer.operator, signer
        )
        check_standing(offer, signer, standing, session_key=session_key)

    # --- searching

    async def _search(self) -> Found:
        troubles: list[str] = []
        pages = [await self._attempt(self._page(url), url, troubles) for url in self._indexes]
        candidates = [signed for page in pages if page is not None for signed in page]
        if all(page is None for page in pages):
            candidates = await self._ask_everybody(troubles)
        best: dict[Address, SignedOffer] = {}
        gate = asyncio.Semaphore(REGISTRY_PARALLEL)

        async def judge(signed: SignedOffer) -> None:
            async with gate:
                who = address_hex(signed.offer.operator)
                good = await self._attempt(self._judged(signed), f"offer of {who}", troubles)
            if good is not None:
                known = best.get(good.offer.operator)
                if known is None or known.offer.sequence < good.offer.sequence:
                    best[good.offer.operator] = good

        await _together(judge(signed) for signed in candidates)
        return Found(tuple(best[key] for key in sorted(best)), tuple(troubles))

    async def _judged(self, signed: SignedOffer) -> SignedOffer:
        await self.verify(signed)
        return signed

    async def _page(self, index: str) -> list[SignedOffer]:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=UNARY_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._http = aiohttp.ClientSession(timeout=timeout)
        url = index.rstrip("/") + "/v1/offers"
        try:
            async with self._http.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    raise WorkerUnreachable(f"the index answers {response.status}")
                body = await _bounded(response)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise WorkerUnreachable(f"the index does not answer: {type(error).__name__}") from None
        return list(parse_page(body))

    async def _ask_everybody(self, troubles: list[str]) -> list[SignedOffer]:
        gate = asyncio.Semaphore(REGISTRY_PARALLEL)
        offers: list[SignedOffer] = []

        async def ask(worker: RegisteredWorker) -> None:
            async with gate:
                who = f"worker {address_hex(worker.operator)}"
                signed = await self._attempt(self._ask(worker), who, troubles)
            if signed is not None:
                offers.append(signed)

        workers = [w async for w in self._chain.every_worker(MAX_REGISTRY_WORKERS) if w.active]
        self._standing.update((w.operator, (self._clock(), w)) for w in workers)
        await _together(ask(worker) for worker in workers)
        return offers

    async def _ask(self, worker: RegisteredWorker) -> SignedOffer:
        """The offer at a registered endpoint. Whoever answers there must show the operator's signed
        offer, which names the certificate of this very connection."""
        link = await WorkerLink.connect(worker.endpoint, None)
        try:
            signed = await link.get_offer()
        finally:
            await link.close()
        if signed.offer.operator != worker.operator:
            raise WorkerUnreachable("another worker answers at the registered endpoint")
        if signed.offer.tls_certificate != link.certificate_digest:
            raise WorkerUnreachable("the offer names another certificate than the endpoint shows")
        await self.verify(signed)
        return signed

    async def _standing_of(self, operator: Address) -> RegisteredWorker | None:
        known = self._standing.get(operator)
        if known is None or self._clock() > known[0] + STANDING_LIFETIME_S:
            if len(self._standing) >= MAX_INDEX_OFFERS:
                self._standing.clear()
            known = (self._clock(), await self._chain.worker(operator))
            self._standing[operator] = known
        return known[1]

    async def _attempt(self, work: Awaitable[_T], what: str, troubles: list[str]) -> _T | None:
        """One source or offer that is no good is a line of explanation, not the end of the
        search."""
        try:
            return await work
        except (
            WorkerUnreachable,
            OfferRejected,
            ProtocolViolation,
            Refusal,
            MalformedInput,
        ) as error:
            troubles.append(f"{what}: {error}")
            return None


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them at once; the first failure ends the others and is raised as itself, not as a
    group."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def parse_page(body: bytes) -> Iterable[SignedOffer]:
    """The offers in an index's answer. What does not parse is left out: an index is a hint, not a
    witness."""
    try:
        page: Any = loads(body)
        entries = page["offers"]
    except (ValueError, TypeError, KeyError):
        raise MalformedInput("the index does not answer with a list of offers") from None
    if not isinstance(entries, list):
        raise MalformedInput("the index does not answer with a list of offers")
    for entry in entries[:MAX_INDEX_OFFERS]:
        try:
            yield wire.decode_offer(base64.b64decode(entry["signed_offer"], validate=True))
        except (MalformedInput, KeyError, TypeError, binascii.Error, ValueError):
            continue


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for chunk in response.content.iter_chunked(64 * 1024):
        size += len(chunk)
        if size > MAX_INDEX_BYTES:
            raise WorkerUnreachable(f"the index answers with more than {MAX_INDEX_BYTES} bytes")
        parts.append(chunk)
    return b"".join(parts)
