"""Dial a worker's addresses for it, so that it sees what its clients would see (clause 2.8).

Indexes and relays do this alike. Neither is a scanner for hire. They dial for operators with an
active stake alone, once a minute each, public addresses alone, with nothing but a TLS handshake.
The answer is one word for each address. What is refused for the load here dials nobody, and costs
the operator no minute.

A request names nobody who is to dial, and a worker sends the same one to all its indexes. So any of
them can hand it on. That costs the worker nothing: who has answered it gives the same answer again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from piecework.base.clock import Clock
from piecework.base.dialling import Dialler, LookupsBusy
from piecework.base.errors import PieceworkError
from piecework.base.rates import Rate, RateLimiter
from piecework_protocol.dialling import DialRequest, decode_dial, dial_domain
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CLOCK_SKEW_S
from piecework_protocol.relaying import server_name
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Address, Bytes32

T = TypeVar("T")
DIALS: Final = Rate.per_minute(1, 1)
"""Of one operator."""
MAX_DIALS: Final = 32
"""Addresses dialled at once. Each takes four seconds at most."""
MAX_OPERATORS: Final = 50_000
"""Whose rates are kept. The longest unused is forgotten, which only forgives it."""
BUSY_S: Final = 5.0
REPEATED_S: Final = 2.0 * MAX_CLOCK_SKEW_S
"""For so long the signature of a request counts, from the earliest clock to the latest."""
_Dialling = asyncio.Task[list[dict[str, str]]]


class DialRefused(PieceworkError):
    """A request to dial that is not served.

    code: for programs: "malformed", "clock_differs", "bad_signature", "not_registered",
    "chain_unavailable", "dials_busy" or "rate_limited". retry_after_s: when it may be asked again.
    """

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after_s = code, message, retry_after_s

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_s is not None:
            error["retry_after_s"] = round(self.retry_after_s, 3)
        return {"error": error}


def chain_unavailable() -> DialRefused:
    """Nobody says who has a stake."""
    return DialRefused("chain_unavailable", "the chain does not answer", retry_after_s=BUSY_S)


class DialBackServer:
    """Answers requests to dial."""

    def __init__(
        self,
        dialler: Dialler,
        market: Domain,
        is_bonded: Callable[[Address], Awaitable[bool]],
        clock: Clock,
    ) -> None:
        """market: the domain of its escrow.

        is_bonded: says whether an operator has an active stake, or raises `DialRefused`.
        """
        self._dialler, self._is_bonded, self._clock = dialler, is_bonded, clock
        self._domain = dial_domain(market)
        self._rate = RateLimiter(DIALS, keys=MAX_OPERATORS)
        self.under_way = 0
        """Addresses that are being dialled."""
        self._answered: dict[Bytes32, tuple[float, _Dialling]] = {}
        """What was dialled for, while its signature counts. The time is monotonic."""

    async def answer(self, data: bytes) -> dict[str, Any]:
        """Do what a signed request asks for.

        Raises:
            DialRefused: it is malformed, unsigned, of a stranger, or too soon.
        """
        request = self._verified(data)
        digest, moment = self._domain.digest(request), self._clock.monotonic()
        before = self._before(digest, moment)
        if before is None:
            before = await self._begin(request, digest)
        try:
            return {"dialled": await asyncio.shield(before)}
        except LookupsBusy as error:
            raise DialRefused("dials_busy", str(error), retry_after_s=BUSY_S) from None

    def _before(self, digest: Bytes32, moment: float) -> _Dialling | None:
        """Return the dials of a request that came before. Forget those that count no more."""
        over = [known for known, (at, _) in self._answered.items() if moment - at > REPEATED_S]
        for known in over:
            del self._answered[known]
        found = self._answered.get(digest)
        return None if found is None else found[1]

    async def _begin(self, request: DialRequest, digest: Bytes32) -> _Dialling:
        if not await self._is_bonded(request.operator):
            raise DialRefused("not_registered", "the operator has no active stake")
        moment = self._clock.monotonic()
        before = self._before(digest, moment)
        if before is not None:  # while the chain was asked
            return before
        if self.under_way + len(request.endpoints) > MAX_DIALS:
            raise DialRefused("dials_busy", "too many dials at once", retry_after_s=BUSY_S)
        # Last, so that nobody else can use up an operator's rate.
        wait = self._rate.take(request.operator, moment)
        if wait:
            raise DialRefused(
                "rate_limited", "one dial a minute for each operator", retry_after_s=wait
            )
        self.under_way += len(request.endpoints)
        dials = asyncio.create_task(self._dial_all(request, digest), name="dial")
        self._answered[digest] = (moment, dials)
        return dials

    async def _dial_all(self, request: DialRequest, digest: Bytes32) -> list[dict[str, str]]:
        """Look all names up, and then dial. So a request that is refused here dials nobody."""
        places = [_place(one.address) for one in request.endpoints]
        name, pin = server_name(request.operator), request.tls_certificate
        try:
            known = await _all(self._dialler.look_up(host, port) for host, port in places)
            found = await _all(
                self._dialler.dial(addresses, port, name, pin)
                for addresses, (_, port) in zip(known, places, strict=True)
            )
        except LookupsBusy:
            # The load is not the operator's. It may come back as soon as it is told, no earlier:
            # the lookups that it got were not free.
            self._rate.forgive(request.operator, BUSY_S, self._clock.monotonic())
            del self._answered[digest]
            raise
        finally:
            self.under_way -= len(request.endpoints)
        return [
            {"address": one.address, "outcome": outcome.value}
            for one, outcome in zip(request.endpoints, found, strict=True)
        ]

    def _verified(self, data: bytes) -> DialRequest:
        try:
            request, signature = decode_dial(data)
        except MalformedInput as error:
            raise DialRefused("malformed", str(error)) from None
        if abs(request.at - self._clock.wall()) > MAX_CLOCK_SKEW_S:
            raise DialRefused("clock_differs", "the worker's clock and this one differ")
        if not signed_by(self._domain, request, signature, request.operator):
            raise DialRefused("bad_signature", "the operator did not sign this for this market")
        return request


def _place(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


async def _all(works: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, also where one fails, and then raise what the first failure was."""
    found = await asyncio.gather(*works, return_exceptions=True)
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return [one for one in found if not isinstance(one, BaseException)]
