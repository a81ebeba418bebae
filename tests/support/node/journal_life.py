"""The journal of a worker that sells jobs of one canvas, without the worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from piecework_node.journal.records import ChannelSeen, StoredJob, VoucherApplied
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.eip712 import Domain
from piecework_protocol.frames import LeafRef, PayVoucher, SubmitJob
from piecework_protocol.ledger import PayerLedger, WorkerLedger
from piecework_protocol.objects import Channel, Finish, Receipt
from piecework_protocol.states import JobState
from piecework_protocol.types import (
    Amount,
    Digest,
    JobId,
    Signature,
    Timestamp,
    Uint32,
    keccak256,
)
from piecework_protocol.worker_session import StateRecord, StoredCanvas
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.protocol import pair
from tests.support.protocol.traces import made_up_leaves

CHANNEL = pair.channel()
KEY = CHANNEL.id(DOMAIN)
UNSIGNED = Signature(bytes(65))
EVIDENCE_S = 3600
DAY_S = 24 * 3600
CONTENT = b"a sealed content"
SEALED = b"\x55" * 1400
"""As large as the sealed output of a canvas of 256 tokens."""


def canvas_record(job: JobId, number: int, amount: int) -> StoredCanvas:
    """The record of a finished canvas."""
    receipt = Receipt(
        job=job,
        canvas=Uint32(number),
        output_digest=Digest(keccak256(b"output")),
        trace_root=Digest(keccak256(b"trace")),
        steps=Uint32(3),
        units=Uint32(4),
        amount=Amount(amount),
        finish=Finish.MORE,
        total_prompt_tokens=Uint32(7),
        total_units=Uint32(4),
        total_steps=Uint32(3),
        total_amount=Amount(amount),
        previous=Digest(job),
    )
    return StoredCanvas(receipt, b"sealed output", b"resume secret")


def paid_ledger(ledger: WorkerLedger, paid: Sequence[LeafRef]) -> WorkerLedger:
    """The book after a voucher for these receipts."""
    owed = [ledger.unpaid[ref] for ref in paid]
    accumulator = ledger.accumulator.extend([u.digest for u in owed])
    total = Amount(ledger.cumulative + sum(u.amount for u in owed))
    voucher = PayerLedger(ledger.channel, total, accumulator).voucher()
    payment = PayVoucher(voucher, UNSIGNED, ledger.accumulator.count, tuple(paid))
    unpaid = {ref: u for ref, u in ledger.unpaid.items() if ref not in paid}
    return WorkerLedger(ledger.channel, payment, accumulator, unpaid)


class Life:
    """A worker's journal with paid jobs on one channel."""

    def __init__(
        self,
        journal: SqliteJournal,
        clock: FakeClock,
        channel: Channel = CHANNEL,
        domain: Domain = DOMAIN,
    ) -> None:
        self.journal, self.clock = journal, clock
        self.channel, self._domain = channel, domain
        self.key = channel.id(domain)
        self.ledger = WorkerLedger(self.key)
        self.jobs = 0

    async def begin(self) -> None:
        await self.journal.append([ChannelSeen(self.key, self.channel)])

    async def job(
        self, *, pay: bool = True, entry: int = 0, amounts: Sequence[int] = (55,)
    ) -> LeafRef:
        """A job as a worker writes it: three commits.

        amounts: one a canvas.

        Returns:
            Its first canvas.
        """
        self.jobs += 1
        deadline = Timestamp(int(self.clock.wall()) + 600)
        terms = {"channel": self.key, "deadline": deadline, "entry": Uint32(entry)}
        job = pair.job(self.jobs, 4).replace(**terms)
        key = job.id(self._domain)
        at = Timestamp(int(self.clock.wall()))
        stored = StoredJob(key, SubmitJob(job, UNSIGNED, self.channel, CONTENT), 7, at)
        await self.journal.append([stored, StateRecord(key, JobState.RUNNING)])
        leaves = made_up_leaves(key, 3)
        receipts = [canvas_record(key, n, amount).receipt for n, amount in enumerate(amounts)]
        done = StateRecord(key, JobState.DELIVERED)
        await self.journal.append([*(StoredCanvas(r, SEALED, b"", leaves) for r in receipts), done])
        refs = [LeafRef(key, receipt.canvas) for receipt in receipts]
        for ref, receipt in zip(refs, receipts, strict=True):
            self.ledger = self.ledger.issue(
                ref, Digest(self._domain.digest(receipt)), receipt.amount
            )
        if pay:
            await self.pay(*refs)
        return refs[0]

    async def pay(self, *refs: LeafRef) -> None:
        """Pay for canvases of one job, which is over then."""
        base = self.ledger.accumulator.count
        self.ledger = paid_ledger(self.ledger, refs)
        paid = StateRecord(refs[0].job, JobState.PAID)
        await self.journal.append([VoucherApplied(self.ledger, refs, base), paid])

    async def prune(self) -> int:
        """Prune until there is nothing left to let go of. Return the steps."""
        steps = 0
        while await self.journal.prune(EVIDENCE_S):
            steps += 1
        return steps


async def opened(folder: Path, clock: FakeClock) -> Life:
    journal = await SqliteJournal.open(folder / "journal.db", DOMAIN, OPERATOR.address, clock=clock)
    return Life(journal, clock)
