"""What strangers can do to the others: `python -m bench.hostile [--only TEXT] [--seconds N]`.

The real worker (with a stand-in engine), gateway and index run as processes with 1,024 descriptors.
An honest client at 127.0.0.1 works, every second time over a new connection, while an attacker
process at 127.0.0.2 attacks one of them. In the control run the same attacker sends the same load
to a sink that reads and forgets, because all share the same cores. The two runs alternate.

It fails when the honest p99 is more than twice that of the control run, when fewer than half of the
jobs are done, when a process grows by more than 150 MiB, or when the honest client is still locked
out after the attack.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession, ClientTimeout

from bench.hostile_attacks import ATTACKS, SUBMISSION, Attack
from bench.report import environment, percentile
from piecework.base.jsons import loads
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.keystore import open_keystore
from piecework.client.config import load_config
from piecework.client.jobs.events import JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.setup import set_up
from piecework.client.wallet import Wallet
from piecework.demo.market import free_port
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.limits import MAX_CONTENT_BYTES
from piecework_protocol.signing import LocalSigner
from tests.support.chain.chains import TestMarket, channel_of, deployed, signer
from tests.support.client.scripted_client import ScriptedJob
from tests.support.node.harness import parameters
from tests.support.node.wire_client import WireClient
from tests.support.system.worker_process import (
    OPERATOR_SECRET,
    PASSWORD,
    RECEIVER,
    WorkerProcess,
    limited,
)

DESCRIPTORS: Final = 1024
"""What systemd and most shells give."""
MAX_RATIO: Final = 2.0
MAX_GROWTH_MIB: Final = 150
LEAST_SHARE: Final = 0.5
PATIENCE_S: Final = 15.0
UNLOCKED_S: Final = 5.0
PACE_S: Final = 0.002
WARM_UP_S: Final = 1.5
POOL: Final = 100_000_000
DEPOSIT: Final = 1_000_000
CHAT: Final = {
    "model": "fake",
    "messages": [{"role": "user", "content": "bench"}],
    "max_tokens": 8,
}

Honest = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Figures:
    """What an honest client saw."""

    times_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, other: Figures) -> None:
        """Take in another run."""
        self.times_ms += other.times_ms
        self.failures += other.failures
        self.seconds += other.seconds

    @property
    def per_s(self) -> float:
        """Jobs done in a second."""
        return len(self.times_ms) / self.seconds if self.seconds else 0.0

    def at(self, share: float) -> float:
        """A percentile in milliseconds."""
        return percentile(self.times_ms, share) if self.times_ms else float("inf")


@dataclass(frozen=True, slots=True)
class Target:
    """A process of ours: its port, and what an honest client does there."""

    port: int
    pid: int
    honest: Honest
    pause_s: float = 0.08
    """Between two requests. Few requests make a p99 that is one outlier."""


@dataclass(frozen=True, slots=True)
class Row:
    """One attack, and what became of the honest client."""

    attack: Attack
    control: Figures
    during: Figures
    growth_mib: int
    unlocked: bool

    @property
    def ratio(self) -> float:
        """How much worse the slowest jobs are than in the control run."""
        return self.during.at(0.99) / self.control.at(0.99)

    @property
    def defects(self) -> list[str]:
        """What fails."""
        found = []
        if self.ratio > MAX_RATIO:
            found.append("slow")
        if self.during.per_s < LEAST_SHARE * self.control.per_s:
            found.append("starved")
        if self.growth_mib > MAX_GROWTH_MIB:
            found.append("memory")
        if not self.unlocked:
            found.append("locked")
        return found

    def line(self) -> str:
        """As a row of Markdown."""
        control, during = self.control, self.during
        cells = (
            self.attack.target,
            self.attack.name,
            f"{control.at(0.5):.0f} / {control.at(0.99):.0f}",
            f"{during.at(0.5):.0f} / {during.at(0.99):.0f}",
            f"{self.ratio:.2f}",
            f"{during.per_s:.1f} of {control.per_s:.1f}",
            f"{len(during.failures)}",
            f"{self.growth_mib}",
            ", ".join(self.defects) or "held",
        )
        return "| " + " | ".join(cells) + " |"


HEAD: Final = (
    "| target | attack | control p50 / p99 ms | attack p50 / p99 ms | ratio | jobs/s | failed "
    "| growth MiB | verdict |\n|---|---|---|---|---|---|---|---|---|"
)


async def measure(target: Target, seconds: float) -> Figures:
    """Let the honest client work for a while."""
    figures, number = Figures(), secrets.randbelow(1 << 40)
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        number += 1
        start = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await target.honest(number)
        except Exception as error:  # noqa: BLE001  every failure is a figure
            figures.failures.append(f"{type(error).__name__}: {error}"[:160])
        else:
            figures.times_ms.append((time.perf_counter() - start) * 1000)
        await asyncio.sleep(target.pause_s)
    figures.seconds = time.monotonic() - began
    return figures


@contextlib.asynccontextmanager
async def child(
    module: str, *arguments: str, environment: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours that ends with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        module,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def first_line(process: asyncio.subprocess.Process) -> bytes:
    """What a process says first. Empty: it ended without a word."""
    return b"" if process.stdout is None else await process.stdout.readline()


@contextlib.asynccontextmanager
async def sink_port(kind: str) -> AsyncIterator[int]:
    """A sink, and its port."""
    async with child("bench.hostile_sink", kind) as process:
        yield int(await first_line(process))


def memory_mib(pid: int) -> int:
    """The resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


