"""Golden journals: one file for each schema that was ever kept. Programs to come must open them.

    python -P -m tests.vectors.journals

writes the file of the present schema. A file of an earlier schema is never written again.
"""

from __future__ import annotations

import asyncio
import gzip
import tempfile
from pathlib import Path

from piecework_node.journal.sqlite import SCHEMA, SqliteJournal
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.records import records

FOLDER = Path(__file__).parent / "journals"


def golden(version: int) -> Path:
    """Where the golden journal of a schema lies."""
    return FOLDER / f"schema-{version}.db.gz"


def unpacked(version: int, folder: Path) -> Path:
    """A copy of a golden journal that a program may open."""
    file = folder / "journal.db"
    file.write_bytes(gzip.decompress(golden(version).read_bytes()))
    return file


async def write(file: Path) -> None:
    """A journal with one record of each kind."""
    journal = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=FakeClock())
    for record in records():
        await journal.append([record])
    await journal.close()


def main() -> None:
    """Write the golden journal of the present schema."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "journal.db"
        asyncio.run(write(file))
        FOLDER.mkdir(exist_ok=True)
        golden(SCHEMA.latest).write_bytes(gzip.compress(file.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
