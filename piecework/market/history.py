"""What an index has seen over time: samples of the market, the uptime of workers, settled money.

Samples and uptime are what this index saw, and another one saw something else. Settlements are the
chain's: they are read from final blocks only, so that no reorganization takes them back.

What workers paid to themselves is counted apart. A day is 86,400 s of Unix time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Final, TypeAlias

from piecework.market.limits import (
    HISTORY_DAYS,
    SAMPLE_INTERVAL_S,
    SAMPLED_AT_ONCE,
    SETTLEMENTS_KEPT,
)
from piecework.market.storage.database import MarketDatabase, Row, Statements
from piecework.market.storage.schema import OF_ALL
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Timestamp

DAY_S: Final = 86_400
FiveNumbers: TypeAlias = tuple[int | None, int | None, int | None, int | None, int | None]
"""The lowest value, the lower quartile, the median, the upper quartile, and the highest value."""


@dataclass(frozen=True, slots=True)
class MarketSample:
    """The market at one moment. Prices are blended ones in base units, speeds tokens a second.

    Each worker counts once, and its models share that. Quartiles and medians are values that
    somebody offers: of two in the middle the lower one. A member is None if nothing was offered, or
    if the program that took the sample did not keep it.
    """

    at: Timestamp
    workers: int
    models: int
    slots: int
    slots_free: int
    lowest_price: int | None
    lower_quartile_price: int | None
    median_price: int | None
    upper_quartile_price: int | None
    highest_price: int | None
    lowest_speed: int | None
    lower_quartile_speed: int | None
    median_speed: int | None
    upper_quartile_speed: int | None
    highest_speed: int | None

    @property
    def prices(self) -> FiveNumbers:
        """How prices are spread."""
        return (
            self.lowest_price,
            self.lower_quartile_price,
            self.median_price,
            self.upper_quartile_price,
            self.highest_price,
        )

    @property
    def speeds(self) -> FiveNumbers:
        """How speeds are spread."""
        return (
            self.lowest_speed,
            self.lower_quartile_speed,
            self.median_speed,
            self.upper_quartile_speed,
            self.highest_speed,
        )


# By name: a table that was migrated has its columns in another order.
_SAMPLED: Final = tuple(member.name for member in fields(MarketSample))
_SAMPLE_COLUMNS: Final = ", ".join(_SAMPLED)
_SAMPLE_PLACES: Final = ", ".join(f"${at}" for at in range(1, len(_SAMPLED) + 1))


@dataclass(frozen=True, slots=True)
class Uptime:
    """How often this index saw a live offer of a worker, of the samples since its first one."""

    seen: int
    samples: int
    since: Timestamp

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.seen / self.samples


@dataclass(frozen=True, slots=True)
class Opened:
    """A channel came to be. `own`: as `settlements.is_own` says."""

    channel: ChannelId
    operator: Address
    token: Address
    own: bool


@dataclass(frozen=True, slots=True)
class Paid:
    """The worker of a channel was paid."""

    channel: ChannelId
    amount: Amount
    block: int
    log: int
    at: Timestamp
    transaction: Bytes32


@dataclass(frozen=True, slots=True)
class Closed:
    """A channel has no more payments."""

    channel: ChannelId


ChannelEvent: TypeAlias = Opened | Paid | Closed


@dataclass(frozen=True, slots=True)
class Settlement:
    """One payment on chain to a worker's channel, in base units of the market's token.

    `own`: the channel was the worker's own, as `settlements.is_own` says.
    """

    block: int
    at: Timestamp
    transaction: Bytes32
    amount: Amount
    own: bool


@dataclass(frozen=True, slots=True)
class SettledSum:
    """What was settled, without what workers paid to themselves, which is in `own_…`."""

    amount: Amount = Amount(0)
    payments: int = 0
    own_amount: Amount = Amount(0)
    own_payments: int = 0

    def __add__(self, other: SettledSum) -> SettledSum:
        return SettledSum(
            Amount(self.amount + other.amount),
            self.payments + other.payments,
            Amount(self.own_amount + other.own_amount),
            self.own_payments + other.own_payments,
        )


@dataclass(frozen=True, slots=True)
class SettledDay:
    """What was settled on one day."""

    day: int
    settled: SettledSum


class MarketHistory:
    """The tables above. Every method may raise `OfferStoreError`."""

    def __init__(self, database: MarketDatabase, token: Address) -> None:
        """`token`: the one that amounts are in. Payments in another one are not counted."""
        self._db, self._token = database, token

    # --- what this index sees

    async def take(self, market: MarketSample, workers: Sequence[Address]) -> None:
        """Write a sample, and that these workers were there. Forget what is too old.

        Of several instances on one database the first one writes it.
        """
        now = Timestamp(market.at // SAMPLE_INTERVAL_S * SAMPLE_INTERVAL_S)
        row, day = replace(market, at=now), now // DAY_S
        async with self._db.change() as db:
            if not await db.rows(
                f"INSERT INTO samples ({_SAMPLE_COLUMNS}) VALUES ({_SAMPLE_PLACES})"  # noqa: S608
                " ON CONFLICT DO NOTHING RETURNING at",
                *_integers(astuple(row)),
            ):
                return
            ((number,),) = await db.rows(
                "INSERT INTO sampled_days VALUES ($1, 1) ON CONFLICT (day)"
                " DO UPDATE SET samples = sampled_days.samples + 1 RETURNING samples",
                day,
            )
            for part in _parts(workers):
                places = ", ".join(f"(${at}, $1, $2, 1)" for at in range(3, len(part) + 3))
                await db.rows(
                    f"INSERT INTO worker_days VALUES {places} ON CONFLICT (operator, day)"  # noqa: S608
                    " DO UPDATE SET samples = worker_days.samples + 1",
                    day,
                    number,
                    *part,
                )
                await asyncio.sleep(0)
            await self._forget(db, now)

    async def samples(self, since: Timestamp) -> tuple[MarketSample, ...]:
        """Return the samples from a moment on, oldest first."""
        rows = await self._db.rows(
            f"SELECT {_SAMPLE_COLUMNS} FROM samples WHERE at >= $1 ORDER BY at",  # noqa: S608
            since,
        )
        return tuple(MarketSample(Timestamp(row[0]), *row[1:]) for row in rows)

    async def uptime(self, operator: Address) -> Uptime | None:
        """Return how often a worker was there, or None for one that no sample has seen.

        Its first day counts from the first sample that saw it.
        """
        rows = await self._db.rows(
            "SELECT day, first_sample, samples FROM worker_days WHERE operator = $1 ORDER BY day",
            operator,
        )
        if not rows:
            return None
        day, first, _ = rows[0]
        days = await self._db.rows("SELECT samples FROM sampled_days WHERE day >= $1", day)
        taken, since = sum(row[0] for row in days), Timestamp(day * DAY_S)
        return Uptime(sum(row[2] for row in rows), taken - (first - 1), since)

    # --- what the chain says

    async def read_to(self) -> int | None:
        """Return the last block whose events were taken over."""
        return await _read_to(self._db)

    async def take_events(
        self, events: Iterable[ChannelEvent], before: int | None, last: int
    ) -> bool:
        """Take over the events of final blocks up to `last`, in chain order.

        Returns False, and takes none, if `before` is not where the history is. Then another
        instance on the same database was here in between.
        """
        async with self._db.change() as db:
            if await _read_to(db) != before:
                return False
            for event in events:
                if isinstance(event, Opened):
                    await self._opened(db, event)
                elif isinstance(event, Closed):
                    await db.rows("DELETE FROM open_channels WHERE channel = $1", event.channel)
                else:
                    await _settled(db, event)
            await db.rows(
                "INSERT INTO meta VALUES ('settled_to', $1)"
                " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                str(last),
            )
        return True

    async def settlements(self, operator: Address) -> tuple[Settlement, ...]:
        """Return the last payments to a worker's channels, newest first."""
        rows = await self._db.rows(
            "SELECT block, at, hash, amount, own FROM settlements WHERE operator = $1"
            " ORDER BY block DESC, log DESC LIMIT $2",
            operator,
            SETTLEMENTS_KEPT,
        )
        return tuple(
            Settlement(block, Timestamp(at), Bytes32(hash_), Amount(int(amount)), bool(own))
            for block, at, hash_, amount, own in rows
        )

    async def settled(self, operator: Address | None = None) -> tuple[SettledDay, ...]:
        """Return what was settled on each of the last days: to one worker, or to all."""
        rows = await self._db.rows(
            "SELECT day, amount, payments, own_amount, own_payments FROM settled_days"
            " WHERE operator = $1 ORDER BY day DESC LIMIT $2",
            operator or OF_ALL,
            HISTORY_DAYS,
        )
        return tuple(SettledDay(row[0], _sum(row[1:])) for row in reversed(rows))

    async def settled_in_all(self, operator: Address | None = None) -> SettledSum:
        """Return what was ever settled: to one worker, or to all."""
        rows = await self._db.rows(
            "SELECT amount, payments, own_amount, own_payments FROM settled_totals"
            " WHERE operator = $1",
            operator or OF_ALL,
        )
        return _sum(rows[0]) if rows else SettledSum()

    # --- inside

    async def _opened(self, db: Statements, event: Opened) -> None:
        # A channel in another token is not kept, so that its payments are those of no channel.
        if event.token == self._token:
            await db.rows(
                "INSERT INTO open_channels VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                event.channel,
                event.operator,
                int(event.own),
            )

    async def _forget(self, db: Statements, now: Timestamp) -> None:
        first = now - HISTORY_DAYS * DAY_S
        await db.rows("DELETE FROM samples WHERE at < $1", first)
        for table in ("sampled_days", "worker_days", "settled_days"):
            await db.rows(f"DELETE FROM {table} WHERE day < $1", first // DAY_S)  # noqa: S608


async def _read_to(db: Statements) -> int | None:
    rows = await db.rows("SELECT value FROM meta WHERE key = 'settled_to'")
    return int(rows[0][0]) if rows else None


async def _settled(db: Statements, event: Paid) -> None:
    rows = await db.rows(
        "SELECT operator, own FROM open_channels WHERE channel = $1", event.channel
    )
    if not rows:
        return
    operator, own = bytes(rows[0][0]), rows[0][1]
    values = (event.block, event.log, event.at, operator, event.transaction, str(event.amount), own)
    await db.rows("INSERT INTO settlements VALUES ($1, $2, $3, $4, $5, $6, $7)", *values)
    await db.rows(
        "DELETE FROM settlements WHERE operator = $1 AND (block, log) NOT IN (SELECT block, log"
        " FROM settlements WHERE operator = $1 ORDER BY block DESC, log DESC LIMIT $2)",
        operator,
        SETTLEMENTS_KEPT,
    )
    paid = SettledSum(event.amount, 1)
    if own:
        paid = SettledSum(own_amount=event.amount, own_payments=1)
    for party in (operator, OF_ALL):
        await _increase(db, "settled_days", {"operator": party, "day": event.at // DAY_S}, paid)
        await _increase(db, "settled_totals", {"operator": party}, paid)


async def _increase(db: Statements, table: str, key: dict[str, Any], paid: SettledSum) -> None:
    """Add to a row of sums. Only one transaction runs at a time, so nothing comes in between."""
    where = " AND ".join(f"{name} = ${at}" for at, name in enumerate(key, 1))
    sums = "amount, payments, own_amount, own_payments"
    rows = await db.rows(f"SELECT {sums} FROM {table} WHERE {where}", *key.values())  # noqa: S608
    now = _sum(rows[0]) + paid if rows else paid
    values = (str(now.amount), now.payments, str(now.own_amount), now.own_payments)
    places = ", ".join(f"${at}" for at in range(1, len(key) + 5))
    changes = ", ".join(f"{name} = excluded.{name}" for name in sums.split(", "))
    await db.rows(
        f"INSERT INTO {table} VALUES ({places}) ON CONFLICT ({', '.join(key)})"  # noqa: S608
        f" DO UPDATE SET {changes}",
        *key.values(),
        *values,
    )


def _sum(row: Row) -> SettledSum:
    amount, payments, own_amount, own_payments = row
    return SettledSum(Amount(int(amount)), payments, Amount(int(own_amount)), own_payments)


def _parts(operators: Sequence[Address]) -> Iterator[Sequence[Address]]:
    for start in range(0, len(operators), SAMPLED_AT_ONCE):
        yield operators[start : start + SAMPLED_AT_ONCE]


def _integers(values: tuple[Any, ...]) -> tuple[int | None, ...]:
    """A database keeps 63 bits. A price that is larger is not a price to compare by."""
    return tuple(None if v is None else min(v, 2**63 - 1) for v in values)
