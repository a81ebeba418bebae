"""A stream to a worker, over a stand-in for the gRPC call: every wait has an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from piecework.client.errors import WorkerUnreachable
from piecework.client.network.transport import JobStream, WorkerLink
from piecework_protocol.frames import CancelJob
from piecework_protocol.types import Address
from tests.support.network.tls_listener import spoilt_tls_listener

SHORT_S = 0.01


class StuckCall:
    """A call that takes nothing and ends in nothing, as grpc.aio's when its worker dies while it
    opens."""

    async def write(self, data: bytes) -> None:
        await asyncio.Event().wait()

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.on_done: list[Callable[[object], None]] = []

    def add_done_callback(self, callback: Callable[[object], None]) -> None:
        self.on_done.append(callback)

    def cancel(self) -> None:
        self.cancelled.set()


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example", "ß" * 70, "xn--é"])
async def test_a_worker_whose_host_is_no_name_is_unreachable_and_breaks_no_search(
    host: str,
) -> None:
    with pytest.raises(WorkerUnreachable, match="not a name"):
        await WorkerLink.connect(f"{host}:7443", Address(bytes(20)), None)


async def test_a_connection_that_is_spoilt_right_behind_its_handshake_is_unreachable() -> None:
    """OpenSSL then says that the handshake is not done yet, and shows no certificate."""
    operator = Address(bytes(20))
    async with spoilt_tls_listener(operator) as port:
        with pytest.raises(WorkerUnreachable, match="no TLS connection"):
            await WorkerLink.connect(f"127.0.0.1:{port}", operator, None)


async def test_a_frame_that_does_not_leave_in_time_makes_the_worker_unreachable() -> None:
    stream = JobStream(StuckCall(), SHORT_S)
    with pytest.raises(WorkerUnreachable, match="does not take"):
        async with asyncio.timeout(5):
            await stream.send(CancelJob())


async def test_a_stream_that_was_left_is_reset_when_the_worker_does_not_end_it() -> None:
    call = StuckCall()
    JobStream(call, leave_timeout_s=SHORT_S).leave()
    assert not call.cancelled.is_set()
    async with asyncio.timeout(5):
        await call.cancelled.wait()


async def test_a_stream_that_was_left_and_has_ended_is_not_reset() -> None:
    call, ends = StuckCall(), []
    stream = JobStream(call, on_end=lambda: ends.append(1), leave_timeout_s=SHORT_S)
    stream.leave()
    for callback in call.on_done:
        callback(call)
    stream.abort()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5 * SHORT_S):
            await call.cancelled.wait()
    assert ends == [1]