async def under_attack(
    attack: Attack, port: int, target: Target, seconds: float, submission: Path
) -> Figures:
    """Attack a port, and let the honest client work meanwhile."""
    arguments = (str(ATTACKS.index(attack)), str(port), str(seconds + 60))
    extra = {SUBMISSION: str(submission)}
    async with child("bench.hostile_attacks", *arguments, environment=extra):
        await asyncio.sleep(WARM_UP_S)
        return await measure(target, seconds)


async def try_attack(
    attack: Attack, target: Target, *, seconds: float, rounds: int, submission: Path
) -> Row:
    """Control run and attack, in turns."""
    control, during, before = Figures(), Figures(), memory_mib(target.pid)
    most = before
    await measure(target, 1.0)
    for _ in range(rounds):
        async with sink_port(attack.sink) as port:
            control.add(await under_attack(attack, port, target, seconds, submission))
        run = asyncio.ensure_future(under_attack(attack, target.port, target, seconds, submission))
        while not (await asyncio.wait({run}, timeout=0.2))[0]:
            most = max(most, memory_mib(target.pid))
        during.add(run.result())
    try:
        async with asyncio.timeout(UNLOCKED_S):
            await target.honest(secrets.randbelow(1 << 40))
        unlocked = True
    except Exception:  # noqa: BLE001  whatever it is, the client is locked out
        unlocked = False
    return Row(attack, control, during, most - before, unlocked)


# --- the market


@dataclass(slots=True)
class Market:
    """The processes under attack."""

    targets: dict[str, Target]
    submission: Path


def _get(url: str) -> Honest:
    async def read(_: int) -> None:
        timeout = ClientTimeout(total=PATIENCE_S)
        async with ClientSession(timeout=timeout) as http, http.get(url) as answer:
            await answer.read()
            answer.raise_for_status()

    return read


def _chat(url: str) -> Honest:
    async def ask(number: int) -> None:
        timeout = ClientTimeout(total=PATIENCE_S)
        body = {**CHAT, "seed": number % (1 << 31)}
        async with (
            ClientSession(timeout=timeout) as http,
            http.post(url, json=body) as answer,
        ):
            await answer.read()
            answer.raise_for_status()

    return ask


def _job(client: PieceworkClient) -> Honest:
    async def run(number: int) -> None:
        if number % 2:
            await client.links.close()
        request = TextRequest(
            Conversation((Message("user", "bench"),)),
            generation=Generation(seed=number, max_tokens=8),
        )
        async with client.run(request) as job:
            ended = [event async for event in job if isinstance(event, JobFinished)]
        if not ended or not ended[0].acknowledged:
            raise RuntimeError("the job was not paid to its end")

    return run


async def _role(root: Path, name: str, *arguments: str) -> tuple[asyncio.subprocess.Process, Any]:
    """Start a command of ours with few descriptors. Returns it with its ready line."""
    with (root / f"{name}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *limited(DESCRIPTORS),
            sys.executable,
            "-P",
            "-m",
            "piecework",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PIECEWORK_PASSWORD": PASSWORD},
        )
    line = await first_line(process)
    if not line:
        raise RuntimeError(f"{name} did not start: {(root / f'{name}.log').read_text()[-2000:]}")
    return process, loads(line)


