"""The gRPC server over real sockets: TLS, typed refusals, limits, nothing of ours in an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from piecework.base.clock import SystemClock
from piecework_node import logs
from piecework_node.daemon.server import MAX_MESSAGE_BYTES, GrpcServer, StreamSink, WorkerServicer
from piecework_node.jobs.offers import OfferBoard
from piecework_node.keys.tls import TlsIdentity, create_tls
from piecework_protocol.frames import CloseChannelRequest, Draft, VoucherAccepted
from piecework_protocol.ledger import closing_of
from piecework_protocol.limits import MAX_FRAME_BYTES
from piecework_protocol.objects import Channel
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Bytes32, Digest, JobId, Seconds, Signature, Timestamp
from tests.support.clock import FakeClock
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import (
    DOMAIN,
    OPERATOR,
    RECEIVER,
    TERMS,
    TOKEN,
    Client,
    WorkerHarness,
    parameters,
)
from tests.support.node.settlement import make_settler
from tests.support.node.wire_client import SERVICE, WireClient
from tests.support.scripted_client import ScriptedJob
from tests.support.waiting import until


class RealClock(FakeClock):
    """The machine's time, for code that waits in real time."""

    def __init__(self) -> None:
        super().__init__()
        self._system = SystemClock()

    def now(self) -> Timestamp:
        return Timestamp(int(self.wall()))

    def wall(self) -> float:
        return self._system.wall()

    def monotonic(self) -> float:
        return self._system.monotonic()


class Served:
    """A stage behind a real server."""

    def __init__(self, harness: WorkerHarness, server: GrpcServer, port: int) -> None:
        self.harness, self.server, self.port = harness, server, port
        self.payer = Client(harness)

    def client(self) -> WireClient:
        return self.client_at(self.port)

    def client_at(self, port: int) -> WireClient:
        """The payer at another server of this process."""
        payer = self.payer
        return WireClient(f"127.0.0.1:{port}", DOMAIN, payer.signer, payer.channel, payer.deposit)

    async def job(self, client: WireClient, max_tokens: int = 40) -> ScriptedJob:
        """A job for the current offer, not submitted yet."""
        deadline = self.harness.clock.now() + 600
        asked = parameters(3, max_tokens)
        return ScriptedJob.sealed(client, await client.offer(), "a fox", asked, deadline)


async def pump(harness: WorkerHarness) -> None:
    """Let the engine run whenever it may."""
    while True:
        harness.engine.changed.clear()
        await harness.run_engine()
        await harness.engine.changed.wait()


@pytest.fixture
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    per_second = getattr(request, "param", 1000.0)
    harness = WorkerHarness()
    harness.clock = RealClock()
    chain = FakePort()
    harness.chain = chain
    await harness.boot()
    settler = await make_settler(harness, chain)
    board = OfferBoard(
        harness.journal, harness.terms, domain=DOMAIN, signer=OPERATOR, clock=harness.clock
    )
    board.current = harness.offer
    certificate, key = create_tls(harness.clock.now())
    servicer = WorkerServicer(
        harness.worker,
        settler.close_channel,
        board,
        requests_per_minute=per_second * 60,
        clock=harness.clock,
        metrics=harness.metrics,
        log=logs.silent(),
    )
    server = GrpcServer(servicer, TlsIdentity(certificate, key, Digest(bytes(32))), max_streams=16)
    port = await server.start("127.0.0.1", 0)
    await server.serving(True)
    engine = asyncio.ensure_future(pump(harness))
    made = Served(harness, server, port)
    made.payer.open_on_chain()
    yield made
    engine.cancel()
    await server.stop(0)
    await harness.runtime.wait_idle()


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
        await client.grpc.unary_unary(SERVICE + "CloseChannel")(bytes(MAX_FRAME_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(caught.value)[0].reason == "OVERSIZED"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.grpc.unary_unary(SERVICE + "CloseChannel")(bytes(MAX_MESSAGE_BYTES + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await client.close()


@pytest.mark.parametrize("served", [0.5], indirect=True)
async def test_a_peer_that_asks_too_often_is_told_when_to_come_back(served: Served) -> None:
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


async def test_an_unexpected_error_shows_nothing_of_ours(served: Served) -> None:
    client = served.client()

    async def broken(*_: object) -> tuple[Signature, bytes]:
        raise RuntimeError("/home/operator/secret path")

    stranger = Channel(
        payer=RECEIVER,
        authorizer=RECEIVER,
        receiver=RECEIVER,
        operator=RECEIVER,
        token=TOKEN,
        withdrawal_delay=Seconds(60),
        salt=Bytes32(bytes(32)),
    )
    from piecework_protocol.ledger import empty_voucher
    from piecework_protocol.signing import sign
    from piecework_protocol.wire import encode_call

    servicer = WorkerServicer(
        served.harness.worker,
        broken,
        OfferBoard(
            served.harness.journal, TERMS, domain=DOMAIN, signer=OPERATOR, clock=SystemClock()
        ),
        requests_per_minute=60_000,
        clock=SystemClock(),
        metrics=served.harness.metrics,
        log=logs.silent(),
    )
    certificate, key = create_tls(served.harness.clock.now())
    server = GrpcServer(servicer, TlsIdentity(certificate, key, Digest(bytes(32))), max_streams=4)
    port = await server.start("127.0.0.1", 0)
    other = served.client_at(port)
    v = empty_voucher(served.payer.id)
    final = closing_of(v)
    request = encode_call(
        CloseChannelRequest(stranger, final, sign(DOMAIN, final, served.payer.signer))
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await other.grpc.unary_unary(SERVICE + "CloseChannel")(request)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "the worker failed"
    await other.close()
    await client.close()
    await server.stop(0)


async def test_health_says_whether_jobs_are_taken(served: Served) -> None:
    client = served.client()
    stub = health_pb2_grpc.HealthStub(client.grpc)
    serving = await stub.Check(health_pb2.HealthCheckRequest(service="piecework.v2.Worker"))
    assert serving.status == health_pb2.HealthCheckResponse.SERVING
    await served.server.serving(False)
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
    frames = [frame async for frame in sink.frames()]
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
    assert [frame async for frame in sink.frames()] == [VoucherAccepted(99_999)]
