"""A market moves to its next deployment, with an open channel and a pending challenge.

It follows "Moving to a new deployment" of docs/governance.md step by step. Every role is a process,
on anvil. The denoising is a stand-in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call
from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.dev.faucet import fund_native
from piecework.chain.errors import ChainError
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import TransactionSender
from piecework.client.disputes.walk import DisputeStage
from piecework.demo.market import free_port
from piecework.processes import ProcessGroup, Role
from piecework_protocol.disputes import VERDICT_SECONDS, ChallengeStatus
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256, to_hex
from tests.support.chain.chains import ETHER, USD, signer
from tests.support.market.dispute_market import Books, Customer, deploy
from tests.support.system.commands import piecework
from tests.support.system.worker_process import OPERATOR_SECRET, WorkerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.process

OWNER = signer("the owner of both stakes")
OLD = LocalSigner(OPERATOR_SECRET).address
NEXT_SECRET = bytes(keccak256(b"the operator key of the next registration"))
NEXT = LocalSigner(NEXT_SECRET).address
STAKE, TOKENS, DEPOSIT = 100 * USD, 8, 6
WITHIN_S = 180.0
POLL_S = 0.1


@dataclass
class Move:
    """Both deployments, and who lives through the move."""

    group: ProcessGroup
    root: Path
    port: int
    old: Path
    new: Path
    customer: Customer
    books: Books
    """Of the old deployment."""

    async def index(self, file: Path) -> Role:
        """Start the index for a deployment, in its one home."""
        place = ("--home", str(self.root / "index"), "--port", str(self.port))
        return await self.group.start(
            "index", ["market", "start", "--deployment", str(file), *place]
        )

    async def worker(self, name: str, file: Path, secret: bytes) -> WorkerProcess:
        """Register a worker of the owner with a key and a home of its own."""
        return await WorkerProcess.register(
            self.root / name,
            Deployment.load(file),
            pace_s=0.01,
            secret=secret,
            owner=OWNER.address,
            indexes=(f"http://127.0.0.1:{self.port}",),
        )

    async def by_owner(self, call: Call) -> None:
        """The owner sends a transaction from its cold key."""
        await TransactionSender.of(self.books.reader, OWNER).execute(call, poll_s=POLL_S)

    async def workers(self, file: Path) -> int:
        """How many workers `piecework chain status` counts in a deployment."""
        shown = (await piecework("chain", "status", "--deployment", str(file), "--json")).json()
        assert shown["contracts_match_build"]
        return int(shown["workers"])


@asynccontextmanager
async def running(worker: WorkerProcess) -> AsyncIterator[None]:
    """The worker's daemon, until SIGTERM."""
    await worker.start()
    try:
        yield
    finally:
        assert await worker.drain() == 0, worker.log_tail()


async def test_a_market_moves_with_an_open_channel_and_a_pending_challenge(
    anvil: Anvil, tmp_path: Path
) -> None:
    old, port = await deploy(anvil, tmp_path, "old"), free_port()
    deployment = Deployment.load(old)
    async with (
        ProcessGroup(tmp_path / "logs") as group,
        await ChainReader.connect(deployment) as reader,
    ):
        await fund_native(reader.rpc, anvil.faucet, OWNER.address, ETHER, poll_s=POLL_S)
        customer = Customer(tmp_path / "client")
        move = Move(group, tmp_path, port, old, old, customer, Books(reader, deployment))
        index = await move.index(old)
        move.customer = await Customer.join(
            customer.home, old, index.ready["url"], tokens=TOKENS, deposit=DEPOSIT
        )
        leaving = await move.worker("old-worker", old, OPERATOR_SECRET)
        async with running(leaving):
            evidence, earlier = await _before_the_move(move)
        await _challenge_while_it_is_away(move, evidence)
        move.new = await _make_the_next_deployment(move, anvil)
        await index.stop()
        await move.index(move.new)
        async with running(leaving):
            await _stake_and_take_the_next_file(move, earlier)
            await _leave_the_old_registry(move, evidence)


async def _before_the_move(move: Move) -> tuple[Path, int]:
    """A job on a channel that stays open. Returns its evidence, and what it has cost."""
    done = await move.customer.types("run", "Tell me a story.", "--max-tokens", "64", "--seed", "3")
    return await move.customer.evidence(done["job"], move.root / "evidence.json"), done["cost"]


