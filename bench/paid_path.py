"""What the paid path costs around the denoising: `python -m bench.paid_path [--jobs N] [--json]`.

A whole paid job of one canvas (offer, signed and sealed job, admission, journal, receipt, voucher,
journal again) against the real daemon over TLS gRPC, with an engine whose canvases take no time,
beside a bare gRPC echo of the same sizes in the same run. Everything beyond the echo is ours.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc

from bench.report import environment, percentile
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import load_config
from piecework.client.jobs.events import JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.content import Message
from tests.support.chains import deployed, signer
from tests.support.worker_process import WorkerProcess

ONE_CANVAS = 8
DEPOSIT = 100_000_000
FRAME = bytes(600)
NO_TIME_S = 0.0005


async def echo_ms(rounds: int) -> list[float]:
    """A bidirectional stream with the four messages of a one-canvas job, over plain gRPC on
    loopback."""

    async def handler(requests: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        for _ in range(2):
            await context.read()
            await context.write(FRAME)

    method = grpc.stream_stream_rpc_method_handler(handler)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Echo", {"Run": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    times = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream("/Echo/Run")  # type: ignore[call-arg]
        for _ in range(rounds):
            start = time.perf_counter()
            stream = call()  # type: ignore[call-arg]
            for _ in range(2):
                await stream.write(FRAME)
                await stream.read()
            await stream.done_writing()
            times.append((time.perf_counter() - start) * 1000)
    await server.stop(0)
    return times


async def one_job(client: PieceworkClient, seed: int) -> float:
    """Milliseconds from asking to the acknowledged payment."""
    request = TextRequest(
        (Message("user", "bench"),), generation=Generation(seed=seed, max_tokens=ONE_CANVAS)
    )
    start = time.perf_counter()
    async with client.run(request) as run:
        ended = [event async for event in run if isinstance(event, JobFinished)]
    if not ended or not ended[0].acknowledged:
        raise RuntimeError(f"a job was not paid to its end: {ended}")
    return (time.perf_counter() - start) * 1000


async def measure(jobs: int, concurrency: int, root: Path) -> dict[str, float]:
    """Latency one after the other, then throughput side by side."""
    payer = signer("bench payer")
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker_process = await WorkerProcess.register(
            root / "worker",
            market.deployment,
            pace_s=NO_TIME_S,
            slots=concurrency,
            requests_per_minute=1_000_000,
            jobs_per_channel=concurrency,
        )
        await market.pool(payer, chain.faucet, DEPOSIT)
        await worker_process.start()
        store = Store(root / "client.db", market.deployment.domain, payer.address)
        config = load_config(root / "none", {"deposit": "50"})
        wallet = Wallet(payer, payer)
        token = market.deployment.payment_token
        async with PieceworkClient(store, market.reader, wallet, token, config) as client:
            for seed in range(5):
                await one_job(client, seed)
            alone = [await one_job(client, 100 + n) for n in range(jobs)]
            per_second = await _throughput(lambda n: one_job(client, 10_000 + n), jobs, concurrency)
        await worker_process.drain()
    floor = await echo_ms(200)
    return {
        "echo_p50_ms": statistics.median(floor),
        "job_p50_ms": statistics.median(alone),
        "job_p99_ms": percentile(alone, 0.99),
        "job_over_echo": statistics.median(alone) / statistics.median(floor),
        "jobs_per_second": per_second,
    }


async def _throughput(job: Callable[[int], Awaitable[float]], jobs: int, concurrency: int) -> float:
    numbers = iter(range(jobs))

    async def customer() -> None:
        for number in numbers:
            await job(number)

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(customer())
    return jobs / (time.perf_counter() - start)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="piecework-bench-") as folder:
        figures = asyncio.run(measure(wanted.jobs, wanted.concurrency, Path(folder)))
    where = environment("grpcio", "apsw")
    if wanted.json:
        print(json.dumps({"environment": where, "concurrency": wanted.concurrency, **figures}))
        return
    for key, value in where.items():
        print(f"{key:>16}  {value}")
    for name, figure in figures.items():
        print(f"{figure:16.2f}  {name}")


if __name__ == "__main__":
    main()
