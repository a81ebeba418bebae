"""Open connections to workers, shared by every job of this client.

One dial serves all who want the same worker at the same time, and nobody waits for the dial of
another worker. A connection that failed is replaced, not closed: its other streams end in their own
time.

An offer may name several addresses. The worker's own come first. A relay is dialled when they
fail, or are silent for a moment. So a relay that breaks streams costs one attempt, not the job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from piecework.client.errors import WorkerUnreachable
from piecework.client.limits import MAX_OPEN_LINKS, NEXT_WAY_S, WAY_REST_S
from piecework.client.network.transport import WorkerLink
from piecework_protocol.objects import Offer
from piecework_protocol.types import Address, Digest

Connect: TypeAlias = Callable[[str, Address, Digest | None], Awaitable[WorkerLink]]
"""Dials an address of an operator, and holds it to a certificate."""
_Key: TypeAlias = tuple[Address, Digest]


class Links:
    """Connections, one per operator and certificate. The longest unused goes first."""

    def __init__(self, connect: Connect = WorkerLink.connect) -> None:
        self.connect = connect
        """Opens a connection that is not shared. `adopt` makes it one."""
        self._open: dict[_Key, WorkerLink] = {}
        self._failed: dict[tuple[Address, str], float] = {}
        """Addresses over which a stream failed, and the loop's time of it."""
        self._dialing: dict[_Key, asyncio.Task[WorkerLink]] = {}

    def has(self, offer: Offer) -> bool:
        """Whether a connection to this worker is open."""
        return _key(offer) in self._open

    async def to(self, offer: Offer) -> WorkerLink:
        """Return a connection to the worker of a verified offer.

        Raises:
            WorkerUnreachable: the worker does not answer, or shows another certificate.
        """
        key = _key(offer)
        link = self._open.pop(key, None)
        if link is not None:
            self._open[key] = link  # the longest unused stands first
            return link
        dial = self._dialing.get(key)
        if dial is None:
            dial = asyncio.create_task(self._dial(offer), name="dial")
            self._dialing[key] = dial
            dial.add_done_callback(lambda task: self._dialed(key, task))
        return await asyncio.shield(dial)

    def adopt(self, offer: Offer, link: WorkerLink) -> None:
        """Keep a connection that was opened elsewhere and shows the offer's certificate."""
        key = _key(offer)
        if key in self._open or link.certificate_digest != offer.tls_certificate:
            link.retire()
        else:
            self._keep(key, link)

    def retire(self, offer: Offer) -> None:
        """Forget a connection on which a stream failed. Others finish what they have on it."""
        link = self._open.pop(_key(offer), None)
        if link is not None:
            link.retire()
            self._failed[offer.operator, link.address] = asyncio.get_running_loop().time()
            while len(self._failed) > MAX_OPEN_LINKS:
                del self._failed[next(iter(self._failed))]

    async def close(self) -> None:
        """Drop all."""
        dials = list(self._dialing.values())
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        while self._open:
            _, link = self._open.popitem()
            await link.close()

    async def _dial(self, offer: Offer) -> WorkerLink:
        key = _key(offer)
        link = await self._first_way(offer)
        if key in self._open:  # adopted meanwhile
            link.retire()
            return self._open[key]
        self._keep(key, link)
        return link

    def _ways(self, offer: Offer) -> list[str]:
        """The addresses of an offer: direct ones first, and last those that failed lately."""
        since = asyncio.get_running_loop().time() - WAY_REST_S
        rests = {a for (o, a), at in self._failed.items() if o == offer.operator and at > since}
        addresses = [way.address for way in offer.ways]
        return sorted(addresses, key=lambda address: address in rests)

    async def _first_way(self, offer: Offer) -> WorkerLink:
        """Dial the addresses of an offer one after the other, and keep the first that answers.

        The next one is dialled when the one before has failed, or has been silent for a moment.
        """
        ways = self._ways(offer)
        dials: set[asyncio.Task[WorkerLink]] = set()
        troubles: list[str] = []
        try:
            while ways or dials:
                if ways:
                    work = self.connect(ways.pop(0), *_key(offer))
                    dials.add(asyncio.ensure_future(work))
                done, dials = await asyncio.wait(
                    dials,
                    timeout=NEXT_WAY_S if ways else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for dial in done:
                    try:
                        return dial.result()
                    except WorkerUnreachable as error:
                        troubles.append(str(error))
            raise WorkerUnreachable("; ".join(troubles) or "the worker names no address")
        finally:
            for dial in dials:
                dial.add_done_callback(_retire)
                dial.cancel()

    def _dialed(self, key: _Key, dial: asyncio.Task[WorkerLink]) -> None:
        del self._dialing[key]
        if not dial.cancelled():
            dial.exception()  # retrieved: those who waited may all have left

    def _keep(self, key: _Key, link: WorkerLink) -> None:
        self._open[key] = link
        while len(self._open) > MAX_OPEN_LINKS:
            self._open.pop(next(iter(self._open))).retire()


def _key(offer: Offer) -> _Key:
    return offer.operator, offer.tls_certificate


def _retire(dial: asyncio.Task[WorkerLink]) -> None:
    """Let go of a dial that came too late."""
    if not dial.cancelled() and dial.exception() is None:
        dial.result().retire()
