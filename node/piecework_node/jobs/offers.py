"""The worker's offer: build it from terms and measurements, journal it, sign it, publish it.

An offer is renewed when half of its life is over or when the load has changed. Its sequence number
only grows, across restarts too. Indexes are caches that nobody trusts. One that does not answer
costs a line in the log.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol

from piecework.base.clock import Clock
from piecework.base.http import HttpError, HttpLimits, HttpStatus, host_of
from piecework.base.jsons import loads
from piecework.base.text import one_line
from piecework_node.engine.link import EngineFacts
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import OfferIssued
from piecework_node.metrics import Metrics
from piecework_node.runtime.fees import NO_FEES, OfferedFees
from piecework_node.times import now
from piecework_protocol import capacity, usual
from piecework_protocol.eip712 import Domain
from piecework_protocol.limits import MAX_CLOCK_SKEW_S, MAX_DETAILS_BYTES
from piecework_protocol.objects import Endpoint, ModelOffer, Offer, Service
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    PublicKey,
    Timestamp,
    Uint32,
    Uint64,
)
from piecework_protocol.usual import UsualJobs
from piecework_protocol.wire import SignedOffer, encode_offer

OFFER_CONTENT_TYPE: Final = "application/x-protobuf"
PUBLISH_ATTEMPTS: Final = 3
PUBLISH_LIMITS: Final = HttpLimits(total_s=5.0, connect_s=5.0, max_bytes=64 * 1024)
PUBLISH_BACKOFF_S: Final = 0.5
WITHDRAWN_LIFETIME_S: Final = MAX_CLOCK_SKEW_S + 1
"""An index takes no offer that is over by its own clock."""
MAX_REASON_CHARACTERS: Final = 200
MIN_REFRESH_S: Final = 5.0
"""Load changes are not announced more often. Readers cache offers, and each one is journaled."""


@dataclass(frozen=True, slots=True)
class OfferAddress:
    """Where clients reach the worker, and the keys that they need for it."""

    endpoints: tuple[Endpoint, ...]
    tls_certificate: Digest
    sealing_key: PublicKey


@dataclass(frozen=True, slots=True)
class OfferEntry:
    """A line of an offer to be: what its cards run, and how busy they are.

    active: jobs that run or wait. usual: what its jobs took until now.
    """

    facts: EngineFacts
    slots: int
    queue: int
    active: int
    usual: UsualJobs | None = None

    @property
    def key(self) -> tuple[Digest, str]:
        """What tells it from other lines."""
        return self.facts.digest, self.facts.profile

    @property
    def slots_free(self) -> int:
        """How many jobs could start at once now."""
        return max(0, self.slots - self.active)

    @property
    def queue_free(self) -> int:
        """How many more could wait."""
        return max(0, self.slots + self.queue - self.active - self.slots_free)


def build_offer(
    terms: OperatorTerms,
    entries: Sequence[OfferEntry],
    address: OfferAddress,
    *,
    operator: Address,
    sequence: int,
    now: Timestamp,
    fees: OfferedFees = NO_FEES,
) -> Offer:
    """Return the offer for this moment."""
    replayable = any(entry.facts.service is Service.REPLAYABLE for entry in entries)
    return Offer(
        operator=operator,
        receiver=terms.receiver,
        sequence=Uint64(sequence),
        issued_at=now,
        expires_at=Timestamp(now + terms.offer_lifetime_s),
        endpoints=address.endpoints,
        tls_certificate=address.tls_certificate,
        sealing_key=address.sealing_key,
        tokens=terms.tokens,
        models=tuple(_line(terms, entry.facts) for entry in entries),
        slots=Uint32(sum(entry.slots for entry in entries)),
        slots_free=Uint32(sum(entry.slots_free for entry in entries)),
        queue_free=Uint32(sum(entry.queue_free for entry in entries)),
        credit_first=terms.credit.first,
        credit_mined=terms.credit.mined,
        credit_max=terms.credit.most,
        open_fee=fees.open,
        top_up_fee=fees.top_up,
        close_fee=fees.close,
        min_top_up=fees.min_top_up,
        min_withdrawal_delay=terms.min_withdrawal_delay,
        min_deposit=terms.min_deposit,
        # Nothing of a best-effort job can be audited.
        evidence_seconds=Uint64(terms.evidence_s if replayable else 0),
        details=_details(entries),
    )


def _line(terms: OperatorTerms, facts: EngineFacts) -> ModelOffer:
    replayable = facts.service is Service.REPLAYABLE
    return ModelOffer(
        name=facts.name,
        digest=facts.digest,
        profile=facts.profile,
        kinds=Uint32(sum(kind.bit for kind in facts.kinds)),
        service=facts.service,
        price_per_million_prompt_tokens=terms.price_per_million_prompt_tokens,
        price_per_million_output_tokens=terms.price_per_million_output_tokens,
        # vLLM counts no steps (clause 3.10).
        price_per_thousand_steps=terms.price_per_thousand_steps if replayable else Amount(0),
        max_context=Uint32(facts.max_context),
        # A prompt has at least one token, and output takes whole canvases.
        max_output=Uint32((facts.max_context - 1) // facts.canvas_size * facts.canvas_size),
        canvas_size=Uint32(facts.canvas_size),
        max_steps=Uint32(facts.max_steps),
        tokens_per_second=Uint32(facts.tokens_per_second),
        first_canvas_ms=Uint32(facts.first_canvas_ms),
    )


def _details(entries: Sequence[OfferEntry]) -> str:
    """The facts that decide no payment. If there is no room for all, those of the engines go."""
    claims: dict[str, Any] = {}
    if any(entry.usual is not None for entry in entries):
        claims[usual.MEMBER] = [e.usual.members() if e.usual else None for e in entries]
    if len(entries) == 1:
        told = entries[0].facts.details
    else:
        claims[capacity.MEMBER] = [
            capacity.EntryCapacity(e.slots, e.slots_free, e.queue_free).members() for e in entries
        ]
        told = {
            "images": all(entry.facts.images for entry in entries),
            "entries": [entry.facts.details for entry in entries],
        }
    details = json.dumps({**told, **claims}, sort_keys=True)
    return details if len(details) <= MAX_DETAILS_BYTES else json.dumps(claims)


def refresh_due(
    current: Offer, now: Timestamp, entries: Sequence[OfferEntry], address: OfferAddress
) -> bool:
    """Whether to issue a new offer: half of its life is over, or it is no longer true.

    An entry leaves at once. Its jobs would be refused.
    """
    age, life = now - current.issued_at, current.expires_at - current.issued_at
    if age * 2 >= life or age < 0 or current.sealing_key != address.sealing_key:
        return True
    lines = [(model.digest, model.profile) for model in current.models]
    wanted = [entry.key for entry in entries]
    if not set(lines) <= set(wanted):
        return True
    changed = (
        lines != wanted
        or current.endpoints != address.endpoints
        or current.slots_free != sum(entry.slots_free for entry in entries)
    )
    return changed and age >= MIN_REFRESH_S


class OfferBoard:
    """Keeps the current offer."""

    def __init__(
        self,
        journal: Journal,
        terms: OperatorTerms,
        *,
        domain: Domain,
        signer: AsyncSigner,
        clock: Clock,
        fees: Callable[[], OfferedFees] = lambda: NO_FEES,
    ) -> None:
        """`fees` gives what an offer of now asks for a client's transactions."""
        self._journal, self.terms, self._fees = journal, terms, fees
        self._domain, self._signer, self._clock = domain, signer, clock
        self._turn = asyncio.Lock()
        """Held from the choice of a number to its offer's signature."""
        self._sequence: int | None = None
        self._stale = False
        self.current: SignedOffer | None = None

    def change(self, terms: OperatorTerms) -> None:
        """Ask other terms from the next offer on, which is due at once."""
        self.terms, self._stale = terms, True

    async def issue(self, entries: Sequence[OfferEntry], address: OfferAddress) -> SignedOffer:
        """Build, sign and journal the next offer. A signature that never came uses up no number.

        So a signer in another process is at most one number ahead of the journal, whatever breaks
        off in between.
        """
        async with self._turn:
            if self._sequence is None:
                self._sequence = await self._journal.last_sequence()
            stale, self._stale = self._stale, False
            offer = build_offer(
                self.terms,
                entries,
                address,
                operator=self._signer.address,
                sequence=self._sequence + 1,
                now=now(self._clock),
                fees=self._fees(),
            )
            try:
                return await self._show(offer)
            except BaseException:
                self._stale = self._stale or stale  # what was changed is still to be offered
                raise

    async def adopt(self, signed: SignedOffer) -> None:
        """Take an offer of an earlier life, as an index shows it, for the current one."""
        self._sequence = max(await self._journal.last_sequence(), signed.offer.sequence)
        self.current = signed

    async def withdraw(self) -> SignedOffer | None:
        """Sign a last offer that has no place left and is over in seconds. None: there was none.

        An index shows it in place of the one before, and then nothing.
        """
        async with self._turn:
            if self.current is None or self._sequence is None:
                return None
            issued = now(self._clock)
            offer = self.current.offer.replace(
                sequence=Uint64(self._sequence + 1),
                issued_at=issued,
                expires_at=Timestamp(issued + WITHDRAWN_LIFETIME_S),
                slots_free=Uint32(0),
                queue_free=Uint32(0),
            )
            return await self._show(offer)

    async def _show(self, offer: Offer) -> SignedOffer:
        """Journal an offer before it is shown to anybody."""
        signed = SignedOffer(offer, await self._signer.typed(self._domain, offer))
        self._sequence = offer.sequence  # used up, even if the disk fails
        await self._journal.append([OfferIssued(Digest(self._domain.digest(offer)), signed)])
        self.current = signed
        return signed

    def is_due(self, address: OfferAddress, entries: Sequence[OfferEntry]) -> bool:
        """Whether the current offer should be replaced by one of these entries."""
        if self.current is None or self._stale:
            return self.current is not None
        return refresh_due(self.current.offer, now(self._clock), entries, address)


