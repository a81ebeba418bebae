"""The gRPC server over real sockets: TLS, typed refusals, limits, nothing of ours in an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from piecework_node.job_port.peers import PeerLimits
from piecework_node.job_port.server import MAX_MESSAGE_BYTES, MAX_UNARY_BYTES, StreamSink
from piecework_protocol.frames import (
    CloseChannelRequest,
    Draft,
    JobEnded,
    Progress,
    VoucherAccepted,
)
from piecework_protocol.ledger import closing_of, empty_voucher
from piecework_protocol.limits import MAX_FRAME_BYTES
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import JobId, Signature
from piecework_protocol.wire import decode_worker_frames, encode_call, encode_worker_frames
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import (
    DOMAIN,
)
from tests.support.node.served import Served, serve_worker
from tests.support.node.wire_client import SERVICE
from tests.support.waiting import until


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serve_worker() as made:
        yield made


def details(error: grpc.aio.AioRpcError) -> tuple[Any, Any]:
    """ErrorInfo and RetryInfo of a refusal."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return info, retry


async def test_a_job_runs_over_tls_and_is_paid(served: Served) -> None:
    client = served.client()
    result = await served.job(client)
    await client.run(result, drafts=True)
    assert result.ended is not None
    assert result.ended.reason is None
    assert len(result.receipts) >= 2
    assert result.acknowledged == len(result.receipts)
    assert result.amount == served.harness.journal.books[served.payer.id].ledger.cumulative
    again = result.without_text()
    await client.run(again)
    assert again.text == result.text
    await client.close()


async def test_a_refusal_carries_its_reason_and_when_to_come_back(served: Served) -> None:
    client = served.client()
    job = await served.job(client)
    served.harness.worker.draining = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.run(job)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    info, retry = details(caught.value)
    assert (info.domain, info.reason) == ("piecework", "DRAINING")
    assert retry.retry_delay.seconds == 10
    await client.close()


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xff", b"\x0a\x00", b"secret-canary" * 10],
    ids=["empty", "noise", "hollow", "text"],
)
async def test_what_does_not_parse_is_malformed_and_is_not_echoed(
    served: Served, data: bytes
) -> None:
    client = served.client()
    call = client.grpc.stream_stream(SERVICE + "Run")()
    await call.write(data)
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "canary" not in await call.details()
    assert "Traceback" not in await call.details()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.grpc.unary_unary(SERVICE + "CloseChannel")(data)
    assert details(caught.value)[0].reason == "MALFORMED"
    await client.close()


async def test_an_oversized_frame_is_refused_before_it_is_read(served: Served) -> None:
    client = served.client()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.grpc.unary_unary(SERVICE + "CloseChannel")(bytes(MAX_UNARY_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(caught.value)[0].reason == "OVERSIZED"
    call = client.grpc.stream_stream(SERVICE + "Run")()
    await call.write(bytes(MAX_FRAME_BYTES + 1))
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.grpc.unary_unary(SERVICE + "CloseChannel")(bytes(MAX_MESSAGE_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await client.close()


async def test_a_peer_that_asks_too_often_is_told_when_to_come_back() -> None:
    async with serve_worker(PeerLimits(64, 16, 30, 30)) as served:
        client = served.client()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            for _ in range(10):
                await client.offer()
        info, retry = details(caught.value)
        assert info.reason == "RATE_LIMITED"
        assert 0 < retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 <= 2
        await client.close()


async def test_a_client_that_hangs_up_frees_its_row(served: Served) -> None:
    client = served.client()
    job = await served.job(client, 64)
    from piecework_protocol.wire import encode_client_frame

    call = client.grpc.stream_stream(SERVICE + "Run")()
    await call.write(encode_client_frame(job.submission))
    await call.read()
    assert served.harness.worker.streams == 1
    call.cancel()
    harness = served.harness
    await until(lambda: not harness.worker.streams and not harness.engine.rows)
    await client.close()


async def test_an_unexpected_error_shows_nothing_of_ours() -> None:
    async def broken(*_: object) -> tuple[Signature, bytes]:
        raise RuntimeError("/home/operator/secret path")

    async with serve_worker(close_channel=broken) as served:
        client = served.client()
        final = closing_of(empty_voucher(served.payer.id))
        signature = sign(DOMAIN, final, served.payer.signer)
        request = encode_call(CloseChannelRequest(served.payer.channel, final, signature))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.grpc.unary_unary(SERVICE + "CloseChannel")(request)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "the worker failed"
        await client.close()


async def test_health_says_whether_jobs_are_taken(served: Served) -> None:
    client = served.client()
    stub = health_pb2_grpc.HealthStub(client.grpc)
    serving = await stub.Check(health_pb2.HealthCheckRequest(service="piecework.v2.Worker"))
    assert serving.status == health_pb2.HealthCheckResponse.SERVING
    served.server.serving(False)
    serving = await stub.Check(health_pb2.HealthCheckRequest(service=""))
    assert serving.status == health_pb2.HealthCheckResponse.NOT_SERVING
    await client.close()


async def test_a_channel_is_closed_over_the_wire(served: Served) -> None:
    client = served.client()
    job = await served.job(client)
    await client.run(job)
    served.harness.chain.channels[served.payer.id].state = ChannelState.OPEN
    transaction = await client.close_channel()
    chain = served.harness.chain
    assert isinstance(chain, FakePort)
    assert chain.broadcasts == [transaction]
    await client.close()


async def test_a_slow_reader_loses_drafts_and_nothing_else() -> None:
    sink = StreamSink()
    draft = Draft(JobId(bytes(32)), 0, 0, b"")
    for number in range(10):
        sink.send(draft)
        sink.send(VoucherAccepted(number))
    sink.close(None)
    frames = [frame async for batch in sink.batches() for frame in batch]
    assert sum(isinstance(f, Draft) for f in frames) == 2
    assert [f.count for f in frames if isinstance(f, VoucherAccepted)] == [
        0,
        9,
    ]  # the last confirms all


async def test_a_client_that_pays_and_never_reads_fills_no_memory() -> None:
    sink = StreamSink()
    for number in range(100_000):
        sink.send(VoucherAccepted(number))
    sink.close(None)
    assert [batch async for batch in sink.batches()] == [(VoucherAccepted(99_999),)]


async def test_small_frames_travel_behind_another_one_and_none_is_lost_or_late() -> None:
    sink, job = StreamSink(), JobId(bytes(32))
    draft, end = Draft(job, 0, 0, b""), JobEnded(job, 1)
    told = [Progress(job, 0, step, 1) for step in range(2)]
    for frame in (draft, told[0], draft, end, VoucherAccepted(1), told[0], end, told[1]):
        sink.send(frame)
    sink.close(None)
    batches = [batch async for batch in sink.batches()]
    assert batches == [
        (draft, told[0]),
        (draft, end, VoucherAccepted(1), told[0]),
        (end, told[1]),
    ]
    for batch in batches:
        assert decode_worker_frames(encode_worker_frames(batch)) == batch
