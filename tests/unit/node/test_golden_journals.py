"""Journals of every schema that was kept are opened by the program as it is now."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import apsw
import pytest

from piecework_node.errors import JournalMismatch
from piecework_node.journal.sqlite import SCHEMA, SqliteJournal
from piecework_protocol.worker_session import StoredCanvas
from tests.property.node.test_journal import same
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.records import records
from tests.vectors import journals


async def model(version: int) -> MemoryJournal:
    """What the golden journals hold. Before schema 3 no leaves and no contents were kept."""
    memory = MemoryJournal(DOMAIN)
    for record in records():
        if isinstance(record, StoredCanvas) and version < 3:
            await memory.append([replace(record, leaves=())])
        else:
            await memory.append([record])
    if version < 3:
        memory.contents.clear()
    return memory


@pytest.mark.parametrize("version", range(SCHEMA.first, SCHEMA.latest + 1))
async def test_a_golden_journal_opens_verifies_and_reads_as_it_was_written(
    version: int, tmp_path: Path
) -> None:
    file = journals.unpacked(version, tmp_path)
    journal = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=FakeClock())
    assert await journal.verify(deep=True)
    await same(journal, await model(version))
    await journal.close()


async def test_the_golden_journal_of_this_schema_is_what_the_script_writes(tmp_path: Path) -> None:
    """Row by row. The bytes of the file also tell SQLite's version."""
    file = tmp_path / "fresh.db"
    await journals.write(file)
    assert dump(file) == dump(journals.unpacked(SCHEMA.latest, tmp_path))


def dump(file: Path) -> dict[str, list[object]]:
    """Every table, with the statement that makes it."""
    raw = apsw.Connection(str(file))
    made = raw.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    tables = [name for (name,) in raw.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
    rows = {str(t): list(raw.execute(f'SELECT * FROM "{t}"')) for t in tables}  # noqa: S608
    raw.close()
    return {"": list(made), **rows}


@pytest.mark.parametrize(
    ("version", "says"),
    [(1, "from before schemas were kept. Use another --home."), (99, "Use the newer program")],
)
async def test_a_journal_of_another_version_is_refused_with_what_to_do(
    version: int, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "journal.db"
    raw = apsw.Connection(str(file))
    raw.execute("CREATE TABLE jobs (id BLOB PRIMARY KEY)")
    raw.execute(f"PRAGMA user_version = {version}")
    raw.close()
    with pytest.raises(JournalMismatch, match=says):
        await SqliteJournal.open(file, DOMAIN, OPERATOR.address)
    raw = apsw.Connection(str(file))
    tables = raw.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    raw.close()
    assert tables == [("jobs",)]


def test_the_golden_files_are_small() -> None:
    for file in journals.FOLDER.iterdir():
        assert len(file.read_bytes()) < 32 * 1024
        assert gzip.decompress(file.read_bytes())[:15] == b"SQLite format 3"
