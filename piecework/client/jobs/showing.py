"""Showing a worker the receipts that its record of a channel lacks (clause 5.9).

A worker whose journal was set back has signed receipts that it does not know any more. We paid for
them, so we hold each with its operator's signature. Nothing new is promised here: every voucher
states receipts that our journal has paid for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from piecework.client.journal.records import ChannelRow, ReceiptRow
from piecework.client.network.transport import ReceiptTaker
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.frames import (
    Account,
    LeafRef,
    ShownVoucher,
    ShowReceiptsRequest,
    SignedReceipt,
)
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.limits import MAX_SHOWN_RECEIPTS
from piecework_protocol.signing import sign
from piecework_protocol.types import JobId

if TYPE_CHECKING:
    from piecework.client.jobs.driver import JobContext


async def show_lacking(
    context: JobContext,
    worker: ReceiptTaker,
    row: ChannelRow,
    account: Account | None,
    *,
    most: int = MAX_SHOWN_RECEIPTS,
) -> Account | None:
    """Show a worker what it lacks, up to `most` receipts a call. Return its record after them.

    `account` is its record before. The caller has checked that the voucher in it is ours.

    Raises:
        Refusal: the worker does not take a receipt.
        ProtocolViolation: its record contradicts itself or our receipts.
        WorkerUnreachable: it does not answer.
    """
    count, end = _count(account), row.book.accumulator.count
    if count >= end:
        return account
    rows = await context.store.run(context.store.receipts, channel=row.id)
    held = [r for r in rows if count <= r.leaf_index < end]
    if len(held) != end - count:
        raise ProtocolViolation("5.7", "the worker's record lies before our receipts")
    for first in range(0, len(held), most):
        request = _request(context, row, account, held[first : first + most])
        account = await worker.show_receipts(request)
        if account.voucher != request.voucher.voucher:
            raise ProtocolViolation("5.9", "the worker's record is not the voucher shown to it")
    return account


def _request(
    context: JobContext, row: ChannelRow, account: Account | None, lacking: Sequence[ReceiptRow]
) -> ShowReceiptsRequest:
    empty = PayerLedger(row.id)
    book = empty.adopt(account) if account is not None else empty
    base = book.accumulator
    for held in lacking:
        ref = LeafRef(JobId(held.receipt.job), held.receipt.canvas)
        book = book.pay(ref, held.digest, held.receipt.amount, row.book.cumulative)
    voucher = book.voucher()
    if voucher.count == row.book.accumulator.count and voucher != row.book.voucher():
        raise ProtocolViolation("5.7", "the worker's record contradicts our receipts")
    signature = sign(context.domain, voucher, context.wallet.authorizer)
    return ShowReceiptsRequest(
        row.channel,
        ShownVoucher(voucher, signature, base.count, base.peaks),
        tuple(SignedReceipt(held.receipt, held.signature) for held in lacking),
    )


def _count(account: Account | None) -> int:
    return account.voucher.count if account is not None else 0
