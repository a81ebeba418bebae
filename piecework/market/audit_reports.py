"""The index's requests about audits: taking a report in, and giving its evidence out."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog
from aiohttp import hdrs, web

from piecework.base.clock import Clock
from piecework.base.connections import Networks
from piecework.base.http_server import BodyReader, client_address
from piecework.base.rates import Rate, RateLimiter, peer_key
from piecework.chain.errors import ChainError
from piecework.market.audits import AuditStore, ShownAudit, WorkerAudits, channel_of, judge, read
from piecework.market.errors import Declined
from piecework.market.limits import (
    ADDRESS_AUDIT_BURST,
    ADDRESS_AUDITS_PER_MINUTE,
    MAX_BUCKETS,
    MAX_WAITING_AUDITS,
    REPORTER_AUDIT_BURST,
    REPORTER_AUDITS_PER_HOUR,
)
from piecework.market.offer_store import OfferStore
from piecework_protocol.eip712 import Domain
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.evidence.reports import MAX_REPORT_FILE_BYTES
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Timestamp,
    parse_hex,
    to_hex,
)


class PaidChannel(Protocol):
    """What the index wants to know about a channel."""

    @property
    def settled(self) -> Amount: ...


class ChannelSource(Protocol):
    """What the audit reports ask of the chain; `chain.reader.ChainReader` is one."""

    @property
    def domain(self) -> Domain: ...

    async def channel(self, channel_id: ChannelId) -> PaidChannel: ...


class AuditReports:
    """Takes audits in, and gives them out.

    Checks run cheapest first: rate of the address, size, form, market, worker, then signatures and
    rules, one report at a time in a thread, and only then the rate of the client: anybody could
    write its address.
    """

    def __init__(
        self, store: OfferStore, chain: ChannelSource, clock: Clock, trusted: Networks
    ) -> None:
        self._store, self._chain, self._clock, self._trusted = store, chain, clock, trusted
        self._bodies = BodyReader(max_bytes=MAX_REPORT_FILE_BYTES, trusted=trusted)
        per_minute = Rate.per_minute(ADDRESS_AUDITS_PER_MINUTE, ADDRESS_AUDIT_BURST)
        per_hour = Rate(REPORTER_AUDITS_PER_HOUR / 3600, REPORTER_AUDIT_BURST)
        self._addresses = RateLimiter(per_minute, keys=MAX_BUCKETS)
        self._reporters = RateLimiter(per_hour, keys=MAX_BUCKETS)
        self._turn, self._waiting = asyncio.Lock(), 0
        self._log = structlog.get_logger("market")

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post("/v1/audits", self._publish)
        app.router.add_get("/v1/audits/{audit}", self._evidence)
        app.router.add_get("/v1/audits/{audit}/report", self._report)

    @property
    def audits(self) -> AuditStore:
        """What was taken in."""
        return self._store.audits

    async def of(self, operator: Address) -> WorkerAudits:
        """Return the audits of a worker, newest first."""
        return await self.audits.of(operator)

    async def _publish(self, request: web.Request) -> web.Response:
        self._take(self._addresses, peer_key(client_address(request, self._trusted)))
        known, shown = await self.accept(await self._bodies.read(request))
        body = {"accepted": True, **shown.to_json()}
        return web.json_response(body, status=200 if known else 201)

    async def accept(self, data: bytes) -> tuple[bool, ShownAudit]:
        """Check a report file and keep it. Returns whether it was here already.

        Raises:
            Declined: It does not hold, or is not for this index.
        """
        if self._waiting >= MAX_WAITING_AUDITS:
            raise Declined(503, "busy", "other reports are being checked", retry_after_s=5)
        self._waiting += 1
        try:
            async with self._turn:
                file = await asyncio.to_thread(read, data)
                await self._require_ours(file.evidence)
                checked = await asyncio.to_thread(judge, file)
        finally:
            self._waiting -= 1
        channel = file.evidence.channel
        self._take(self._reporters, to_hex(channel.payer))
        try:
            paid = await self._chain.channel(channel_of(checked))
        except ChainError as error:
            self._log.warning("chain", error=str(error))
            text = "the chain does not answer"
            raise Declined(503, "chain_unavailable", text, retry_after_s=5) from None
        now = Timestamp(int(self._clock.wall()))
        return await self.audits.put(checked, data, channel.payer, paid.settled, now)

    async def _require_ours(self, evidence: EvidenceFile) -> None:
        if evidence.domain != self._chain.domain:
            raise Declined(400, "other_market", "the evidence is of another chain or escrow")
        if await self._store.last(evidence.channel.operator) is None:
            raise Declined(404, "unknown_worker", "this index has seen no offer of that worker")

    def _take(self, limiter: RateLimiter, key: str) -> None:
        wait = limiter.take(key, self._clock.monotonic())
        if wait:
            text = "too many audits of this address or client"
            raise Declined(429, "rate_limited", text, retry_after_s=wait)

    async def _evidence(self, request: web.Request) -> web.Response:
        audit = _audit(request)
        return _file(await self.audits.evidence(audit), f"evidence-{audit.hex()[:16]}.json")

    async def _report(self, request: web.Request) -> web.Response:
        audit = _audit(request)
        return _file(await self.audits.report(audit), f"audit-{audit.hex()[:16]}.json")


def _audit(request: web.Request) -> Bytes32:
    try:
        return Bytes32(parse_hex(request.match_info["audit"], 32, "audit"))
    except ValueError as error:
        raise Declined(400, "bad_parameter", str(error)) from None


def _file(data: bytes | None, name: str) -> web.Response:
    if data is None:
        raise Declined(404, "unknown_audit", "this index has no such audit")
    headers = {hdrs.CONTENT_DISPOSITION: f'attachment; filename="{name}"'}
    return web.Response(body=data, content_type="application/json", headers=headers)
