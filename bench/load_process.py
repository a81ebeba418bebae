"""A process of `bench.load`: `python -m bench.load_process echo|client ...`.

`echo` serves the bare gRPC echo until it is killed. `client` is a whole client of one payer, which
takes orders on standard input and answers on standard output, one JSON object a line. It may be
told the one address that it dials (`bench.relay`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from piecework.chain.deployment import Deployment
from piecework.chain.reading.reader import ChainReader
from piecework.client.config import load_config
from piecework.client.jobs.events import JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.journal.store import Store
from piecework.client.network.transport import WorkerLink
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.types import Address, Digest
from tests.support.chain.chains import signer

PAYER = "the payer of the load benchmark"
ONE_CANVAS = 8
FRAME = bytes(600)
"""About what a submission or a delivery of one canvas weighs."""


async def serve_echo() -> None:
    """Serve unary echo over plain gRPC on a free port of loopback, and print the port."""

    async def answer(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    method = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("Echo", {"Say": method}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


async def one_job(client: PieceworkClient, seed: int) -> None:
    """One paid job of one canvas, from the request to the acknowledged voucher."""
    request = TextRequest(
        Conversation((Message("user", "bench"),)),
        generation=Generation(seed=seed, max_tokens=ONE_CANVAS),
    )
    async with client.run(request) as run:
        ended = [event async for event in run if isinstance(event, JobFinished)]
    if not ended or not ended[0].acknowledged:
        raise RuntimeError(f"a job was not paid to its end: {ended}")


async def timed(
    work: Callable[[], Awaitable[object]], count: int, streams: int, every_s: float
) -> dict[str, object]:
    """Do `work` `count` times, `streams` at once. Times in milliseconds, the span in seconds.

    every_s: a stream begins again so long after its last beginning, or at once if it is late.
        Streams begin one after the other, evenly spaced.
    """
    times: list[float] = []
    left: Iterator[int] = iter(range(count))

    async def stream(due: float) -> None:
        for _ in left:
            await asyncio.sleep(due - time.perf_counter())
            start = time.perf_counter()
            await work()
            times.append((time.perf_counter() - start) * 1000)
            due = start + every_s

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for place in range(streams):
            group.create_task(stream(start + every_s * place / streams))
    return {"span_s": time.perf_counter() - start, "times_ms": times}


async def serve_client(home: Path, deployment: Deployment, echo_port: int, via: str) -> None:
    """Take orders: `{"what": "echo" | "jobs", "count": n, "streams": n, "every_s": seconds}`.

    via: the address to dial, whatever offers name. Empty: theirs.
    """
    payer, seeds = signer(PAYER + via), itertools.count()

    async def connect(address: str, operator: Address, digest: Digest | None) -> WorkerLink:
        return await WorkerLink.connect(via or address, operator, digest)

    store = Store(home / "client.db", deployment.domain, payer.address)
    config = load_config(home / "no file", {"deposit": "50.0"})
    token = deployment.payment_token
    async with (
        await ChainReader.connect(deployment) as reader,
        PieceworkClient(
            store, reader, Wallet(payer, payer), token, config, connect=connect
        ) as client,
        grpc.aio.insecure_channel(f"127.0.0.1:{echo_port}") as channel,
    ):
        say = channel.unary_unary("/Echo/Say", None, None)

        def echo() -> Awaitable[object]:
            return say(FRAME)

        def job() -> Awaitable[object]:
            return one_job(client, next(seeds))

        print(json.dumps({"ready": True}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            order: dict[str, Any] = json.loads(line)
            work = echo if order["what"] == "echo" else job
            done = await timed(work, order["count"], order["streams"], order["every_s"])
            print(json.dumps(done), flush=True)


def main() -> None:
    """Run the process that the first argument names."""
    if sys.argv[1] == "echo":
        asyncio.run(serve_echo())
    else:
        home, deployment, port = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
        via = sys.argv[5] if len(sys.argv) > 5 else ""
        asyncio.run(serve_client(home, Deployment.load(deployment), port, via))


if __name__ == "__main__":
    main()
