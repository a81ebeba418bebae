"""Every integer of every record at its extremes, through the real journal.

Each is refused with a typed error, or is stored and reads back equal. Nothing else may come out,
and the journal takes the next batch in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from piecework_node.errors import JournalConflict
from piecework_node.journal.records import (
    ChannelObserved,
    ChannelSeen,
    FundingAuthorized,
    JournalRecord,
    MetaSet,
    OfferIssued,
    StoredJob,
    VoucherApplied,
)
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.errors import MalformedInput
from piecework_protocol.worker_session import StoredCanvas
from tests.property.node.test_journal import same
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.memory_journal import MemoryJournal
from tests.support.node.records import records
from tests.support.protocol import extremes

FROM_PEERS = (
    OfferIssued,
    ChannelSeen,
    ChannelObserved,
    FundingAuthorized,
    StoredJob,
    StoredCanvas,
    VoucherApplied,
)
OF_THE_CHANNEL = ("funding", "authorization", "channel")
"""A funding travels without its channel, which is that of the submission."""


def cases() -> Iterator[Any]:
    """A place in the list of records, and a path inside the record there."""
    for place, record in enumerate(records()):
        if isinstance(record, FROM_PEERS):
            for path in extremes.integers(record):
                if path[:3] == OF_THE_CHANNEL:
                    continue
                title = f"{type(record).__name__}.{extremes.name(path)}"
                yield pytest.param(place, path, id=title)


@pytest.mark.parametrize(("place", "path"), list(cases()))
async def test_a_number_of_a_peer_is_refused_or_reads_back_equal(
    place: int, path: extremes.Path, tmp_path: Path
) -> None:
    before, record = records()[:place], records()[place]
    for value in extremes.EXTREMES:
        try:
            strange = extremes.changed(record, path, value)
        except (ValueError, MalformedInput):
            continue  # the class itself does not take it
        disk = await SqliteJournal.open(tmp_path / f"{value}.db", DOMAIN, OPERATOR.address)
        try:
            await store(disk, before, strange)
            await disk.append([MetaSet("cursor", "still here")])
            assert await disk.verify(deep=False)
        finally:
            await disk.close()


async def store(disk: SqliteJournal, before: list[JournalRecord], strange: JournalRecord) -> None:
    """Append a strange record after others. If the journal takes it, it must read back."""
    model = MemoryJournal(DOMAIN)
    await disk.append(before)
    await model.append(before)
    try:
        await disk.append([strange])
    except (JournalConflict, MalformedInput):
        await same(disk, model)
        return
    await model.append([strange])
    await same(disk, model)


def test_the_records_hold_every_kind_of_number_that_a_peer_sends() -> None:
    titles = {str(case.id) for case in cases()}
    for title in (
        "StoredJob.submission.job.deadline",
        "StoredJob.submission.channel.withdrawal_delay",
        "FundingAuthorized.funding.authorization.deadline",
        "StoredCanvas.receipt.amount",
        "VoucherApplied.ledger.accepted.voucher.count",
    ):
        assert title in titles
