"""How fast an index answers while it holds as many offers as it takes, and they are renewed.

    python -m bench.index --offers 10000 --requests 300

A real index over HTTP in a process of its own, with the signed offers of as many workers. One
reader asks for each page in turn. Beside it offers are posted at the rate at which so many workers
renew theirs. The yardstick of the same run is `/health`, which reads next to nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientSession

from bench.report import environment, percentile
from piecework.base.clock import SystemClock
from piecework.base.connections import ConnectionLimits, parse_networks
from piecework.base.http_server import HttpServer, serving
from piecework.market.history import DAY_S
from piecework.market.limits import SAMPLE_INTERVAL_S
from piecework.market.offer_store import OfferStore
from piecework.market.server import IndexServer
from piecework.market.storage.database import open_database
from piecework_protocol.types import Amount, Timestamp, Uint32, Uint64
from piecework_protocol.wire import encode_offer
from tests.support.chain.fake_chain import EXPLORER, TOKEN, FakeChain
from tests.support.market.offers import model, offer, operator, receiver

PATHS: Final = (
    "/health",
    "/v1/offers",
    "/v1/offers?sort=speed&model=model-3&limit=50",
    "/v1/offers?offset=9000",
    "/v1/models",
    "/v1/workers",
    "/",
)
RENEWED_EVERY_S: Final = 30.0
"""A worker renews its offer this often."""
MODELS: Final = 20
LIFE_S: Final = 3600


def signed(number: int, sequence: int, now: int) -> bytes:
    """Return an offer of one worker as it goes over the wire."""
    terms = model(
        f"model-{number % MODELS}",
        price_per_million_output_tokens=Amount(1_000_000 + number * 7919 % 3_000_000),
        tokens_per_second=Uint32(100 + number * 104_729 % 2_000),
    )
    return encode_offer(
        offer(
            f"worker-{number}",
            now,
            models=(terms,),
            sequence=Uint64(sequence),
            expires_at=Timestamp(now + LIFE_S),
            slots_free=Uint32(number % 3),
        )
    )


def serve(count: int, place: str | None, pipe: Connection) -> None:
    """The process of the index."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_serve(count, Path(folder), place, pipe))


async def _serve(count: int, folder: Path, place: str | None, pipe: Connection) -> None:
    chain, now = FakeChain(), int(time.time())
    database = await open_database(place or folder / "market.db")
    store = await OfferStore.open(database, chain.domain, TOKEN, Timestamp(now))
    trusted = parse_networks(("127.0.0.1",))
    index = IndexServer(store, chain, EXPLORER, clock=SystemClock(), trusted_proxies=trusted)
    for number in range(count):
        chain.register(operator(f"worker-{number}").address, receiver(f"worker-{number}"))
        await index.accept(signed(number, 1, now))
    market = store.catalogue.sample(Timestamp(now))
    for ago in range(0, DAY_S, SAMPLE_INTERVAL_S):
        await store.history.take(replace(market, at=Timestamp(now - ago)), ())
    limits = ConnectionLimits(total=256, per_address=128, trusted=trusted)
    server = HttpServer(index.application(), limits, on_refused=index.metrics.connection_refused)
    async with serving(server, "127.0.0.1", 0) as bound:
        pipe.send(bound.url)
        await asyncio.to_thread(pipe.recv)
    await store.close()


def _addresses() -> Iterator[dict[str, str]]:
    """Readers from everywhere, so that nobody's rate is what is measured."""
    for number in range(1 << 30):
        yield {"X-Forwarded-For": str(IPv4Address(0x0B000000 + number % (1 << 24)))}


async def renew(http: ClientSession, url: str, offers: Sequence[bytes], every_s: float) -> None:
    """Post offers one after another, at a steady rate."""
    addresses, start = _addresses(), time.monotonic()
    for number, data in enumerate(offers):
        await asyncio.sleep(max(0.0, start + number * every_s - time.monotonic()))
        headers = {"Content-Type": "application/x-protobuf", **next(addresses)}
        async with http.post(f"{url}/v1/offers", data=data, headers=headers) as response:
            response.raise_for_status()


async def read(http: ClientSession, url: str, requests: int) -> dict[str, list[float]]:
    """Ask for each page in turn. Return the seconds of each answer."""
    addresses, taken = _addresses(), {path: list[float]() for path in PATHS}
    for _ in range(requests):
        for path in PATHS:
            start = time.perf_counter()
            async with http.get(f"{url}{path}", headers=next(addresses)) as response:
                response.raise_for_status()
                await response.read()
            taken[path].append(time.perf_counter() - start)
    return taken


async def measure(url: str, count: int, requests: int) -> dict[str, Any]:
    """Read while offers are renewed, until the last answer."""
    now, every_s = int(time.time()), RENEWED_EVERY_S / count
    renewed = [signed(number, 2, now) for number in range(count)]
    async with ClientSession() as http:
        writer = asyncio.create_task(renew(http, url, renewed, every_s))
        taken = await read(http, url, requests)
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
    return {
        path: {
            "p50_ms": round(1000 * statistics.median(times), 2),
            "p99_ms": round(1000 * percentile(times, 0.99), 2),
        }
        for path, times in taken.items()
    }


def main(arguments: Sequence[str]) -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--offers", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--database", help="postgresql://… instead of a SQLite file")
    chosen = parser.parse_args(arguments)
    here, there = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve, args=(chosen.offers, chosen.database, there))
    process.start()
    try:
        url = here.recv()
        pages = asyncio.run(measure(url, chosen.offers, chosen.requests))
        here.send(None)
        process.join()
    finally:
        process.kill()
    print(json.dumps({**environment(), "offers": chosen.offers, "pages": pages}, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
