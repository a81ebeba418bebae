"""gRPC's job stream in memory: the client's call and the server's context, joined by two queues.

The client's `JobStream` drives one end, `WorkerServicer.run` the other, so a simulation runs what
ships. The holder of the call can break it at either end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import grpc
from grpc.aio import Metadata

from piecework_node.job_port.server import SERVICE, WorkerServicer
from piecework_protocol.types import ChannelId

_EOF = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
RUN = f"/{SERVICE}/Run"
_END = object()
_BROKEN = object()


class NoBounds:
    """An entrance without bounds. Implements `Entrance` and `Visit`."""

    wait_s = 0.0

    @contextlib.contextmanager
    def visit(self, peer: str) -> Iterator[NoBounds]:
        yield self

    def channel_wait_s(self, channel: ChannelId) -> float:
        return 0.0

    def message_taken(self, size: int) -> None:
        return

    def admit(self) -> None:
        return

    def paid(self) -> None:
        return

    def cut_off(self) -> None:
        return


class MethodDetails(NamedTuple):
    """What gRPC tells a server of a call."""

    method: str


class MemoryCall:
    """One stream of a method. `frames` counts what was written, both ways."""

    def __init__(
        self, servicer: Any, method: str = RUN, told: Callable[[bytes], None] = lambda _: None
    ) -> None:
        """told: gets what the client reads."""
        self._method, self._told = method, told
        self._up: asyncio.Queue[Any] = asyncio.Queue()
        self._down: asyncio.Queue[Any] = asyncio.Queue()
        self._status: tuple[grpc.StatusCode, str, Metadata] | None = None
        self._gone = False
        self.frames = 0
        self.server = asyncio.create_task(self._serve(servicer), name="memory stream")

    @property
    def over(self) -> bool:
        """Whether the server's end has returned."""
        return self.server.done()

    # --- what goes wrong

    def break_client(self) -> None:
        """The client sees a broken connection. What it had sent may still arrive."""
        self._gone = True
        self._down.put_nowait(_BROKEN)

    def break_both(self) -> None:
        """The connection breaks: what was under way is lost, both ends notice."""
        self.break_client()
        self.server.cancel()

    # --- the client's call, as `grpc.aio.StreamStreamCall`

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self._gone:
            raise _lost()
        if self._status is not None:
            raise asyncio.InvalidStateError("the call is over")
        self.frames += 1
        self._up.put_nowait(data)

    async def read(self) -> Any:
        if self._gone:
            raise _lost()
        item = await self._down.get()
        if item is _BROKEN or self._gone:
            raise _lost()
        if item is not _EOF:
            self._told(item)
        return item

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.server.add_done_callback(callback)

    def cancel(self) -> None:
        self._gone = True
        self._up.put_nowait(_END)
        self.server.cancel()

    async def code(self) -> grpc.StatusCode:
        return self._ended()[0]

    async def details(self) -> str:
        return self._ended()[1]

    async def trailing_metadata(self) -> Metadata:
        return self._ended()[2]

    def _ended(self) -> tuple[grpc.StatusCode, str, Metadata]:
        if self._status is None:
            raise _lost()
        return self._status

    # --- the server's end, as `grpc.aio.ServicerContext`

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def abort_with_status(self, status: Any) -> NoReturn:
        self.set_status(status.code, status.details, Metadata(*status.trailing_metadata))
        raise grpc.aio.AbortError

    async def _serve(self, servicer: WorkerServicer) -> None:
        details: Any = MethodDetails(self._method)
        serve = servicer.handlers().service(details).stream_stream
        with contextlib.suppress(grpc.aio.AbortError):
            await serve(self._requests(), _ServerEnd(self))
        self.finish()

    def finish(self) -> None:
        """The server's end has returned."""
        if self._status is None:
            self._status = (grpc.StatusCode.OK, "", Metadata())
        self._down.put_nowait(_EOF)

    def set_status(self, code: grpc.StatusCode, details: str, trailing: Metadata) -> None:
        """The server ends the stream with this."""
        self._status = (code, details, trailing)

    async def _requests(self) -> AsyncIterator[bytes]:
        while (item := await self._up.get()) is not _END:
            yield item

    def deliver(self, data: bytes) -> None:
        """A frame of the server reaches the client's end."""
        self.frames += 1
        self._down.put_nowait(data)


class _ServerEnd:
    """The context that the servicer writes to."""

    def __init__(self, call: MemoryCall) -> None:
        self._call = call
        self.peer = call.peer
        self.abort_with_status = call.abort_with_status

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self._call.deliver(data)


class MemoryChannel:
    """A connection to a worker in this process. Implements what the client uses of gRPC's."""

    def __init__(
        self, servicer: WorkerServicer, told: Callable[[bytes], None] = lambda _: None
    ) -> None:
        """told: gets what clients read of jobs' streams."""
        self._servicer, self._told = servicer, told
        self.calls: list[MemoryCall] = []

    def stream_stream(self, method: str, *_: Any) -> Callable[..., MemoryCall]:
        return lambda **_: self._call(method)

    def unary_unary(self, method: str, *_: Any) -> Callable[..., Awaitable[bytes]]:
        async def ask(request: bytes, **_: Any) -> bytes:
            call = self._call(method)
            await call.write(request)
            data = await call.read()
            if data is not _EOF:
                return bytes(data)
            code, details = await call.code(), await call.details()
            trailing = await call.trailing_metadata()
            raise grpc.aio.AioRpcError(code, Metadata(), trailing, details, None)

        return ask

    def _call(self, method: str) -> MemoryCall:
        call = MemoryCall(self._servicer, method, self._told if method == RUN else lambda _: None)
        self.calls.append(call)
        return call

    def break_off(self) -> None:
        """The worker's process is gone. Both ends of every stream break."""
        for call in self.calls:
            call.break_both()

    async def close(self, grace: float | None = None) -> None:
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*(call.server for call in self.calls), return_exceptions=True)


def _lost() -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "the connection broke", None
    )
