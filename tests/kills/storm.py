"""kill -9 of five processes at random moments under load, then the books.

    python -P -m tests.kills.storm [--kills N] [--seed N]

Worker, gateway, an SDK customer, the index and the way to the chain are real processes. Two HTTP
callers and the customer ask for texts the whole time. At the end every receipt, every cost that a
caller was told, the vouchers of both journals and the escrow must agree to the unit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import aiohttp

from piecework.chain.contracts.events import ChannelFunded
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.keystore import open_keystore
from piecework.client.config import ClientHome, load_config
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.journal.records import ChannelRow, JobStatus
from piecework.client.sdk import PieceworkClient
from piecework.client.setup import set_up
from piecework.demo.market import free_port
from piecework_node.journal.sqlite import SqliteJournal
from piecework_protocol.signing import LocalSigner
from tests.kills.program import Program
from tests.support.chain.chains import TestMarket, deployed
from tests.support.system.worker_process import OPERATOR_SECRET, PASSWORD, RECEIVER, WorkerProcess
from tests.support.waiting import random_moment

PACE_S: Final = 0.03
POOL: Final = 50_000_000
CALLERS: Final = 2
LONGEST_LIFE_S: Final = 1.5
LONGEST_DEATH_S: Final = 0.3
SEEDS_A_LIFE: Final = 100_000
COMPLETE, CUT = "complete", "cut"
ATTEMPTS: Final = 3
ROUNDS: Final = 20
WORKER: Final[dict[str, Any]] = {
    "slots": 4,
    "requests_per_minute": 60_000,
    "jobs_per_channel": 16,
    "settle_interval_s": 3,
    "native_coin_price": 0,
    "chain_poll_s": 0.5,
    "stuck_after_s": 5,
}
CLIENT: Final = 'deposit = "2.0"\nstall_timeout_s = 10.0\nresume_attempts = 4\n'


@dataclass(slots=True)
class Report:
    """What came of it."""

    kills: dict[str, int]
    answers: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    receipts: int = 0
    cumulative: int = 0
    rows: int = 0


class Stage:
    """The five processes, their homes, and the market that they trade on."""

    def __init__(self, root: Path, chain: EmbeddedChain, market: TestMarket) -> None:
        self.root, self.chain, self.market = root, chain, market
        self.home = root / "client"
        self.done = root / "done.log"
        self.answers: Counter[str] = Counter()
        self._seed = 1_000_000

    async def build(self) -> None:
        """Make the homes, and start everything."""
        rpc, index, gate = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{gate}"
        indexes = (f"http://127.0.0.1:{index}",)
        worker = await WorkerProcess.register(
            self.root / "worker", self.market.deployment, pace_s=PACE_S, indexes=indexes, **WORKER
        )
        self.worker_home = worker.home
        behind = replace(self.market.deployment, rpc_url=f"http://127.0.0.1:{rpc}")
        file = self.root / "deployment.json"
        for place in (worker.home.deployment, file):
            behind.save(place)
        self.way = self._program("way", "tests.kills.way", str(rpc), self.chain.url)
        self.index = self._program(
            "index", "piecework", "market", "start", "--deployment", str(file),
            "--home", str(self.root / "index"), "--port", str(index),
        )  # fmt: skip
        root = str(worker.home.root)
        self.worker = self._program(
            "worker", "tests.support.node.daemon_process", root, str(PACE_S)
        )
        self.gateway = self._program(
            "gateway", "piecework", "gateway", "--home", str(self.home), "--port", str(gate)
        )
        self.customer = self._program(
            "customer", "tests.kills.customer", str(self.home), str(self.done), str(self._seed)
        )
        self.customer.silent = True
        for program in (self.way, self.index, self.worker):
            await program.start()
        await set_up(self.home, file, indexes, second_key=False, password=lambda: PASSWORD)
        files = ClientHome(self.home)
        settings = files.config.read_text().splitlines()
        ours = {line.split(" = ")[0] for line in CLIENT.splitlines()}
        kept = [line for line in settings if line.split(" = ")[0] not in ours]
        files.config.write_text(CLIENT + "\n".join(kept) + "\n")
        payer = open_keystore(files.wallet, PASSWORD)
        await self.market.pool(payer, self.chain.faucet, POOL)
        await self.gateway.start()
        await self.customer.start()

    def _program(self, name: str, *arguments: str) -> Program:
        return Program(name, [*arguments], self.root / f"{name}.log")

    @property
    def programs(self) -> tuple[Program, ...]:
        """All of them, in the order of `WEIGHTS`."""
        return (self.worker, self.gateway, self.customer, self.index, self.way)

    async def revive(self, victim: Program) -> None:
        """Start a program again. What it needs may be dead as well at this moment."""
        if victim is self.customer:
            self._seed += SEEDS_A_LIFE
            victim.arguments[-1] = str(self._seed)
        for _ in range(ATTEMPTS - 1):
            with suppress(RuntimeError):
                await victim.start()
                return
        await victim.start()

    async def call(self, number: int, stop: asyncio.Event) -> None:
        """Ask the gateway for one text after the other."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as http:
            asked = 0
            chance = random.Random(number)
            while not stop.is_set():
                asked += 1
                seed = 5_000_000 + number * 1_000_000 + asked
                try:
                    said = await self._ask(http, seed, stream=asked % 2 == 0)
                except (aiohttp.ClientError, TimeoutError) as error:
                    said = type(error).__name__
                self.answers[said] += 1
                if said != COMPLETE:
                    await random_moment(chance, LONGEST_DEATH_S)

    async def _ask(self, http: aiohttp.ClientSession, seed: int, *, stream: bool) -> str:
        body: dict[str, Any] = {
            "model": "fake",
            "messages": [{"role": "user", "content": f"http {seed}"}],
            "max_tokens": 64,
            "seed": seed,
            "stream": stream,
        }
        async with http.post(f"{self.url}/v1/chat/completions", json=body) as answer:
            text = await answer.text()
            if answer.status != 200:
                return f"HTTP {answer.status}"
            whole = "[DONE]" in text or '"usage"' in text
            return COMPLETE if whole or '"error"' in text else CUT

    async def stop(self) -> None:
        """End what still runs."""
        for program in self.programs:
            if program.alive:
                await program.kill()


