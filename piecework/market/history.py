"""What an index has seen over time: samples of the market, the uptime of workers, settled money.

Samples and uptime are what this index saw, and another one saw something else. Settlements are the
chain's: they are read from final blocks only, so that no reorganization takes them back.

It shares the database of the offers. A day is 86,400 s of Unix time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import apsw

from piecework.chain.events import ChannelOpened, EscrowEvent, Settled
from piecework.market.limits import HISTORY_DAYS, SAMPLE_INTERVAL_S, SETTLEMENTS_KEPT
from piecework.market.listing import Listed, blended_price
from piecework_protocol.types import Address, Amount, Bytes32, Timestamp

DAY_S: Final = 86_400
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS samples (
    at INTEGER PRIMARY KEY, workers INTEGER NOT NULL, models INTEGER NOT NULL,
    slots INTEGER NOT NULL, slots_free INTEGER NOT NULL, lowest_price INTEGER, median_price INTEGER,
    median_speed INTEGER, highest_speed INTEGER
) STRICT;
CREATE TABLE IF NOT EXISTS sampled_days (day INTEGER PRIMARY KEY, samples INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS worker_days (
    operator BLOB NOT NULL, day INTEGER NOT NULL, first_sample INTEGER NOT NULL,
    samples INTEGER NOT NULL, PRIMARY KEY (operator, day)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS opened_channels (
    channel BLOB PRIMARY KEY, operator BLOB NOT NULL, token BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS settlements (
    block INTEGER NOT NULL, log INTEGER NOT NULL, at INTEGER NOT NULL, operator BLOB NOT NULL,
    hash BLOB NOT NULL, amount TEXT NOT NULL, PRIMARY KEY (block, log)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS settlements_of ON settlements (operator, block, log);
CREATE TABLE IF NOT EXISTS settled_days (
    day INTEGER NOT NULL, operator BLOB NOT NULL, amount TEXT NOT NULL, payments INTEGER NOT NULL,
    PRIMARY KEY (day, operator)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS settled_days_of ON settled_days (operator, day);
CREATE TABLE IF NOT EXISTS market_days (
    day INTEGER PRIMARY KEY, amount TEXT NOT NULL, payments INTEGER NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class MarketSample:
    """The market at one moment. Prices are blended ones in base units, speeds tokens a second."""

    at: Timestamp
    workers: int
    models: int
    slots: int
    slots_free: int
    lowest_price: int | None
    median_price: int | None
    median_speed: int | None
    highest_speed: int | None


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
class Settlement:
    """One payment on chain to a worker's channel, in base units of the market's token."""

    block: int
    at: Timestamp
    transaction: Bytes32
    amount: Amount


@dataclass(frozen=True, slots=True)
class SettledDay:
    """What was settled on one day."""

    day: int
    amount: Amount
    payments: int


def sample(
    offers: Sequence[Listed], now: Timestamp, prices: Sequence[int] | None = None
) -> MarketSample:
    """Return the figures of the market now.

    prices: of all models at all workers, sorted, if they are known.
    """
    signed = [listed.signed.offer for listed in offers]
    models = [model for offer in signed for model in offer.models]
    if prices is None:
        prices = sorted(map(blended_price, models))
    speeds = sorted(model.tokens_per_second for model in models)
    return MarketSample(
        now,
        len(signed),
        len({model.digest for model in models}),
        sum(offer.slots for offer in signed),
        sum(offer.slots_free for offer in signed),
        prices[0] if prices else None,
        statistics.median_low(prices) if prices else None,
        statistics.median_low(speeds) if speeds else None,
        speeds[-1] if speeds else None,
    )


class MarketHistory:
    """The tables above. Used from one thread. Every method may raise `apsw.Error`."""

    def __init__(self, db: apsw.Connection, token: Address) -> None:
        """`token`: the one that amounts are in. Payments in another one are not counted."""
        self._db, self._token = db, token
        db.execute(SCHEMA)
        self._sum_up()

    # --- what this index sees

    def take(self, offers: Sequence[Listed], now: Timestamp) -> None:
        """Write a sample, and that these workers were there. Forget what is too old."""
        now = Timestamp(now // SAMPLE_INTERVAL_S * SAMPLE_INTERVAL_S)
        row, day = sample(offers, now), now // DAY_S
        with self._db:
            if self._rows("SELECT 1 FROM samples WHERE at = ?", (now,)):
                return
            self._db.execute(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", _integers(astuple(row))
            )
            self._db.execute(
                "INSERT INTO sampled_days VALUES (?, 1)"
                " ON CONFLICT (day) DO UPDATE SET samples = samples + 1",
                (day,),
            )
            (number,) = self._rows("SELECT samples FROM sampled_days WHERE day = ?", (day,))[0]
            self._db.executemany(
                "INSERT INTO worker_days VALUES (?, ?, ?, 1)"
                " ON CONFLICT (operator, day) DO UPDATE SET samples = samples + 1",
                [(listed.signed.offer.operator, day, number) for listed in offers],
            )
            self._forget(now)

    def samples(self, since: Timestamp) -> tuple[MarketSample, ...]:
        """Return the samples from a moment on, oldest first."""
        rows = self._rows("SELECT * FROM samples WHERE at >= ? ORDER BY at", (since,))
        return tuple(MarketSample(Timestamp(row[0]), *row[1:]) for row in rows)

    def uptime(self, operator: Address) -> Uptime | None:
        """Return how often a worker was there, or None for one that no sample has seen.

        Its first day counts from the first sample that saw it.
        """
        rows = self._rows(
            "SELECT day, first_sample, samples FROM worker_days WHERE operator = ? ORDER BY day",
            (operator,),
        )
        if not rows:
            return None
        day, first, _ = rows[0]
        ((taken,),) = self._rows("SELECT sum(samples) FROM sampled_days WHERE day >= ?", (day,))
        since = Timestamp(day * DAY_S)
        return Uptime(sum(row[2] for row in rows), taken - (first - 1), since)

    # --- what the chain says

    @property
    def read_to(self) -> int | None:
        """The last block whose events were taken over."""
        rows = self._rows("SELECT value FROM meta WHERE key = 'settled_to'")
        return int(rows[0][0]) if rows else None

    def take_events(
        self, events: Iterable[EscrowEvent], times: dict[int, Timestamp], last: int
    ) -> None:
        """Take over the openings and payments of final blocks up to `last`, in chain order.

        times: when the block of each payment was.
        """
        with self._db:
            for event in events:
                if isinstance(event, ChannelOpened):
                    terms = (event.channel, event.terms.operator, event.terms.token)
                    self._db.execute(
                        "INSERT OR IGNORE INTO opened_channels VALUES (?, ?, ?)", terms
                    )
                elif isinstance(event, Settled):
                    self._settled(event, times[event.log.block])
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('settled_to', ?)", (str(last),))

    def settlements(self, operator: Address) -> tuple[Settlement, ...]:
        """Return the last payments to a worker's channels, newest first."""
        rows = self._rows(
            "SELECT block, at, hash, amount FROM settlements WHERE operator = ?"
            " ORDER BY block DESC, log DESC LIMIT ?",
            (operator, SETTLEMENTS_KEPT),
        )
        return tuple(
            Settlement(block, Timestamp(at), Bytes32(hash_), Amount(int(amount)))
            for block, at, hash_, amount in rows
        )

    def settled(self, operator: Address | None = None) -> tuple[SettledDay, ...]:
        """Return what was settled on each day, oldest first: to one worker, or to all."""
        if operator is None:
            rows = self._rows("SELECT day, amount, payments FROM market_days ORDER BY day")
        else:
            rows = self._rows(
                "SELECT day, amount, payments FROM settled_days WHERE operator = ? ORDER BY day",
                (operator,),
            )
        return tuple(SettledDay(day, Amount(int(amount)), count) for day, amount, count in rows)

    # --- inside

    def _settled(self, event: Settled, at: Timestamp) -> None:
        rows = self._rows(
            "SELECT operator, token FROM opened_channels WHERE channel = ?", (event.channel,)
        )
        if not rows or rows[0][1] != self._token:
            return
        operator, log = rows[0][0], event.log
        self._db.execute(
            "INSERT INTO settlements VALUES (?, ?, ?, ?, ?, ?)",
            (log.block, log.index, at, operator, log.transaction, str(event.amount)),
        )
        self._db.execute(
            "DELETE FROM settlements WHERE (block, log) IN (SELECT block, log FROM settlements"
            " WHERE operator = ? ORDER BY block DESC, log DESC LIMIT -1 OFFSET ?)",
            (operator, SETTLEMENTS_KEPT),
        )
        day = at // DAY_S
        known = self._rows(
            "SELECT amount, payments FROM settled_days WHERE day = ? AND operator = ?",
            (day, operator),
        )
        self._db.execute(
            "INSERT OR REPLACE INTO settled_days VALUES (?, ?, ?, ?)",
            (day, operator, *_increased(known, event.amount, 1)),
        )
        self._add_to_market(day, event.amount, 1)

    def _add_to_market(self, day: int, amount: int, payments: int) -> None:
        known = self._rows("SELECT amount, payments FROM market_days WHERE day = ?", (day,))
        self._db.execute(
            "INSERT OR REPLACE INTO market_days VALUES (?, ?, ?)",
            (day, *_increased(known, amount, payments)),
        )

    def _sum_up(self) -> None:
        """Fill the sums of all workers, which a database of before does not have."""
        with self._db:
            if self._rows("SELECT 1 FROM market_days LIMIT 1"):
                return
            for day, amount, count in self._rows("SELECT day, amount, payments FROM settled_days"):
                self._add_to_market(day, int(amount), count)

    def _forget(self, now: Timestamp) -> None:
        first = now - HISTORY_DAYS * DAY_S
        self._db.execute("DELETE FROM samples WHERE at < ?", (first,))
        for table in ("sampled_days", "worker_days"):
            self._db.execute(f"DELETE FROM {table} WHERE day < ?", (first // DAY_S,))  # noqa: S608

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        return self._db.execute(sql, values).fetchall()


def _increased(known: Sequence[tuple[str, int]], amount: int, payments: int) -> tuple[str, int]:
    """Add to an amount and a count. Amounts are text: they have more than SQLite's 63 bits."""
    before, count = known[0] if known else ("0", 0)
    return str(int(before) + amount), count + payments


def _integers(values: tuple[Any, ...]) -> tuple[int | None, ...]:
    """SQLite keeps 63 bits. A price that is larger is no price to compare by."""
    return tuple(None if v is None else min(v, 2**63 - 1) for v in values)
