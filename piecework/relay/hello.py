"""Read the server name out of a TLS ClientHello, and nothing else. Pure.

The reader takes bytes as they come and keeps no more than it needs. It reads each byte once, so
that one byte at a time costs no more than all at once. It accepts what RFC 8446 (4.1.2, 5.1) and
RFC 6066 (3) allow for a first flight and refuses the rest.
"""

from __future__ import annotations

from typing import Final

from piecework.base.errors import PieceworkError

MAX_HELLO_BYTES: Final = 16 * 1024
"""Of all records together, with their headers. A hello with post-quantum key shares takes 2 KiB."""
HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_MAX_RECORD: Final = 2**14
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_MAX_NAME: Final = 255


class HelloRefused(PieceworkError):
    """These bytes are not a ClientHello that a relay passes on."""


class HelloReader:
    """Collects the first bytes of a client until they hold a whole ClientHello.

    `data` is all that came, to be passed on as it is.
    """

    def __init__(self) -> None:
        self.data = bytearray()
        self._message = bytearray()
        self._next_record = 0

    def feed(self, data: bytes) -> str | None:
        """Take more bytes. Return the server name once the hello is whole, else None.

        Raises:
            HelloRefused: This is not a ClientHello, it names no server, or it is too large.
        """
        self.data += data
        while self._take_record():
            needed = self._needed()
            if needed is None or len(self._message) < needed:
                continue
            if len(self._message) > needed:
                raise HelloRefused("a record goes on behind the ClientHello")
            return _server_name(_Bytes(self._message, _MESSAGE_HEADER, needed))
        if len(self.data) > MAX_HELLO_BYTES:
            raise _too_large()
        return None

    def _take_record(self) -> bool:
        """Move the next record's content to the message. False: it is not whole yet."""
        at, came = self._next_record, len(self.data)
        if came > at and self.data[at] != HANDSHAKE:
            raise HelloRefused("not a TLS handshake")
        if came > at + 1 and self.data[at + 1] != 3:
            raise HelloRefused("not a version of TLS")
        if came < at + _RECORD_HEADER:
            return False
        length = int.from_bytes(self.data[at + 3 : at + _RECORD_HEADER], "big")
        if not 1 <= length <= _MAX_RECORD:
            raise HelloRefused("a record has no content or too much")
        end = at + _RECORD_HEADER + length
        if end > MAX_HELLO_BYTES:
            raise _too_large()
        if came < end:
            return False
        self._message += self.data[at + _RECORD_HEADER : end]
        self._next_record = end
        return True

    def _needed(self) -> int | None:
        """The size of the whole message, its header included."""
        if self._message[0] != _CLIENT_HELLO:
            raise HelloRefused("the handshake does not begin with a ClientHello")
        if len(self._message) < _MESSAGE_HEADER:
            return None
        length = _MESSAGE_HEADER + int.from_bytes(self._message[1:_MESSAGE_HEADER], "big")
        if length > MAX_HELLO_BYTES:
            raise _too_large()
        return length


def _too_large() -> HelloRefused:
    return HelloRefused(f"a ClientHello is at most {MAX_HELLO_BYTES} bytes")


class _Bytes:
    """A part of a message that is read from its start to its end."""

    def __init__(self, data: bytearray, start: int, end: int) -> None:
        self._data, self._at, self._end = data, start, end

    @property
    def is_empty(self) -> bool:
        return self._at == self._end

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytearray:
        return self._data[self._skip(size) : self._at]

    def vector(self, length_size: int, least: int, most: int) -> _Bytes:
        """A part that begins with its own length."""
        length = self.number(length_size)
        if not least <= length <= most:
            raise HelloRefused("a part of the ClientHello has a wrong length")
        start = self._skip(length)
        return _Bytes(self._data, start, self._at)

    def rest(self) -> bytearray:
        return self.take(self._end - self._at)

    def _skip(self, size: int) -> int:
        start = self._at
        if start + size > self._end:
            raise HelloRefused("the ClientHello ends early")
        self._at += size
        return start

    def done(self) -> None:
        if not self.is_empty:
            raise HelloRefused("the ClientHello has bytes behind its end")


def _server_name(hello: _Bytes) -> str:
    hello.take(2)  # legacy_version
    hello.take(32)  # random
    hello.vector(1, 0, 32)  # legacy_session_id
    if len(hello.vector(2, 2, 2**16 - 2).rest()) % 2:
        raise HelloRefused("a cipher suite has two bytes")
    hello.vector(1, 1, 2**8 - 1)  # legacy_compression_methods
    if hello.is_empty:
        raise _nameless()
    extensions = hello.vector(2, 0, 2**16 - 1)
    hello.done()
    found, seen = "", set()
    while not extensions.is_empty:
        kind, content = extensions.number(2), extensions.vector(2, 0, 2**16 - 1)
        if kind in seen:
            raise HelloRefused("an extension is there twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            found = _host_name(content)
    if not found:
        raise _nameless()
    return found


def _host_name(extension: _Bytes) -> str:
    names = extension.vector(2, 1, 2**16 - 1)
    extension.done()
    if names.number(1) != _HOST_NAME:
        raise HelloRefused("a server name of an unknown kind")
    name = names.vector(2, 1, _MAX_NAME).rest()
    names.done()
    try:
        return name.decode("ascii")
    except UnicodeDecodeError:
        raise HelloRefused("a server name is ASCII") from None


def _nameless() -> HelloRefused:
    return HelloRefused("the ClientHello names no server")
