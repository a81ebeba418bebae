"""The worker's gRPC server. It moves bytes: we parse them, and errors are translated only here.

Limits come first. `job_port.front` bounds connections and bytes, `job_port.peers` streams and
rates. To gRPC every method is a stream, because it hands a unary method its message only when that
is whole, without a deadline and before anything was counted. A peer sees a typed refusal or a bare
INTERNAL. It never sees a traceback or an echo of what it sent.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status

from piecework.base.clock import Clock
from piecework.base.rates import Rate, RateLimiter
from piecework_node.job_port.front import Front
from piecework_node.job_port.peers import Abuse, Entrance, Visit
from piecework_node.jobs.healing import Healer
from piecework_node.jobs.offers import OfferBoard
from piecework_node.jobs.worker import Worker
from piecework_node.keys.tls import TlsIdentity
from piecework_node.metrics import Metrics
from piecework_node.runtime.live import LiveJob
from piecework_protocol.errors import MalformedInput, Reason, Refusal
from piecework_protocol.frames import (
    CloseChannelRequest,
    CloseChannelResponse,
    Draft,
    GetAccountRequest,
    JobEnded,
    Progress,
    ShowReceiptsRequest,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.limits import MAX_FRAME_BYTES, MAX_FRAMES_TOGETHER, MAX_REASON_BYTES
from piecework_protocol.objects import Channel, CloseChannel
from piecework_protocol.types import Digest, Signature
from piecework_protocol.wire import (
    decode_call,
    decode_client_frame,
    encode_call,
    encode_offer,
    encode_worker_frames,
)

SERVICE: Final = "piecework.v2.Worker"
ERROR_DOMAIN: Final = "piecework"
START_RETRY_S: Final = 2.0
MAX_QUEUED_DRAFTS: Final = 2
"""Drafts that wait for a slow reader. While so many wait, newer ones are not sent."""
SUPERSEDING: Final = (Progress, VoucherAccepted)
"""Frames of which only the newest in a row is sent."""
SMALL: Final = (JobEnded, Progress, VoucherAccepted)
"""Frames that travel behind another one. A message costs both ends more than the frame in it."""
FRAMES_PER_S: Final = 200.0
FRAMES_BURST: Final = 400.0
"""Of one stream, after its first frame. More are read later."""
MAX_UNARY_BYTES: Final = 64 * 1024
"""Of a message of a unary method. The largest real one is below 1 KiB."""
MAX_SHOWN_BYTES: Final = 1024 * 1024
"""Of a message with receipts that a journal lost. The codec has the exact bound."""
IDLE_CONNECTION_MS: Final = 5 * 60 * 1000
"""A connection without any stream is closed. gRPC's default is never."""
MAX_CONNECTION_AGE_GRACE_MS: Final = 60 * 1000
KEEPALIVE_MS: Final = 20 * 1000
KEEPALIVE_TIMEOUT_MS: Final = 10 * 1000
HANDSHAKE_MS: Final = 10 * 1000
"""A silent TCP connection is dropped after this. gRPC's default is a minute."""
MIN_PING_INTERVAL_MS: Final = 10 * 1000

MAX_MESSAGE_BYTES: Final = MAX_FRAME_BYTES + 64 * 1024
"""A message that is a little too large is read, so that its sender learns why. gRPC drops a larger
one unread, with a bare RESOURCE_EXHAUSTED."""
MAX_CONNECTION_STREAMS: Final = 256

OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_FRAME_BYTES),
    ("grpc.max_connection_idle_ms", IDLE_CONNECTION_MS),
    ("grpc.max_connection_age_grace_ms", MAX_CONNECTION_AGE_GRACE_MS),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
    ("grpc.max_concurrent_streams", MAX_CONNECTION_STREAMS),
)


ChannelCloser = Callable[[Channel, CloseChannel, Signature], Awaitable[tuple[Signature, bytes]]]
"""Agrees to close a channel. Gives the operator's signature and the transaction's hash."""


