"""Golden databases of the client: one file for each schema that was ever kept.

    python -P -m tests.vectors.client_databases

writes the file of the present schema. A file of an earlier schema is never written again.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest

from piecework.chain.contracts.events import Log
from piecework.client.journal.logs import LogRow
from piecework.client.journal.records import (
    ChannelStatus,
    JobRow,
    JobStatus,
    Limits,
    Part,
    RequestKey,
    SeenChannel,
)
from piecework.client.journal.schema import CLIENT_SCHEMA
from piecework.client.journal.store import Store
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.frames import CanvasDelivered
from piecework_protocol.types import Amount, Bytes32, Timestamp
from tests.support.chain.fake_chain import DOMAIN
from tests.support.client.client_side import PAYER
from tests.unit.client.test_store import (
    CHANNEL,
    NOW,
    UNTIL,
    accepted,
    canvas,
    exactly,
    job_row,
    terms,
)

FOLDER = Path(__file__).parent / "journals"
LOG = Log(DOMAIN.verifying_contract, (Bytes32(b"\x01" * 32),), b"data", 7, 0, Bytes32(b"\x02" * 32))


def golden(version: int) -> Path:
    """Where the golden database of a schema lies."""
    return FOLDER / f"client-{version}.db.gz"


def unpacked(version: int, folder: Path) -> Path:
    """A copy of a golden database that a program may open."""
    file = folder / "client.db"
    file.write_bytes(gzip.decompress(golden(version).read_bytes()))
    return file


def contradict(store: Store, paid: JobRow) -> None:
    """Keep a second receipt of a canvas that is paid."""
    second = canvas(paid, 0, 10, trace=b"another")
    with pytest.raises(ProtocolViolation) as caught:
        store.pay(second, CHANNEL, None)
    frame = CanvasDelivered(second.receipt, second.signature, b"sealed", second.leaves)
    operator = paid.submission.channel.operator
    assert store.contradictions.keep(paid.id, operator, frame, caught.value, NOW)


def write(file: Path) -> None:
    """A database with something in every table that money depends on."""
    store = Store(file, DOMAIN, PAYER.address)
    store.open_channel(terms())
    paid, refused = job_row(1, 100), job_row(2, 50)
    limits = Limits(Amount(1000), None, Amount(200))
    store.api_keys.add("alice", "pw-golden", limits, now=NOW, expires_at=UNTIL)
    request = RequestKey("alice", bytes(32))
    store.requests.open(request, bytes(32), NOW)
    held = store.budgets.reserve("alice", [Amount(100)], Limits(), NOW, UNTIL)
    assert isinstance(held, tuple)
    part = Part("alice", held[0], request)
    store.admit(paid, "a prompt", exactly, UNTIL, content=b"a content", part=part)
    store.accepted(paid.id, accepted(paid))
    for index in range(3):
        store.pay(canvas(paid, index, 10 + index), CHANNEL, "an answer", output=b"an output")
    contradict(store, paid)
    store.finish(paid.id, JobStatus.COMPLETE, acknowledged=2)
    store.requests.close(request)
    store.admit(refused, None, exactly, UNTIL)
    store.finish(refused.id, JobStatus.REFUSED, "BUSY")
    seen = SeenChannel(Amount(60), Amount(0), Amount(10))
    store.seen_on_chain(CHANNEL, seen, ChannelStatus.OPEN)
    store.adopt_channel(terms(salt=5))
    store.logs.add([LogRow(LOG, Timestamp(NOW))], 8)
    store.close()


def main() -> None:
    """Write the golden database of the present schema."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "client.db"
        write(file)
        golden(CLIENT_SCHEMA.latest).write_bytes(gzip.compress(file.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
