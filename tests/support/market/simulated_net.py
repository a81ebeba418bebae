"""Workers and indexes without sockets: what each does when it is asked, and how long it takes."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from piecework.base.http import HttpTimeout
from piecework.client.errors import WorkerUnreachable
from piecework.client.journal.store import Store
from piecework.client.limits import CONNECT_TIMEOUT_S, INDEX_TIMEOUT_S
from piecework.client.network.discovery import Discovery, serves
from piecework.client.network.indexes import IndexReader
from piecework.client.network.links import Links
from piecework.client.network.reachability import Reachability
from piecework.client.network.transport import JobStream
from piecework_protocol import wire
from piecework_protocol.types import Address, Digest
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import FakeChain
from tests.support.market.offers import offer, receiver
from tests.support.market.offers import operator as key_of
from tests.support.virtual_time import START, LoopClock
from tests.support.waiting import pass_time


@dataclass(frozen=True, slots=True)
class SearchingClient:
    """The parts of a client that look for workers."""

    clock: LoopClock
    links: Links
    reachability: Reachability
    discovery: Discovery


@asynccontextmanager
async def searching(net: SimulatedNet, store: Store) -> AsyncIterator[SearchingClient]:
    """Let a client with this journal search a network."""
    clock = LoopClock()
    links = Links(net.connect)
    reachability = Reachability(store.workers, clock)
    indexes = IndexReader(tuple(net.indexes), clock, net.get)
    discovery = Discovery(net.chain, indexes, links, clock, reachability)
    yield SearchingClient(clock, links, reachability, discovery)
    await discovery.close()
    await reachability.written()
    await links.close()


@dataclass
class Place:
    """One address. `delay_s` None: it takes connections and says nothing."""

    signed: SignedOffer | None = None
    delay_s: float | None = 0.05


@dataclass
class Shelf:
    """One index. `delay_s` None: it takes requests and says nothing. `claims`: a false total."""

    offers: list[SignedOffer] = field(default_factory=list)
    delay_s: float | None = 0.03
    claims: int | None = None


class SimulatedLink:
    """Implements what the client uses of `WorkerLink`."""

    def __init__(self, net: SimulatedNet, address: str, digest: Digest) -> None:
        self.net, self.address, self.certificate_digest = net, address, digest
        self.retired = False

    async def get_offer(self) -> SignedOffer:
        place = self.net.places[self.address]
        await self.net.answer(place.delay_s, 3600.0)
        assert place.signed is not None
        return place.signed

    def run(self, deadline_s: float) -> JobStream:
        raise WorkerUnreachable("no job runs in this simulation")

    def retire(self) -> None:
        self.retired = True

    async def close(self) -> None:
        self.retired = True


class SimulatedNet:
    """The network of one client."""

    def __init__(self) -> None:
        self.chain = FakeChain()
        self.places: dict[str, Place] = {}
        self.indexes: dict[str, Shelf] = {}
        self.dials: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.down = False
        """The client's own network is away."""

    def worker(self, name: str, *, delay_s: float | None = 0.05, **changes: Any) -> SignedOffer:
        """Register a worker that answers after a while, or never."""
        address = f"{name}.example:7000"
        signed = offer(name, START, endpoint=address, **({"expires_at": START + 3600} | changes))
        self.chain.register(key_of(name).address, receiver(name), address)
        self.places[address] = Place(signed, delay_s)
        return signed

    async def connect(self, address: str, operator: Address, digest: Digest | None) -> Any:
        """Implements `links.Connect`."""
        self.dials[address] += 1
        place = self.places[address]
        await self.answer(place.delay_s, CONNECT_TIMEOUT_S)
        assert place.signed is not None
        return SimulatedLink(self, address, place.signed.offer.tls_certificate)

    async def get(self, url: str) -> bytes:
        """Implements the index reader's `get`."""
        parts = urlsplit(url)
        host, query = f"{parts.scheme}://{parts.netloc}", parse_qs(parts.query)
        self.reads[host] += 1
        index = self.indexes[host]
        if index.delay_s is None or self.down:
            await pass_time(INDEX_TIMEOUT_S)
            raise HttpTimeout(host, "did not answer")
        await pass_time(index.delay_s)
        wanted = query.get("model", [None])[0]
        rows = [s for s in index.offers if any(serves(m, wanted) for m in s.offer.models)]
        first, most = int(query.get("offset", ["0"])[0]), int(query["limit"][0])
        page = [
            {"signed_offer": base64.b64encode(wire.encode_offer(s)).decode()}
            for s in rows[first : first + most]
        ]
        total = len(rows) if index.claims is None else index.claims
        return json.dumps({"offers": page, "total": total}).encode()

    async def answer(self, delay_s: float | None, timeout_s: float) -> None:
        """Wait as long as a stranger takes; fail as a connection to a silent one fails."""
        silent = delay_s is None or self.down or delay_s > timeout_s
        wait_s = timeout_s if silent else delay_s
        await pass_time(wait_s or 0.0)
        if silent:
            raise WorkerUnreachable("timed out")