class StreamSink:
    """A stream's frames, in a queue that its writer empties. Implements `FrameSink`."""

    def __init__(self) -> None:
        self._frames: deque[WorkerFrame] = deque()
        self._changed = asyncio.Event()
        self._drafts = 0
        self._closed = False
        self.refusal: Refusal | None = None

    def send(self, frame: WorkerFrame) -> bool:
        if self._closed:
            return False
        if isinstance(frame, Draft):
            if self._drafts >= MAX_QUEUED_DRAFTS:
                return False
            self._drafts += 1
        elif isinstance(frame, SUPERSEDING) and self._says_less(frame):
            # A client that never reads must not fill memory.
            self._frames.pop()
        self._frames.append(frame)
        self._changed.set()
        return True

    def _batch(self) -> tuple[WorkerFrame, ...]:
        """Take the next frame, and the small ones behind it."""
        waiting, batch = self._frames, [self._frames.popleft()]
        self._drafts -= isinstance(batch[0], Draft)
        while waiting and isinstance(waiting[0], SMALL) and len(batch) < MAX_FRAMES_TOGETHER:
            batch.append(waiting.popleft())
        return tuple(batch)

    def _says_less(self, frame: WorkerFrame) -> bool:
        """Whether the last frame that waits says nothing beyond this one."""
        return bool(self._frames) and type(self._frames[-1]) is type(frame)

    def close(self, refusal: Refusal | None) -> None:
        if not self._closed:
            self._closed, self.refusal = True, refusal
            self._changed.set()

    async def batches(self) -> AsyncIterator[tuple[WorkerFrame, ...]]:
        """Frames in order until the sink is closed and empty, those together that are ready."""
        while True:
            while self._frames:
                yield self._batch()
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()


@dataclass(frozen=True, slots=True)
class StreamTimes:
    """What a client may take, in seconds."""

    first_message_s: float = 10.0
    """For the first message of a stream. An honest client has it ready."""
    write_s: float = 30.0
    """To take a frame that it was sent. A connection that does not read is closed."""


TIMES: Final = StreamTimes()
Requests = AsyncIterator[bytes]
Handler = Callable[[Requests, Any, Visit], Awaitable[None]]


