"""Automatic prices of a running worker: look at the market, apply the rule, ask the new prices.

Only new offers have them. A job keeps the offer that it was taken under.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from piecework.base.amounts import Token
from piecework.base.clock import Clock
from piecework.base.files import FileError
from piecework.base.http import HttpReader
from piecework.chain.errors import ChainError
from piecework_node.console.model import ShownPrices
from piecework_node.daemon.assembly import Components
from piecework_node.engine.link import EngineFacts
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.pricing.costs import ENOUGH_TOKENS, Floor, PowerFacts, gas_cost, power_cost
from piecework_node.pricing.market import (
    MARKET_LIMITS,
    FollowedModel,
    MarketReader,
    MarketView,
)
from piecework_node.pricing.reasons import reasons
from piecework_node.pricing.rule import OwnPrices, PriceDecision, PriceRules, decide
from piecework_node.pricing.state import PriceState
from piecework_node.times import now
from piecework_protocol.objects import Service
from piecework_protocol.types import Amount, Timestamp
from piecework_protocol.usual import mean_steps

LOOK_S: Final = 3600.0
"""Prices move once an hour at most, so nothing is gained by looking more often."""
RETRY_S: Final = 600.0
"""While nobody says what others ask."""
WAKE_S: Final = 60.0
"""The clock is looked at again after this. It may be set meanwhile."""
JITTER: Final = 0.1
"""Workers must not all look at the same moment."""
NO_INDEX: Final = "no index is set: nobody says what others ask"
SEVERAL: Final = "your cards run several models, which share your prices: no market is followed"
NOT_READY: Final = "no engine is ready yet"
NOT_LOOKED: Final = "not looked yet"


class PriceSettings(Protocol):
    """What the owner has set (`WorkerConfig`)."""

    automatic_prices: bool
    automatic_least_percent: int
    automatic_step_percent: int
    busy_power_w: int
    usd_per_token: float
    usd_per_kwh: float


@dataclass(frozen=True, slots=True)
class Spent:
    """What work took until now.

    joules: that the cards drew while jobs ran since the start. None: they do not tell. tokens:
    charged in that time. gas, fees: base units of the last days. canvases: delivered in them.
    """

    joules: float | None
    tokens: int
    gas: int
    fees: int
    canvases: int


class MarketPort(Protocol):
    """A way to see what others ask (`pricing.market.MarketReader`)."""

    async def look(self, model: FollowedModel, now: Timestamp) -> MarketView:
        """Ask the indexes.

        Raises:
            ChainError: the registry does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class PriceParts:
    """What automatic prices stand on.

    Attributes:
        file: Where the state is kept.
        token: What prices are counted in.
        facts: Gives what each engine runs now.
        spent: Gives what work took until now.
        ask: Takes new terms for the next offers.
        clock: Tells the time.
        log: Is told of every move.
    """

    file: Path
    token: Token
    facts: Callable[[], Sequence[EngineFacts]]
    spent: Callable[[], Spent]
    ask: Callable[[OperatorTerms], None]
    clock: Clock
    log: Any


