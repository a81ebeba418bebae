"""What is over and paid shrinks to its digests, in small steps, and everything stays provable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from piecework_node.errors import JournalCorrupt, SaltUsed
from piecework_node.journal.records import MetaSet
from piecework_protocol.merkle import Accumulator, root
from tests.support.clock import FakeClock
from tests.support.node.journal_life import CONTENT, DAY_S, EVIDENCE_S, KEY, SEALED, opened

LIMIT_BYTES = 400


def used_bytes(file: Path) -> int:
    """The bytes of the pages in use, and not those that wait to be used again."""
    raw = apsw.Connection(str(file))
    pages = raw.execute("PRAGMA page_count").get - raw.execute("PRAGMA freelist_count").get
    size: int = pages * raw.execute("PRAGMA page_size").get
    raw.close()
    return size


async def test_a_paid_canvas_takes_less_than_four_hundred_bytes_after_its_audit_window(
    tmp_path: Path,
) -> None:
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    await life.journal.close()
    empty = used_bytes(tmp_path / "journal.db")
    life = await opened(tmp_path, life.clock)
    for _ in range(400):
        await life.job()
    for _ in range(2):  # what the first pruning logs is folded by one of a later day
        life.clock.advance(EVIDENCE_S + 2 * DAY_S)
        await life.prune()
    assert await life.journal.verify(deep=True)
    await life.journal.close()
    a_canvas = (used_bytes(tmp_path / "journal.db") - empty) / life.jobs
    assert a_canvas < LIMIT_BYTES, a_canvas


async def test_nothing_goes_before_the_audit_window_is_over_or_while_a_canvas_is_unpaid(
    tmp_path: Path,
) -> None:
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    paid = await life.job()
    unpaid = await life.job(pay=False)
    life.clock.advance(600 + EVIDENCE_S)
    assert not await life.journal.prune(EVIDENCE_S)
    life.clock.advance(2 * DAY_S)
    assert await life.prune()
    assert await life.journal.job(paid.job) is None
    kept = await life.journal.job(unpaid.job)
    assert kept is not None and kept.canvases[0].sealed_output == SEALED
    assert len(kept.canvases[0].leaves) == 4
    assert await life.journal.sealed_content(unpaid.job) == CONTENT
    assert await life.journal.sealed_content(paid.job) is None
    await life.pay(unpaid)
    await life.prune()
    assert await life.journal.job(unpaid.job) is None
    await life.journal.close()


async def test_totals_receipts_and_vouchers_are_what_they_were(tmp_path: Path) -> None:
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    for _ in range(20):
        await life.job()
    before, (channel,) = await life.journal.earnings(), await life.journal.channels()
    for _ in range(2):
        life.clock.advance(EVIDENCE_S + 2 * DAY_S)
        await life.prune()
    assert await life.journal.earnings() == before
    assert await life.journal.channels() == (channel,)
    await life.journal.close()
    raw = apsw.Connection(str(tmp_path / "journal.db"))
    leaves: list[Any] = raw.execute("SELECT digest FROM canvases ORDER BY leaf_index").fetchall()
    assert Accumulator().extend([row[0] for row in leaves]) == channel.ledger.accumulator
    for table in ("outputs", "traces", "contents"):
        assert raw.execute(f"SELECT count(*) FROM {table}").get == 0  # noqa: S608  our own names
    assert raw.execute("SELECT count(*) FROM submissions").get == 0
    assert raw.execute("SELECT count(*) FROM log").get < 10
    raw.close()


async def test_a_salt_stays_used_after_its_job_was_pruned(tmp_path: Path) -> None:
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    await life.job()
    life.clock.advance(EVIDENCE_S + 2 * DAY_S)
    await life.prune()
    life.jobs = 0
    with pytest.raises(SaltUsed):
        await life.job()
    await life.journal.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE canvases SET amount = zeroblob(16) WHERE leaf_index = 3",
        "UPDATE canvases SET leaf_index = 900 WHERE leaf_index = 3",
        "UPDATE canvases SET digest = zeroblob(32) WHERE leaf_index = 3",
        "UPDATE jobs SET state = 'failed' WHERE number = 2",
        "UPDATE jobs SET pruned = 0 WHERE number = 2",
        "DELETE FROM canvases WHERE leaf_index = 4",
        "UPDATE channels SET cumulative = zeroblob(16)",
        "UPDATE channels SET peaks = zeroblob(32)",
        "UPDATE channels SET settled = x'00000000000000000000000000000001'",
        "UPDATE meta SET value = '00' WHERE key = 'log_anchor'",
        "DELETE FROM meta WHERE key = 'log_anchor'",
        "DELETE FROM log WHERE position = (SELECT min(position) FROM log)",
    ],
)
async def test_what_is_changed_in_a_pruned_journal_is_found_at_the_start(
    tmp_path: Path, damage: str
) -> None:
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    for _ in range(6):
        await life.job()
    life.clock.advance(EVIDENCE_S + 2 * DAY_S)
    await life.prune()
    await life.journal.append([MetaSet("cursor", "1")])
    await life.journal.close()
    raw = apsw.Connection(str(tmp_path / "journal.db"))
    raw.execute(damage)
    assert raw.totalchanges() > 0
    raw.close()
    life = await opened(tmp_path, life.clock)
    with pytest.raises(JournalCorrupt):
        await life.journal.verify(deep=False)
    await life.journal.close()


async def test_the_receipts_of_a_channel_are_listed_as_they_are_paid(tmp_path: Path) -> None:
    life = await opened(tmp_path, FakeClock())
    await life.begin()
    jobs = [await life.job() for _ in range(3)]
    journal, channel = life.journal, KEY
    paid = await journal.paid(channel)
    (known,) = [c for c in await journal.channels() if c.id == channel]
    count = known.ledger.accumulator.count
    assert root(paid[:count]) == known.ledger.accumulator.root() and len(paid) == count
    digits = jobs[0].job.hex()
    assert await journal.jobs_named(digits) == await journal.jobs_named(digits[:9])
    assert await journal.jobs_named(digits) == (jobs[0].job,)
    assert await journal.jobs_named("0" * 63) == ()
    assert await journal.contradictions(channel) == ()
    await journal.close()
