"""Gather what a console shows of the running worker.

It reads, and changes nothing but one note in the journal: the energy of each hour.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar

from piecework.base.amounts import Token, native_coin
from piecework.base.http import HttpReader
from piecework.base.jsons import loads
from piecework_node.console.alerts import WEBHOOK_LIMITS, AlertBook, Webhook
from piecework_node.console.meter import HOUR_S, ConsoleMeter, JobEnergy
from piecework_node.console.model import (
    Earned,
    LiveCanvas,
    OpenBalance,
    ShownCard,
    ShownMoney,
    ShownPrices,
    ShownTest,
    Snapshot,
)
from piecework_node.daemon.assembly import Components
from piecework_node.daemon.engines import KeptCard
from piecework_node.daemon.price_watch import Spent
from piecework_node.daemon.status import exposure_bound
from piecework_node.jobs.own_test import OwnTest
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import MetaSet, PaidJob, SpentTx, StoredChannel
from piecework_node.owner.readings import GpuReading
from piecework_node.runtime.live import LiveJob
from piecework_node.settlement.policy import settle_wei
from piecework_node.times import now
from piecework_protocol.types import ChannelId, Digest, address_hex
from piecework_protocol.wire import SignedOffer

SAMPLE_S: Final = 1.0
BOOK_S: Final = 30.0
"""Between two looks into the journal."""
WINDOW_HOURS: Final = 7 * 24
OPEN_HOURS: Final = 2
"""Jobs of the last hours are read again: their vouchers may still come."""
SHOWN_HOURS: Final = 12
MOST_SHARES: Final = 10
"""Clients and models that are shown, the largest first."""
SHORT: Final = 10
"""Characters of an address or of a job's name."""
WEI: Final = 10**18
OTHER: Final = "others"
UNKNOWN_MODEL: Final = "a model of earlier offers"
ENERGY: Final = "joules_by_hour"
"""The note in the journal. Without it a day's net after a restart would lack most of its power."""


class BookJournal(Protocol):
    """What the book reads (`SqliteJournal`)."""

    def paid_lately(self, since: int) -> AsyncIterator[tuple[PaidJob, ...]]: ...

    async def spent(self, since: int, until: int) -> tuple[SpentTx, ...]: ...

    async def channel(self, channel: ChannelId) -> StoredChannel | None: ...

    async def offer(self, digest: Digest) -> SignedOffer | None: ...