class PriceWatch:
    """The automatic prices of one worker. Off, it asks the owner's own prices."""

    def __init__(self, parts: PriceParts, settings: PriceSettings, own: OperatorTerms) -> None:
        """own: the terms as the settings say them."""
        self._p, self._settings, self.own = parts, settings, own
        self._state = PriceState()
        self._made: PriceDecision | None = None
        self._others: tuple[int, ...] | None = None
        self._unknown = NOT_LOOKED
        self._changed = asyncio.Event()
        self.next_look_at: float | None = None
        """Unix seconds. None: automatic prices are off."""

    # --- what is asked

    def begin(self) -> None:
        """Take up what an earlier life asked. An engine is ready."""
        if not self._settings.automatic_prices:
            self._p.file.unlink(missing_ok=True)
            return
        try:
            self._state = PriceState.load(self._p.file)
        except (FileError, ValueError) as error:
            self._p.log.warning(
                "kept prices are not read", file=str(self._p.file), error=str(error)
            )
        self._decide()

    def configure(self, settings: PriceSettings, own: OperatorTerms) -> OperatorTerms:
        """Take other settings, and return the terms to ask with them."""
        was_on, self._settings, self.own = self._settings.automatic_prices, settings, own
        if not settings.automatic_prices:
            self._made, self._others, self._state = None, None, PriceState()
            self._unknown, self.next_look_at = NOT_LOOKED, None
            self._p.file.unlink(missing_ok=True)
        elif self._made is not None or not was_on:
            self._judge()
        self._changed.set()
        return self.terms

    @property
    def terms(self) -> OperatorTerms:
        """The owner's terms with the prices that are asked now."""
        prices = self._own_prices()
        if self._made is None or prices is None:
            return self.own
        asked = prices.at(self._made.asked.blended)
        steps = self.own.price_per_thousand_steps
        return replace(
            self.own,
            price_per_million_prompt_tokens=Amount(asked.prompt),
            price_per_million_output_tokens=Amount(asked.output),
            price_per_thousand_steps=Amount(asked.steps) if prices.steps else steps,
        )

    # --- looking

    async def run(self, market: MarketPort) -> None:
        """Look at the market now and then, until cancelled."""
        while True:
            if self._settings.automatic_prices and not self._left_s:
                await self.look(market)
            await self._until_due()

    @property
    def _left_s(self) -> float:
        """Until the next look. After a clock that was ahead is set back, none."""
        left_s = (self.next_look_at or 0.0) - self._p.clock.wall()
        return left_s if 0.0 < left_s <= LOOK_S * (1 + JITTER) else 0.0

    async def look(self, market: MarketPort) -> None:
        """Look once, and ask what the rule says."""
        followed = self._followed()
        self._others, self.next_look_at = None, self._p.clock.wall() + RETRY_S
        if isinstance(followed, str):
            self._unknown = followed
        else:
            try:
                view = await market.look(followed, now(self._p.clock))
                self._others = view.prices if view.answered else None
                self._unknown = "; ".join(view.away) or NO_INDEX
            except ChainError as error:
                self._unknown = f"the registry does not say who has a stake: {error}"
        if not self._settings.automatic_prices:  # it was turned off meanwhile
            return
        pause_s = RETRY_S if self._others is None else LOOK_S
        pause_s *= random.uniform(1, 1 + JITTER)  # noqa: S311
        self.next_look_at = self._p.clock.wall() + pause_s
        self._decide()

    async def _until_due(self) -> None:
        self._changed.clear()
        due = self.next_look_at
        try:
            async with asyncio.timeout(None if due is None else min(self._left_s, WAKE_S)):
                while self._settings.automatic_prices is (due is not None):
                    await self._changed.wait()
                    self._changed.clear()
        except TimeoutError:
            return

    def _decide(self) -> None:
        """Apply the rule, keep what came of it, and ask the new prices if there are any."""
        before = self.terms
        self._judge()
        if self.terms == before:
            return
        self._p.ask(self.terms)
        if self._made is not None:
            self._p.log.info(
                "automatic prices",
                asked=self._made.asked.blended,
                outcome=self._made.outcome.value,
                market=self._made.market,
            )

    def _judge(self) -> None:
        prices = self._own_prices()
        if prices is None:
            return
        before, spent = self._state, self._p.spent()
        energy = self._energy(spent)
        self._made = decide(
            before.asked,
            prices,
            self._rules,
            self._floor(spent, energy),
            others=self._others,
            now=now(self._p.clock),
        )
        self._state = PriceState(self._made.asked, *energy)
        if self._state == before:
            return
        try:
            self._state.write(self._p.file)
        except FileError as error:
            self._p.log.warning("prices are not kept", file=str(self._p.file), error=str(error))

    # --- what it stands on

    @property
    def _rules(self) -> PriceRules:
        settings = self._settings
        return PriceRules(settings.automatic_least_percent, settings.automatic_step_percent)

    def _followed(self) -> FollowedModel | str:
        """The model whose market is followed, or why there is none."""
        models = {(facts.digest, facts.service) for facts in self._p.facts()}
        if len(models) != 1:
            return SEVERAL if models else NOT_READY
        return FollowedModel(*models.pop())

    def _own_prices(self) -> OwnPrices | None:
        """The owner's own prices. None: no engine has said yet what it runs."""
        facts = next(iter(self._p.facts()), None)
        if facts is None:
            return None
        own, counts = self.own, facts.service is Service.REPLAYABLE
        return OwnPrices(
            own.price_per_million_prompt_tokens,
            own.price_per_million_output_tokens,
            own.price_per_thousand_steps if counts else 0,
            mean_steps(facts.max_steps, facts.canvas_size) if counts else 0,
        )

    def _energy(self, spent: Spent) -> tuple[float | None, int]:
        """Joules and their tokens: of this life once they say enough, else of an earlier one."""
        enough = spent.tokens >= ENOUGH_TOKENS or self._state.joules is None
        if spent.joules is not None and enough:
            return spent.joules, spent.tokens
        return self._state.joules, self._state.tokens

    def _floor(self, spent: Spent, energy: tuple[float | None, int]) -> Floor:
        settings, every = self._settings, self._p.facts()
        speed = sum(facts.tokens_per_second for facts in every)
        power = PowerFacts(*energy, settings.busy_power_w, speed)
        size = min((facts.canvas_size for facts in every), default=0)
        return Floor(
            power_cost(power, settings.usd_per_kwh, settings.usd_per_token, self._p.token.decimals),
            gas_cost(spent.gas, spent.fees, spent.canvases, size),
        )

    # --- what is shown

    @property
    def why(self) -> tuple[tuple[str, str], ...]:
        """Why these prices are asked: what each line is about, and the line. Empty: it is off."""
        if self._made is None:
            return ()
        return reasons(self._made, self._rules, self._p.token, self._unknown)

    @property
    def shown(self) -> ShownPrices:
        """What a console shows."""
        terms, due = self.terms, self.next_look_at
        return ShownPrices(
            terms.price_per_million_prompt_tokens,
            terms.price_per_million_output_tokens,
            terms.price_per_thousand_steps,
            self.why,
            None if due is None else int(due),
        )

    def status(self) -> dict[str, Any]:
        """What is asked and why. Amounts are base units."""
        made = self._made
        if made is None:
            return {"automatic": self._settings.automatic_prices}
        return {
            "automatic": True,
            "asked": made.asked.blended,
            "moved_at": made.asked.moved_at or None,
            "least": made.least,
            "most": made.most,
            "floor": made.floor.units,
            "market": made.market,
            "operators": made.operators,
            "outcome": made.outcome.value,
            "why": dict(self.why),
            "next_look_at": None if self.next_look_at is None else int(self.next_look_at),
        }


def price_watch(p: Components, spent: Callable[[], Spent]) -> PriceWatch:
    """Build the watch of a worker."""
    base = p.base

    def ask(terms: OperatorTerms) -> None:
        p.worker.terms = terms
        p.board.change(terms)

    def facts() -> Sequence[EngineFacts]:
        cards = (card for card in base.engines.cards if not card.failed)
        return [card.facts for card in cards if card.facts is not None]

    token = base.deployment.payment_token
    parts = PriceParts(base.home.prices, token, facts, spent, ask, base.clock, base.log)
    return PriceWatch(parts, base.config, p.worker.terms)


async def follow_market(p: Components, watch: PriceWatch) -> None:
    """Let a watch look at the market, until cancelled."""
    base = p.base
    async with HttpReader(MARKET_LIMITS) as http:
        domain, me = base.deployment.domain, base.operator.address
        token, indexes = base.deployment.token, base.config.indexes
        await watch.run(MarketReader(indexes, http, base.reader, domain, me=me, token=token))
