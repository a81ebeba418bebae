"""`piecework worker recover`: go on with a journal that lacks what this worker has signed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from piecework.base.http import HttpReader
from piecework.chain.deployment import Deployment
from piecework.signer.place import socket_path
from piecework.signer.remote import RemoteSigner
from piecework_node import config
from piecework_node.home import Home
from piecework_node.jobs.offers import PUBLISH_LIMITS
from piecework_node.jobs.rollback import last_offer, later, notice, signed_last
from piecework_node.journal.records import ROLLED_BACK, SEQUENCE_FLOOR, JournalRecord, MetaSet
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import keystore_address
from piecework_protocol.errors import Reason
from piecework_protocol.states import ENDED_STATES, JobState
from piecework_protocol.types import parse_address
from piecework_protocol.worker_session import StateRecord

Step = tuple[str, str]
"""What a line is about, and what it says."""
HEALING: Final = (
    "clients hand over the receipts that are missing. Each carries our signature, "
    "so what it pays is accepted"
)


async def recover(root: Path) -> list[Step]:
    """Find out what the journal lacks, and make it one that a worker may go on with.

    Raises:
        JournalLocked: the worker runs. Stop it first.
        JournalCorrupt: the journal is damaged, and not only old.
        SignerError: the signer does not say what it has signed.
    """
    home, settings = Home(root), config.load(root)
    deployment = Deployment.load(home.deployment)
    operator = parse_address("0x" + keystore_address(home.operator))
    async with HttpReader(PUBLISH_LIMITS) as http:
        last = await last_offer(settings.indexes, operator, deployment.domain, http)
    signed = 0
    if settings.signer:
        remote = RemoteSigner(socket_path(settings.signer), operator, deployment)
        try:
            state = await remote.state()
        finally:
            await remote.close()
        last, signed = later(last, signed_last(state)), state.last_offer
    journal = await SqliteJournal.open(home.journal, deployment.domain, operator)
    try:
        steps: list[Step] = [("journal", f"{await journal.verify()} rows, as they were written")]
        why = await notice(journal, last)
        if why is None:
            return [*steps, ("found", "nothing that the journal lacks. Nothing was changed")]
        steps.append(("found", why))
        floor = max(await journal.last_sequence(), last.sequence if last else 0, signed)
        return [*steps, *await _repair(journal, floor)]
    finally:
        await journal.close()


async def _repair(journal: SqliteJournal, floor: int) -> list[Step]:
    unfinished = [job for job in await journal.open_jobs() if job.state not in ENDED_STATES]
    records: list[JournalRecord] = [
        StateRecord(job.id, JobState.FAILED, Reason.INTERNAL) for job in unfinished
    ]
    records += [MetaSet(SEQUENCE_FLOOR, str(floor)), MetaSet(ROLLED_BACK, "")]
    await journal.append(records)
    return [
        ("offers", f"the next one has number {floor + 1}"),
        ("jobs", f"{len(unfinished)} unfinished jobs ended. What they delivered stays owed"),
        ("receipts", HEALING),
        ("next", "piecework worker start"),
    ]
