"""The wire to one worker: gRPC over TLS pinned to the certificate that the signed offer names.

Bodies are raw bytes here; `protocol.wire` parses them. gRPC errors become `Refusal` (the worker
said why) or `WorkerUnreachable` (it did not).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from piecework.base.text import one_line
from piecework.client.errors import WorkerUnreachable
from piecework.client.limits import (
    CONNECT_TIMEOUT_S,
    LEAVE_TIMEOUT_S,
    SEND_TIMEOUT_S,
    UNARY_TIMEOUT_S,
)
from piecework_protocol import wire
from piecework_protocol.errors import MalformedInput, ProtocolViolation, Reason, Refusal
from piecework_protocol.frames import (
    Account,
    ClientFrame,
    CloseChannelRequest,
    CloseChannelResponse,
    GetAccountRequest,
    ShowReceiptsRequest,
    WorkerFrame,
)
from piecework_protocol.limits import MAX_FRAME_BYTES, MAX_OFFER_BYTES, MAX_REASON_BYTES
from piecework_protocol.objects import Channel, CloseChannel, Offer
from piecework_protocol.relaying import server_name
from piecework_protocol.types import Address, Digest, Signature
from piecework_protocol.wire import SignedOffer

_EOF: Final = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs
_SERVICE: Final = "/piecework.v2.Worker/"
_BARE_CODES: Final = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: Reason.BUSY,
    grpc.StatusCode.INVALID_ARGUMENT: Reason.MALFORMED,
    grpc.StatusCode.UNIMPLEMENTED: Reason.MALFORMED,
}
"""Codes that gRPC itself answers with, where no `ErrorInfo` says more."""


@dataclass(frozen=True, slots=True)
class WorkerEndpoint:
    """Where a worker listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> WorkerEndpoint:
        """`host:port` or `[v6]:port`, perhaps behind grpcs:// or https://; else
        `WorkerUnreachable`."""
        rest = text.removeprefix("grpcs://").removeprefix("https://").rstrip("/")
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if (
            not host
            or any(c in host for c in "/?#@ ")
            or not port.isdecimal()
            or not 0 < int(port) < 65536
        ):
            raise WorkerUnreachable("a worker's endpoint is not host:port")
        return cls(host, int(port))

    @property
    def target(self) -> str:
        """As gRPC resolves it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"dns:///{host}:{self.port}"


async def fetch_certificate(endpoint: WorkerEndpoint, name: str) -> bytes:
    """The DER certificate that the endpoint shows now under a server name, by which a relay finds
    the worker. Nothing is trusted yet: compare it, then pin it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                endpoint.host, endpoint.port, ssl=context, server_hostname=name
            )
    except (OSError, TimeoutError, UnicodeError) as error:
        # UnicodeError: a worker chose a host that is not a name, such as "a..b".
        raise WorkerUnreachable(
            f"no TLS connection to {endpoint.host}:{endpoint.port}: {_brief(error)}"
        ) from None
    try:
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(True)
    except ValueError:
        # What came behind the handshake was no TLS. OpenSSL then says that it was not done.
        raise WorkerUnreachable(
            f"no TLS connection to {endpoint.host}:{endpoint.port}: it broke at once"
        ) from None
    finally:
        writer.transport.abort()
    if not certificate:
        raise WorkerUnreachable(f"{endpoint.host}:{endpoint.port} shows no certificate")
    return certificate


