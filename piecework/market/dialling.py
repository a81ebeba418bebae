"""Dial a worker's addresses for it, so that it sees what its clients would see (clause 2.8).

An index is no scanner for hire. It dials for operators with an active stake alone, once a minute
each, public addresses alone, with nothing but a TLS handshake. What it answers is one word for each
address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from piecework.base.clock import Clock
from piecework.base.dialling import Dialler
from piecework.base.rates import Rate, RateLimiter
from piecework.chain.errors import ChainError
from piecework.market.errors import Declined
from piecework.market.limits import MAX_BUCKETS, MAX_DIALS
from piecework_protocol.dialling import DialRequest, decode_dial, dial_domain
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CLOCK_SKEW_S
from piecework_protocol.relaying import server_name
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Address

DIALS: Final = Rate.per_minute(1, 1)
"""Of one operator."""


class DialDesk:
    """Answers requests to dial. `is_bonded` says whether an operator has an active stake."""

    def __init__(
        self,
        dialler: Dialler,
        market: Domain,
        is_bonded: Callable[[Address], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        """market: the domain of its escrow."""
        self._dialler, self._is_bonded, self._clock = dialler, is_bonded, clock
        self._domain = dial_domain(market)
        self._rate = RateLimiter(DIALS, keys=MAX_BUCKETS)
        self.under_way = 0
        """Addresses that are being dialled."""

    async def answer(self, data: bytes) -> dict[str, Any]:
        """Do what a signed request asks for.

        Raises:
            Declined: it is malformed, unsigned, of a stranger, or too soon.
        """
        request = self._verified(data)
        try:
            bonded = await self._is_bonded(request.operator)
        except ChainError:
            raise Declined(
                503, "chain_unavailable", "the chain does not answer", retry_after_s=5
            ) from None
        if not bonded:
            raise Declined(403, "not_registered", "the operator has no active stake")
        if self.under_way + len(request.endpoints) > MAX_DIALS:
            raise Declined(503, "dials_busy", "too many dials at once", retry_after_s=5)
        # Last, so that nobody else can use up an operator's rate.
        wait = self._rate.take(request.operator, self._clock.monotonic())
        if wait:
            raise Declined(
                429, "rate_limited", "one dial a minute for each operator", retry_after_s=wait
            )
        self.under_way += len(request.endpoints)
        try:
            found = await asyncio.gather(
                *(self._dial(request, one.address) for one in request.endpoints)
            )
        finally:
            self.under_way -= len(request.endpoints)
        return {"dialled": found}

    def _verified(self, data: bytes) -> DialRequest:
        try:
            request, signature = decode_dial(data)
        except MalformedInput as error:
            raise Declined(400, "malformed", str(error)) from None
        if abs(request.at - self._clock.wall()) > MAX_CLOCK_SKEW_S:
            raise Declined(400, "clock_differs", "the worker's clock and the index's differ")
        if not signed_by(self._domain, request, signature, request.operator):
            raise Declined(403, "bad_signature", "the operator did not sign this for this market")
        return request

    async def _dial(self, request: DialRequest, address: str) -> dict[str, str]:
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        name = server_name(request.operator)
        found = await self._dialler.dial(host, int(port), name, request.tls_certificate)
        return {"address": address, "outcome": found.value}
