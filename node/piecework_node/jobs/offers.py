"""The worker's offer: built from settings and measurements, signed, journaled, then shown.

An offer is refreshed when it is half way through its life or when the load has changed; its
sequence number only grows, across restarts too. Indexes are caches that nobody trusts: one that
does not answer costs nothing but a line in the log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from piecework_node.clock import Clock
from piecework_node.engine.link import EngineFacts
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import OfferIssued
from piecework_node.metrics import Metrics
from piecework_protocol.eip712 import Domain
from piecework_protocol.limits import MAX_DETAILS_BYTES
from piecework_protocol.objects import ModelOffer, Offer
from piecework_protocol.signing import Signer, sign
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    PublicKey,
    Seconds,
    Timestamp,
    Uint32,
    Uint64,
)
from piecework_protocol.wire import SignedOffer, encode_offer

OFFER_CONTENT_TYPE: Final = "application/x-protobuf"
PUBLISH_ATTEMPTS: Final = 3
PUBLISH_TIMEOUT_S: Final = 5.0
PUBLISH_BACKOFF_S: Final = 0.5
MIN_REFRESH_S: Final = 5.0
"""Load changes are not announced more often than this: readers cache offers, and every one is
journaled."""


@dataclass(frozen=True, slots=True)
class OfferTerms:
    """What the operator asks, as it stands in every offer."""

    receiver: Address
    endpoint: str
    tls_certificate: Digest
    tokens: tuple[Address, ...]
    price_per_million_prompt_tokens: Amount
    price_per_million_output_tokens: Amount
    price_per_thousand_steps: Amount
    slots: int
    credit_window: int
    min_withdrawal_delay: Seconds
    min_deposit: Amount
    lifetime_s: int


def build_offer(
    terms: OfferTerms,
    facts: EngineFacts,
    *,
    operator: Address,
    sealing_key: PublicKey,
    sequence: int,
    now: Timestamp,
    active: int,
    capacity: int,
) -> Offer:
    """The offer for this moment. `active` jobs of `capacity` (slots and queue) are taken."""
    details = json.dumps(facts.details, sort_keys=True)
    model = ModelOffer(
        name=facts.name,
        digest=facts.digest,
        profile=facts.profile,
        price_per_million_prompt_tokens=terms.price_per_million_prompt_tokens,
        price_per_million_output_tokens=terms.price_per_million_output_tokens,
        price_per_thousand_steps=terms.price_per_thousand_steps,
        max_context=Uint32(facts.max_context),
        # A prompt has at least one token, and output takes whole canvases.
        max_output=Uint32((facts.max_context - 1) // facts.canvas_size * facts.canvas_size),
        canvas_size=Uint32(facts.canvas_size),
        max_steps=Uint32(facts.max_steps),
        tokens_per_second=Uint32(facts.tokens_per_second),
        first_canvas_ms=Uint32(facts.first_canvas_ms),
        service=facts.service,
    )
    slots_free = max(0, terms.slots - active)
    return Offer(
        operator=operator,
        receiver=terms.receiver,
        sequence=Uint64(sequence),
        issued_at=now,
        expires_at=Timestamp(now + terms.lifetime_s),
        endpoint=terms.endpoint,
        tls_certificate=terms.tls_certificate,
        sealing_key=sealing_key,
        tokens=terms.tokens,
        models=(model,),
        slots=Uint32(terms.slots),
        slots_free=Uint32(slots_free),
        queue_free=Uint32(max(0, capacity - active - slots_free)),
        credit_window=Uint32(terms.credit_window),
        min_withdrawal_delay=terms.min_withdrawal_delay,
        min_deposit=terms.min_deposit,
        details=details if len(details) <= MAX_DETAILS_BYTES else "{}",
    )


def refresh_due(current: Offer, now: Timestamp, slots_free: int, sealing_key: PublicKey) -> bool:
    """Whether the world should see a new offer: half its life is over, or what it says is not so
    any more."""
    age, life = now - current.issued_at, current.expires_at - current.issued_at
    if age * 2 >= life or age < 0 or current.sealing_key != sealing_key:
        return True
    return current.slots_free != slots_free and age >= MIN_REFRESH_S


class OfferBoard:
    """Keeps the current offer. `remember` is told of each one before it is shown."""

    def __init__(self, journal: Journal, domain: Domain, signer: Signer, clock: Clock) -> None:
        self._journal, self._domain, self._signer, self._clock = journal, domain, signer, clock
        self._sequence: int | None = None
        self.current: SignedOffer | None = None

    async def issue(
        self,
        terms: OfferTerms,
        facts: EngineFacts,
        *,
        sealing_key: PublicKey,
        active: int,
        capacity: int,
    ) -> SignedOffer:
        """Build, journal and sign the next offer. The sequence number is used up even if we die
        now."""
        if self._sequence is None:
            self._sequence = await self._journal.last_sequence()
        self._sequence += 1
        offer = build_offer(
            terms,
            facts,
            operator=self._signer.address,
            sealing_key=sealing_key,
            sequence=self._sequence,
            now=self._clock.now(),
            active=active,
            capacity=capacity,
        )
        signed = SignedOffer(offer, sign(self._domain, offer, self._signer))
        await self._journal.append([OfferIssued(Digest(self._domain.digest(offer)), signed)])
        self.current = signed
        return signed


class HttpPoster(Protocol):
    """Posts bytes; returns the HTTP status. Raises `OSError` or `TimeoutError` when nobody
    answers."""

    async def post(self, url: str, body: bytes, content_type: str, timeout_s: float) -> int: ...


class AiohttpPoster:
    """`HttpPoster` over one aiohttp session."""

    def __init__(self, session: Any) -> None:
        self._session = session

    async def post(self, url: str, body: bytes, content_type: str, timeout_s: float) -> int:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=timeout_s)
        headers = {"content-type": content_type}
        try:
            async with self._session.post(
                url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return int(response.status)
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from error


async def publish(
    signed: SignedOffer,
    indexes: Sequence[str],
    poster: HttpPoster,
    metrics: Metrics,
    log: Any,
    *,
    backoff_s: float = PUBLISH_BACKOFF_S,
) -> int:
    """Show an offer to every index. Returns how many took it; failures are counted and logged."""
    body = encode_offer(signed)
    results = await asyncio.gather(
        *(_publish_one(url, body, poster, log, backoff_s) for url in indexes)
    )
    for taken in results:
        if not taken:
            metrics.publish_error()
    return sum(results)


async def _publish_one(
    index: str, body: bytes, poster: HttpPoster, log: Any, backoff_s: float
) -> bool:
    url = index.rstrip("/") + "/v1/offers"
    host = urlsplit(index).hostname or "?"
    for attempt in range(PUBLISH_ATTEMPTS):
        try:
            status = await poster.post(url, body, OFFER_CONTENT_TYPE, PUBLISH_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            log.warning("index does not answer", index_host=host, error_class=type(error).__name__)
        else:
            if status < 300:
                return True
            log.warning("index declines the offer", index_host=host, count=status)
            if status < 500:
                return False
        await asyncio.sleep(backoff_s * 2**attempt)
    return False