async def _challenge_while_it_is_away(move: Move, evidence: Path) -> None:
    about = ("--canvas", "0", "--step", "1", "--yes")
    waiting = await move.customer.types("dispute", str(evidence), *about)
    assert waiting["stage"] == DisputeStage.WAITING.value
    (opened,) = await move.books.challenges(OLD)
    assert (await move.books.disputes.state(opened.id)).status is ChallengeStatus.OPEN


async def _make_the_next_deployment(move: Move, anvil: Anvil) -> Path:
    """Step 1: other terms give another registry and another dispute contract beside one escrow."""
    before = Deployment.load(move.old)
    new = await deploy(anvil, move.root, "new", token=before.token, proving_cost=USD // 5)
    after = Deployment.load(new)
    assert (before.escrow, before.domain) == (after.escrow, after.domain)
    assert before.registry != after.registry
    assert before.disputes_contract != after.disputes_contract
    assert (await move.workers(move.old), await move.workers(new)) == (1, 0)
    return new


async def _stake_and_take_the_next_file(move: Move, earlier: int) -> None:
    """Steps 2 and 3: a second worker of the owner, and the client's new file."""
    customer = move.customer
    held = await customer.types("balance")
    async with running(await move.worker("new-worker", move.new, NEXT_SECRET)):
        moved = await customer.types("move", str(move.new))
        assert moved["new"]
        assert Deployment.load(Path(moved["earlier"])) == Deployment.load(move.old)
        assert not (await customer.types("move", str(move.new)))["new"]
        same = await customer.types("balance")
        assert (same["pooled"], same["in_channels"]) == (held["pooled"], held["in_channels"])
        offers = (await customer.types("offers"))["offers"]
        assert [one["operator"] for one in offers] == [to_hex(NEXT)]
        later = await customer.types("run", "Another one.", "--max-tokens", "32", "--seed", "4")
        await _close_the_old_channel(move, moved["earlier"])
    after = await customer.types("balance")
    spent = DEPOSIT * USD - after["pooled"] - after["in_channels"]
    assert spent >= earlier + later["cost"] == after["paid"]
    assert await move.workers(move.new) == 1


async def _close_the_old_channel(move: Move, file: str) -> None:
    """With the worker, which the earlier file finds. Its unspent rest is pooled again."""
    channels = (await move.customer.types("channels"))["channels"]
    (old,) = [one["channel"] for one in channels if one["operator"] == to_hex(OLD)]
    (closing,) = (await move.customer.types("close", old, "--deployment", file))["channels"]
    assert closing["closed"], closing


async def _leave_the_old_registry(move: Move, evidence: Path) -> None:
    """Step 4: the challenge holds the stake until it is over. Then it comes home, to the unit."""
    reader, deployment, books = move.books.reader, move.books.deployment, move.books
    await move.by_owner(calls.request_unbond(deployment, OLD))
    (opened,) = await books.challenges(OLD)

    async def is_answered() -> bool:
        return (await books.disputes.state(opened.id)).status is ChallengeStatus.ANSWERED

    await until(is_answered, within_s=WITHIN_S, poll_s=POLL_S)
    about = ("--canvas", "0", "--step", "1", "--yes", "--wait", "--poll-seconds", "1")
    walk = await move.customer.types(
        "dispute", str(evidence), *about, "--deployment", str(move.old)
    )
    assert (walk["stage"], walk["over"]) == (DisputeStage.HONEST.value, True)
    registered = await reader.worker(OLD)
    assert registered is not None and registered.stake == STAKE
    assert registered.frozen_until >= opened.answer_by + VERDICT_SECONDS
    with pytest.raises(ChainError):
        await move.by_owner(calls.withdraw_stake(deployment, OLD))
    await reader.rpc.call("evm_increaseTime", deployment.unbonding_delay_s + 1)
    await reader.rpc.call("evm_mine")
    before = await reader.token_balance(deployment.token, OWNER.address)
    await move.by_owner(calls.withdraw_stake(deployment, OLD))
    assert await reader.token_balance(deployment.token, OWNER.address) == before + STAKE
    assert await reader.token_balance(deployment.token, deployment.registry) == 0
    assert (await move.workers(move.old), await move.workers(move.new)) == (0, 1)
