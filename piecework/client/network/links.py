"""Open connections to workers, shared by every job of this client.

One dial serves all who want the same worker at the same time, and nobody waits for the dial of
another worker. A connection that failed is replaced, not closed: its other streams end in their own
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from piecework.client.limits import MAX_OPEN_LINKS
from piecework.client.network.transport import WorkerLink
from piecework_protocol.objects import Offer
from piecework_protocol.types import Digest

Connect: TypeAlias = Callable[[str, Digest | None], Awaitable[WorkerLink]]
_Key: TypeAlias = tuple[str, Digest]


class Links:
    """Connections, one per worker endpoint and certificate. The longest unused goes first."""

    def __init__(self, connect: Connect = WorkerLink.connect) -> None:
        self.connect = connect
        """Opens a connection that is not shared. `adopt` makes it one."""
        self._open: dict[_Key, WorkerLink] = {}
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
            dial = asyncio.create_task(self._dial(key), name="dial")
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
        """Forget a connection on which a fresh stream failed."""
        link = self._open.pop(_key(offer), None)
        if link is not None:
            link.retire()

    async def close(self) -> None:
        """Drop all."""
        dials = list(self._dialing.values())
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        while self._open:
            _, link = self._open.popitem()
            await link.close()

    async def _dial(self, key: _Key) -> WorkerLink:
        link = await self.connect(*key)
        if key in self._open:  # adopted meanwhile
            link.retire()
            return self._open[key]
        self._keep(key, link)
        return link

    def _dialed(self, key: _Key, dial: asyncio.Task[WorkerLink]) -> None:
        del self._dialing[key]
        if not dial.cancelled():
            dial.exception()  # retrieved: those who waited may all have left

    def _keep(self, key: _Key, link: WorkerLink) -> None:
        self._open[key] = link
        while len(self._open) > MAX_OPEN_LINKS:
            self._open.pop(next(iter(self._open))).retire()


def _key(offer: Offer) -> _Key:
    return offer.endpoint, offer.tls_certificate
