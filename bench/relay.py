"""What a relay costs: `python -m bench.relay [--streams 1 8] [--jobs N]`.

Paid jobs of one canvas by an engine that takes no time, as in `bench.load`. One worker is dialled
directly by one client, and through a relay by another one. Both take turns in one run, so that both
see the same machine. Relay, worker, chain and clients are processes of their own.

Streams that begin again as soon as they ended take every core, and then each millisecond of CPU of
the relay is a wait of all streams. So several streams are measured a second time, paced: so many
jobs a second as are half of what was done directly. What a relay adds to a job that does not wait
for a core shows there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.load import DEPOSIT, MAX_STREAMS, NO_TIME_S, WARM_UP_JOBS, Stage, answer, started
from bench.load_process import PAYER
from bench.report import environment, percentile
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.demo.market import free_port
from tests.support.chain.chains import deployed, signer
from tests.support.system.worker_process import WorkerProcess

ROUNDS = 6
"""Turns of each way. Who goes first changes, so that neither always meets a warmer machine."""
PACED_SHARE = 0.5
"""Of the jobs a second that the machine does directly, how many paced streams begin."""


@asynccontextmanager
async def relay(deployment: Path, port: int) -> AsyncIterator[str]:
    """Run `piecework relay start`, and give its name."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", "relay", "start"),
        *("--deployment", str(deployment), "--port", str(port)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield str((await answer(process))["name"])
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def both_ways(root: Path) -> AsyncIterator[dict[str, Stage]]:
    """A worker with an address and a relay, and a client for each of the two."""
    port, file = free_port(), root / "deployment.json"
    name = f"127.0.0.1:{port}"
    async with EmbeddedChain() as chain, deployed(chain) as market:
        market.deployment.save(file)
        worker = await WorkerProcess.register(
            root / "worker",
            market.deployment,
            pace_s=NO_TIME_S,
            slots=MAX_STREAMS,
            queue=64,
            max_streams=4096,
            requests_per_minute=1_000_000,
            relays=(name,),
        )
        for via in ("", name):
            await market.pool(signer(PAYER + via), chain.faucet, DEPOSIT)
        async with relay(file, port) as joined:
            ready = await worker.start()
            if ready["relays"] != {joined: "joined"} or worker.process is None:
                raise RuntimeError(f"the worker is not behind the relay: {ready['relays']}")
            try:
                async with (
                    _client(root, file, "") as direct,
                    _client(root, file, name) as relayed,
                ):
                    pid = worker.process.pid
                    ways = {"direct": Stage(pid, direct), "relayed": Stage(pid, relayed)}
                    for way in ways.values():
                        await way.order("jobs", WARM_UP_JOBS, 1)
                    yield ways
            finally:
                await worker.drain()


@asynccontextmanager
async def _client(
    root: Path, deployment: Path, via: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    home = root / ("relayed" if via else "direct")
    home.mkdir()
    async with started("client", str(home), str(deployment), "1", via) as client:
        await answer(client)
        yield client


async def compare(
    ways: dict[str, Stage], streams: int, jobs: int, every_s: float = 0.0
) -> dict[str, float]:
    """Both ways in turns. Medians over the rounds.

    every_s: the pace of a stream. 0: it begins again as soon as it has ended.
    """
    share = max(streams, jobs // ROUNDS)
    samples = []
    for turn in range(ROUNDS):
        order = list(ways) if turn % 2 == 0 else list(reversed(ways))
        made = {way: await ways[way].order("jobs", share, streams, every_s) for way in order}
        samples.append([made[way] for way in ways])
    figures: dict[str, float] = {"streams": streams, "jobs": share * ROUNDS, "every_s": every_s}
    for place, way in enumerate(ways):
        times = [ms for pair in samples for ms in pair[place].times_ms]
        figures[f"{way}_p50_ms"] = statistics.median(times)
        figures[f"{way}_p99_ms"] = percentile(times, 0.99)
        figures[f"{way}_jobs_per_second"] = statistics.median(p[place].rate for p in samples)
    figures["p50_more_ms"] = figures["relayed_p50_ms"] - figures["direct_p50_ms"]
    rates = [pair[1].rate / pair[0].rate for pair in samples]
    figures["throughput_share"] = statistics.median(rates)
    return figures


async def measure(wanted: argparse.Namespace, root: Path) -> list[dict[str, float]]:
    """Everything that was asked for, in one run."""
    figures: list[dict[str, float]] = []
    async with both_ways(root) as ways:
        for streams in wanted.streams:
            full = await compare(ways, streams, wanted.jobs)
            figures.append(full)
            if streams > 1:
                every_s = streams / (PACED_SHARE * full["direct_jobs_per_second"])
                figures.append(await compare(ways, streams, wanted.jobs, every_s))
    return figures


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--jobs", type=int, default=300, help="of each way, at each number")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
        figures = asyncio.run(measure(wanted, Path(folder)))
    print(json.dumps({"environment": environment("grpcio"), "relay": figures}))


if __name__ == "__main__":
    main()
