"""What the engine of each card tells, on its way to the worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from piecework_node.daemon.engines import Engines, KeptCard
from piecework_node.engine.link import EngineReady
from piecework_node.errors import ConfigError
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.jobs.worker import Worker
from piecework_node.runtime.faults import Code, FaultBoard


class CardPumps:
    """Hands events of engines to the worker, and judges what each engine runs by the terms."""

    def __init__(
        self,
        engines: Engines,
        worker: Worker,
        faults: FaultBoard,
        *,
        own: Callable[[], OperatorTerms],
    ) -> None:
        """own: gives the owner's terms. Automatic prices are below them, and may rise to them."""
        self._engines, self._worker, self._faults = engines, worker, faults
        self._own = own
        self._judged: set[str] = set()
        """Cards whose engines have told what they run."""

    @property
    def decided(self) -> bool:
        """Whether a card takes jobs, or none can."""
        cards = self._engines.cards
        known = any(card.ready and card.name in self._judged for card in cards)
        return known or all(card.failed for card in cards)

    def check(self) -> None:
        """Say why no card takes jobs.

        Raises:
            ConfigError: none can.
        """
        failed = [card.failed for card in self._engines.cards]
        if all(failed):
            raise ConfigError("; ".join(dict.fromkeys(failed)))

    def pump_of(self, one: KeptCard) -> Callable[[], Awaitable[None]]:
        """Return what takes a card's events, one after the other."""

        async def pump() -> None:
            async for event in one.backend.events():
                # An engine that is lost by now tells again what it runs when it is back.
                if isinstance(event, EngineReady) and one.backend.facts is not None:
                    # What nobody new could begin with is not offered.
                    one.card.failed = self._own().credit_fault(event.facts) or ""
                    self._judged.add(one.card.name)
                await self._worker.engine_event(one.card, event)

        return pump

    async def gone(self) -> None:
        """End the jobs of cards whose engines cannot be started, as they are given up."""
        while True:
            await self._worker.engine_event(*await self._engines.gone.get())

    def look(self) -> None:
        """Tell which cards take no jobs. Call it about once a second."""
        for card in self._engines.cards:
            if card.failed:
                detail = f"card {card.name} takes no jobs: {card.failed}"
                self._faults.failed(f"card {card.name}", Code.CARD_AWAY, detail)
            else:
                self._faults.passed(f"card {card.name}")
