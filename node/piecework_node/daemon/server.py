"""The worker's gRPC server. It moves bytes: we parse them, and errors are translated only here.

Limits come first: message size, streams at once, requests a minute for each peer, idle and silent
connections. A peer sees a typed refusal or a bare INTERNAL. It never sees a traceback or an echo of
what it sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from piecework.base.clock import Clock
from piecework.base.rates import Rate, RateLimiter, peer_key
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
    Progress,
    SubmitJob,
    VoucherAccepted,
    WorkerFrame,
)
from piecework_protocol.limits import MAX_FRAME_BYTES, MAX_REASON_BYTES
from piecework_protocol.objects import Channel, CloseChannel
from piecework_protocol.types import Digest, Signature
from piecework_protocol.wire import (
    decode_call,
    decode_client_frame,
    encode_call,
    encode_offer,
    encode_worker_frame,
)

SERVICE: Final = "piecework.v2.Worker"
ERROR_DOMAIN: Final = "piecework"
MAX_PEERS: Final = 10_000
"""Peers whose rates are kept. The longest idle one is forgotten first, which only favours it."""
BURST_S: Final = 10.0
"""A peer may save up this many seconds' worth of requests."""
MAX_QUEUED_DRAFTS: Final = 2
"""Drafts that wait for a slow reader. While so many wait, newer ones are not sent."""
SUPERSEDING: Final = (Progress, VoucherAccepted)
"""Frames of which only the newest in a row is sent."""
FIRST_FRAME_S: Final = 10.0
"""For the first frame of a stream. An honest client has it ready."""
IDLE_CONNECTION_MS: Final = 10 * 60 * 1000
"""A connection without any stream is closed. gRPC's default is never."""
MAX_CONNECTION_AGE_GRACE_MS: Final = 60 * 1000
KEEPALIVE_MS: Final = 20 * 1000
KEEPALIVE_TIMEOUT_MS: Final = 10 * 1000
HANDSHAKE_MS: Final = 10 * 1000
"""A silent TCP connection is dropped after this. gRPC's default is a minute."""
MIN_PING_INTERVAL_MS: Final = 10 * 1000

MAX_MESSAGE_BYTES: Final = 2 * MAX_FRAME_BYTES
"""A message that is too large is read up to here, so that its sender learns why. gRPC drops a
larger one unread, with a bare RESOURCE_EXHAUSTED."""

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
    ("grpc.so_reuseport", 0),
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
        elif isinstance(frame, SUPERSEDING) and self._frames:
            # A newer one says all that an older one did. A client that never reads must not fill
            # memory.
            if type(self._frames[-1]) is type(frame):
                self._frames.pop()
        self._frames.append(frame)
        self._changed.set()
        return True

    def close(self, refusal: Refusal | None) -> None:
        if not self._closed:
            self._closed, self.refusal = True, refusal
            self._changed.set()

    async def frames(self) -> AsyncIterator[WorkerFrame]:
        """Frames in order until the sink is closed and empty."""
        while True:
            while self._frames:
                frame = self._frames.popleft()
                self._drafts -= isinstance(frame, Draft)
                yield frame
            if self._closed:
                return
            self._changed.clear()
            await self._changed.wait()


