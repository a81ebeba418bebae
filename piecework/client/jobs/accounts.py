"""Asking a worker for its record of a channel, before a signature depends on ours (clause 5.7)."""

from __future__ import annotations

from typing import Final, Protocol

from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.showing import show_lacking
from piecework.client.journal.records import ChannelRow
from piecework.client.network.transport import ReceiptTaker
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import Account, GetAccountRequest
from piecework_protocol.objects import AccountRequest
from piecework_protocol.signing import sign, signed_by
from piecework_protocol.types import Timestamp

ACCOUNT_REQUEST_LIFETIME_S: Final = 60


class AccountSource(ReceiptTaker, Protocol):
    """A worker that shows its record. `transport.WorkerLink` is one."""

    async def get_account(self, request: GetAccountRequest) -> Account:
        """Return the record. Nothing in it is checked."""
        ...


async def adopt_account(context: JobContext, worker: AccountSource, row: ChannelRow) -> ChannelRow:
    """Ask the worker for its record, and bring our book in line with it.

    A record ahead of ours means that our journal is new or an older copy. It carries our own
    signature, so it is adopted. Nothing is signed below it from then on. One behind ours means that
    the worker lacks receipts, so it is shown them.

    Raises:
        Refusal: the worker does not show its record.
        ProtocolViolation: the record is not ours, or contradicts itself, the chain or our book.
        StoreError: the worker holds a voucher of ours that contradicts the journal.
    """
    until = Timestamp(context.now() + ACCOUNT_REQUEST_LIFETIME_S)
    asked = AccountRequest(row.id, until)
    signature = sign(context.domain, asked, context.wallet.authorizer)
    account: Account | None = None
    try:
        account = await worker.get_account(GetAccountRequest(asked, signature))
    except Refusal as refusal:
        if refusal.reason is not Reason.CHANNEL_UNKNOWN:
            raise
    if account is not None:
        _check(context, row, account)
    account = await show_lacking(context, worker, row, account)
    await context.store.run(context.store.adopt_account, row.id, account)
    return await context.store.run(context.store.channel, row.id)


def _check(context: JobContext, row: ChannelRow, account: Account) -> None:
    voucher = account.voucher
    if voucher.channel != row.id:
        raise ProtocolViolation("5.7", "the worker shows the record of another channel")
    if not signed_by(context.domain, voucher, account.signature, row.channel.authorizer):
        raise ProtocolViolation("5.7", "the worker shows a voucher that we never signed")
