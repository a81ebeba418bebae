"""Disputes with workers that are processes, on anvil: equivocation, an invented trace, a frivolous
challenge through a gas spike and a reorganization. The denoising is a stand-in.

The stand-in's trace is invented: no model made it. Its roots and counts hold, and so does every
step but the first, whose canvas is not Philox's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.dev.anvil import Anvil
from piecework.chain.reading.disputes import ChallengeOpened, is_answer_to
from piecework.client.disputes.walk import DisputeStage
from piecework_node.daemon.admin import ask_daemon
from piecework_node.journal.records import TxKind, TxState
from piecework_protocol.disputes import ChallengeStatus
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import to_hex
from tests.support.chain.chains import USD
from tests.support.market.dispute_market import PROVING_COST, Books, Customer, opened
from tests.support.system.worker_process import (
    OPERATOR_SECRET,
    POLL_STATUS_S,
    RECEIVER,
    WorkerProcess,
)
from tests.support.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.slow]

OPERATOR = LocalSigner(OPERATOR_SECRET).address
STAKE, TOKENS, DEPOSIT = 100 * USD, 5, 3
REWARD = 20 * PROVING_COST
ASKED = ("run", "Tell me a story.", "--max-tokens", "64", "--seed", "3")
"""A job whose first canvas has two steps."""
ABOUT = ("--canvas", "0", "--step", "1", "--yes")
WITHIN_S = 300.0
POLL_S = 0.2
GWEI = 10**9


@dataclass(frozen=True, slots=True)
class Court:
    """A market with one worker that has not started, and one customer."""

    books: Books
    worker: WorkerProcess
    customer: Customer
    root: Path

    async def stake(self) -> int:
        registered = await self.books.reader.worker(OPERATOR)
        assert registered is not None
        return registered.stake

    async def tokens(self, who: Any) -> int:
        return await self.books.reader.token_balance(self.books.deployment.token, who)

    async def rpc(self, method: str, *arguments: Any) -> Any:
        return await self.books.reader.rpc.call(method, *arguments)

    async def answers(self) -> list[dict[str, str]]:
        """The worker's answers to challenges that are not final: hash and state."""
        status: dict[str, Any] = await ask_daemon(self.worker.home.root, "GET", "/status")
        return [tx for tx in status["transactions"] if tx["kind"] == TxKind.ANSWER.value]

    async def evidence(self, job: str) -> Path:
        return await self.customer.evidence(job, self.root / "evidence.json")

    async def hold_the_books_of_a_proof(self) -> None:
        """The whole stake is gone. The payer has the reward, and nobody has the rest.

        What was bought is the receiver's all the same, and answered bonds are the operator's.
        """
        payer, disputes = self.customer.payer, self.books.disputes
        assert await self.worker.drain() == 0, self.worker.log_tail()
        await self.books.hold_the_trade(self.customer, RECEIVER, DEPOSIT * USD)
        await self.books.hold_the_bonds(OPERATOR, payer)
        assert await self.stake() == 0
        assert await self.tokens(payer) == (TOKENS - DEPOSIT) * USD + REWARD
        assert await self.tokens(self.books.deployment.registry) == STAKE - REWARD
        assert await self.tokens(self.books.deployment.disputes_contract) == 0
        for who in (payer, OPERATOR):
            assert (await disputes.credits_of(who)).tokens == 0


@asynccontextmanager
async def court_of(anvil: Anvil, root: Path, **settings: Any) -> AsyncIterator[Court]:
    async with opened(
        anvil, root, tokens=TOKENS, deposit=DEPOSIT, pace_s=0.01, **settings
    ) as market:
        yield Court(market.books, market.worker, market.customer, root)


