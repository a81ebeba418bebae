"""A client asks for its account and shows receipts, with its own code and over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from piecework.client.network.transport import WorkerLink
from piecework_node.runtime.faults import Code
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import (
    GetAccountRequest,
    LeafRef,
    ShownVoucher,
    ShowReceiptsRequest,
    SignedReceipt,
)
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import AccountRequest
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import ChannelId, Digest, JobId, Timestamp
from tests.support.client.scripted_client import ScriptedJob
from tests.support.node.harness import DOMAIN, OPERATOR, Client
from tests.support.node.served import Served, serve_worker


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve_worker() as made:
        yield made


@pytest.fixture
async def link(served: Served) -> AsyncIterator[WorkerLink]:
    made = await WorkerLink.connect(f"127.0.0.1:{served.port}", OPERATOR.address, None)
    yield made
    await made.close()


def asks(
    served: Served,
    signer: LocalSigner | None = None,
    *,
    late_s: int = 0,
    channel: ChannelId | None = None,
) -> GetAccountRequest:
    """The payer's question for its account, or one that somebody else signs or that is late."""
    deadline = Timestamp(served.harness.clock.now() + 60 - late_s)
    request = AccountRequest(channel or served.payer.id, deadline)
    return GetAccountRequest(request, sign(DOMAIN, request, signer or served.payer.signer))


async def ran(served: Served) -> ScriptedJob:
    """A job that is paid in full. The payer's book has its receipts."""
    client = served.client()
    job = await served.job(client)
    await client.run(job)
    await client.close()
    served.payer.book = client.book
    return job


def shows(client: Client, job: ScriptedJob, *, from_: int = 0) -> ShowReceiptsRequest:
    """The receipts of a job from one of them on, with the voucher that pays for all."""
    book, refs = PayerLedger(client.id), []
    for receipt in job.receipts:
        ref = LeafRef(JobId(receipt.job), receipt.canvas)
        refs.append((ref, book.accumulator))
        digest = Digest(DOMAIN.digest(receipt))
        book = book.pay(ref, digest, receipt.amount, client.deposit)
    base, voucher = refs[from_][1], book.voucher()
    signature = sign(DOMAIN, voucher, client.signer)
    return ShowReceiptsRequest(
        client.channel,
        ShownVoucher(voucher, signature, base.count, base.peaks),
        tuple(SignedReceipt(r, sign(DOMAIN, r, OPERATOR)) for r in job.receipts[from_:]),
    )


async def test_the_authorizer_gets_its_account_and_goes_on_from_it(
    served: Served, link: WorkerLink
) -> None:
    await ran(served)
    account = await link.get_account(asks(served))
    book = PayerLedger(served.payer.id).adopt(account)
    assert book.accumulator.count >= 2
    assert book.voucher() == served.payer.book.voucher() == account.voucher


async def test_an_account_is_for_its_authorizer_in_time(served: Served, link: WorkerLink) -> None:
    with pytest.raises(Refusal) as unknown:
        await link.get_account(asks(served))
    assert unknown.value.reason is Reason.CHANNEL_UNKNOWN
    await ran(served)
    for request, reason in (
        (asks(served, OPERATOR), Reason.BAD_SIGNATURE),
        (asks(served, late_s=61), Reason.EXPIRED),
        (asks(served, channel=ChannelId(bytes(32))), Reason.CHANNEL_UNKNOWN),
    ):
        with pytest.raises(Refusal) as caught:
            await link.get_account(request)
        assert caught.value.reason is reason


async def test_receipts_that_a_worker_lost_heal_it_over_the_wire() -> None:
    async with serve_worker() as before:
        job = await ran(before)
    async with serve_worker() as after:
        link = await WorkerLink.connect(f"127.0.0.1:{after.port}", OPERATOR.address, None)
        request = shows(after.payer, job)
        account = await link.show_receipts(request)
        assert account.voucher == request.voucher.voucher
        assert await link.get_account(asks(after)) == account
        assert await link.show_receipts(request) == account, "showing again changes nothing"
        codes = [fault.code for fault in after.harness.faults.faults]
        assert codes == [Code.JOURNAL_OLD]
        await link.close()


async def test_what_is_shown_and_does_not_add_up_is_refused_with_its_clause() -> None:
    async with serve_worker() as before:
        job = await ran(before)
    async with serve_worker() as after:
        link = await WorkerLink.connect(f"127.0.0.1:{after.port}", OPERATOR.address, None)
        with pytest.raises(Refusal) as caught:
            await link.show_receipts(shows(after.payer, job, from_=1))
        assert caught.value.reason is Reason.BROKEN_CLAUSE
        assert caught.value.metadata["clause"] == "5.9"
        assert after.harness.channels.get(after.payer.id) is None
        await link.close()
