"""Finding workers: signed offers from indexes, or from the workers themselves through the registry.

An index is not believed. Every offer is verified here against its signature, the clock and the
registry. An index can hide workers, so several may be asked, and the registry alone is enough.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from piecework.base.clock import Clock
from piecework.base.http import HttpError, HttpLimits, HttpReader
from piecework.base.jsons import loads
from piecework.base.text import one_line
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

MAX_TROUBLE_CHARACTERS: Final = 500
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


@dataclass(frozen=True, slots=True)
class Found:
    """Verified offers, one per operator, and one line for each source or offer left out."""

    offers: tuple[SignedOffer, ...]
    troubles: tuple[str, ...]


class Links:
    """Open connections, one per worker endpoint and certificate. The longest unused goes first."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, Digest], WorkerLink] = {}

    async def to(self, offer: Offer) -> WorkerLink:
        """Return a connection to the worker of a verified offer.

        Raises:
            WorkerUnreachable: the worker does not answer, or shows another certificate.
        """
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
        self._http = HttpReader(
            HttpLimits(
                total_s=UNARY_TIMEOUT_S, connect_s=CONNECT_TIMEOUT_S, max_bytes=MAX_INDEX_BYTES
            )
        )
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Drop the HTTP connections."""
        await self._http.close()

    async def offers(self) -> Found:
        """Return every usable offer.

        It answers from memory for a few seconds. Callers at the same time share one search.
        """
        async with self._lock:
            now = self._clock.monotonic()
            if self._found is None or now > self._found[0] + OFFERS_FRESH_S:
                self._found = (now, await self._search())
            return self._found[1]

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
        if self._found is not None:
            kept = [s for s in self._found[1].offers if s.offer.operator != offer.operator]
            self._found = (self._found[0], Found((*kept, signed), self._found[1].troubles))
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
        return await self._ask(worker) if worker is not None else None

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
        try:
            body = await self._http.get(index.rstrip("/") + "/v1/offers")
        except HttpError as error:
            raise WorkerUnreachable(str(error)) from None
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
        now = self._clock.monotonic()
        self._standing.update((w.operator, (now, w)) for w in workers)
        await _together(ask(worker) for worker in workers)
        return offers

    async def _ask(self, worker: RegisteredWorker) -> SignedOffer:
        """The offer at a registered endpoint: signed by the operator, and naming the certificate of
        this very connection."""
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
        known, now = self._standing.get(operator), self._clock.monotonic()
        if known is None or now > known[0] + STANDING_LIFETIME_S:
            if len(self._standing) >= MAX_INDEX_OFFERS:
                self._standing.clear()
            known = (now, await self._chain.worker(operator))
            self._standing[operator] = known
        return known[1]

    async def _attempt(self, work: Awaitable[_T], what: str, troubles: list[str]) -> _T | None:
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
            troubles.append(one_line(f"{what}: {error}", MAX_TROUBLE_CHARACTERS))
            return None


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them at once. The first failure ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def parse_page(body: bytes) -> Iterable[SignedOffer]:
    """Yield the offers in an index's answer, without those that do not parse.

    Raises:
        MalformedInput: the answer is not a list of offers.
    """
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
