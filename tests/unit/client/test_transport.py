"""A stream to a worker, over a stand-in for the gRPC call: every wait has an end."""

from __future__ import annotations

import asyncio

import pytest

from piecework.client.errors import WorkerUnreachable
from piecework.client.network.transport import JobStream
from piecework_protocol.frames import CancelJob

SHORT_S = 0.01


class StuckCall:
    """A call that takes nothing and ends in nothing, as grpc.aio's when its worker dies while it
    opens."""

    async def write(self, data: bytes) -> None:
        await asyncio.Event().wait()

    async def done_writing(self) -> None:
        await asyncio.Event().wait()


async def test_a_frame_that_does_not_leave_in_time_makes_the_worker_unreachable() -> None:
    stream = JobStream(StuckCall(), SHORT_S)
    with pytest.raises(WorkerUnreachable, match="does not take"):
        async with asyncio.timeout(5):
            await stream.send(CancelJob())


async def test_a_goodbye_that_does_not_leave_in_time_is_given_up() -> None:
    async with asyncio.timeout(5):
        await JobStream(StuckCall(), SHORT_S).half_close()