class EnergyNotes:
    """Joules by hour, kept in the journal from one start to the next."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._written = ""

    async def read(self) -> dict[int, float]:
        """Return what earlier runs drew, by hour since the epoch."""
        self._written = await self._journal.meta(ENERGY) or ""
        known = loads(self._written) if self._written else {}
        return {int(hour): float(joules) for hour, joules in known.items()}

    async def write(self, hours: Mapping[int, float]) -> None:
        """Keep the joules of each hour."""
        text = json.dumps({str(hour): round(joules, 3) for hour, joules in hours.items()})
        if hours and text != self._written:
            await self._journal.append([MetaSet(ENERGY, text)])
            self._written = text


N = TypeVar("N", int, float)


def _plus(one: N | None, other: N | None) -> N | None:
    """A sum. What is unknown makes it unknown."""
    return None if one is None or other is None else one + other


@dataclass(slots=True)
class _Sum:
    jobs: int = 0
    canvases: int = 0
    gross: int = 0
    tokens: int | None = 0

    def add(self, other: _Sum) -> None:
        self.jobs += other.jobs
        self.canvases += other.canvases
        self.gross += other.gross
        self.tokens = _plus(self.tokens, other.tokens)

    def share_of(self, whole: _Sum, joules: float | None) -> float | None:
        """Joules of this part of a sum, by its tokens. None: they are not known."""
        if joules is None or self.jobs == whole.jobs:
            return joules
        if self.tokens is None or not whole.tokens:
            return None
        return joules * self.tokens / whole.tokens


class EarningsBook:
    """Earnings of the last seven days by hour, model and client. It keeps sums, no jobs."""

    def __init__(self, journal: BookJournal, coin_price: int) -> None:
        """coin_price: base units of one native coin."""
        self._journal, self._coin_price = journal, coin_price
        self._sums: dict[tuple[int, str, str], _Sum] = {}
        self._spent: dict[int, tuple[int, int]] = {}
        """By hour: fees in base units, and gas in wei."""
        self._read_from: int | None = None
        self._clients: dict[ChannelId, str] = {}
        self._models: dict[Digest, tuple[str, ...]] = {}
        """By offer: the names of its entries."""

    async def refresh(self, time: int) -> None:
        """Read what may have changed. time: Unix seconds."""
        hour = time // HOUR_S
        first = hour - WINDOW_HOURS + 1 if self._read_from is None else self._read_from
        sums: dict[tuple[int, str, str], _Sum] = defaultdict(_Sum)
        async for page in self._journal.paid_lately(first * HOUR_S):
            for job in page:
                if job.at < first * HOUR_S:
                    continue  # the clock was set back: its hour is closed
                key = job.at // HOUR_S, await self._model(job), await self._client(job.channel)
                sums[key].add(_Sum(1, job.canvases, job.gross, job.tokens))
        spent: dict[int, tuple[int, int]] = {}
        for tx in await self._journal.spent(first * HOUR_S, time + HOUR_S):
            fees, wei = spent.get(tx.at // HOUR_S, (0, 0))
            spent[tx.at // HOUR_S] = fees + tx.earned, wei + tx.fee_wei
        oldest = hour - WINDOW_HOURS + 1
        kept = {key: made for key, made in self._sums.items() if oldest <= key[0] < first}
        self._sums = kept | dict(sums)
        old = {h: made for h, made in self._spent.items() if oldest <= h < first}
        self._spent = old | spent
        self._read_from = hour - OPEN_HOURS

    def hours(self, time: int, joules: Mapping[int, float]) -> tuple[Earned, ...]:
        """The last hours in which something happened, the newest first."""
        last = time // HOUR_S
        rows = [
            self._row(f"{datetime.fromtimestamp(hour * HOUR_S, UTC):%m-%d %H}:00", [hour], joules)
            for hour in range(last, last - SHOWN_HOURS, -1)
        ]
        return tuple(row for row in rows if row.jobs or row.gas or row.joules)

    def days(self, time: int, joules: Mapping[int, float]) -> tuple[Earned, ...]:
        """The last seven days in UTC, the newest first."""
        by_day: dict[str, list[int]] = defaultdict(list)
        last = time // HOUR_S
        for hour in range(last, last - WINDOW_HOURS, -1):
            by_day[f"{datetime.fromtimestamp(hour * HOUR_S, UTC):%Y-%m-%d}"].append(hour)
        rows = (self._row(day, hours, joules) for day, hours in by_day.items())
        return tuple(row for row in rows if row.jobs or row.gas or row.joules)

    def _row(self, label: str, hours: list[int], joules: Mapping[int, float]) -> Earned:
        wanted, total, blind = set(hours), _Sum(), False
        for (hour, _, _), made in self._sums.items():
            if hour in wanted:
                total.add(made)
                blind = blind or hour not in joules
        fees = sum(self._spent.get(hour, (0, 0))[0] for hour in hours)
        wei = sum(self._spent.get(hour, (0, 0))[1] for hour in hours)
        known = [joules[hour] for hour in hours if hour in joules]
        return Earned(
            label,
            total.jobs,
            total.canvases,
            total.gross,
            fees,
            -(-wei * self._coin_price // WEI),
            sum(known) if known and not blind else None,
        )

    def costs(self) -> tuple[int, int, int]:
        """Gas and fees of the window in base units, and the canvases that were delivered."""
        fees = sum(fees for fees, _ in self._spent.values())
        wei = sum(wei for _, wei in self._spent.values())
        canvases = sum(made.canvases for made in self._sums.values())
        return -(-wei * self._coin_price // WEI), fees, canvases

    def by_model(self, time: int, joules: Mapping[int, float]) -> tuple[Earned, ...]:
        """Earnings of the window by model, the largest first."""
        return self._shares(lambda key: key[1], self._energy(time, joules))

    def by_client(self, time: int, joules: Mapping[int, float]) -> tuple[Earned, ...]:
        """Earnings of the window by payer, the largest first."""
        return self._shares(lambda key: key[2], self._energy(time, joules))

    def _energy(self, time: int, joules: Mapping[int, float]) -> dict[int, float | None]:
        """Joules by each hour with jobs, so that they add up to those of the window.

        An hour without jobs counts with the last one before it that had some: its canvases may
        have run on, and the card waited after them. None: the hour of the jobs has no reading.
        """
        busy = sorted({hour for hour, _, _ in self._sums})
        energy = {hour: joules.get(hour) for hour in busy}
        oldest = time // HOUR_S - WINDOW_HOURS + 1
        for hour in (joules.keys() - energy.keys()) if busy else ():
            before = busy[max(0, bisect(busy, hour) - 1)]
            known = energy[before]
            if hour >= oldest and known is not None:
                energy[before] = known + joules[hour]
        return energy

    def _shares(
        self, part: Callable[[tuple[int, str, str]], str], energy: Mapping[int, float | None]
    ) -> tuple[Earned, ...]:
        """Gas and fees are shared by canvases: a settlement pays for many jobs. Power by tokens."""
        sums: dict[str, _Sum] = defaultdict(_Sum)
        by_hour: dict[int, _Sum] = defaultdict(_Sum)
        cells: dict[tuple[str, int], _Sum] = defaultdict(_Sum)
        for key, made in self._sums.items():
            for total in (sums[part(key)], by_hour[key[0]], cells[part(key), key[0]]):
                total.add(made)
        drawn: dict[str, float | None] = dict.fromkeys(sums, 0.0)
        for (name, hour), made in cells.items():
            drawn[name] = _plus(drawn[name], made.share_of(by_hour[hour], energy[hour]))
        ranked = sorted(sums, key=lambda name: -sums[name].gross)
        shown = [(name, sums[name], drawn[name]) for name in ranked[:MOST_SHARES]]
        rest = _Sum()
        joules: float | None = 0.0
        for name in ranked[MOST_SHARES:]:
            rest.add(sums[name])
            joules = _plus(joules, drawn[name])
        shown += [(OTHER, rest, joules)] if rest.jobs else []
        gas, fees, canvases = self.costs()
        return tuple(
            Earned(
                name,
                made.jobs,
                made.canvases,
                made.gross,
                fees * made.canvases // canvases,
                -(-gas * made.canvases // canvases),
                joules,
            )
            for name, made, joules in shown
        )

    async def _client(self, channel: ChannelId) -> str:
        if channel not in self._clients:
            stored = await self._journal.channel(channel)
            self._clients[channel] = short(address_hex(stored.channel.payer)) if stored else "?"
        return self._clients[channel]

    async def _model(self, job: PaidJob) -> str:
        if job.offer is None or job.entry is None:
            return UNKNOWN_MODEL
        if job.offer not in self._models:
            signed = await self._journal.offer(job.offer)
            models = signed.offer.models if signed else ()
            self._models[job.offer] = tuple(model.name for model in models)
        names = self._models[job.offer]
        return names[job.entry] if job.entry < len(names) else UNKNOWN_MODEL


class ConsoleFeed:
    """Samples the worker once a second, and makes snapshots of it."""

    def __init__(
        self,
        components: Components,
        state: Callable[[], str],
        places: Callable[[], tuple[dict[str, bool], dict[str, str]]],
    ) -> None:
        """`state` and `places` are the daemon's own: its state, and how indexes and relays are."""
        self._p, self._state, self._places = components, state, places
        base, config = components.base, components.base.config
        self._meter, self._energy = ConsoleMeter(), JobEnergy()
        self._book = EarningsBook(base.journal, base.amounts.native_coin_price)
        self._notes = EnergyNotes(base.journal)
        self._webhook: Webhook | None = None
        if config.alert_webhook:
            operator = address_hex(base.operator.address)
            self._webhook = Webhook(config.alert_webhook, operator, log=base.log)
        self._alerts = AlertBook(base.clock, self._webhook.add if self._webhook else None)
        self._losses = 0
        self._booked_at: float | None = None

    async def run(self) -> None:
        """Sample, and post alerts, until cancelled."""
        self._meter.remember(await self._notes.read())
        async with asyncio.TaskGroup() as group, HttpReader(WEBHOOK_LIMITS) as http:
            if self._webhook is not None:
                group.create_task(self._webhook.run(http), name="webhook")
            while True:
                await self.sample()
                await asyncio.sleep(SAMPLE_S)

    async def sample(self) -> None:
        """Take one sample of counters, energy and conditions."""
        p, clock, metrics = self._p, self._p.base.clock, self._p.base.metrics
        moment = clock.monotonic()
        gpus: dict[str, GpuReading | None] = {}
        for one in p.base.engines:
            gpus.update(dict.fromkeys(map(str, one.config.watched_gpus)))
        for owner in p.owners.values():
            gpus.update((str(gpu.number), gpu) for gpu in owner.readings.gpus)
        ours, told = gpus_at_work(p.base.engines)
        drawn = self._meter.sample(
            moment,
            clock.wall(),
            tokens=metrics.tokens,
            steps=metrics.steps,
            gpus=gpus,
            ours=ours,
        )
        self._energy.add(
            drawn if told else None, metrics.tokens, busy=p.worker.views.taking_steps > 0
        )
        self._alerts.observe(self._conditions())
        if p.base.engines.losses > self._losses:
            self._alerts.event("engine-lost", "The engine was lost and is started again.")
        self._losses = p.base.engines.losses
        if self._booked_at is None or moment - self._booked_at >= BOOK_S:
            self._booked_at = moment
            await self._book.refresh(now(clock))
            await self._notes.write(self._meter.hours)

    def spent(self) -> Spent:
        """What work took until now."""
        return Spent(self._energy.joules, self._energy.tokens, *self._book.costs())

    def _conditions(self) -> dict[str, str]:
        """What lasts now, in words that name no host and no secret."""
        found = {
            fault.code.value: f"{fault.condition.meaning}. {fault.condition.remedy}."
            for fault in self._p.channels.faults.faults
        }
        if self._p.worker.cards.pause is not None:
            found["paused"] = "Jobs are paused on every card. worker status says why."
        return found

    async def snapshot(self, prices: ShownPrices) -> Snapshot:
        """Return everything that a console shows."""
        p, base = self._p, self._p.base
        time, pause = now(base.clock), p.worker.cards.pause
        cards = tuple(map(self._card, base.engines))
        devices = {one.card.facts.device: 1 for one in base.engines if one.card.facts}
        why = tuple(fault.line for fault in p.channels.faults.faults)
        indexes, relays = self._places()
        return Snapshot(
            at=time,
            state=self._state(),
            why=(pause.causes if pause is not None else ()) + why,
            operator=address_hex(base.operator.address),
            model=_each(card.model for card in cards),
            device=_each(devices),
            precision=_each(card.precision for card in cards),
            slots=p.worker.terms.slots,
            queue=p.worker.terms.queue,
            active=p.worker.active,
            streams=p.worker.streams,
            canvases=tuple(_canvases(p.runtime.sequences.values())),
            jobs=dict(base.metrics.states),
            refusals=dict(base.metrics.refusals),
            hours=self._book.hours(time, self._meter.hours),
            days=self._book.days(time, self._meter.hours),
            models=self._book.by_model(time, self._meter.hours),
            clients=self._book.by_client(time, self._meter.hours),
            balance=self._balance(),
            rates=self._meter.rates,
            cards=cards,
            head_age_s=base.metrics.head_age_s,
            indexes=indexes,
            relays=relays,
            alerts=tuple(self._alerts.last),
            money=money_of(base.deployment.payment_token, base.config),
            prices=prices,
            test=_test(p.worker.own_tests.last),
        )

    def _card(self, one: KeptCard) -> ShownCard:
        card, owner = one.card, self._p.owners[one.card.name]
        state, why = "ready" if card.serves else "starting", card.failed
        if card.failed:
            state = "away"
        elif card.pause is not None:
            state, why = "paused", "; ".join(card.pause.causes)
        facts = card.facts
        return ShownCard(
            name=card.name,
            state=state,
            why=why,
            model=facts.name if facts else "",
            precision=str(facts.details.get("precision", "")) if facts else "",
            slots=card.slots,
            active=self._p.runtime.load[card.name],
            gpu=next(iter(owner.gpus), None),
            missing=owner.missing,
        )

    def _balance(self) -> OpenBalance:
        p, held = self._p, self._p.base.metrics.gas_held
        price = settle_wei(p.settler.gas_price)
        return OpenBalance(
            unsettled=p.channels.unsettled,
            waiting=sum(p.settler.payouts.waiting.values()),
            exposure=p.channels.exposure,
            bound=exposure_bound(p),
            gas=None if held is None else native_coin().format(held),
            settlements_left=None if held is None or not price else held // price,
        )


