"""Disputes with workers that are processes, on anvil: equivocation and an invented trace. The
denoising is a stand-in.

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

from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.reader import ChainReader
from piecework.client.disputes.walk import DisputeStage
from piecework.processes import ProcessGroup
from piecework_protocol.signing import LocalSigner
from tests.support.chains import USD
from tests.support.dispute_market import PROVING_COST, Books, Customer, deploy
from tests.support.worker_process import OPERATOR_SECRET, WorkerProcess

pytestmark = [pytest.mark.process, pytest.mark.slow]

OPERATOR = LocalSigner(OPERATOR_SECRET).address
STAKE, TOKENS, DEPOSIT = 100 * USD, 5, 3
REWARD = 20 * PROVING_COST
ASKED = ("run", "Tell me a story.", "--max-tokens", "64", "--seed", "3")
"""A job whose first canvas has two steps."""
WITHIN_S = 300.0


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

    async def evidence(self, job: str) -> Path:
        return await self.customer.evidence(job, self.root / "evidence.json")

    async def hold_the_books_of_a_proof(self) -> None:
        """The whole stake is gone. The payer has the reward, and nobody has the rest."""
        payer, disputes = self.customer.payer, self.books.disputes
        assert await self.stake() == 0
        assert await self.tokens(payer) == (TOKENS - DEPOSIT) * USD + REWARD
        assert await self.tokens(self.books.deployment.registry) == STAKE - REWARD
        assert await self.tokens(self.books.deployment.disputes_contract) == 0
        for who in (payer, OPERATOR):
            assert (await disputes.credits_of(who)).tokens == 0


@asynccontextmanager
async def court_of(anvil: Anvil, root: Path, **settings: Any) -> AsyncIterator[Court]:
    file = await deploy(anvil, root, "market")
    deployment = Deployment.load(file)
    async with (
        ProcessGroup(root / "logs") as group,
        await ChainReader.connect(deployment) as reader,
    ):
        folders = ("--deployment", str(file), "--home", str(root / "index"))
        index = await group.start("index", ["market", "start", *folders, "--port", "0"])
        url = str(index.ready["url"])
        worker = await WorkerProcess.register(
            root / "worker", deployment, pace_s=0.01, indexes=(url,), **settings
        )
        customer = await Customer.join(root / "client", file, url, tokens=TOKENS, deposit=DEPOSIT)
        try:
            yield Court(Books(reader, deployment), worker, customer, root)
        finally:
            if worker.process is not None and worker.process.returncode is None:
                await worker.kill()


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
        bonds = sum(one.bond for one in opened)
        assert await court.books.coins(OPERATOR) == await court.books.paid(OPERATOR) + bonds