async def test_a_worker_that_signs_two_receipts_for_a_canvas_loses_its_stake(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with court_of(anvil, tmp_path) as court:
        await court.worker.start_cheating("equivocates", within_s=WITHIN_S)
        said = await court.customer.says(*ASKED, "--json")
        assert said.code == 1, said.out
        (first,) = (await court.customer.types("receipts"))["receipts"]
        found = await court.customer.types("dispute", first["job"], "--yes")
        assert (found["stage"], found["over"]) == (DisputeStage.DECIDED.value, True)
        assert "two receipts for canvas 0" in found["text"]
        await court.hold_the_books_of_a_proof()
        assert await court.books.challenges(OPERATOR) == ()
        evidence = await court.evidence(first["job"])
        again = await court.customer.types("dispute", str(evidence), "--yes")
        assert "Nothing waits for the payer now" in again["text"]


async def test_an_invented_trace_that_keeps_root_and_counts_is_proved_from_its_answers(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with court_of(anvil, tmp_path) as court:
        await court.worker.start(WITHIN_S)
        done = await court.customer.types(*ASKED)
        evidence = await court.evidence(done["job"])
        about = ("--canvas", "0", "--step", "0", "--yes", "--wait", "--poll-seconds", "1")
        found = await court.customer.types("dispute", str(evidence), *about)
        assert found["stage"] == DisputeStage.DECIDED.value, found
        assert "the trace breaks a rule: initial canvas" in found["text"]
        await court.hold_the_books_of_a_proof()
        opened = await court.books.challenges(OPERATOR)
        assert [one.challenge.leaf for one in opened] == [0, 1]


async def test_a_frivolous_challenge_is_answered_through_a_gas_spike_and_a_reorganization(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with court_of(anvil, tmp_path, stuck_after_s=1) as court:
        await court.worker.start(WITHIN_S)
        done = await court.customer.types(*ASKED)
        evidence = await court.evidence(done["job"])
        assert await court.worker.drain() == 0, court.worker.log_tail()
        waiting = await court.customer.types("dispute", str(evidence), *ABOUT)
        assert waiting["stage"] == DisputeStage.WAITING.value
        (opened,) = await court.books.challenges(OPERATOR)
        await _answer_in_a_gas_spike(court, opened)
        await _answer_again_after_a_reorganization(court, opened)
        # Nothing is final yet. The next question comes on the same channel.
        again = (*ABOUT, "--wait", "--poll-seconds", "1")
        found = await court.customer.types("dispute", str(evidence), *again)
        assert (found["stage"], found["over"]) == (DisputeStage.HONEST.value, True)
        assert (await court.customer.types("dispute", str(evidence), *ABOUT)) == found
        assert await court.worker.drain() == 0, court.worker.log_tail()
        await _hold_the_books_of_an_honest_worker(court)


async def _status(court: Court, opened: ChallengeOpened) -> ChallengeStatus:
    return (await court.books.disputes.state(opened.id)).status


async def _answers_in_next_block(court: Court, opened: ChallengeOpened) -> set[str]:
    """The hashes of answers that the node would put into the next block."""
    block = await court.rpc("eth_getBlockByNumber", "pending", True)
    return {
        tx["hash"]
        for tx in block["transactions"]
        if is_answer_to(opened.challenge, bytes.fromhex(tx["input"].removeprefix("0x")))
    }


async def _answer_in_a_gas_spike(court: Court, opened: ChallengeOpened) -> None:
    """The worker prices its answer by a cheap block. The next one is thirty times as dear.

    So the worker outbids its own answer, and the dearer one is mined.
    """
    block = await court.rpc("eth_getBlockByNumber", "latest", False)
    spike = 30 * int(block["baseFeePerGas"], 16)
    await court.rpc("evm_setAutomine", False)
    await court.worker.start(WITHIN_S)

    async def fits() -> bool:
        return bool(await _answers_in_next_block(court, opened))

    await until(fits, within_s=WITHIN_S, poll_s=POLL_S)
    cheap = await _answers_in_next_block(court, opened)
    await court.rpc("anvil_setNextBlockBaseFeePerGas", hex(spike))
    await court.rpc("evm_mine")
    assert await _status(court, opened) is ChallengeStatus.OPEN
    await until(fits, within_s=WITHIN_S, poll_s=POLL_S)
    await court.rpc("evm_mine")
    assert await _status(court, opened) is ChallengeStatus.ANSWERED
    answer = await court.books.disputes.answer_to(opened.id, 0)
    assert answer is not None and to_hex(answer.log.transaction) not in cheap


async def _answer_again_after_a_reorganization(court: Court, opened: ChallengeOpened) -> None:
    """The worker has seen its answer in a block. The block is replaced by an empty one."""
    answers = court.answers

    async def mined() -> bool:
        return TxState.MINED.value in [tx["state"] for tx in await answers()]

    async def fits() -> bool:
        return bool(await _answers_in_next_block(court, opened))

    await until(mined, within_s=WITHIN_S, poll_s=POLL_STATUS_S)
    answer = await court.books.disputes.answer_to(opened.id, 0)
    assert answer is not None
    height = await court.books.reader.latest_block()
    await court.rpc("anvil_reorg", height - answer.log.block + 1, [])
    assert await _status(court, opened) is ChallengeStatus.OPEN
    await until(fits, within_s=WITHIN_S, poll_s=POLL_S)
    await court.rpc("evm_mine")
    assert await _status(court, opened) is ChallengeStatus.ANSWERED
    await until(mined, within_s=WITHIN_S, poll_s=POLL_STATUS_S)
    # All have one nonce. So one of them is mined, and the others are kept until it is final.
    receipts = [await court.rpc("eth_getTransactionReceipt", tx["hash"]) for tx in await answers()]
    assert len(receipts) >= 2
    assert sum(receipt is not None for receipt in receipts) == 1
    await court.rpc("evm_setAutomine", True)
    await court.rpc("evm_mine")


async def _hold_the_books_of_an_honest_worker(court: Court) -> None:
    """The worker has its stake, its gas and both bonds. The challenger has paid them."""
    books, payer = court.books, court.customer.payer
    deployment = books.deployment
    opened = await books.challenges(OPERATOR)
    assert [one.challenge.leaf for one in opened] == [0, 2]
    assert [await _status(court, one) for one in opened] == [ChallengeStatus.ANSWERED] * 2
    assert await court.stake() == STAKE
    await books.hold_the_bonds(OPERATOR, payer)
    assert await books.in_disputes() == 0
    await books.hold_the_trade(court.customer, RECEIVER, DEPOSIT * USD, settled=True)
    assert await court.tokens(payer) == (TOKENS - DEPOSIT) * USD
    assert await court.tokens(deployment.registry) == STAKE
    assert await court.tokens(deployment.disputes_contract) == 0
