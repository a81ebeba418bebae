"""The offers that the index holds: in memory for reading, in its database so that a restart forgets
nothing, and so that other instances of the index list them too.

A worker's last offer outlives its end, so that an older one cannot be brought back.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from piecework.base.clock import Clock
from piecework.market.audits import AuditStore
from piecework.market.catalogue import Catalogue
from piecework.market.errors import Declined, OfferStoreError
from piecework.market.history import MarketHistory
from piecework.market.limits import FOLLOW_INTERVAL_S, FOLLOWED_AT_ONCE, MAX_OFFERS
from piecework.market.listing import Listed
from piecework.market.rounds import repeat
from piecework.market.storage.database import MarketDatabase, Row
from piecework_protocol import wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.types import Address, Amount, Timestamp, to_hex
from piecework_protocol.wire import SignedOffer

_PUT: Final = """
INSERT INTO published VALUES
    ($1, $2, $3, $4, $5, $6, (SELECT coalesce(max(revision), 0) + 1 FROM published))
ON CONFLICT (operator) DO UPDATE SET sequence = excluded.sequence,
    expires_at = excluded.expires_at, wire = excluded.wire, stake = excluded.stake,
    received_at = excluded.received_at, revision = excluded.revision
WHERE published.sequence < excluded.sequence
RETURNING revision
"""


class OfferStore:
    """One index's offers on one chain."""

    def __init__(self, database: MarketDatabase, token: Address) -> None:
        """Use `open`, which reads what is there."""
        self._db = database
        self.history = MarketHistory(database, token)
        self.audits = AuditStore(database)
        self.catalogue = Catalogue()
        """What readers see."""
        self._sequences: dict[Address, int] = {}
        self._revision = 0
        self._connections = database.connections
        self._log = structlog.get_logger("market")

    @classmethod
    async def open(
        cls, database: MarketDatabase, domain: Domain, token: Address, now: Timestamp
    ) -> OfferStore:
        """Take over a database, and what is in it.

        Args:
            database: It is closed with the store.
            domain: The market's chain and escrow.
            token: What the market pays in, for its history.

        Raises:
            OfferStoreError: it is that of another market, or cannot be read.
        """
        store = cls(database, token)
        await store._bind(domain)
        await store.catch_up(now)
        return store

    async def close(self) -> None:
        """Give the database back."""
        await self._db.close()

    def is_known(self, signed: SignedOffer) -> bool:
        """Check the offer's sequence number: True when this very offer is here already.

        `Declined` (409) for a number below the highest seen, or a second offer with the same
        number.
        """
        offer = signed.offer
        highest = self._sequences.get(offer.operator)
        if highest is None or offer.sequence > highest:
            return False
        listed = self.catalogue.get(offer.operator)
        if offer.sequence == highest and listed is not None and listed.signed == signed:
            return True
        raise _stale(highest)

    async def put(self, listed: Listed, now: Timestamp) -> bool:
        """Take in a verified offer in place of the worker's last one.

        Returns False if another request, or another instance, took this very offer in before.
        `Declined` (409) if what came before is newer.
        """
        offer = listed.signed.offer
        if offer.operator not in self.catalogue and len(self.catalogue) >= MAX_OFFERS:
            self.sweep(now)
            if len(self.catalogue) >= MAX_OFFERS:
                raise Declined(503, "index_full", "this index holds as many offers as it can")
        async with self._db.change() as db:
            # Sequence numbers are uint64 and a database's integers end at 63 bits: the server
            # bounds them.
            values = (
                offer.operator,
                offer.sequence,
                offer.expires_at,
                listed.wire_bytes,
                str(listed.stake),
                listed.received_at,
            )
            taken = await db.rows(_PUT, *values)
            if not taken:
                sql = "SELECT sequence, wire FROM published WHERE operator = $1"
                (before,) = await db.rows(sql, offer.operator)
        if not taken and (before[0] != offer.sequence or before[1] != listed.wire_bytes):
            raise _stale(before[0])
        self._list(listed)
        return bool(taken)

    async def last(self, operator: Address) -> bytes | None:
        """The last offer of a worker, as it came, also when it has expired."""
        rows = await self._db.rows("SELECT wire FROM published WHERE operator = $1", operator)
        return bytes(rows[0][0]) if rows else None

    def sweep(self, now: Timestamp) -> int:
        """Forget expired offers, not their sequence numbers. Return how many went."""
        return self.catalogue.expire(now)

    async def record(self, now: Timestamp) -> None:
        """Take a sample of the market into its history."""
        await self.history.take(self.catalogue.sample(now), self.catalogue.live(now))

    async def catch_up(self, now: Timestamp) -> None:
        """List what the database has and this instance does not: that of others, or of before.

        An offer that cannot be read, such as one of a newer program, is logged and left out.
        """
        while True:
            rows = await self._db.rows(
                "SELECT revision, operator, sequence, expires_at, wire, stake, received_at"
                " FROM published WHERE revision > $1 ORDER BY revision LIMIT $2",
                self._revision,
                FOLLOWED_AT_ONCE,
            )
            if self._db.connections != self._connections:
                # A server that crashed may have lost revisions, and gives them again.
                self._connections, self._revision = self._db.connections, 0
                continue
            for row in rows:
                self._take_over(row, now)
            if len(rows) < FOLLOWED_AT_ONCE:
                return
            await asyncio.sleep(0)

    async def follow(self, clock: Clock) -> None:
        """Catch up again and again until cancelled. A failure is logged once until it is over."""
        await repeat(
            lambda: self.catch_up(Timestamp(int(clock.wall()))),
            self._log.error,
            "database",
            FOLLOW_INTERVAL_S,
            FOLLOW_INTERVAL_S,
        )

    def _take_over(self, row: Row, now: Timestamp) -> None:
        """List an offer that is newer than what is here."""
        self._revision, operator, sequence, expires_at, data, stake, received_at = row
        worker = Address(operator)
        if sequence <= self._sequences.get(worker, -1):
            return
        if expires_at <= now:
            self._sequences[worker] = sequence
            return
        try:
            signed = wire.decode_offer(bytes(data))
        except MalformedInput as error:
            self._sequences[worker] = sequence
            self._log.error("unreadable offer", operator=to_hex(worker), error=str(error))
            return
        self._list(Listed(signed, bytes(data), Amount(int(stake)), Timestamp(received_at)))

    def _list(self, listed: Listed) -> None:
        """Show an offer, unless a newer one came while its transaction ended."""
        offer = listed.signed.offer
        if offer.sequence > self._sequences.get(offer.operator, -1):
            self.catalogue.put(listed)
            self._sequences[offer.operator] = offer.sequence

    async def _bind(self, domain: Domain) -> None:
        mine = {"chain": str(domain.chain_id), "escrow": to_hex(domain.verifying_contract)}
        async with self._db.change() as db:
            for key, value in mine.items():
                await db.rows("INSERT INTO meta VALUES ($1, $2) ON CONFLICT DO NOTHING", key, value)
            rows = await db.rows("SELECT key, value FROM meta")
        found = {str(row[0]): str(row[1]) for row in rows}
        for key, value in mine.items():
            if found[key] != value:
                raise OfferStoreError(
                    f"{self._db.name} was made for {key} {found[key]}, not {value}. "
                    "Use another --home or --database"
                )


def _stale(highest: int) -> Declined:
    return Declined(409, "stale_sequence", f"the sequence number must be above {highest}")
