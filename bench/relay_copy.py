"""What a relay's own process spends on a megabyte: `python -m bench.relay_copy [--profile]`.

Streams of messages that a worker sends back, through a relay in this process. Clients and worker
are a process of their own. CPU seconds count, so that other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import multiprocessing
import pstats
import sys
import time
from dataclasses import dataclass

from piecework.base.clock import SystemClock
from piecework_protocol.relaying import (
    ChallengeAnswer,
    Incoming,
    Join,
    RelayAdmission,
    RelayChallenge,
    Take,
    decode_line,
    encode_line,
    encode_opening,
    server_name,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Address, Timestamp, keccak256
from tests.property.relay.test_hello import context, hello_of
from tests.support.chain.fake_chain import FakeChain
from tests.support.network.relays import MARKET, running_relay

OPERATOR = LocalSigner(keccak256(b"an operator of a benchmark"))
MIB = 2**20


@dataclass(frozen=True, slots=True)
class CopyShape:
    """So many streams, each with so many messages of so many bytes, there and back."""

    streams: int
    messages: int
    size: int

    @property
    def megabytes(self) -> float:
        """What passes, both ways together, in MiB."""
        return 2 * self.streams * self.messages * self.size / MIB


SHAPES = (
    CopyShape(1, 4000, 400),
    CopyShape(8, 1500, 400),
    CopyShape(8, 400, 16 * 1024),
    CopyShape(8, 60, MIB),
)


async def _stream(
    port: int, link: asyncio.StreamReader, gate: asyncio.Lock, shape: CopyShape
) -> None:
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        hello = hello_of(context(), server_name(OPERATOR.address))
        writer.write(hello)
        incoming = decode_line(await link.readuntil(b"\n"))
        if not isinstance(incoming, Incoming):
            raise RuntimeError(f"the relay says {incoming}")
        back, forth = await asyncio.open_connection("127.0.0.1", port)
        forth.write(encode_opening(Take(incoming.token)))
        await back.readexactly(len(hello))
    message = bytes(shape.size)

    async def echo() -> None:
        for _ in range(shape.messages):
            forth.write(await back.readexactly(shape.size))
            await forth.drain()

    echoing = asyncio.create_task(echo())
    for _ in range(shape.messages):
        writer.write(message)
        await reader.readexactly(shape.size)
    await echoing
    writer.close()
    forth.close()


async def _drive(name: str, shape: CopyShape) -> None:
    port = int(name.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(encode_opening(Join(OPERATOR.address)))
    challenge = decode_line(await reader.readuntil(b"\n"))
    if not isinstance(challenge, RelayChallenge):
        raise RuntimeError(f"the relay says {challenge}")
    at = Timestamp(int(SystemClock().wall()))
    signed = sign(MARKET, RelayAdmission(name, challenge.nonce, at), OPERATOR)
    writer.write(encode_line(ChallengeAnswer(at, signed)))
    await reader.readuntil(b"\n")
    gate = asyncio.Lock()
    await asyncio.gather(*(_stream(port, reader, gate, shape) for _ in range(shape.streams)))
    writer.close()


def _drive_in_a_process(name: str, shape: CopyShape) -> None:
    asyncio.run(_drive(name, shape))


async def _measure(shape: CopyShape, profiler: cProfile.Profile | None) -> dict[str, float]:
    chain = FakeChain()
    chain.register(OPERATOR.address, Address(bytes(20)))
    async with running_relay(chain) as relay:
        driver = multiprocessing.get_context("spawn").Process(
            target=_drive_in_a_process, args=(relay.name, shape)
        )
        before = time.process_time()
        if profiler is not None:
            profiler.enable()
        driver.start()
        await asyncio.get_running_loop().run_in_executor(None, driver.join)
        if profiler is not None:
            profiler.disable()
        spent = time.process_time() - before
        if driver.exitcode:
            raise RuntimeError("the clients' process failed")
    passes = 2 * shape.streams * shape.messages
    return {
        "streams": shape.streams,
        "message_bytes": shape.size,
        "megabytes": round(shape.megabytes, 1),
        "cpu_ms_per_megabyte": round(1000 * spent / shape.megabytes, 2),
        "cpu_us_per_message": round(1e6 * spent / passes, 1),
    }


def main() -> None:
    """Print a line of JSON for each shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", action="store_true", help="Where the CPU goes, to stderr.")
    wanted = parser.parse_args()
    for shape in SHAPES:
        profiler = cProfile.Profile() if wanted.profile else None
        print(json.dumps(asyncio.run(_measure(shape, profiler))), flush=True)
        if profiler is not None:
            pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(14)


if __name__ == "__main__":
    main()
