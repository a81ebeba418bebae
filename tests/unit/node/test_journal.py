"""The journal on disk: one owner, one market, all or nothing, and no silent damage."""

from __future__ import annotations

import time
from pathlib import Path

import apsw
import pytest

from piecework.base.errors import PieceworkError
from piecework_node.errors import JournalConflict, JournalCorrupt, JournalLocked, JournalMismatch
from piecework_node.journal.records import (
    MetaSet,
    SealingKeyAdded,
    SealingKeyDropped,
    TxMoved,
    TxState,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, PublicKey, Timestamp
from tests.support.node.harness import DOMAIN, OPERATOR


async def opened(
    folder: Path, domain: Domain = DOMAIN, operator: Address = OPERATOR.address
) -> SqliteJournal:
    return await SqliteJournal.open(folder / "journal.db", domain, operator)


async def test_a_second_daemon_on_the_same_home_is_turned_away_with_one_clear_line(
    tmp_path: Path,
) -> None:
    first = await opened(tmp_path)
    with pytest.raises(JournalLocked, match="held by another worker"):
        await opened(tmp_path)
    await first.close()
    await (await opened(tmp_path)).close()


@pytest.mark.parametrize(
    ("domain", "operator"),
    [
        (Domain(1, DOMAIN.verifying_contract), OPERATOR.address),
        (Domain(DOMAIN.chain_id, Address(bytes(20))), OPERATOR.address),
        (DOMAIN, Address(bytes(20))),
    ],
    ids=["chain", "escrow", "operator"],
)
async def test_a_journal_of_another(tmp_path: Path, domain: Domain, operator: Address) -> None:
    await (await opened(tmp_path)).close()
    with pytest.raises(JournalMismatch, match="belongs to"):
        await opened(tmp_path, domain, operator)


async def test_a_batch_with_one_bad_record_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    missing = TxMoved(bytes(32), TxState.MINED, Timestamp(1))
    with pytest.raises(JournalConflict):
        await journal.append([MetaSet("a", "1"), missing])
    assert await journal.meta("a") is None
    await journal.append([MetaSet("a", "2")])
    assert await journal.meta("a") == "2"
    assert await journal.verify()
    await journal.close()


async def test_a_unique_key_that_is_used_twice_is_a_conflict_and_not_a_failing_disk(
    tmp_path: Path,
) -> None:
    journal = await opened(tmp_path)
    key = SealingKeyAdded(PublicKey(bytes(32)), b"wrapped", Timestamp(1))
    await journal.append([key])
    with pytest.raises(JournalConflict):
        await journal.append([key])
    await journal.append([SealingKeyDropped(key.public)])
    assert await journal.sealing_keys() == ()
    assert await journal.verify()
    await journal.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE meta SET value = 'x' WHERE key = 'note'",
        "DELETE FROM meta WHERE key = 'note'",
        "INSERT INTO meta VALUES ('planted', '1')",
        "DELETE FROM log WHERE position = 2",
        "UPDATE log SET entries = zeroblob(64) WHERE position = 2",
        "UPDATE log SET totals = x'' WHERE position = 2",
        "UPDATE log SET head = zeroblob(32) WHERE position = 2",
        "UPDATE log SET at = at + 1 WHERE position = 1",
        "INSERT INTO meta VALUES ('log_anchor', 'what?')",
    ],
)
async def test_a_row_that_was_changed_behind_our_back_shows(tmp_path: Path, damage: str) -> None:
    journal = await opened(tmp_path)
    await journal.append([MetaSet("note", "1")])
    await journal.append([MetaSet("other", "2")])
    await journal.close()
    raw = apsw.Connection(str(tmp_path / "journal.db"))
    raw.execute(damage)
    raw.close()
    journal = await opened(tmp_path)
    with pytest.raises(JournalCorrupt):
        await journal.verify()
    await journal.close()


async def test_a_file_that_is_no_journal_is_refused_for_a_person(tmp_path: Path) -> None:
    (tmp_path / "journal.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(PieceworkError, match="journal"):
        await opened(tmp_path)


async def test_commits_are_timed(tmp_path: Path) -> None:
    journal = await opened(tmp_path)
    seen: list[float] = []
    journal.on_commit = seen.append
    started = time.monotonic()
    await journal.append([MetaSet("a", "1")])
    whole = time.monotonic() - started
    assert len(seen) == 1
    assert 0 < seen[0] <= whole
    await journal.close()