class WorkerServicer:
    """The handlers of `piecework.v2.Worker`."""

    def __init__(
        self,
        worker: Worker,
        close_channel: ChannelCloser,
        board: OfferBoard,
        *,
        requests_per_minute: float,
        clock: Clock,
        metrics: Metrics,
        log: Any,
    ) -> None:
        self._worker, self._close_channel, self._board = worker, close_channel, board
        self._metrics, self._log, self._clock = metrics, log, clock
        burst = max(1.0, requests_per_minute / 60 * BURST_S)
        self._limiter = RateLimiter(Rate.per_minute(requests_per_minute, burst), keys=MAX_PEERS)

    def handlers(self) -> Any:
        """For `grpc.aio.Server`: raw bytes on both sides."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "GetOffer": grpc.unary_unary_rpc_method_handler(self._guard(self.get_offer)),
                "Run": grpc.stream_stream_rpc_method_handler(self.run),
                "CloseChannel": grpc.unary_unary_rpc_method_handler(
                    self._guard(self.close_channel)
                ),
            },
        )

    async def get_offer(self, _: bytes) -> bytes:
        """The current offer."""
        if self._board.current is None:
            raise Refusal(Reason.ENGINE_UNAVAILABLE, "the worker is starting", retry_after_s=2.0)
        return encode_offer(self._board.current)

    async def close_channel(self, request: bytes) -> bytes:
        """Close a channel together."""
        asked = decode_call(CloseChannelRequest, _sized(request))
        signature, transaction = await self._close_channel(
            asked.channel, asked.final, asked.signature
        )
        return encode_call(CloseChannelResponse(signature, Digest(transaction) or None))

    async def run(self, requests: AsyncIterator[bytes], context: Any) -> None:
        """One job's stream: read and write at the same time, until either end is done."""
        sink = StreamSink()
        job: LiveJob | None = None
        try:
            self._limit(context)
            job = await self._worker.submit(await _first(requests), sink)
            await self._both_ways(requests, context, job, sink)
            if sink.refusal is not None:
                raise sink.refusal
        except Exception as error:  # noqa: BLE001  translated, logged, never swallowed
            await self._abort(context, error)
        finally:
            if job is not None:
                await self._worker.detach(job, sink)

    async def _both_ways(
        self, requests: AsyncIterator[bytes], context: Any, job: LiveJob, sink: StreamSink
    ) -> None:
        reader = asyncio.ensure_future(self._read(requests, job, sink))
        try:
            async for frame in sink.frames():
                await context.write(encode_worker_frame(frame))
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if not reader.cancelled() and (error := reader.exception()) is not None:
            raise error

    async def _read(self, requests: AsyncIterator[bytes], job: LiveJob, sink: StreamSink) -> None:
        """Pass the client's frames on. When they end, the client may still listen."""
        try:
            async for request in requests:
                await self._worker.receive(job, sink, decode_client_frame(_sized(request)))
        except Refusal as refusal:
            sink.close(refusal)
        except MalformedInput as error:
            sink.close(Refusal(Reason.MALFORMED, str(error)))
        except Exception:
            sink.close(Refusal(Reason.INTERNAL, "the worker failed"))
            raise

    def _guard(
        self, handler: Callable[[bytes], Awaitable[bytes]]
    ) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def guarded(request: bytes, context: Any) -> bytes:
            try:
                self._limit(context)
                return await handler(request)
            except Exception as error:  # noqa: BLE001  translated, logged, never swallowed
                await self._abort(context, error)

        return guarded

    def _limit(self, context: Any) -> None:
        wait_s = self._limiter.take(peer_key(context.peer()), self._clock.monotonic())
        if wait_s > 0:
            raise Refusal(Reason.RATE_LIMITED, "too many requests", retry_after_s=wait_s)

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


def _sized(message: bytes) -> bytes:
    if len(message) > MAX_FRAME_BYTES:
        raise Refusal(Reason.OVERSIZED, f"a message is at most {MAX_FRAME_BYTES} bytes")
    return message


async def _first(requests: AsyncIterator[bytes]) -> SubmitJob:
    """A stream's first frame, in time and of the right kind."""
    try:
        async with asyncio.timeout(FIRST_FRAME_S):
            async for request in requests:
                frame = decode_client_frame(_sized(request))
                if not isinstance(frame, SubmitJob):
                    raise Refusal(
                        Reason.BROKEN_CLAUSE,
                        "a stream begins with a submission",
                        metadata={"clause": "2.4"},
                    )
                return frame
    except TimeoutError:
        raise Refusal(Reason.MALFORMED, "no submission came in time") from None
    raise Refusal(Reason.MALFORMED, "the stream ended before a submission")


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
    """The server with health checks and reflection. `start` binds and `stop` ends."""

    def __init__(self, servicer: WorkerServicer, tls: TlsIdentity, *, max_streams: int) -> None:
        self._server = grpc.aio.server(
            options=(*OPTIONS, ("grpc.max_concurrent_streams", max_streams)),
            maximum_concurrent_rpcs=max_streams,
        )
        self._server.add_generic_rpc_handlers((servicer.handlers(),))
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self._credentials = grpc.ssl_server_credentials([(tls.key, tls.certificate)])

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            OSError: the port is taken.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from None
        if bound == 0:
            raise OSError(f"cannot listen on {address}")
        await self._server.start()
        return bound

    async def serving(self, ready: bool) -> None:
        """Set what health checks are told."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if ready else statuses.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take no new streams. Open ones may end within the grace."""
        await self._server.stop(grace_s)
