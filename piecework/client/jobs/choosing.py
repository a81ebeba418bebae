"""From a request to the workers that can take it now: search, rank, dial, and leave out the dear.

A worker is dialed before anything is signed or reserved for it. An offer is paper: its worker may
be gone, and an index may show two hundred that never were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from piecework.base.clock import Clock
from piecework.client.errors import WorkerUnreachable
from piecework.client.jobs.output_rates import OutputRate, RateOf
from piecework.client.jobs.requests import Filters, JobRequest
from piecework.client.jobs.selection import Choice, Ranking, least_of, rank, within_cap
from piecework.client.jobs.spending import Allowance
from piecework.client.journal.learning import is_resting
from piecework.client.journal.records import Memories
from piecework.client.limits import ANSWER_COUNTS_S, ENOUGH_WORKERS, FIRST_DIALS, SEARCH_GRACE_S
from piecework.client.network.dialing import Background, first_answers
from piecework.client.network.discovery import Discovery
from piecework.client.network.links import Links
from piecework.client.network.reachability import Reachability
from piecework_protocol.objects import Offer
from piecework_protocol.types import Address, Timestamp
from piecework_protocol.wire import SignedOffer

NO_LIMIT = Allowance()


@dataclass(frozen=True, slots=True)
class _Dials:
    """Who answered and who did not, of those that were asked for one request."""

    answered: frozenset[Address]
    failed: frozenset[Address]


class Chooser:
    """Chooses workers for one client. `filters` are its settings, without the time."""

    def __init__(
        self,
        discovery: Discovery,
        links: Links,
        reachability: Reachability,
        clock: Clock,
        filters: Filters,
    ) -> None:
        self._discovery, self._links, self._reachability = discovery, links, reachability
        self._clock, self._filters = clock, filters
        self._background = Background()

    async def close(self) -> None:
        """End the dials that still run."""
        await self._background.close()

    async def rates(self) -> RateOf:
        """Return what tells the price of output with its steps, from the client's jobs until
        now."""
        memories = await self._reachability.memory.run(self._reachability.memory.all)
        now = Timestamp(int(self._clock.wall()))
        return lambda offer, model: OutputRate.of(offer, model, memories, now)

    async def choose(
        self,
        request: JobRequest,
        tried: Collection[Address] = (),
        allowance: Allowance = NO_LIMIT,
    ) -> Ranking:
        """Return who could take the request, best first, and why others cannot.

        Those that answer come first. Those that do not answer are left out.

        Args:
            request: What is asked for.
            tried: Operators that have declined it.
            allowance: What it may cost.

        Raises:
            ChainError: the chain does not answer, so no offer can be verified.
        """
        found = await self._discovery.offers(request.model)
        ranking, memories, filters = await self._rank(request, found.offers, allowance)
        if found.stale and not ranking.choices:
            found = await self._discovery.newer_offers(request.model)
            ranking, memories, filters = await self._rank(request, found.offers, allowance)
        untried = tuple(c for c in ranking.choices if c.operator not in tried)
        dials = await self._dial(untried)
        usable = [c for c in untried if c.operator not in dials.failed]
        usable.sort(key=lambda c: c.operator not in dials.answered)  # stable: best first in each
        silent = [
            f"{c.signed.offer.endpoint} ({c.model.name}): does not answer"
            for c in untried
            if c.operator in dials.failed
        ]
        known = dials.answered | self._answered_before(ranking.choices, memories)
        ranking = replace(
            ranking,
            choices=tuple(usable),
            unfit=(*ranking.unfit, *silent, *found.troubles),
        )
        return within_cap(ranking, known, memories, filters)

    async def _rank(
        self, request: JobRequest, offers: Iterable[SignedOffer], allowance: Allowance
    ) -> tuple[Ranking, Memories, Filters]:
        memories = await self._reachability.memory.run(self._reachability.memory.all)
        cap = None if request.max_price is not None else self._filters.price_cap
        filters = replace(
            self._filters,
            now=int(self._clock.wall()),
            price_cap=cap,
            max_job_price=least_of(self._filters.max_job_price, allowance.max_price),
            left=allowance.left,
        )
        return rank(request, offers, memories, filters), memories, filters

    def _answered_before(
        self, choices: Collection[Choice], memories: Memories
    ) -> frozenset[Address]:
        """Whoever answered a dial within the last hour and has not been silent since."""
        now = Timestamp(int(self._clock.wall()))
        return frozenset(
            choice.operator
            for choice in choices
            if (memory := memories.experience.get(choice.operator)) is not None
            and abs(now - memory.answered_at) <= ANSWER_COUNTS_S
            and not is_resting(memory, now)
        )

    async def _dial(self, choices: Collection[Choice]) -> _Dials:
        """Find out who answers, in the order of the choices.

        With a connection to any of them nothing is waited for. Better ones that are not known yet
        are dialed beside it, for the next request. But a worker that asks far more than another
        offer is not taken for its connection: it may have raised its price since.
        """
        offers = {choice.operator: choice.signed.offer for choice in choices}
        connected = frozenset(op for op, offer in offers.items() if self._links.has(offer))
        unknown = [offer for op, offer in offers.items() if op not in connected]
        awake = {c.operator: c for c in choices if not c.resting}
        if connected & self._fair(awake.values()):
            for offer in [o for o in unknown if o.operator in awake][:FIRST_DIALS]:
                self._background.start(self._answers(offer, set()))
            return _Dials(connected, frozenset())
        failed: set[Address] = set()

        async def ask(offer: Offer) -> Address | None:
            return await self._answers(offer, failed)

        # One with a connection answers at once, so that the others have no more than the grace.
        at_once = [offers[operator] for operator in awake if operator in connected][:1]
        answers = await first_answers(
            at_once + unknown,
            ask,
            enough=ENOUGH_WORKERS,
            grace_s=SEARCH_GRACE_S,
            background=self._background,
        )
        return _Dials(connected | set(answers), frozenset(failed))

    def _fair(self, awake: Collection[Choice]) -> frozenset[Address]:
        """Who asks at most `price_cap` times what the cheapest of those that are awake asks."""
        cap, cheapest = self._filters.price_cap, min((c.expected for c in awake), default=0)
        return frozenset(c.operator for c in awake if cap is None or c.expected <= cap * cheapest)

    async def _answers(self, offer: Offer, failed: set[Address]) -> Address | None:
        """The operator, if there is a connection to it now."""
        since = self._clock.monotonic()
        try:
            await self._links.to(offer)
        except WorkerUnreachable:
            failed.add(offer.operator)
            self._reachability.silent(offer.operator, since)
            return None
        self._reachability.heard(offer.operator)
        return offer.operator
