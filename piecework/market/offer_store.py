"""The offers that the index holds: in memory for reading, in SQLite so that a restart forgets
nothing.

A worker's highest sequence number outlives its offers, so that an old offer cannot be brought back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from piecework.market.audits import AuditStore
from piecework.market.catalogue import Catalogue
from piecework.market.errors import Declined, OfferStoreError
from piecework.market.history import MarketHistory
from piecework.market.limits import MAX_OFFERS
from piecework.market.listing import Listed
from piecework_protocol import wire
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, Amount, Timestamp, to_hex
from piecework_protocol.wire import SignedOffer

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS offers (
    operator BLOB PRIMARY KEY, expires_at INTEGER NOT NULL, wire BLOB NOT NULL, stake TEXT NOT NULL,
    received_at INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS sequences (operator BLOB PRIMARY KEY, sequence INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS last_offers (operator BLOB PRIMARY KEY, wire BLOB NOT NULL) STRICT;
"""


class OfferStore:
    """One index's offers on one chain. Used from one thread."""

    def __init__(self, file: Path, domain: Domain, token: Address) -> None:
        """`token`: what the market pays in, for its history."""
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = apsw.Connection(str(file))
            self._db.set_busy_timeout(5000)
            # NORMAL: a power cut may lose the last seconds of offers, which workers send again
            # anyway.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL"):
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            self._db.execute(_SCHEMA)
        except (apsw.Error, OSError) as error:
            raise OfferStoreError(f"cannot open {file}: {error}") from None
        self._bind(file, domain)
        self.history = MarketHistory(self._db, token)
        self.audits = AuditStore(self._db)
        self.catalogue = Catalogue()
        """What readers see."""
        self._sequences: dict[Address, int] = {}
        for operator, sequence in self._rows("SELECT operator, sequence FROM sequences"):
            self._sequences[operator] = sequence
        for data, stake, received in self._rows("SELECT wire, stake, received_at FROM offers"):
            signed = wire.decode_offer(data)
            self.catalogue.put(Listed(signed, data, Amount(int(stake)), Timestamp(received)))

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

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
        raise Declined(409, "stale_sequence", f"the sequence number must be above {highest}")

    def put(self, listed: Listed, now: Timestamp) -> None:
        """Take in a verified offer in place of the worker's last one."""
        offer = listed.signed.offer
        if offer.operator not in self.catalogue and len(self.catalogue) >= MAX_OFFERS:
            self.sweep(now)
            if len(self.catalogue) >= MAX_OFFERS:
                raise Declined(503, "index_full", "this index holds as many offers as it can")
        with self._change():
            self._db.execute(
                "INSERT OR REPLACE INTO offers VALUES (?, ?, ?, ?, ?)",
                (
                    offer.operator,
                    offer.expires_at,
                    listed.wire_bytes,
                    str(listed.stake),
                    listed.received_at,
                ),
            )
            # Sequence numbers are uint64 and SQLite's integers end at 63 bits: the server bounds
            # them.
            self._db.execute(
                "INSERT OR REPLACE INTO sequences VALUES (?, ?)", (offer.operator, offer.sequence)
            )
            self._db.execute(
                "INSERT OR REPLACE INTO last_offers VALUES (?, ?)",
                (offer.operator, listed.wire_bytes),
            )
        self.catalogue.put(listed)
        self._sequences[offer.operator] = offer.sequence

    def last(self, operator: Address) -> bytes | None:
        """The last offer of a worker, as it came, also when it has expired."""
        rows = self._rows("SELECT wire FROM last_offers WHERE operator = ?", (operator,))
        return rows[0][0] if rows else None

    def sweep(self, now: Timestamp) -> int:
        """Forget expired offers, not their sequence numbers; how many went."""
        gone = self.catalogue.expired(now)
        for operator in gone:
            self.catalogue.remove(operator)
        with self._change():
            self._db.execute("DELETE FROM offers WHERE expires_at <= ?", (now,))
        return len(gone)

    def record(self, now: Timestamp) -> None:
        """Take a sample of the market into its history."""
        with self._change():
            self.history.take(self.catalogue.live(now), now)

    def _bind(self, file: Path, domain: Domain) -> None:
        mine = {"chain": str(domain.chain_id), "escrow": to_hex(domain.verifying_contract)}
        with self._change():
            for key, value in mine.items():
                self._db.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        found = dict(self._rows("SELECT key, value FROM meta"))
        for key, value in mine.items():
            if found[key] != value:
                raise OfferStoreError(
                    f"{file} was made for {key} {found[key]}, not {value}. Use another --home"
                )

    def _rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[None]:
        try:
            with self._db:
                yield
        except apsw.Error as error:
            raise OfferStoreError(f"the index's database failed: {error}") from error
