"""The worker's defence on a chain: it finds challenges by itself and answers each once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from piecework.base.clock import SystemClock
from piecework.chain.contracts import evidence_calls
from piecework.chain.contracts.calls import Call
from piecework.chain.dev.anvil import Anvil
from piecework.chain.errors import RpcUnavailable
from piecework.chain.reading import disputes
from piecework.chain.reading.disputes import Challenge, ChallengeOpened
from piecework.chain.sending.fees import FeePolicy
from piecework.chain.sending.rawtx import SignedTransaction
from piecework.chain.sending.transactions import Unknown
from piecework_node import logs
from piecework_node.disputes.chain import DisputeLink
from piecework_node.disputes.defence import CHECK, CURSOR, Defence
from piecework_node.journal.records import TxKind, TxState, Worth
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_node.runtime.opener import CannotOpen
from piecework_node.settlement.chain import ChainLink
from piecework_node.settlement.transactions import TransactionTracker
from piecework_protocol.disputes import (
    ANSWER_SECONDS,
    EVIDENCE_SECONDS,
    ChallengeStatus,
    OpenedLeaf,
)
from piecework_protocol.types import Timestamp
from tests.support.chain.chains import ETHER, POLL_S, TestMarket, signer
from tests.support.chain.disputed import (
    STAKE,
    ServedCanvas,
    dispute_reader,
    disputed,
    serve,
    staked,
)
from tests.support.node.memory_journal import MemoryJournal

pytestmark = pytest.mark.process

PAYER, OPERATOR = signer("disputing"), signer("operator")


@dataclass
class KeptLeaves:
    """The canvases that a worker can open, by receipt. `away` makes it unable to."""

    canvases: dict[bytes, ServedCanvas] = field(default_factory=dict)
    away: bool = False

    async def open(self, asked: Challenge) -> OpenedLeaf:
        if self.away or asked.receipt not in self.canvases:
            raise CannotOpen("the worker runs in another precision than this job did")
        return self.canvases[asked.receipt].open(asked.leaf, asked.fields)

    async def out_of_reach(self, time: Timestamp) -> str | None:
        return "1 job ran on another engine" if self.away else None


class PoorLink(ChainLink):
    """Cannot prepare its first transaction."""

    refusals = 1

    async def prepare_call(self, call: Call, worth: Worth) -> SignedTransaction:
        if self.refusals:
            self.refusals -= 1
            raise RpcUnavailable("eth_estimateGas", "too much for one node")
        return await super().prepare_call(call, worth)


class DyingLink(ChainLink):
    """Dies between the journal and the broadcast."""

    dead = True

    async def broadcast(self, tx: SignedTransaction) -> None:
        if self.dead:
            raise RpcUnavailable("eth_sendRawTransaction", "the worker was killed")
        await super().broadcast(tx)


@dataclass
class DefendingWorker:
    """A worker of one journal. `restart` makes another process of it."""

    market: TestMarket
    journal: MemoryJournal
    leaves: KeptLeaves
    link: type[ChainLink] = ChainLink
    stuck_s: float = 90
    """After how long an answer is outbid. 0: as soon as it is seen to wait."""

    async def restart(self) -> None:
        clock, metrics, log = SystemClock(), Metrics(), logs.silent()
        link = self.link(self.market.reader, OPERATOR, FeePolicy())
        self.tracker = await TransactionTracker.load(
            self.journal, link, clock=clock, stuck_s=self.stuck_s, metrics=metrics, log=log
        )
        self.board = FaultBoard(clock, metrics, log, patience_s=0)
        self.defence = Defence(
            DisputeLink(link, OPERATOR.address),
            self.leaves,
            self.tracker,
            self.journal,
            self.board,
            first_block=self.market.deployment.from_block or 0,
            log=log,
        )

    async def follow(self) -> None:
        """Ask for the outcome of what is under way."""

        async def reverted(_: object) -> None:
            raise AssertionError("an answer reverted")

        for stored in self.tracker:
            await self.tracker.follow(stored, reverted)

    async def challenge(self, number: int = 0, leaf: int = 1) -> ChallengeOpened:
        """A client challenges a canvas that this worker served."""
        market = self.market
        canvas = await serve(market, PAYER, OPERATOR, number)
        self.leaves.canvases[market.reader.domain.digest(canvas.signed.receipt)] = canvas
        question = evidence_calls.ask(PAYER.address, canvas.subject, canvas.signed, leaf, 0x7F)
        reader = dispute_reader(market)
        bond = 2 * await reader.required_bond()
        mined = await market.run(PAYER, disputes.challenge(market.deployment, question, bond))
        (opened,) = await reader.challenges_to(OPERATOR.address, mined.block, mined.block)
        return opened

    async def outbid(self, opened: ChallengeOpened) -> tuple[SignedTransaction, SignedTransaction]:
        """Answer while blocks are too dear, and outbid it. Returns both answers, cheap and dear.

        No block comes by itself afterwards.
        """
        await self.market.rpc.call("evm_setAutomine", False)
        await self.defence.look()
        await self.price_next_block()
        await self.market.rpc.call("evm_mine")
        await self.follow()
        cheap, dear = (stored.tx for stored in self.tracker)
        assert cheap.nonce == dear.nonce
        return cheap, dear

    async def price_next_block(self) -> None:
        """The base fee of the next block is thirty times that of the latest."""
        latest = await self.market.rpc.call("eth_getBlockByNumber", "latest", False)
        spike = 30 * int(latest["baseFeePerGas"], 16)
        await self.market.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(spike))

    async def status(self, opened: ChallengeOpened) -> ChallengeStatus:
        """Where it stands once all that was broadcast is mined."""
        sender = self.market.sender(OPERATOR)
        for stored in self.tracker:
            if not isinstance(await sender.outcome(stored.tx.hash), Unknown):
                await sender.wait_mined(stored.tx.hash, poll_s=POLL_S)
        return (await dispute_reader(self.market).state(opened.id)).status


@pytest.fixture
async def worker(anvil: Anvil) -> AsyncIterator[DefendingWorker]:
    async with disputed(anvil) as market:
        await staked(market, OPERATOR)
        await market.give(PAYER.address, wei=ETHER)
        made = DefendingWorker(market, MemoryJournal(market.reader.domain), KeptLeaves())
        await made.restart()
        yield made


async def test_a_challenge_is_answered_by_itself_and_once(worker: DefendingWorker) -> None:
    opened = await worker.challenge()
    await worker.defence.look()
    assert await worker.status(opened) is ChallengeStatus.ANSWERED
    (answer,) = worker.tracker
    assert answer.kind is TxKind.ANSWER
    assert len(worker.journal.txs) == 1
    await worker.follow()
    await worker.defence.look()
    assert [tx.kind for tx in worker.tracker].count(TxKind.ANSWER) == 1
    assert not worker.board.is_failing(CHECK)
    assert int(worker.journal.notes[CURSOR]) >= opened.log.block


async def test_a_worker_killed_before_the_broadcast_sends_the_same_bytes(
    worker: DefendingWorker,
) -> None:
    worker.link = DyingLink
    await worker.restart()
    opened = await worker.challenge()
    with pytest.raises(RpcUnavailable):
        await worker.defence.look()
    assert await worker.status(opened) is ChallengeStatus.OPEN
    (stored,) = worker.journal.txs.values()
    worker.link = ChainLink
    await worker.restart()
    await worker.defence.look()
    assert len(worker.journal.txs) == 1  # the one under way is enough
    await worker.follow()
    assert await worker.status(opened) is ChallengeStatus.ANSWERED
    await worker.follow()
    (after,) = worker.journal.txs.values()
    assert after.tx == stored.tx
    assert after.state in (TxState.MINED, TxState.FINAL)


async def test_a_worker_that_cannot_open_says_so_before_it_is_too_late(
    worker: DefendingWorker,
) -> None:
    worker.leaves.away = True
    opened = await worker.challenge()
    await worker.defence.look()
    (fault,) = worker.board.failures(CHECK)
    assert fault.code is Code.CHALLENGE_OPEN
    assert str(opened.answer_by) in fault.detail and "another precision" in fault.detail
    assert int(worker.journal.notes[CURSOR]) < opened.log.block
    worker.leaves.away = False
    await worker.restart()
    await worker.defence.look()
    assert await worker.status(opened) is ChallengeStatus.ANSWERED
    assert not worker.board.is_failing(CHECK)


async def test_the_bonds_of_answers_are_sent_to_the_operator(worker: DefendingWorker) -> None:
    opened = await worker.challenge()
    await worker.defence.look()
    assert await worker.status(opened) is ChallengeStatus.ANSWERED
    await worker.follow()
    reader = dispute_reader(worker.market)
    assert (await reader.credits_of(OPERATOR.address)).coins == opened.bond
    await worker.defence.look()
    await worker.status(opened)
    assert (await reader.credits_of(OPERATOR.address)).coins == 0
    assert [tx.kind for tx in worker.tracker] == [TxKind.ANSWER, TxKind.PUSH]
    await worker.follow()
    await worker.defence.look()
    assert len(worker.journal.txs) == 2


async def test_an_answer_that_is_refused_holds_up_no_other(worker: DefendingWorker) -> None:
    worker.link = PoorLink
    await worker.restart()
    refused, answered = await worker.challenge(0), await worker.challenge(1)
    with pytest.raises(RpcUnavailable):
        await worker.defence.look()
    assert await worker.status(refused) is ChallengeStatus.OPEN
    assert await worker.status(answered) is ChallengeStatus.ANSWERED
    (fault,) = worker.board.failures(CHECK)
    assert "too much for one node" in fault.detail
    assert int(worker.journal.notes[CURSOR]) < refused.log.block


async def test_an_answer_that_was_outbid_holds_up_no_later_one_and_no_bond(
    worker: DefendingWorker,
) -> None:
    worker.stuck_s = 0
    await worker.restart()
    first = await worker.challenge(0)
    await worker.outbid(first)
    await worker.market.rpc.call("evm_mine")
    await worker.market.rpc.call("evm_setAutomine", True)
    await worker.follow()
    assert await worker.status(first) is ChallengeStatus.ANSWERED
    second = await worker.challenge(0, leaf=2)
    assert second.challenge.channel == first.challenge.channel
    await worker.defence.look()
    assert await worker.status(second) is ChallengeStatus.ANSWERED
    await worker.follow()
    await worker.defence.look()
    await worker.follow()
    assert (await dispute_reader(worker.market).credits_of(OPERATOR.address)).coins == 0
    kinds = [stored.kind for stored in worker.tracker]
    assert kinds == [TxKind.ANSWER] * 3 + [TxKind.PUSH]


async def test_an_outbid_answer_is_sent_again_after_a_reorganization_and_no_other_is_signed(
    worker: DefendingWorker,
) -> None:
    worker.stuck_s = 0
    await worker.restart()
    opened = await worker.challenge()
    _, dear = await worker.outbid(opened)
    await worker.market.rpc.call("evm_mine")
    await worker.follow()
    assert await worker.status(opened) is ChallengeStatus.ANSWERED
    await worker.market.rpc.call("anvil_reorg", 1, [])
    assert await worker.status(opened) is ChallengeStatus.OPEN
    worker.stuck_s = 90
    await worker.restart()
    await worker.follow()
    await worker.defence.look()
    await worker.market.rpc.call("evm_mine")
    await worker.follow()
    assert await worker.status(opened) is ChallengeStatus.ANSWERED
    assert [s.tx for s in worker.tracker if s.state is TxState.MINED] == [dear]
    assert len(worker.journal.txs) == 2
    assert not worker.tracker.unmined


async def test_an_answer_that_somebody_copied_holds_up_no_later_one_in_the_channel(
    worker: DefendingWorker,
) -> None:
    market, thief = worker.market, signer("somebody who reads the mempool")
    await market.give(thief.address, wei=ETHER)
    first = await worker.challenge(0)
    await market.rpc.call("evm_setAutomine", False)
    await worker.defence.look()
    await worker.price_next_block()
    await market.rpc.call("evm_mine")
    (ours,) = (stored.tx for stored in worker.tracker)
    u = ours.unsigned
    copier = market.sender(thief)
    copied = await copier.prepare(
        Call("copy", u.to, u.data, u.gas_limit, u.value), value_at_stake=None
    )
    await copier.broadcast(copied)
    await market.rpc.call("evm_mine")
    await market.rpc.call("evm_setAutomine", True)
    assert (await dispute_reader(market).state(first.id)).status is ChallengeStatus.ANSWERED
    worker.stuck_s = 0
    await worker.restart()
    second = await worker.challenge(0, leaf=2)
    await worker.defence.look()
    await worker.follow()
    await market.rpc.call("evm_mine")
    assert (await dispute_reader(market).state(second.id)).status is ChallengeStatus.ANSWERED


async def test_a_silence_is_kept_for_as_long_as_it_can_be_answered(
    worker: DefendingWorker,
) -> None:
    market = worker.market
    worker.leaves.away = True
    opened = await worker.challenge()
    await market.pass_time(ANSWER_SECONDS + 1)
    await market.run(PAYER, disputes.conclude(market.deployment, opened.challenge))
    await worker.defence.look()
    assert int(worker.journal.notes[CURSOR]) < opened.log.block
    await market.pass_time(EVIDENCE_SECONDS)
    await worker.defence.look()
    assert int(worker.journal.notes[CURSOR]) >= opened.log.block


async def test_a_silence_is_answered_afterwards(worker: DefendingWorker) -> None:
    market = worker.market
    opened = await worker.challenge()
    await market.pass_time(ANSWER_SECONDS + 1)
    await worker.defence.look()
    (fault,) = worker.board.failures(CHECK)
    assert "was not answered in time" in fault.detail
    await market.run(PAYER, disputes.conclude(market.deployment, opened.challenge))
    await worker.defence.look()
    assert await worker.status(opened) is ChallengeStatus.LATE
    assert not worker.board.is_failing(CHECK)
    registered = await market.reader.worker(OPERATOR.address)
    assert registered is not None and registered.stake < STAKE


async def test_challenges_to_somebody_else_are_not_ours(worker: DefendingWorker) -> None:
    market, other = worker.market, signer("another operator")
    await staked(market, other)
    canvas = await serve(market, PAYER, other, 7)
    question = evidence_calls.ask(PAYER.address, canvas.subject, canvas.signed, 1, 1)
    bond = 2 * await dispute_reader(market).required_bond()
    await market.run(PAYER, disputes.challenge(market.deployment, question, bond))
    await worker.defence.look()
    assert not worker.journal.txs
    assert not worker.board.is_failing(CHECK)
