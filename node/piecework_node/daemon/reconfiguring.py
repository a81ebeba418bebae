"""A running worker takes up settings that were changed: what it can at once, the rest is named."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from piecework.base import settings as loader
from piecework_node import config as settings
from piecework_node.config import VARIABLES, WorkerConfig
from piecework_node.daemon.assembly import Components, fee_settings, operator_terms
from piecework_node.daemon.changing import (
    LIVE,
    ChangeReport,
    HomeChange,
    prepare_change,
    with_live,
)
from piecework_node.daemon.price_watch import PriceWatch
from piecework_node.errors import ConfigError
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.runtime.cards import EngineCard


class Reconfigurer:
    """Changes the settings of the home of a running worker, and the terms of the worker."""

    def __init__(
        self, components: Components, flags: Mapping[str, Any], prices: PriceWatch
    ) -> None:
        """`flags` are those that the worker was started with."""
        self._prices = prices
        self._p, self._flags = components, dict(flags)
        self._config = components.base.config
        self._lock = asyncio.Lock()

    async def change(self, texts: Mapping[str, str], unset: Collection[str]) -> ChangeReport:
        """Check a change, write it, and take up what can be taken up.

        If anything is wrong, nothing is written and nothing changes.

        Raises:
            ConfigError: no new client could begin a job at these terms.
            PieceworkError: as `changing.prepare_change`.
        """
        async with self._lock:
            token = self._p.base.deployment.payment_token
            prepared = await asyncio.to_thread(
                prepare_change, self._p.base.home, token, texts, unset
            )
            running = self._running_with(prepared)
            self._check_credit(running)
            await asyncio.to_thread(prepared.write)
            return self._take_up(prepared, running)

    def _running_with(self, prepared: HomeChange) -> WorkerConfig:
        """The settings in force with the live ones of the new file, below flags and environment."""
        wanted = loader.load(
            WorkerConfig,
            VARIABLES,
            flags={
                **{n: getattr(prepared.after, n) for n in prepared.after.model_fields_set},
                **settings.overriding(self._flags),
            },
            environment={},
        )
        return with_live(self._config, wanted)

    def _check_credit(self, running: WorkerConfig) -> None:
        base = self._p.base
        amounts = running.amounts(base.deployment.payment_token)
        terms = operator_terms(running, amounts, base.deployment.token)
        check_terms(base.engines.cards, terms)

    def _take_up(self, prepared: HomeChange, running: WorkerConfig) -> ChangeReport:
        p, base = self._p, self._p.base
        overridden = prepared.named & settings.overriding(self._flags).keys()
        waiting = {
            n for n in prepared.named if getattr(prepared.after, n) != getattr(self._config, n)
        }
        applied = (prepared.names & LIVE) - overridden
        until = None
        if applied:
            amounts = running.amounts(base.deployment.payment_token)
            terms = operator_terms(running, amounts, base.deployment.token)
            p.fees.settings = fee_settings(amounts)
            judge_again(base.engines.cards, self._prices.own, terms)
            if p.runtime.credit is not None:
                p.runtime.credit.terms = terms.credit
            until = p.board.current.offer.expires_at if p.board.current else None
            p.worker.terms = self._prices.configure(running, terms)
            p.board.change(p.worker.terms)
            base.log.info("settings changed", settings=sorted(applied))
        self._config = running
        return ChangeReport(
            applied=tuple(sorted(applied)),
            restart=tuple(sorted(waiting - LIVE - overridden)),
            overridden=tuple(sorted(overridden)),
            offers_until=until,
        )


def check_terms(cards: Iterable[EngineCard], terms: OperatorTerms) -> None:
    """Check that a client could begin a job on each card that takes jobs now.

    Raises:
        ConfigError: none could, at these terms. The text names the card if there are several.
    """
    every = list(cards)
    for card in every:
        facts = card.engine.facts
        fault = None if facts is None or card.failed else terms.credit_fault(facts)
        if fault is not None:
            raise ConfigError(f"card {card.name}: {fault}" if len(every) > 1 else fault)


def judge_again(cards: Iterable[EngineCard], before: OperatorTerms, terms: OperatorTerms) -> None:
    """Let a card take jobs that nobody could begin on at the terms of before."""
    for card in cards:
        facts = card.engine.facts
        if facts is not None and card.failed == (before.credit_fault(facts) or ""):
            card.failed = terms.credit_fault(facts) or ""