class WorkerServicer:
    """The handlers of `piecework.v2.Worker`, and of gRPC's health check."""

    def __init__(
        self,
        worker: Worker,
        close_channel: ChannelCloser,
        board: OfferBoard,
        *,
        entrance: Entrance,
        clock: Clock,
        metrics: Metrics,
        log: Any,
        times: StreamTimes = TIMES,
    ) -> None:
        self._worker, self._close_channel, self._board = worker, close_channel, board
        self._entrance, self._clock, self._times = entrance, clock, times
        self._metrics, self._log = metrics, log
        self._healer = Healer(worker)
        self.serving = False
        """What health checks are told."""

    def handlers(self) -> Any:
        """For `grpc.aio.Server`: raw bytes on both sides, and a counted answer to every name."""
        return _Methods(
            {
                f"/{SERVICE}/GetOffer": self._serve_with(self._get_offer),
                f"/{SERVICE}/Run": self.run,
                f"/{SERVICE}/CloseChannel": self._serve_with(self._close),
                f"/{SERVICE}/GetAccount": self._serve_with(self._get_account),
                f"/{SERVICE}/ShowReceipts": self._serve_with(self._show_receipts),
                "/grpc.health.v1.Health/Check": self._serve_with(self._check_health),
            },
            self._serve_with(_unknown_method),
        )

    async def _get_offer(self, _: Requests, context: Any, visit: Visit) -> None:
        """Send the current offer. The request says nothing, so it is not read."""
        _within_rate(visit)
        if self._board.current is None:
            raise Refusal(
                Reason.ENGINE_UNAVAILABLE, "the worker is starting", retry_after_s=START_RETRY_S
            )
        await self._write(context, visit, encode_offer(self._board.current))

    async def _get_account(self, requests: Requests, context: Any, visit: Visit) -> None:
        """Send the worker's record of a channel."""
        _within_rate(visit)
        request = _sized(await self._message(requests, visit), MAX_UNARY_BYTES)
        account = await self._healer.account(decode_call(GetAccountRequest, request))
        await self._write(context, visit, encode_call(account))

    async def _show_receipts(self, requests: Requests, context: Any, visit: Visit) -> None:
        """Take over receipts of ours that the journal lacks."""
        _within_rate(visit)
        request = _sized(await self._message(requests, visit), MAX_SHOWN_BYTES)
        account = await self._healer.take(decode_call(ShowReceiptsRequest, request))
        await self._write(context, visit, encode_call(account))

    async def _close(self, requests: Requests, context: Any, visit: Visit) -> None:
        """Close a channel together."""
        _within_rate(visit)
        request = _sized(await self._message(requests, visit), MAX_UNARY_BYTES)
        asked = decode_call(CloseChannelRequest, request)
        signature, transaction = await self._close_channel(
            asked.channel, asked.final, asked.signature
        )
        answer = CloseChannelResponse(signature, Digest(transaction) or None)
        await self._write(context, visit, encode_call(answer))

    async def _check_health(self, requests: Requests, context: Any, visit: Visit) -> None:
        """Say whether jobs are taken. There is no `Watch`: it would hold a stream without end."""
        _within_rate(visit)
        try:
            asked = health_pb2.HealthCheckRequest.FromString(
                _sized(await self._message(requests, visit), MAX_UNARY_BYTES)
            )
        except DecodeError:
            raise Refusal(Reason.MALFORMED, "that is not a health check") from None
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if self.serving else statuses.NOT_SERVING
        if asked.service not in ("", SERVICE):
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        await self._write(context, visit, statuses(status=status).SerializeToString())

    def _serve_with(self, handler: Handler) -> Callable[[Requests, Any], Awaitable[None]]:
        async def serve(requests: Requests, context: Any) -> None:
            await self._serve(handler, requests, context)

        return serve

    async def run(self, requests: Requests, context: Any) -> None:
        """One job's stream: read and write at the same time, until either end is done."""
        await self._serve(self._run, requests, context)

    async def _serve(self, handler: Handler, requests: Requests, context: Any) -> None:
        try:
            with self._entrance.visit(context.peer()) as visit:
                await handler(requests, context, visit)
        except Abuse:
            self._metrics.cut_off()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was closed")
        except Exception as error:  # noqa: BLE001  translated, logged, never swallowed
            await self._abort(context, error)

    async def _run(self, requests: Requests, context: Any, visit: Visit) -> None:
        sink = StreamSink()
        message = _sized(await self._message(requests, visit))
        self._worker.check_length(len(message))
        submission = _submission(message)
        del message
        if visit.wait_s > 0:
            self._within_channel_rate(submission, visit)
        job = await self._worker.submit(submission, sink)
        try:
            visit.admit()
            self._note_payment(job, visit)
            await self._both_ways(requests, context, visit, job, sink)
            if sink.refusal is not None:
                raise sink.refusal
        finally:
            self._note_payment(job, visit)
            await self._worker.detach(job, sink)

    def _within_channel_rate(self, submission: SubmitJob, visit: Visit) -> None:
        """Let a channel that has paid go on at its own rate, when its address has used up its own.

        Strangers may share the address, as behind a NAT.
        """
        if not self._worker.has_paid(submission):
            _within_rate(visit)
        wait_s = visit.channel_wait_s(submission.job.channel)
        if wait_s > 0:
            raise _too_fast(wait_s)

    def _note_payment(self, job: LiveJob, visit: Visit) -> None:
        if job.channel.ledger.cumulative > 0:
            visit.paid()

    async def _write(self, context: Any, visit: Visit, data: bytes) -> None:
        """Send a message. A client that does not take it in time is cut off."""
        try:
            async with asyncio.timeout(self._times.write_s):
                await context.write(data)
        except TimeoutError:
            visit.cut_off()
            raise Abuse from None

    async def _message(self, requests: Requests, visit: Visit) -> bytes:
        """A stream's first message, in time."""
        try:
            async with asyncio.timeout(self._times.first_message_s):
                async for request in requests:
                    visit.message_taken(len(request))
                    return request
        except TimeoutError:
            raise Refusal(Reason.MALFORMED, "no message came in time") from None
        raise Refusal(Reason.MALFORMED, "the stream ended before a message")

    async def _both_ways(
        self, requests: Requests, context: Any, visit: Visit, job: LiveJob, sink: StreamSink
    ) -> None:
        reader = asyncio.ensure_future(self._read(requests, visit, job, sink))
        try:
            async for frames in sink.batches():
                await self._write(context, visit, encode_worker_frames(frames))
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if not reader.cancelled() and (error := reader.exception()) is not None:
            raise error

    async def _read(self, requests: Requests, visit: Visit, job: LiveJob, sink: StreamSink) -> None:
        """Pass the client's frames on. When they end, the client may still listen."""
        rate = RateLimiter(Rate(FRAMES_PER_S, FRAMES_BURST), keys=1)
        try:
            async for request in requests:
                visit.message_taken(len(request))
                wait_s = rate.spend(None, 1, self._clock.monotonic())
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                await self._worker.receive(job, sink, decode_client_frame(_sized(request)))
        except Refusal as refusal:
            sink.close(refusal)
        except MalformedInput as error:
            sink.close(Refusal(Reason.MALFORMED, str(error)))
        except Exception:
            sink.close(Refusal(Reason.INTERNAL, "the worker failed"))
            raise

    async def _abort(self, context: Any, error: Exception) -> NoReturn:
        """The one place where an error becomes a gRPC status, and is counted."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        if isinstance(error, MalformedInput):
            error = Refusal(Reason.MALFORMED, str(error))
        if isinstance(error, Refusal):
            self._metrics.refused(error.reason)
            await context.abort_with_status(rpc_status.to_status(rich_status(error)))
        self._log.error("handler failed", error_class=type(error).__name__, error=str(error))
        internal = Refusal(Reason.INTERNAL, "the worker failed")
        await context.abort_with_status(rpc_status.to_status(rich_status(internal)))
        raise error


class _Methods(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Handlers by method. A name that is not there is answered by a handler as well, so that every
    request is counted."""

    def __init__(self, methods: Mapping[str, Any], otherwise: Any) -> None:
        make = grpc.stream_stream_rpc_method_handler
        self._methods = {name: make(handler) for name, handler in methods.items()}
        self._otherwise = make(otherwise)

    def service(self, handler_call_details: Any) -> Any:
        return self._methods.get(handler_call_details.method, self._otherwise)


