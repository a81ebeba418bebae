"""A worker that is owed something: an open channel with a fee, and a voucher in the journal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework.chain.contracts.calls import Claim
from piecework_node.journal.records import (
    ChannelObserved,
    ChannelSeen,
    FundingAuthorized,
    VoucherApplied,
)
from piecework_node.operations.running import open_journal
from piecework_protocol.frames import FundingAuthorization, PayVoucher
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.merkle import Accumulator
from piecework_protocol.objects import Channel, FundChannel
from piecework_protocol.signing import LocalSigner
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, Digest, Timestamp, keccak256
from tests.support.chain.chains import (
    ETHER,
    FAR,
    MIN_STAKE,
    USD,
    TestMarket,
    channel_of,
    claim_of,
    signature_of,
    signer,
)
from tests.support.node.leaving import KeysAndChain
from tests.support.system.worker_process import (
    OPERATOR_SECRET,
    RECEIVER,
    WorkerProcess,
    write_key,
)

OWNER = signer("the owner of a stake")
PAYER = signer("a client of a worker that leaves")
OPERATOR = LocalSigner(OPERATOR_SECRET)
OWED = 3 * USD
FEE = USD // 2


@dataclass(frozen=True, slots=True)
class OwedWorker:
    """Its home, the keys, and what the chain owes it."""

    worker: WorkerProcess
    hands: KeysAndChain
    channel: Channel
    claim: Claim


async def owed_worker(folder: Path, market: TestMarket, url: str, **settings: Any) -> OwedWorker:
    """Register a worker, open a channel with a fee, and put a voucher into the journal."""
    worker = await WorkerProcess.register(
        folder / "worker",
        market.deployment,
        pace_s=0.01,
        owner=OWNER.address,
        rpc_url=url,
        **settings,
    )
    write_key(folder / "owner.json", bytes(OWNER.secret))
    await market.give(OWNER.address, wei=ETHER, tokens=MIN_STAKE)
    await market.give(PAYER.address, wei=ETHER)
    await market.pool(PAYER, PAYER, 10 * USD)
    channel = channel_of(market, PAYER, OPERATOR, receiver=RECEIVER)
    await market.open_channel(PAYER, PAYER, channel, 5 * USD, fee=FEE)
    claim = claim_of(market.reader.domain, channel, PAYER, OWED)
    await _remember(worker, market, claim)
    return OwedWorker(
        worker, KeysAndChain(worker.home.root, folder / "owner.json", url), channel, claim
    )


async def count_on_a_top_up(owed: OwedWorker, market: TestMarket, until: Timestamp = FAR) -> int:
    """Put a voucher above the deposit into the journal, and the authorization to raise that.

    until: how long the authorization holds.

    Returns:
        What the channel owes then, in base units.
    """
    domain, channel, promised = market.reader.domain, owed.channel, 7 * USD
    terms = FundChannel(channel, Amount(8 * USD), Amount(FEE), until)
    funding = FundingAuthorization(terms, signature_of(domain, terms, PAYER))
    claim = claim_of(domain, channel, PAYER, promised, count=2)
    receipts = Accumulator().append(Digest(keccak256(b"a receipt")))
    receipts = receipts.append(Digest(keccak256(b"another receipt")))
    ledger = WorkerLedger(
        claim.voucher.channel, PayVoucher(claim.voucher, claim.signature, 1, ()), receipts, {}
    )
    journal = await open_journal(owed.worker.home)
    try:
        await journal.append([FundingAuthorized(claim.voucher.channel, funding)])
        await journal.append([VoucherApplied(ledger, (), 1)])
    finally:
        await journal.close()
    return promised


async def _remember(worker: WorkerProcess, market: TestMarket, claim: Claim) -> None:
    id_, moment = claim.voucher.channel, Timestamp(int(time.time()))
    payment = PayVoucher(claim.voucher, claim.signature, 0, ())
    receipts = Accumulator().append(Digest(keccak256(b"a receipt")))
    journal = await open_journal(worker.home)
    try:
        opened = ChannelObserved(id_, ChannelState.OPEN, Amount(5 * USD), Amount(0), moment)
        ledger = WorkerLedger(id_, payment, receipts, {})
        await journal.append([ChannelSeen(id_, claim.channel), opened])
        await journal.append([VoucherApplied(ledger, (), 0)])
    finally:
        await journal.close()
    assert (await market.reader.channel(id_)).funded == 5 * USD
