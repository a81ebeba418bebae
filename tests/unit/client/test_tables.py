"""Tables whose rows are values of one class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.client.journal.database import Database
from piecework.client.journal.memory import LENGTHS, MEASURED, TARIFFS, WORKERS
from piecework.client.journal.records import AnswerLength, Experience, Measured, PaidTariff
from piecework.client.journal.tables import Table
from piecework_protocol.types import Address, Amount, Digest, Timestamp

WORKER, MODEL = Address(b"w" * 20), Digest(b"m" * 32)
LARGEST = Amount(2**128 - 1)
CASES: tuple[tuple[Table[Any], tuple[bytes, ...], Any, Any], ...] = (
    (
        WORKERS,
        (WORKER,),
        Experience(WORKER, 1.5, 0.25, Timestamp(7), "6.1", Timestamp(5), 2.0, Timestamp(6)),
        Experience(WORKER),
    ),
    (
        MEASURED,
        (WORKER, MODEL),
        Measured(WORKER, MODEL, 1.0, 2.0, 3.0, 4.0, 5.0, Timestamp(6)),
        Measured(WORKER, MODEL),
    ),
    (LENGTHS, (MODEL,), AnswerLength(MODEL, 2.0, 300.0, Timestamp(9)), AnswerLength(MODEL)),
    (
        TARIFFS,
        (MODEL,),
        PaidTariff(MODEL, LARGEST, Amount(1), Amount(0)),
        PaidTariff(MODEL, Amount(3), LARGEST, Amount(2)),
    ),
)
each = pytest.mark.parametrize(
    ("table", "key", "first", "second"), CASES, ids=[case[0].name for case in CASES]
)


@each
def test_the_fields_of_a_class_are_the_columns_of_its_table(
    tmp_path: Path, table: Table[Any], key: tuple[bytes, ...], first: Any, second: Any
) -> None:
    with Database(tmp_path / "client.db").read() as db:
        found = db.execute(f"PRAGMA table_info({table.name})").fetchall()
    assert tuple(row[1] for row in found) == table.columns
    assert sum(bool(row[5]) for row in found) == len(key)


@each
def test_a_row_reads_back_as_the_value_that_was_put_last(
    tmp_path: Path, table: Table[Any], key: tuple[bytes, ...], first: Any, second: Any
) -> None:
    database = Database(tmp_path / "client.db")
    with database.change("remember", durable=False) as db:
        assert table.get(db, *key) is None
        table.put(db, first)
        assert table.get(db, *key) == first
        table.put(db, second)
    with database.read() as db:
        assert table.all(db) == [second]
        assert table.get(db, *(bytes(len(part)) for part in key)) is None