class OwnersPrices(Protocol):
    """The owner's prices (`WorkerConfig`). 0: not known."""

    usd_per_token: float
    usd_per_kwh: float


def money_of(token: Token, prices: OwnersPrices) -> ShownMoney:
    """Return how amounts of a token are shown."""
    return ShownMoney(
        token.symbol, token.decimals, prices.usd_per_token or None, prices.usd_per_kwh or None
    )


def short(text: str) -> str:
    """The first characters of an address or a name."""
    return text[:SHORT] + "…" if len(text) > SHORT else text


def _each(texts: Iterable[str]) -> str:
    """Different texts, each once."""
    return ", ".join(dict.fromkeys(text for text in texts if text))


def _test(test: OwnTest | None) -> ShownTest | None:
    if test is None:
        return None
    return ShownTest(
        state=test.state,
        why=test.why,
        card=test.card,
        prompt=test.prompt,
        text=test.text + test.draft,
        canvas=test.canvas,
        step=test.step,
        max_steps=test.max_steps,
        tokens=test.tokens,
        seconds=test.seconds,
    )


def _canvases(jobs: Iterable[LiveJob]) -> Iterable[LiveCanvas]:
    place = 0
    for job in jobs:
        done, accepted, shown = job.progress, job.session.accepted, job.shown
        place += done is None
        yield LiveCanvas(
            job=short("0x" + job.id.hex()),
            client=short(address_hex(accepted.channel.payer)),
            canvas=done.canvas if done else job.session.canvases,
            step=done.steps if done else 0,
            max_steps=accepted.job.parameters.max_steps,
            prompt_tokens=accepted.prompt_tokens,
            drafted=len(shown.token_ids) if shown else 0,
            place=place if done is None else 0,
        )


def gpus_at_work(engines: Iterable[KeptCard]) -> tuple[set[str], bool]:
    """The numbers of the GPUs that work for us, and whether they tell of all that works for us.

    No GPU tells what a CPU draws. vLLM may have several GPUs, and on other machines.
    Two cards may watch one GPU. It draws its power once.
    """
    ours, told = set[str](), True
    for one in engines:
        if one.card.pause is not None or one.card.failed:
            continue
        device = one.card.facts.device if one.card.facts is not None else one.config.device
        told = told and device not in ("cpu", "vllm")
        if device != "cpu":
            ours.update(map(str, one.config.watched_gpus))
    return ours, told