class WorkerLink:
    """A connection to one worker. Any number of jobs share it.

    Nobody closes it under the others: `retire` closes it once its last stream and call have ended.
    """

    def __init__(
        self,
        address: str,
        certificate: bytes,
        name: str,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        """`name` is the operator's server name, which the certificate has.

        channel: what carries the calls. None: a connection to `address`, made here.
        """
        self.address = address
        endpoint = WorkerEndpoint.parse(address)
        self._users = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None
        self.certificate_digest = Digest(hashlib.sha256(certificate).digest())
        credentials = grpc.ssl_channel_credentials(ssl.DER_cert_to_PEM_cert(certificate).encode())
        options = (
            ("grpc.ssl_target_name_override", name),
            ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
            ("grpc.max_send_message_length", MAX_FRAME_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.enable_retries", 0),
            # The certificate was fetched directly, so its connection goes directly as well. gRPC
            # alone would obey http_proxy, also for a worker on this machine.
            ("grpc.enable_http_proxy", 0),
        )
        self._channel = channel or grpc.aio.secure_channel(endpoint.target, credentials, options)

    @classmethod
    async def connect(
        cls, address: str, operator: Address, certificate_digest: Digest | None
    ) -> WorkerLink:
        """Connect and pin. With a digest, another certificate is the worker's or a stranger's:
        refused.

        Without one (the registry's bare endpoint) the caller compares `certificate_digest` with the
        offer.
        """
        name = server_name(operator)
        certificate = await fetch_certificate(WorkerEndpoint.parse(address), name)
        link = cls(address, certificate, name)
        if certificate_digest is not None and link.certificate_digest != certificate_digest:
            await link.close()
            raise WorkerUnreachable("the worker's certificate is not the one in its offer")
        try:
            await link._ready()
        except BaseException:
            await link.close()
            raise
        return link

    async def _ready(self) -> None:
        """Wait until gRPC has a connection under the pinned certificate."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                state = self._channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise WorkerUnreachable(f"no TLS connection to {self.address}")
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise WorkerUnreachable(f"no TLS connection to {self.address}: timed out") from None

    async def close(self) -> None:
        """Drop the connection at once, and every stream on it."""
        self._retired = True
        await self._channel.close(None)

    def retire(self) -> None:
        """Drop the connection as soon as nobody uses it. It takes no further stream."""
        self._retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and not self._users and self._closing is None:
            self._closing = asyncio.create_task(self._channel.close(None), name="link closing")

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        self._users -= 1
        self._close_if_unused()

    async def get_offer(self) -> SignedOffer:
        """The worker's current offer; not verified."""
        data = await self._unary("GetOffer", b"")
        try:
            return wire.decode_offer(data)
        except MalformedInput as error:
            raise ProtocolViolation("3.1", str(error)) from None

    async def close_channel(
        self, channel: Channel, final: CloseChannel, signature: Signature
    ) -> tuple[Signature, bytes]:
        """Ask the worker to close: its signature over `final`, and a transaction hash or
        nothing."""
        data = await self._unary(
            "CloseChannel", wire.encode_call(CloseChannelRequest(channel, final, signature))
        )
        try:
            answer = wire.decode_call(CloseChannelResponse, data)
            return answer.operator_signature, answer.transaction or b""
        except MalformedInput as error:
            raise ProtocolViolation("6.5", str(error)) from None

    async def get_account(self, request: GetAccountRequest) -> Account:
        """The worker's record of a channel; not verified."""
        data = await self._unary("GetAccount", wire.encode_call(request))
        try:
            return wire.decode_call(Account, data)
        except MalformedInput as error:
            raise ProtocolViolation("5.7", str(error)) from None

    async def show_receipts(self, request: ShowReceiptsRequest) -> Account:
        """Show receipts that the worker lacks: its record after them, not verified."""
        data = await self._unary("ShowReceipts", wire.encode_call(request))
        try:
            return wire.decode_call(Account, data)
        except MalformedInput as error:
            raise ProtocolViolation("5.9", str(error)) from None

    def run(self, deadline_s: float) -> JobStream:
        """Open one job's stream. Nothing is sent before the first `send`.

        Raises:
            WorkerUnreachable: the connection was closed meanwhile.
        """
        with _their_errors():
            method = self._channel.stream_stream(_SERVICE + "Run", None, None)
            start: Any = method  # the stubs know only the form with a request iterator
            call = start(timeout=deadline_s, wait_for_ready=False)
        self._users += 1
        return JobStream(call, on_end=self._leave)

    async def _unary(self, name: str, request: bytes) -> bytes:
        with self._in_use(), _their_errors():
            method = self._channel.unary_unary(_SERVICE + name, None, None)
            data: bytes = await method(request, timeout=UNARY_TIMEOUT_S)
        if len(data) > MAX_OFFER_BYTES:
            raise ProtocolViolation("2.3", "an answer beyond the protocol's size")
        return data


class JobStream:
    """One job's frames, both ways. `leave` or `abort` ends it. `on_end` is told once."""

    def __init__(
        self,
        call: Any,
        send_timeout_s: float = SEND_TIMEOUT_S,
        on_end: Callable[[], None] | None = None,
        leave_timeout_s: float = LEAVE_TIMEOUT_S,
    ) -> None:
        self._call, self._send_timeout_s, self._on_end = call, send_timeout_s, on_end
        self._leave_timeout_s, self._open = leave_timeout_s, True

    async def send(self, frame: ClientFrame) -> None:
        """Send one frame. It waits, boundedly, while the worker's window is full.

        Raises:
            WorkerUnreachable: it did not leave in time, or the stream is over.
            Refusal: the worker had ended the stream with a reason.
        """
        try:
            with _their_errors():
                async with asyncio.timeout(self._send_timeout_s):
                    await self._call.write(wire.encode_client_frame(frame))
        except TimeoutError:
            raise WorkerUnreachable("the worker does not take what is sent to it") from None
        except asyncio.InvalidStateError:
            await self._raise_status()

    async def receive(self) -> tuple[WorkerFrame, ...]:
        """Return the next frames, which came together, or none at a clean end.

        Raises:
            WorkerUnreachable: the stream broke, or its connection was closed.
            Refusal: the worker ended the stream with a reason.
            ProtocolViolation: what came is not a frame.
        """
        with _their_errors():
            data = await self._call.read()
        if data is _EOF:
            await self._raise_status()
            return ()
        try:
            return wire.decode_worker_frames(data)
        except MalformedInput as error:
            raise ProtocolViolation("2.3", str(error)) from None

    def leave(self) -> None:
        """Let the worker end the stream, which has said all. It is reset if that takes too long."""
        timer = asyncio.get_running_loop().call_later(self._leave_timeout_s, self._call.cancel)
        self._call.add_done_callback(lambda _: timer.cancel())
        self._end()

    def abort(self) -> None:
        """Reset the stream, unless it was left. Its connection stays for the others."""
        if self._open:
            self._call.cancel()
            self._end()

    def _end(self) -> None:
        self._open = False
        if self._on_end is not None:
            self._on_end()

    async def _raise_status(self) -> None:
        with _their_errors():
            code = await self._call.code()
            details = await self._call.details()
            trailing = await self._call.trailing_metadata()
        if code is not grpc.StatusCode.OK:
            raise _translated(code, details or "", trailing)


@contextlib.contextmanager
def _their_errors() -> Iterator[None]:
    """What gRPC raises, as `Refusal` or `WorkerUnreachable`.

    When a connection is closed, gRPC raises `CancelledError` in every task that waits on it. That
    is a cancellation of ours only if somebody has cancelled this task.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise translate(error) from None
    except grpc.aio.UsageError:
        raise WorkerUnreachable("the connection to the worker was closed") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise WorkerUnreachable("the connection to the worker was closed") from None


class ReceiptTaker(Protocol):
    """A worker that is shown receipts; `WorkerLink` is one."""

    async def show_receipts(self, request: ShowReceiptsRequest) -> Account:
        """Return the worker's record after them. Nothing in it is checked."""
        ...


class JobLink(ReceiptTaker, Protocol):
    """A worker that takes jobs; `WorkerLink` is one."""

    def run(self, deadline_s: float) -> JobStream:
        """Open one job's stream."""
        ...


class JobLinks(Protocol):
    """How a job reaches its worker; `links.Links` holds real connections."""

    async def to(self, offer: Offer) -> JobLink:
        """The worker of a verified offer. `WorkerUnreachable` when there is no way to it."""
        ...

    def retire(self, offer: Offer) -> None:
        """A fresh stream got no answer on this way. The next one takes another connection, and
        those that are under way keep theirs."""
        ...


def translate(error: grpc.aio.AioRpcError) -> Refusal | WorkerUnreachable:
    """A gRPC error as ours."""
    return _translated(error.code(), error.details() or "", error.trailing_metadata())


def _translated(code: grpc.StatusCode, details: str, trailing: Any) -> Refusal | WorkerUnreachable:
    refusal = _rich_refusal(details, trailing)
    if refusal is not None:
        return refusal
    text = _words(details)
    if code in _BARE_CODES:
        return Refusal(_BARE_CODES[code], text)
    return WorkerUnreachable(f"{code.name.lower().replace('_', ' ')}: {text}")


def _rich_refusal(details: str, trailing: Any) -> Refusal | None:
    """The refusal in `grpc-status-details-bin`: google.rpc.Status with ErrorInfo and perhaps
    RetryInfo."""
    packed = next(
        (value for key, value in trailing or () if key == "grpc-status-details-bin"), None
    )
    if not isinstance(packed, bytes):
        return None
    status, info, retry = (
        status_pb2.Status(),
        error_details_pb2.ErrorInfo(),
        error_details_pb2.RetryInfo(),
    )
    found, retry_after_s = False, None
    try:
        status.ParseFromString(packed)
        for detail in status.details[:8]:
            if detail.Is(info.DESCRIPTOR):
                found = detail.Unpack(info)
            elif detail.Is(retry.DESCRIPTOR):
                detail.Unpack(retry)
                retry_after_s = max(0.0, retry.retry_delay.ToTimedelta().total_seconds())
    except (DecodeError, OverflowError):
        return None
    if not found or info.domain != "piecework":
        return None
    reason = Reason.named(info.reason)
    message = _words(status.message or details)
    message = message.removeprefix(f"{reason.name}: ")
    metadata = {k[:64]: v[:256] for k, v in list(info.metadata.items())[:16]}
    return Refusal(reason, message, retry_after_s=retry_after_s, metadata=metadata)


def _words(text: str) -> str:
    """What the worker wrote, bounded and safe for a terminal."""
    cut = text.encode(errors="replace")[:MAX_REASON_BYTES].decode(errors="ignore")
    return one_line(cut, MAX_REASON_BYTES)


def _brief(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, UnicodeError):
        return "the host is not a name"
    return getattr(error, "strerror", None) or type(error).__name__
