"""What the worker shows of its cards: the entries of its offer, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from piecework_node.engine.benchmark_table import with_speeds
from piecework_node.home import Home
from piecework_node.jobs.offers import OfferEntry
from piecework_node.jobs.worker import Worker
from piecework_node.metrics import Metrics
from piecework_node.owner.watch import OwnerWatch
from piecework_node.runtime.cards import EngineCard
from piecework_node.runtime.recent import RecentJobs


def offered(worker: Worker, *, takes_jobs: bool) -> list[OfferEntry]:
    """Return the entries of an offer of now: those that a card serves, with their free places.

    A worker that takes no jobs keeps every entry that it knows, with no place free.
    """
    return [
        OfferEntry(
            one.facts,
            one.slots,
            one.queue,
            worker.views.active_on(entry) if takes_jobs else one.slots + one.queue,
        )
        for entry, one in worker.cards.entries(serving=takes_jobs).items()
    ]


def with_claims(
    entries: Iterable[OfferEntry], home: Home, recent: RecentJobs
) -> tuple[OfferEntry, ...]:
    """Add what the benchmark table and the newest jobs say."""
    return tuple(
        replace(entry, facts=with_speeds(home, entry.facts), usual=recent.usual(entry.facts))
        for entry in entries
    )


def show_card(metrics: Metrics, card: EngineCard, active: int, owner: OwnerWatch) -> None:
    """Set the metrics of one card."""
    gpus = owner.gpus
    warm = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    drawn = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
    celsius = max(warm, default=None)
    watts = sum(drawn) if drawn and len(drawn) == len(gpus) else None
    metrics.card_ready.labels(card.name).set(int(card.serves))
    metrics.card_slots.labels(card.name).set(card.slots)
    metrics.card_active.labels(card.name).set(active)
    metrics.card_paused.labels(card.name).set(int(card.pause is not None))
    metrics.card_temperature.labels(card.name).set(math.nan if celsius is None else celsius)
    metrics.card_power.labels(card.name).set(math.nan if watts is None else watts)
