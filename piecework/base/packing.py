"""Bodies that are packed (`Content-Encoding`), taken out a bounded piece at a time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from piecework.base.errors import PieceworkError


class BadPacking(PieceworkError):
    """Packed bytes that cannot be unpacked. `known` says whether it is their packing that is."""

    def __init__(self, message: str, *, known: bool = True) -> None:
        super().__init__(message)
        self.known = known


class UnpackedStream(Protocol):
    """What the decompressors of the libraries have in common."""

    @property
    def eof(self) -> bool:
        """Whether the end of the packed bytes was seen."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What follows that end."""
        ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """Unpack at most so many bytes."""
        ...


@dataclass(frozen=True, slots=True)
class Packing:
    """How one packing is undone. `error` is what its library raises for damaged bytes."""

    open: Callable[[], UnpackedStream]
    error: type[Exception]


Packings = Mapping[str, Packing]


def _zlib() -> UnpackedStream:
    """32: the header says whether it is gzip or zlib."""
    return zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)


_ZLIB: Final = Packing(_zlib, zlib.error)
PACKINGS: Final[Packings] = {"gzip": _ZLIB, "x-gzip": _ZLIB, "deflate": _ZLIB}
"""Those that need no library."""


class Unpacker:
    """Takes one body out of its packing."""

    def __init__(self, packing: str, limit: int, packings: Packings = PACKINGS) -> None:
        """packing: as the header names it. limit: bytes of the unpacked body.

        Raises:
            BadPacking: the packing is not among `packings`.
        """
        name = packing.strip().lower()
        plain = name in ("", "identity")
        if not plain and name not in packings:
            raise BadPacking("it has an encoding that was not asked for", known=False)
        self._stream = None if plain else packings[name].open()
        self._errors = () if plain else (packings[name].error,)
        self._room = limit + 1  # one more byte than allowed shows that there is more

    def __call__(self, chunk: bytes) -> bytes:
        """Unpack the next bytes. At most one byte more than the limit comes out in all.

        Raises:
            BadPacking: the bytes are damaged.
        """
        if self._stream is None:
            return chunk
        if self._stream.eof:
            raise BadPacking("it is damaged")
        try:
            piece = self._stream.decompress(chunk, max(1, self._room))
        except self._errors:
            raise BadPacking("it is damaged") from None
        self._room -= len(piece)
        return piece

    def finish(self) -> None:
        """Check that nothing is missing and nothing follows.

        Raises:
            BadPacking: it is so.
        """
        stream = self._stream
        if stream is not None and (not stream.eof or stream.unused_data):
            raise BadPacking("it is damaged")
