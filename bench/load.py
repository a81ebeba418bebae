"""Paid jobs under load: `python -m bench.load [--streams 1,32,256] [--jobs N] [--soak N] [--json]`.

A job of one canvas, whole: offer, signed and sealed job, admission, journal, receipt, voucher,
journal again. The daemon is the real one over TLS, with an engine whose canvases take no time.
Client, worker and a bare gRPC unary echo are processes of their own, and so is the chain. Echo and
jobs take turns in one run, so that both see the same machine. CPU time counts children as well.

`--soak N` runs N jobs at one number of streams and compares the first tenth with the last.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from bench.load_process import PAYER
from bench.report import environment, percentile
from piecework.chain.dev.embedded import EmbeddedChain
from tests.support.chain.chains import deployed, signer
from tests.support.system.worker_process import WorkerProcess

DEPOSIT = 100_000_000
NO_TIME_S = 0.0005
CHAIN_POLL_S = 5.0
"""As shipped. The worker processes of the tests ask 25 times as often."""
ROUNDS = 3
ECHOES_PER_JOB = 4
WARM_UP_JOBS = 20
MAX_STREAMS = 256
LIMIT_S = 600.0
"""For one order to the client."""
MIB = 2**20
T = TypeVar("T")
Figures = dict[str, list[dict[str, float]]]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process and its children have used: CPU in seconds, resident memory in MiB.

    children_s: the children's part of the CPU time.
    """

    cpu_s: float
    rss_mib: float
    children_s: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read it from the system."""
        root = psutil.Process(pid)
        every = [root, *root.children(recursive=True)]
        times = [process.cpu_times() for process in every]
        used = [t.user + t.system for t in times]
        memory = sum(process.memory_info().rss for process in every)
        return cls(sum(used), memory / MIB, sum(used[1:]))


@dataclass(frozen=True, slots=True)
class Sample:
    """One order done: rate a second, latencies in ms, CPU in ms a piece, memory in MiB.

    engine_cpu_ms: the stand-in engine's part of the worker's.
    """

    rate: float
    times_ms: list[float]
    worker_cpu_ms: float
    client_cpu_ms: float
    worker_rss_mib: float
    client_rss_mib: float
    engine_cpu_ms: float


@dataclass(frozen=True, slots=True)
class Stage:
    """The processes of one run."""

    worker: int
    client: asyncio.subprocess.Process

    async def order(self, what: str, count: int, streams: int, every_s: float = 0.0) -> Sample:
        """Let the client do something, and see what it cost.

        every_s: how long after its last beginning a stream begins again. 0: when it has ended.
        """
        before = Footprint.of(self.worker), Footprint.of(self.client.pid)
        done = await self._ask(
            {"what": what, "count": count, "streams": streams, "every_s": every_s}
        )
        after = Footprint.of(self.worker), Footprint.of(self.client.pid)
        worker, client = (
            (b.cpu_s - a.cpu_s) * 1000 / count for a, b in zip(before, after, strict=True)
        )
        rate, memory = count / done["span_s"], (after[0].rss_mib, after[1].rss_mib)
        engine = (after[0].children_s - before[0].children_s) * 1000 / count
        return Sample(rate, done["times_ms"], worker, client, *memory, engine)

    async def _ask(self, order: dict[str, object]) -> Any:
        _open(self.client.stdin).write(json.dumps(order).encode() + b"\n")
        return await answer(self.client)


async def answer(process: asyncio.subprocess.Process) -> Any:
    """Read the next line of a process as JSON.

    Raises:
        RuntimeError: it ended instead.
    """
    async with asyncio.timeout(LIMIT_S):
        line = await _open(process.stdout).readline()
    if not line:
        raise RuntimeError("a process of the benchmark ended; its words are above")
    return json.loads(line)


def _open(part: T | None) -> T:
    """What is there once a process has started."""
    if part is None:
        raise RuntimeError("the process was not started with that")
    return part


@contextlib.asynccontextmanager
async def started(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of `bench.load_process`, until the block ends."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "bench.load_process",
        *arguments,
        stdin=pipe,
        stdout=pipe,
        limit=64 * MIB,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def stage(root: Path) -> AsyncIterator[Stage]:
    """A chain, a funded payer, a worker, an echo server and a client that has done a few jobs."""
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            root / "worker",
            market.deployment,
            pace_s=NO_TIME_S,
            slots=MAX_STREAMS,
            queue=64,
            max_streams=4096,
            requests_per_minute=1_000_000,
            jobs_per_channel=MAX_STREAMS,
            chain_poll_s=CHAIN_POLL_S,
        )
        await market.pool(signer(PAYER), chain.faucet, DEPOSIT)
        home, file = root / "client", root / "deployment.json"
        home.mkdir()
        market.deployment.save(file)
        await worker.start()
        daemon = _open(worker.process).pid
        try:
            async with started("echo") as echo:
                port = await answer(echo)
                async with started("client", str(home), str(file), str(port)) as client:
                    await answer(client)
                    ready = Stage(daemon, client)
                    await ready.order("jobs", WARM_UP_JOBS, 1)
                    yield ready
        finally:
            await worker.drain()


async def load(ready: Stage, streams: int, jobs: int) -> dict[str, float]:
    """Echo and jobs in turns. Medians over the rounds, and the spread of the rates."""
    share = max(streams, jobs // ROUNDS)
    echoes, samples = [], []
    for _ in range(ROUNDS):
        echoes.append(await ready.order("echo", ECHOES_PER_JOB * share, streams))
        samples.append(await ready.order("jobs", share, streams))
    times = [ms for sample in samples for ms in sample.times_ms]
    echo_times = [ms for sample in echoes for ms in sample.times_ms]
    rate = statistics.median(s.rate for s in samples)
    echo_rate = statistics.median(s.rate for s in echoes)
    worker = statistics.median(s.worker_cpu_ms for s in samples)
    client = statistics.median(s.client_cpu_ms for s in samples)
    return {
        "streams": streams,
        "jobs": len(times),
        "jobs_per_second": rate,
        "lowest_jobs_per_second": min(s.rate for s in samples),
        "highest_jobs_per_second": max(s.rate for s in samples),
        "p50_ms": statistics.median(times),
        "p99_ms": percentile(times, 0.99),
        "worker_cpu_ms": worker,
        "of_that_engine_cpu_ms": statistics.median(s.engine_cpu_ms for s in samples),
        "client_cpu_ms": client,
        "both_cpu_ms": worker + client,
        "echoes_per_second": echo_rate,
        "echo_p50_ms": statistics.median(echo_times),
        "echo_client_cpu_ms": statistics.median(s.client_cpu_ms for s in echoes),
        "jobs_over_echoes": rate / echo_rate,
        "worker_rss_mib_at_first": samples[0].worker_rss_mib,
        "worker_rss_mib": samples[-1].worker_rss_mib,
        "client_rss_mib_at_first": samples[0].client_rss_mib,
        "client_rss_mib": samples[-1].client_rss_mib,
    }


async def soak(ready: Stage, streams: int, jobs: int) -> list[dict[str, float]]:
    """Ten tenths, one after the other. What grows between the first and the last is a leak."""
    share = max(streams, jobs // 10)
    tenths = []
    for tenth in range(10):
        sample = await ready.order("jobs", share, streams)
        tenths.append(
            {
                "tenth": tenth + 1,
                "jobs_per_second": sample.rate,
                "p50_ms": statistics.median(sample.times_ms),
                "p99_ms": percentile(sample.times_ms, 0.99),
                "worker_cpu_ms": sample.worker_cpu_ms,
                "client_cpu_ms": sample.client_cpu_ms,
                "worker_rss_mib": sample.worker_rss_mib,
                "client_rss_mib": sample.client_rss_mib,
            }
        )
        print(f"tenth {tenth + 1} of {share} jobs is done", file=sys.stderr, flush=True)
    return tenths


async def measure(wanted: argparse.Namespace, root: Path) -> Figures:
    """Everything that was asked for, in one run."""
    async with stage(root) as ready:
        if wanted.soak:
            return {"soak": await soak(ready, wanted.streams[-1], wanted.soak)}
        return {"load": [await load(ready, streams, wanted.jobs) for streams in wanted.streams]}


def _streams(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if not all(1 <= number <= MAX_STREAMS for number in numbers):
        raise argparse.ArgumentTypeError(f"streams are 1 to {MAX_STREAMS}")
    return numbers


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=_streams, default=[1, 32, 256])
    parser.add_argument("--jobs", type=int, default=900, help="for each number of streams")
    parser.add_argument("--soak", type=int, default=0, help="jobs, at the last number of streams")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
        figures = asyncio.run(measure(wanted, Path(folder)))
    where = environment("grpcio", "apsw")
    if wanted.json:
        print(json.dumps({"environment": where, **figures}))
        return
    for key, value in where.items():
        print(f"{key:>24}  {value}")
    for rows in figures.values():
        for name in rows[0]:
            print(f"{name:>24}  " + "".join(f"{row[name]:12.2f}" for row in rows))


if __name__ == "__main__":
    main()