class HttpPoster(Protocol):
    """A way to post bytes (`piecework.base.http.HttpReader`)."""

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> bytes:
        """Return the body of a successful answer.

        Raises:
            HttpStatus: the server declined.
            HttpError: the server did not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexAnswer:
    """What an index made of the offer."""

    host: str
    """host[:port]"""
    taken: bool
    reason: str = ""
    """Why it was not taken: what the index says, or why it does not answer."""
    declined: bool = False
    """Whether the index answered, and said no."""
    ahead_s: float | None = None
    """Seconds that our clock is ahead of the index's at least, below 0 behind. None: not told."""


class Dates:
    """The latest Date header of each host, for `HttpReader`. Two questions to one host at a time
    may swap theirs, which are equal to within seconds."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}

    def __call__(self, host: str, date: str) -> None:
        try:
            self._latest[host] = parsedate_to_datetime(date).timestamp()
        except (ValueError, OverflowError):
            self._latest.pop(host, None)

    def ahead_s(self, host: str, sent: float, received: float) -> float | None:
        """How far a clock is off that read `sent` before a question and `received` after it.

        The header was written at some time between the two, in whole seconds. What these leave
        open is not an offset: 0.
        """
        date = self._latest.pop(host, None)
        if date is None:
            return None
        if sent > date + 1:
            return sent - date - 1
        return min(0.0, received - date)


async def publish(
    signed: SignedOffer,
    indexes: Sequence[str],
    poster: HttpPoster,
    metrics: Metrics,
    log: Any,
    *,
    clock: Clock,
    dates: Dates | None = None,
    backoff_s: float = PUBLISH_BACKOFF_S,
) -> tuple[IndexAnswer, ...]:
    """Send an offer to every index, and return what each made of it. Failures are logged."""
    publisher = _Publisher(poster, log, clock, dates or Dates(), backoff_s)
    body = encode_offer(signed)
    answers = await asyncio.gather(*(publisher.send(url, body) for url in indexes))
    for answer in answers:
        if not answer.taken:
            metrics.publish_error()
    return tuple(answers)


@dataclass(frozen=True, slots=True)
class _Publisher:
    """Sends one offer to one index after the other, side by side."""

    poster: HttpPoster
    log: Any
    clock: Clock
    dates: Dates
    backoff_s: float

    async def send(self, index: str, body: bytes) -> IndexAnswer:
        """Try a few times, unless the index declines for good."""
        answer = IndexAnswer(host_of(index), taken=False)
        for attempt in range(PUBLISH_ATTEMPTS):
            answer = await self._try(index, answer.host, body)
            if answer.taken or (answer.declined and not answer.reason.startswith("HTTP 5")):
                return answer
            await asyncio.sleep(self.backoff_s * 2**attempt)
        return answer

    async def _try(self, index: str, host: str, body: bytes) -> IndexAnswer:
        url, sent = index.rstrip("/") + "/v1/offers", self.clock.wall()
        reason, declined = "", False
        try:
            await self.poster.post(url, body, headers={"Content-Type": OFFER_CONTENT_TYPE})
        except HttpStatus as error:
            reason, declined = reason_of(error), True
            self.log.warning("index declines the offer", index_host=host, reason=reason)
        except HttpError as error:
            reason = str(error)
            self.log.warning("index does not answer", index_host=host, error=reason)
        ahead = self.dates.ahead_s(host, sent, self.clock.wall())
        return IndexAnswer(host, not reason, reason, declined, ahead)


def reason_of(answer: HttpStatus) -> str:
    """Give the status, and what an index says in the body."""
    status = f"HTTP {answer.status}"
    try:
        error = loads(answer.body)["error"]
        said = f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return status
    return one_line(f"{status}, {said}", MAX_REASON_CHARACTERS)
