"""Reading indexes: every page of what one model's workers offer, each index at its own risk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

from piecework.base.clock import Clock
from piecework.base.http import HttpError, HttpLimits, HttpReader
from piecework.client.errors import WorkerUnreachable
from piecework.client.limits import (
    CONNECT_TIMEOUT_S,
    INDEX_PAGE_OFFERS,
    INDEX_TIMEOUT_S,
    LONGEST_SOURCE_REST_S,
    MAX_INDEX_BYTES,
    MAX_INDEX_OFFERS,
    SOURCE_REST_S,
)
from piecework.client.network.rests import Rests
from piecework_protocol.errors import MalformedInput
from piecework_protocol.index_pages import parse_page
from piecework_protocol.types import Address
from piecework_protocol.wire import SignedOffer


class IndexReader:
    """The indexes of one client. One that fails rests, longer each time."""

    def __init__(
        self,
        urls: tuple[str, ...],
        clock: Clock,
        get: Callable[[str], Awaitable[bytes]] | None = None,
    ) -> None:
        """Read the indexes at `urls`. `get` fetches an address and raises `HttpError`."""
        self.urls = urls
        self._clock = clock
        self._rests = Rests(SOURCE_REST_S, LONGEST_SOURCE_REST_S)
        self._http = HttpReader(
            HttpLimits(
                total_s=INDEX_TIMEOUT_S, connect_s=CONNECT_TIMEOUT_S, max_bytes=MAX_INDEX_BYTES
            )
        )
        self._get = get or self._http.get

    async def close(self) -> None:
        """Drop the HTTP connections."""
        await self._http.close()

    def rests(self, url: str) -> str | None:
        """Say why an index is not asked now, or None."""
        left = self._rests.left(url, self._clock.monotonic())
        return f"did not answer, and is asked again in {left:.0f} s" if left else None

    async def read(self, url: str, model: str | None) -> list[SignedOffer]:
        """Return an index's offers, not verified: all of them, or those that serve a model.

        Raises:
            WorkerUnreachable: it does not answer in time.
            MalformedInput: it answers with something else than offers.
        """
        try:
            async with asyncio.timeout(INDEX_TIMEOUT_S):
                offers = await self._pages(url, model)
        except TimeoutError:
            self._rests.failed(url, self._clock.monotonic())
            raise WorkerUnreachable(f"did not answer within {INDEX_TIMEOUT_S:g} s") from None
        except (WorkerUnreachable, MalformedInput):
            self._rests.failed(url, self._clock.monotonic())
            raise
        self._rests.worked(url)
        return offers

    async def _pages(self, url: str, model: str | None) -> list[SignedOffer]:
        """Every page up to the total that the index names. A page without news is the last."""
        found: dict[Address, SignedOffer] = {}
        seen = 0
        while seen < MAX_INDEX_OFFERS:
            query: dict[str, str | int] = {"limit": INDEX_PAGE_OFFERS}
            query |= {"model": model} if model is not None else {}
            query |= {"offset": seen} if seen else {}
            try:
                body = await self._get(f"{url.rstrip('/')}/v1/offers?{urlencode(query)}")
            except HttpError as error:
                raise WorkerUnreachable(str(error)) from None
            offers, entries, total = parse_page(body, INDEX_PAGE_OFFERS)
            known = len(found)
            for signed in offers:
                found.setdefault(signed.offer.operator, signed)
            seen += entries
            if seen >= total or len(found) == known:
                break
        return list(found.values())
