"""A bit that changed in an index is found at the start, although every row is as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw

from piecework_node.errors import JournalCorrupt
from tests.support.clock import FakeClock
from tests.support.node.journal_life import KEY, opened

INDEX = "sqlite_autoindex_canvases_2"
"""Of channels and places in their accumulators. Unpaid canvases are found by it."""
UNPAID = (
    "SELECT count(*) FROM canvases WHERE channel = (SELECT number FROM channels WHERE id = ?) "
    "AND leaf_index IS NULL"
)


def flipped(file: Path) -> Iterator[None]:
    """Flip each bit of the index's page in turn that hides the unpaid canvas."""
    raw = apsw.Connection(str(file))
    raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = raw.execute("PRAGMA page_size").get
    page = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (INDEX,)).get
    assert raw.execute(UNPAID, (KEY,)).get == 1
    raw.close()
    whole, start = file.read_bytes(), (page - 1) * size
    for place in (i for i in range(start, start + size) if whole[i]):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            if hides(file):
                yield
    file.write_bytes(whole)


def hides(file: Path) -> bool:
    raw = apsw.Connection(str(file))
    try:
        return (
            raw.execute("PRAGMA quick_check(1)").get == "ok" and not raw.execute(UNPAID, (KEY,)).get
        )
    except apsw.Error:
        return False
    finally:
        raw.close()


async def test_a_bit_in_an_index_that_hides_an_unpaid_canvas_is_found_at_the_start(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    life = await opened(tmp_path, clock)
    await life.begin()
    await life.job()
    await life.job(pay=False)
    await life.journal.close()
    found = 0
    for _ in flipped(tmp_path / "journal.db"):
        life = await opened(tmp_path, clock)
        try:
            await life.journal.verify(deep=False)
        except JournalCorrupt:
            found += 1
        else:
            raise AssertionError("a debt is hidden")
        finally:
            await life.journal.close()
    assert found > 0
    life = await opened(tmp_path, clock)
    assert await life.journal.verify(deep=False)
    await life.journal.close()