async def _unknown_method(_: Requests, context: Any, __: Visit) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")


def _within_rate(visit: Visit) -> None:
    if visit.wait_s > 0:
        raise _too_fast(visit.wait_s)


def _too_fast(wait_s: float) -> Refusal:
    return Refusal(Reason.RATE_LIMITED, "too many requests", retry_after_s=wait_s)


def _sized(message: bytes, most: int = MAX_FRAME_BYTES) -> bytes:
    if len(message) > most:
        raise Refusal(Reason.OVERSIZED, f"a message is at most {most} bytes")
    return message


def _submission(message: bytes) -> SubmitJob:
    """The first frame of a job's stream."""
    frame = decode_client_frame(message)
    if not isinstance(frame, SubmitJob):
        raise Refusal(
            Reason.BROKEN_CLAUSE,
            "a stream begins with a submission",
            metadata={"clause": "2.4"},
        )
    return frame


def rich_status(refusal: Refusal) -> status_pb2.Status:
    """A refusal as `google.rpc.Status` with ErrorInfo and, if a retry may help, RetryInfo (clause
    2.5)."""
    info = error_details_pb2.ErrorInfo(
        reason=refusal.reason.name, domain=ERROR_DOMAIN, metadata=refusal.metadata
    )
    details = [_packed(info)]
    if refusal.retry_after_s is not None:
        seconds = int(refusal.retry_after_s)
        delay = Duration(seconds=seconds, nanos=int((refusal.retry_after_s - seconds) * 1e9))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    code = getattr(grpc.StatusCode, refusal.reason.status.name).value[0]
    message = refusal.message.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
    return status_pb2.Status(code=code, message=message, details=details)


def _packed(message: Any) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


class GrpcServer:
    """gRPC behind a front. `start` serves and `stop` ends."""

    def __init__(self, servicer: WorkerServicer, tls: TlsIdentity, front: Front) -> None:
        self._servicer, self._front = servicer, front
        self._server = grpc.aio.server(options=OPTIONS)
        self._server.add_generic_rpc_handlers((servicer.handlers(),))
        credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])
        self._server.add_secure_port(front.target, credentials)

    async def start(self, sockets: Sequence[socket.socket]) -> int:
        """Serve on bound sockets, and return the port."""
        await self._server.start()
        return self._front.start(sockets)

    def serving(self, ready: bool) -> None:
        """Set what health checks are told."""
        self._servicer.serving = ready

    async def stop(self, grace_s: float) -> None:
        """Take no new streams. Open ones may end within the grace."""
        await self._server.stop(grace_s)
        await self._front.close()
