"""A client challenges a job, and the worker's daemon meets it: every role is a process, on anvil.

The worker runs the bundled model on the CPU. Its node is a proxy, so that it can be killed when it
has journaled an answer and not broadcast it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.base.clock import SystemClock
from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.reading.disputes import ChallengeOpened
from piecework.chain.reading.reader import ChainReader
from piecework.client.disputes.walk import DisputeStage
from piecework.processes import ProcessGroup, Role
from piecework_node.daemon.admin import ask_daemon
from piecework_node.journal.records import StoredTx, TxKind
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.disputes import ANSWER_SECONDS, ChallengeStatus
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Timestamp
from tests.support.chain.chains import USD
from tests.support.chain.node_proxy import Kind, NodeProxy, over_http
from tests.support.market.dispute_market import PROVING_COST, Books, Customer, deploy
from tests.support.system.worker_process import OPERATOR_SECRET, PASSWORD, RECEIVER, WorkerProcess
from tests.support.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.slow]

SEND = "eth_sendRawTransaction"
PROMPT = "Write a story about a fox and a lantern."
STAKE, TOKENS, DEPOSIT = 100 * USD, 5, 3
WITHIN_S = 180.0
WALK_S = 180.0
"""The walk of a client through the death and the second start of its worker."""
POLL_S = 0.2
OPERATOR = LocalSigner(OPERATOR_SECRET).address


@dataclass
class Challenged:
    """The market of this story."""

    group: ProcessGroup
    proxy: NodeProxy
    home: WorkerProcess
    books: Books
    customer: Customer
    worker: Role | None = None

    async def start(self, precision: str, **settings: str) -> None:
        """`piecework worker start`, with the real engine."""
        self.worker = await self.group.start(
            "worker",
            ["worker", "start", "--home", str(self.home.home.root)],
            environment={
                "PIECEWORK_PASSWORD": PASSWORD,
                "PIECEWORK_WORKER_PRECISION": precision,
                "PIECEWORK_WORKER_BENCHMARK_S": "0.2",
                "PIECEWORK_WORKER_THREADS": "1",
                **{f"PIECEWORK_WORKER_{name.upper()}": value for name, value in settings.items()},
            },
        )

    async def kill_before_the_broadcast(self) -> StoredTx:
        """Wait until an answer hangs between journal and chain, and kill -9. Returns the answer."""
        assert self.worker is not None

        async def hangs() -> bool:
            status: dict[str, Any] = await ask_daemon(self.home.home.root, "GET", "/status")
            found = [(tx["kind"], tx["state"]) for tx in status["transactions"]]
            return (TxKind.ANSWER.value, "intended") in found

        await until(hangs, within_s=WITHIN_S, poll_s=POLL_S)
        assert SEND in self.proxy.asked
        await self.worker.kill()
        journal = await SqliteJournal.open(
            self.home.home.journal, self.books.deployment.domain, OPERATOR, clock=SystemClock()
        )
        try:
            (stored,) = [t for t in await journal.transactions() if t.kind is TxKind.ANSWER]
        finally:
            await journal.close()
        return stored

    async def fault(self, code: str) -> str:
        """Wait until the worker says a condition. Returns its line."""

        async def lines() -> list[str]:
            status: dict[str, Any] = await ask_daemon(self.home.home.root, "GET", "/status")
            return [one["line"] for one in status["faults"] if one["code"] == code]

        async def says() -> bool:
            return bool(await lines())

        await until(says, within_s=WITHIN_S, poll_s=POLL_S)
        return (await lines())[0]


async def test_the_whole_daemon_meets_a_challenge(anvil: Anvil, tmp_path: Path) -> None:
    file = await deploy(anvil, tmp_path, "market")
    deployment = Deployment.load(file)
    async with (
        ProcessGroup(tmp_path / "logs") as group,
        await ChainReader.connect(deployment) as reader,
        over_http(anvil.url) as node,
        NodeProxy(node).serving() as proxy,
    ):
        folders = ("--deployment", str(file), "--home", str(tmp_path / "index"))
        index = await group.start("index", ["market", "start", *folders, "--port", "0"])
        url = str(index.ready["url"])
        home = await WorkerProcess.register(
            tmp_path / "worker", deployment, pace_s=0, rpc_url=proxy.url, indexes=(url,)
        )
        place = tmp_path / "client"
        customer = await Customer.join(place, file, url, tokens=TOKENS, deposit=DEPOSIT)
        market = Challenged(group, proxy, home, Books(reader, deployment), customer)
        await market.start("float32")
        done = await customer.types("run", PROMPT, "--max-tokens", "64", "--seed", "11")
        evidence = await customer.evidence(done["job"], tmp_path / "evidence.json")
        await _answers_through_a_kill(market, evidence)
        await _says_that_it_cannot(market, evidence)
        await _hold_the_books(market)


async def _answers_through_a_kill(market: Challenged, evidence: Path) -> None:
    """One command walks from the challenge to its end while the worker dies and comes back."""
    about = ("--canvas", "0", "--step", "0", "--wait", "--poll-seconds", "1", "--yes")
    market.proxy.faults = {SEND: Kind.HANGS}
    async with asyncio.TaskGroup() as tasks:
        walk = tasks.create_task(
            market.customer.says("dispute", str(evidence), *about, within_s=WALK_S)
        )
        stored = await market.kill_before_the_broadcast()
        (opened,) = await market.books.challenges(OPERATOR)
        assert (await market.books.disputes.state(opened.id)).status is ChallengeStatus.OPEN
        market.proxy.faults = {}
        await market.start("float32")
        said = await walk
    assert said.code == 0, said.err
    first, *_, last = said.out.splitlines()
    assert first.startswith(
        f"{DisputeStage.WAITING.value}: leaf 0 of canvas 0 has to be opened. Until "
    )
    end = "the leaves are open and break no exact rule. The bonds are the worker's"
    assert last == f"{DisputeStage.HONEST.value}: {end}"
    answer = await market.books.disputes.answer_to(opened.id, 0)
    assert answer is not None and answer.in_time
    assert answer.log.transaction == stored.tx.hash
    assert [one.challenge.leaf for one in await market.books.challenges(OPERATOR)] == [0, 1]


async def _says_that_it_cannot(market: Challenged, evidence: Path) -> None:
    """The worker comes back in another precision and with no kept steps.

    It says so before and after a challenge. With kept steps it could still answer.
    """
    assert market.worker is not None
    assert await market.worker.stop() == 0, market.worker.log_tail()
    await market.start("bfloat16", evidence_bytes="0")
    early = await market.fault("engine-changed")
    assert "1 jobs that may be challenged until" in early
    assert "float32" in early and "bfloat16" in early
    about = ("--canvas", "0", "--step", "1", "--yes")
    waiting = await market.customer.types("dispute", str(evidence), *about)
    assert (waiting["stage"], waiting["over"]) == (DisputeStage.WAITING.value, False)
    late = await market.fault("challenge-open")
    assert str(waiting["deadline"]) in late and "the job ran on" in late
    reader = market.books.reader
    left = Timestamp(waiting["deadline"]) - await reader.timestamp()
    assert 0 < left <= ANSWER_SECONDS
    assert await market.worker.stop() == 0, market.worker.log_tail()
    await reader.rpc.call("evm_increaseTime", left + 1)
    await reader.rpc.call("evm_mine")
    silent = await market.customer.types("dispute", str(evidence), *about)
    assert (silent["stage"], silent["over"]) == (DisputeStage.SILENT.value, True)


async def _hold_the_books(market: Challenged) -> None:
    """Every party's money, to the unit."""
    books, payer = market.books, market.customer.payer
    opened = await books.challenges(OPERATOR)
    found = [(await books.disputes.state(one.id)).status for one in opened]
    assert found == [ChallengeStatus.ANSWERED, ChallengeStatus.ANSWERED, ChallengeStatus.SILENT]
    first, second, silent = opened
    assert await books.coins(OPERATOR) == await books.paid(OPERATOR) + first.bond + second.bond
    assert await books.coins(payer) == await books.paid(payer) + silent.bond
    left = await books.disputes.credits_of(OPERATOR)
    assert (left.tokens, await books.in_disputes()) == (0, left.coins)
    await _hold_the_tokens(market, silent)


async def _hold_the_tokens(market: Challenged, silent: ChallengeOpened) -> None:
    books, reader, payer = market.books, market.books.reader, market.customer.payer
    deployment, token = books.deployment, books.deployment.token
    registered = await reader.worker(OPERATOR)
    assert registered is not None
    assert registered.stake == STAKE - (1000 * silent.challenge.amount + 20 * PROVING_COST)
    assert await reader.token_balance(token, deployment.registry) == STAKE
    assert await reader.token_balance(token, payer) == (TOKENS - DEPOSIT) * USD
    earned = await reader.token_balance(token, RECEIVER)
    assert await reader.token_balance(token, deployment.escrow) == DEPOSIT * USD - earned
    balance = await market.customer.types("balance")
    waiting = await reader.waiting_payout(token, RECEIVER)
    # The client has not looked at what was settled: only the fee for the opening has left for it.
    fee = DEPOSIT * USD - balance["pooled"] - balance["in_channels"]
    assert fee > 0
    assert 0 < silent.challenge.amount <= balance["paid"] == earned + waiting - fee
