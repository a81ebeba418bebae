"""Fake workers behind streams in memory, for simulations of many of them in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from typing import Any, NoReturn

import grpc
from grpc.aio import Metadata

from piecework.client.errors import WorkerUnreachable
from piecework.client.limits import CONNECT_TIMEOUT_S
from piecework.client.network.transport import JobStream
from piecework_protocol.frames import Account, ShowReceiptsRequest
from piecework_protocol.types import Address, Digest
from piecework_protocol.wire import SignedOffer
from tests.support.client.fake_worker import FakeWorker
from tests.support.market.memory_grpc import MemoryCall
from tests.support.waiting import pass_time

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


class Stall(enum.Enum):
    """What a way between client and worker keeps for itself, once a stream is open."""

    BOTH = "both directions"
    ANSWERS = "what the worker says"


class FakeWorkerCall(MemoryCall):
    """One stream to a `FakeWorker`, over a way that may stall."""

    def __init__(self, worker: FakeWorker, stall: Stall | None = None) -> None:
        super().__init__(worker)
        self._stall = stall

    async def write(self, data: bytes) -> None:
        if self._stall is not Stall.BOTH:
            await super().write(data)

    def deliver(self, data: bytes) -> None:
        if self._stall is None:
            super().deliver(data)

    async def _serve(self, servicer: Any) -> None:
        requests = self._requests()
        end = _WorkerEnd(self, requests)
        with contextlib.suppress(grpc.aio.AbortError):
            await servicer.serve(end)
        self.finish()


class _WorkerEnd:
    """The context that a `FakeWorker` reads from and writes to."""

    def __init__(self, call: FakeWorkerCall, requests: Any) -> None:
        self._call, self._requests = call, requests
        self.trailing = Metadata()

    async def read(self) -> Any:
        return await anext(self._requests, _EOF)

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self._call.deliver(data)

    def set_trailing_metadata(self, trailing: Any) -> None:
        self.trailing = Metadata(*trailing)

    async def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        self._call.set_status(code, details, self.trailing)
        self._call.finish()
        raise grpc.aio.AbortError


class MemoryLink:
    """Implements what the client uses of `WorkerLink`."""

    def __init__(self, worker: FakeWorker, address: str, stall: Stall | None) -> None:
        self.worker, self.certificate_digest = worker, worker.certificate_digest
        self.address, self._stall = address, stall
        self.calls: list[FakeWorkerCall] = []

    async def get_offer(self) -> SignedOffer:
        return self.worker.offer()

    async def show_receipts(self, request: ShowReceiptsRequest) -> Account:
        return self.worker.show(request)

    def run(self, deadline_s: float) -> JobStream:
        call = FakeWorkerCall(self.worker, self._stall)
        self.calls.append(call)
        return JobStream(call)

    def retire(self) -> None:
        """Nothing is shared: streams end by themselves."""

    async def close(self) -> None:
        for call in self.calls:
            call.server.cancel()
        await asyncio.gather(*(call.server for call in self.calls), return_exceptions=True)


class MemoryMarket:
    """Workers by address. Those in `dead` take no connection. `stalls` are ways that stall."""

    def __init__(self) -> None:
        self.workers: dict[str, FakeWorker] = {}
        self.dead: set[str] = set()
        self.stalls: dict[str, Stall] = {}
        self.links: list[MemoryLink] = []

    def add(self, worker: FakeWorker, name: str) -> None:
        """Register a worker at an address of its own."""
        worker.endpoint = f"{name}.example:7000"
        worker.chain.register(worker.operator.address, worker.receiver, worker.endpoint)
        self.workers[worker.endpoint] = worker
        self.workers |= {way.address: worker for way in worker.ways}

    async def connect(self, address: str, operator: Address, digest: Digest | None) -> Any:
        """Implements `links.Connect`."""
        if address in self.dead:
            await pass_time(CONNECT_TIMEOUT_S)
            raise WorkerUnreachable("timed out")
        await pass_time(0.02)
        link = MemoryLink(self.workers[address], address, self.stalls.get(address))
        self.links.append(link)
        return link

    async def close(self) -> None:
        """End every stream."""
        await asyncio.gather(*(link.close() for link in self.links))