async def _long_submission(market: TestMarket, endpoint: str, relayer: LocalSigner) -> bytes:
    """A signed job of a funded client, with a prompt of 2 MiB."""
    payer = signer("a client with long prompts")
    await market.pool(payer, relayer, 2 * DEPOSIT)
    channel = channel_of(market, payer, LocalSigner(OPERATOR_SECRET), receiver=RECEIVER)
    await market.open_channel(payer, relayer, channel, DEPOSIT)
    client = WireClient(endpoint, market.deployment.domain, payer, channel, deposit=DEPOSIT)
    try:
        text = "a! " * ((MAX_CONTENT_BYTES - 4096) // 3)
        deadline = int(time.time()) + 3600 * 12
        job = ScriptedJob.sealed(client, await client.offer(), text, parameters(3, 8), deadline)
        job.open()
        return job.upward.popleft()
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def market(root: Path) -> AsyncIterator[Market]:
    """A chain, an index, a worker, a gateway and an SDK client."""
    async with contextlib.AsyncExitStack() as stack:
        chain = await stack.enter_async_context(EmbeddedChain())
        deployment = await stack.enter_async_context(deployed(chain))
        file = root / "deployment.json"
        deployment.deployment.save(file)
        index_port, gateway_port = free_port(), free_port()
        url = f"http://127.0.0.1:{index_port}"
        worker = await WorkerProcess.register(
            root / "worker",
            deployment.deployment,
            pace_s=PACE_S,
            slots=64,
            jobs_per_channel=64,
            indexes=(url,),
        )
        worker.descriptors = DESCRIPTORS
        place = ("--deployment", str(file), "--home", str(root / "index"))
        index, _ = await _role(root, "index", "market", "start", *place, "--port", str(index_port))
        stack.push_async_callback(_end, index)
        ready = await worker.start()
        stack.push_async_callback(worker.kill)
        submission = root / "submission"
        submission.write_bytes(await _long_submission(deployment, worker.endpoint, chain.faucet))
        home = root / "client"
        await set_up(home, file, (url,), second_key=False, password=lambda: PASSWORD)
        await deployment.pool(open_keystore(home / "wallet.json", PASSWORD), chain.faucet, POOL)
        gateway, _ = await _role(
            root, "gateway", "gateway", "--home", str(home), "--port", str(gateway_port)
        )
        stack.push_async_callback(_end, gateway)
        payer = signer("an honest payer")
        await deployment.pool(payer, chain.faucet, POOL)
        store = Store(root / "client.db", deployment.deployment.domain, payer.address)
        client = await stack.enter_async_context(
            PieceworkClient(
                store,
                deployment.reader,
                Wallet(payer, payer),
                deployment.deployment.payment_token,
                load_config(root / "none", {"deposit": "50.0"}),
            )
        )
        admin, pid = ready["admin_port"], _pid(worker)
        chat = f"http://127.0.0.1:{gateway_port}/v1/chat/completions"
        port = int(worker.endpoint.rpartition(":")[2])
        yield Market(
            {
                "worker": Target(port, pid, _job(client)),
                "gateway": Target(gateway_port, gateway.pid, _chat(chat)),
                "index": Target(index_port, index.pid, _get(url + "/health"), 0.02),
                "admin": Target(admin, pid, _get(f"http://127.0.0.1:{admin}/status"), 0.02),
            },
            submission,
        )


def _pid(worker: WorkerProcess) -> int:
    if worker.process is None:
        raise RuntimeError("the worker does not run")
    return worker.process.pid


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


async def run(only: str, seconds: float, rounds: int) -> list[Row]:
    """Try every attack whose name or target contains `only`."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
        async with market(Path(folder)) as made:
            print(HEAD, flush=True)
            for attack in ATTACKS:
                if only not in f"{attack.target} {attack.name}":
                    continue
                row = await try_attack(
                    attack,
                    made.targets[attack.target],
                    seconds=seconds,
                    rounds=rounds,
                    submission=made.submission,
                )
                rows.append(row)
                print(row.line(), flush=True)
                for failure in sorted(set(row.during.failures))[:3]:
                    print(f"    {failure}", file=sys.stderr, flush=True)
    return rows


def main() -> int:
    """Print the table. 1: an attack was not held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a target's or an attack's name")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each run")
    parser.add_argument("--rounds", type=int, default=2)
    wanted = parser.parse_args()
    for name, fact in environment("grpcio", "aiohttp").items():
        print(f"{name:>16}  {fact}")
    rows = asyncio.run(run(wanted.only, wanted.seconds, wanted.rounds))
    broken = [row for row in rows if row.defects]
    ratios = [row.ratio for row in rows]
    print(f"\n{len(rows) - len(broken)} of {len(rows)} held", end="")
    print(f", median ratio {statistics.median(ratios):.2f}" if ratios else "")
    return 1 if broken or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
