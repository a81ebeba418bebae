"""The reader of ClientHellos: real ones in any pieces, damaged ones, and garbage."""

from __future__ import annotations

import asyncio
import ssl

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework.relay.hello import MAX_HELLO_BYTES, HelloReader, HelloRefused
from piecework_protocol.relaying import named_operator, server_name
from piecework_protocol.types import Address

OPERATOR = Address(bytes(range(20)))
NAME = server_name(OPERATOR)
HEADER = 5


def hello_of(context: ssl.SSLContext, name: str | None = NAME) -> bytes:
    """The first flight that Python sends."""
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def context(
    *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, protocols: tuple[str, ...] = ("h2",)
) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.maximum_version = newest
    made.set_alpn_protocols(list(protocols))
    return made


HELLOS = {
    "tls 1.3": hello_of(context()),
    "tls 1.2": hello_of(context(newest=ssl.TLSVersion.TLSv1_2)),
    "many protocols": hello_of(context(protocols=tuple(f"protocol-{n}" for n in range(200)))),
    "defaults": hello_of(ssl.create_default_context()),
}
WHOLE = HELLOS["tls 1.3"]


def read(data: bytes, pieces: list[int]) -> str | None:
    """Feed data cut at some places. Every byte is fed, and nothing after the name."""
    reader, found, start = HelloReader(), None, 0
    for end in [*sorted(set(pieces) & set(range(1, len(data)))), len(data)]:
        found = reader.feed(data[start:end])
        start = end
        if found is not None:
            break
    assert reader.data == data[:start]
    return found


def in_records(hello: bytes, cuts: list[int]) -> bytes:
    """The same handshake message in several records."""
    message, out, start = hello[HEADER:], b"", 0
    for end in [*sorted(set(cuts) & set(range(1, len(message)))), len(message)]:
        part = message[start:end]
        out += hello[:3] + len(part).to_bytes(2, "big") + part
        start = end
    return out


async def grpc_hello() -> bytes:
    """The first flight that gRPC sends."""
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(MAX_HELLO_BYTES)
        writer.close()
        if not came.done():
            came.set_result(data)

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = (("grpc.ssl_target_name_override", NAME),)
        credentials = grpc.ssl_channel_credentials()
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            channel.get_state(try_to_connect=True)
            return await asyncio.wait_for(came, 10)


async def test_the_hello_of_grpc_names_the_worker() -> None:
    hello = await grpc_hello()
    assert read(hello, []) == NAME
    assert read(hello, list(range(len(hello)))) == NAME


@settings(deadline=None)
@given(
    st.sampled_from(sorted(HELLOS)),
    st.lists(st.integers(1, 4000), max_size=40),
    st.lists(st.integers(1, 4000), max_size=40),
)
def test_a_hello_is_read_however_it_is_cut(name: str, pieces: list[int], cuts: list[int]) -> None:
    assert read(in_records(HELLOS[name], cuts), pieces) == NAME


@given(st.integers(0, len(WHOLE) - 1))
def test_a_hello_that_is_not_whole_names_nobody_yet(length: int) -> None:
    assert HelloReader().feed(WHOLE[:length]) is None


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=8))
def test_a_damaged_hello_is_read_or_refused_and_nothing_else(
    changes: list[tuple[int, int]],
) -> None:
    damaged = bytearray(WHOLE)
    for at, value in changes:
        damaged[at] = value
    for pieces in ([], list(range(0, len(WHOLE), 7))):
        try:
            found = read(bytes(damaged), pieces)
        except HelloRefused:
            continue
        assert found is None or found.isascii()


@given(st.binary(max_size=600), st.lists(st.integers(1, 600), max_size=10))
def test_garbage_is_refused_or_awaited_and_nothing_else(data: bytes, pieces: list[int]) -> None:
    for prefix in (b"", WHOLE[:9], WHOLE[:43]):
        try:
            found = read(prefix + data, pieces) if prefix + data else None
        except HelloRefused:
            continue
        assert found is None


@given(st.binary(min_size=1, max_size=64))
def test_what_follows_a_hello_is_kept_and_not_read(more: bytes) -> None:
    reader = HelloReader()
    assert reader.feed(WHOLE + more) == NAME
    assert bytes(reader.data) == WHOLE + more


def test_a_hello_that_never_ends_is_refused_at_its_bound() -> None:
    """One byte a record: each byte is looked at once, or this would take minutes."""
    reader, sent = HelloReader(), 0
    message = b"\x01" + (MAX_HELLO_BYTES - 4).to_bytes(3, "big") + bytes(MAX_HELLO_BYTES)
    with pytest.raises(HelloRefused, match="at most"):
        for byte in message:
            for piece in (b"\x16", b"\x03\x01", b"\x00\x01", bytes([byte])):
                sent += len(piece)
                assert reader.feed(piece) is None
    assert sent <= MAX_HELLO_BYTES + HEADER


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda h: b"\x17" + h[1:], "not a TLS handshake"),
        (lambda h: h[:1] + b"\x02" + h[2:], "not a version"),
        (lambda h: h[:3] + b"\x00\x00" + h[5:], "no content"),
        (lambda h: h[:3] + b"\xff\xff" + h[5:], "no content or too much"),
        (lambda h: h[:5] + b"\x02" + h[6:], "does not begin"),
        (lambda h: h[:6] + b"\x7f" + h[7:], "at most"),
        (lambda h: h[:3] + (len(h) - 4).to_bytes(2, "big") + h[5:] + b"\0", "goes on"),
    ],
)
def test_each_broken_frame_is_named(damage: object, why: str) -> None:
    assert callable(damage)
    with pytest.raises(HelloRefused, match=why):
        HelloReader().feed(damage(WHOLE))


def test_a_hello_without_a_name_is_refused() -> None:
    with pytest.raises(HelloRefused, match="names no server"):
        HelloReader().feed(hello_of(context(), None))


def test_a_name_that_is_there_twice_is_refused() -> None:
    at = WHOLE.index(NAME.encode()) - 9
    extension = WHOLE[at : at + 9 + len(NAME)]
    message = bytearray(
        WHOLE[HEADER : at + len(extension)] + extension + WHOLE[at:][len(extension) :]
    )
    grown = len(extension)
    # The lengths of the message and of all extensions. The latter stands after fixed parts.
    message[1:4] = (int.from_bytes(message[1:4], "big") + grown).to_bytes(3, "big")
    place = 4 + 2 + 32
    place += 1 + message[place]
    place += 2 + int.from_bytes(message[place : place + 2], "big")
    place += 1 + message[place]
    total = int.from_bytes(message[place : place + 2], "big") + grown
    message[place : place + 2] = total.to_bytes(2, "big")
    with pytest.raises(HelloRefused, match="there twice"):
        HelloReader().feed(WHOLE[:3] + len(message).to_bytes(2, "big") + bytes(message))


@given(st.binary(min_size=20, max_size=20))
def test_a_server_name_leads_back_to_its_operator(operator: bytes) -> None:
    name = server_name(Address(operator))
    assert named_operator(name) == named_operator(name.upper()) == operator


@pytest.mark.parametrize(
    "name", ["", "piecework", NAME[1:], "0" + NAME, NAME + ".", NAME + "\n", "g" + NAME[1:]]
)
def test_other_names_lead_to_nobody(name: str) -> None:
    assert named_operator(name) is None
