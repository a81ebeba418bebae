"""The journal on a disk that is full, broken, or loses power, at every operation of some jobs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from piecework_node.errors import JournalError
from piecework_node.journal.records import Earnings
from piecework_node.journal.sqlite import SqliteJournal
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.journal_life import DAY_S, EVIDENCE_S, Life
from tests.support.system.failing_disk import FailingVfs, PowerVfs

JOBS = 2


@pytest.fixture(autouse=True)
def _own_disk() -> Iterator[None]:
    """The machine's disk is SQLite's default again afterwards."""
    yield
    gc.collect()
    apsw.set_default_vfs("unix")


async def opened(file: Path, clock: FakeClock) -> SqliteJournal:
    return await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=clock)


async def trade(file: Path, sums: list[Earnings]) -> None:
    """Some jobs, and a step of pruning. `sums` gets the totals after each commit."""
    clock = FakeClock()
    journal = await opened(file, clock)
    life = Life(journal, clock)
    sums.append(await journal.earnings())

    append = journal.append

    async def counted(records):  # type: ignore[no-untyped-def]
        await append(records)
        sums.append(await journal.earnings())

    journal.append = counted  # type: ignore[method-assign]
    try:
        await life.begin()
        for _ in range(JOBS):
            await life.job()
        clock.advance(EVIDENCE_S + 2 * DAY_S)
        await life.prune()
    finally:
        await journal.close()


# SQLite's own tidying meets the bad disk as well, where nobody can catch its error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError], ids=["full", "broken"])
async def test_a_disk_that_fails_at_any_operation_is_an_error_and_loses_nothing_acknowledged(
    error: type[apsw.Error], tmp_path: Path
) -> None:
    vfs = FailingVfs(error)
    await trade(tmp_path / "whole.db", [])
    total = vfs.operations
    assert total > 30
    for at in range(1, total + 1, 3):
        vfs.operations, vfs.fail_at = 0, at
        file, sums = tmp_path / f"{at}.db", list[Earnings]()
        with suppress(JournalError):
            await trade(file, sums)
        vfs.fail_at = None
        journal = await opened(file, FakeClock())
        assert await journal.verify(deep=True)
        if sums:
            held = await journal.earnings()
            assert held.accepted >= sums[-1].accepted, f"a voucher was lost at {at}"
        await journal.close()


async def test_a_power_cut_leaves_a_whole_journal_with_everything_acknowledged(
    tmp_path: Path,
) -> None:
    images: dict[bytes, tuple[int, dict[str, bytes]]] = {}
    sums: list[Earnings] = []

    def remember() -> None:
        for image in vfs.images():
            key = b"".join(name.encode() + data for name, data in sorted(image.items()))
            images.setdefault(key, (len(sums), image))

    vfs = PowerVfs(remember)
    await trade(tmp_path / "journal.db", sums)
    apsw.set_default_vfs("unix")
    assert len(images) > 50
    for number, (acknowledged, image) in enumerate(images.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in image.items():
            (folder / name).write_bytes(data)
        journal = await opened(folder / "journal.db", FakeClock())
        assert await journal.verify(deep=True)
        held = await journal.earnings()
        if acknowledged:
            assert held in sums[acknowledged - 1 : acknowledged + 1], f"image {number}"
        await journal.close()