WEIGHTS: Final = (5, 3, 4, 1, 2)


@asynccontextmanager
async def stage(root: Path) -> AsyncIterator[Stage]:
    """A market whose processes run."""
    async with EmbeddedChain() as chain, deployed(chain) as market:
        made = Stage(root, chain, market)
        await made.build()
        try:
            yield made
        finally:
            await made.stop()


async def run(root: Path, kills: int, seed: int) -> Report:
    """Kill so many times, then hold the books to each other. Raises if anything is amiss."""
    chance = random.Random(seed)
    async with stage(root) as scene:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(scene.call(number, stop), name=f"caller {number}")
            for _ in range(kills):
                await random_moment(chance, LONGEST_LIFE_S)
                victim = chance.choices(scene.programs, WEIGHTS)[0]
                await victim.kill()
                await random_moment(chance, LONGEST_DEATH_S)
                await scene.revive(victim)
            stop.set()
        killed = {program.name: program.kills for program in scene.programs}
        await scene.customer.kill()
        code = await scene.gateway.stop()
        assert code == 0, f"the gateway ended with {code}: {scene.gateway.tail()}"
        return await check_books(scene, Report(killed, scene.answers))


async def check_books(scene: Stage, report: Report) -> Report:
    """Receipts, vouchers, the escrow and both journals tell one story, to the unit."""
    worker = scene.worker.log.read_text(errors="replace")
    assert "journal-old" not in worker, "a kill was taken for a rolled-back journal"
    assert "contained" not in worker, "an error of ours ended a job"
    assert not report.answers[CUT], f"an answer was cut with HTTP 200: {report.answers}"
    files = ClientHome(scene.home)
    config = load_config(files.config)
    async with await PieceworkClient.open(files, config, password=PASSWORD) as client:
        (row,) = client.store.channels()
        row = await paid_up(client, row)
        broken = [(job.id.hex(), job.detail) for job in client.store.jobs(status=JobStatus.BROKEN)]
        assert not broken, f"{broken}\n{scene.worker.tail()}"
        _, receipts = await client.receipts(row.id)
        assert not [proven.trouble for proven in receipts if proven.trouble]
        voucher = row.book.voucher()
        assert len(receipts) == voucher.count == row.book.acknowledged
        assert sum(r.row.receipt.amount for r in receipts) == voucher.cumulative
        lines = scene.done.read_text().splitlines() if scene.done.exists() else []
        for text in map(json.loads, lines):
            mine = [r for r in receipts if r.row.receipt.job.hex() == text["job"]]
            assert len(mine) == text["canvases"], text
            assert sum(r.row.receipt.amount for r in mine) == text["cost"], text
        code = await scene.worker.stop()
        assert code == 0, f"the worker ended with {code}: {scene.worker.tail()}"
        on_chain = await scene.market.reader.channel(row.id)
        assert on_chain.settled == voucher.cumulative, scene.worker.tail()
        held = await scene.market.reader.token_balance(scene.market.token, RECEIVER)
        # The fees of openings go to the receiver as well, or wait for somebody to push them on.
        opened = await scene.market.reader.escrow_events(("ChannelFunded",))
        fees = sum(event.fee for event in opened if isinstance(event, ChannelFunded))
        waiting = await scene.market.reader.waiting_payout(scene.market.token, RECEIVER)
        assert held + waiting == voucher.cumulative + fees
    report.texts, report.receipts = len(lines), len(receipts)
    report.cumulative = voucher.cumulative
    return await check_journal(scene, report)


async def paid_up(client: PieceworkClient, row: ChannelRow) -> ChannelRow:
    """Bring every job of the client to its end, and pay what is owed."""
    for _ in range(ROUNDS):
        await pay_outstanding(client.context, row.id)
        row = client.store.channel(row.id)
        owed = row.book.accumulator.count - row.book.acknowledged
        if not owed and not client.store.jobs(status=JobStatus.LIVE):
            break
    return row


async def check_journal(scene: Stage, report: Report) -> Report:
    """The worker's journal is whole and says the same."""
    operator = LocalSigner(OPERATOR_SECRET).address
    domain = scene.market.deployment.domain
    journal = await SqliteJournal.open(scene.worker_home.journal, domain, operator)
    try:
        report.rows = await journal.verify(deep=True)
        sums = await journal.earnings()
        paid = await journal.paid_jobs(0, 2**40)
    finally:
        await journal.close()
    assert sums.accepted == sums.settled == report.cumulative
    assert sum(job.gross for job in paid) == report.cumulative
    assert sum(job.canvases for job in paid) == report.receipts
    assert sums.charged == sums.accepted + sums.unpaid
    return report


def main() -> None:
    """Run it and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        report = asyncio.run(run(Path(folder), arguments.kills, arguments.seed))
    print(f"{sum(report.kills.values())} kills in {time.monotonic() - started:.0f} s: {report}")


if __name__ == "__main__":
    main()
