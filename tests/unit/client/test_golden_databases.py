"""Databases of every schema that was kept are opened by the program as it is now."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest

from piecework.base.migrations import Migration, script
from piecework.client.errors import StoreError
from piecework.client.journal.records import JobStatus
from piecework.client.journal.schema import CLIENT_SCHEMA
from piecework.client.journal.store import Store
from tests.support.chain.fake_chain import DOMAIN, TOKEN
from tests.support.client.client_side import PAYER
from tests.support.system.dying_database import deaths
from tests.unit.client.test_store import CHANNEL, NOW, job_row
from tests.vectors import client_databases

NEXT = replace(
    CLIENT_SCHEMA,
    migrations=(
        *CLIENT_SCHEMA.migrations,
        Migration(
            CLIENT_SCHEMA.latest + 1,
            script(
                "CREATE TABLE notes (job BLOB PRIMARY KEY REFERENCES jobs (id), note TEXT) STRICT;"
                "INSERT INTO notes SELECT id, detail FROM jobs;"
                "ALTER TABLE channels ADD COLUMN label TEXT NOT NULL DEFAULT '';"
                "CREATE TABLE kept AS SELECT * FROM vouchers; DROP TABLE vouchers;"
                "ALTER TABLE kept RENAME TO vouchers;"
            ),
        ),
    ),
)
"""A schema that does not exist. It proves that the machinery takes a real database forward."""


def connect(file: Path) -> apsw.Connection:
    db = apsw.Connection(str(file))
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    return db


def forward(file: Path) -> None:
    """What the next release does with a client's database."""
    with closing(connect(file)) as db:
        NEXT.prepare(db, file)


def dump(file: Path) -> Any:
    """Every table, with the statement that makes it."""
    with closing(apsw.Connection(str(file))) as db:
        made = list(db.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))
        names = [n for (n,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return made, {name: list(db.execute(f'SELECT * FROM "{name}"')) for name in names}  # noqa: S608


@pytest.mark.parametrize("version", range(CLIENT_SCHEMA.first, CLIENT_SCHEMA.latest + 1))
def test_a_golden_database_reads_as_it_was_written(version: int, tmp_path: Path) -> None:
    store = Store(client_databases.unpacked(version, tmp_path), DOMAIN, PAYER.address)
    row = store.channel(CHANNEL)
    assert (row.book.cumulative, row.book.accumulator.count) == (33, 3)
    assert (row.book.acknowledged, row.funded, row.settled) == (2, 60, 10)
    assert [r.amount for r in store.reservations(TOKEN, NOW)] == [40]
    assert [job.status for job in store.jobs()] == [JobStatus.COMPLETE, JobStatus.REFUSED]
    assert [r.text for r in store.receipts(job=job_row(1, 100).id)] == ["an answer"] * 3
    assert store.logs.scanned_to() == 8
    assert [row.log for row in store.logs.all(DOMAIN.verifying_contract)] == [client_databases.LOG]
    store.close()


def test_the_golden_database_of_this_schema_is_what_the_script_writes(tmp_path: Path) -> None:
    """Row by row. The bytes of the file also tell SQLite's version."""
    fresh = tmp_path / "fresh.db"
    client_databases.write(fresh)
    assert dump(fresh) == dump(client_databases.unpacked(CLIENT_SCHEMA.latest, tmp_path))


def test_a_database_of_another_program_is_refused_by_its_schema(tmp_path: Path) -> None:
    file = client_databases.unpacked(CLIENT_SCHEMA.latest, tmp_path)
    forward(file)
    with pytest.raises(StoreError, match="made by a newer program"):
        Store(file, DOMAIN, PAYER.address)
    old = tmp_path / "old.db"
    with closing(apsw.Connection(str(old))) as db:
        db.execute("CREATE TABLE meta (key TEXT, value TEXT)").fetchall()
    with pytest.raises(StoreError, match=r"has schema 1, .*piecework client recover"):
        Store(old, DOMAIN, PAYER.address)


@pytest.mark.process
@pytest.mark.kill
def test_a_kill_before_any_write_of_a_migration_leaves_a_database_that_goes_on(
    tmp_path: Path,
) -> None:
    source, folder = client_databases.unpacked(CLIENT_SCHEMA.latest, tmp_path), tmp_path / "killed"
    before = dump(source)
    died = deaths("tests.unit.client.test_golden_databases:forward", source, folder)
    assert died > 20
    expected = None
    for number in range(died + 1):
        file = folder / f"{number}.db"
        with closing(connect(file)) as db:
            assert NEXT.version(db) in (CLIENT_SCHEMA.latest, NEXT.latest)
        forward(file)
        assert dump(NEXT.backup_of(file, CLIENT_SCHEMA.latest)) == before
        expected = expected or dump(file)
        assert dump(file) == expected
    assert expected is not None and len(expected[1]["notes"]) == 2
