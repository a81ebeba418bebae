"""The canonical bytes of contents and outputs (clause 3.3): each value has exactly one encoding.

Whole numbers are big-endian and of a fixed width. A text is its length in bytes as uint32, then
UTF-8. A list is its length, then its members. Nothing nests deeper than the types say: a parser at
its recursion limit is a crash that a stranger can send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from piecework_protocol.errors import MalformedInput

T = TypeVar("T")


class Writer:
    """Puts values behind each other. `bytes(writer)` is what it has so far."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    def number(self, value: int, width: int) -> None:
        """Add an unsigned number of `width` bytes.

        Raises:
            MalformedInput: It does not fit.
        """
        try:
            self._parts.append(value.to_bytes(width, "big"))
        except OverflowError:
            raise MalformedInput(f"{value} does not fit {width} bytes") from None

    def data(self, value: bytes) -> None:
        """Add bytes behind their length."""
        self.number(len(value), 4)
        self._parts.append(value)

    def text(self, value: str) -> None:
        """Add a text behind its length.

        Raises:
            MalformedInput: It has lone surrogates, which UTF-8 cannot encode.
        """
        try:
            self.data(value.encode())
        except UnicodeEncodeError:
            raise MalformedInput("a text is what UTF-8 can encode") from None


class Reader:
    """Takes values from the front. Its errors name the defect and never the content.

    what: names the bytes in errors, such as "a prompt".
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def fail(self, defect: str) -> MalformedInput:
        """Return the error that the bytes have this defect."""
        return MalformedInput(f"{self._what} {defect}")

    def number(self, width: int) -> int:
        """Take an unsigned number of `width` bytes.

        Raises:
            MalformedInput: The bytes end before it.
        """
        return int.from_bytes(self._take(width), "big")

    def data(self) -> bytes:
        """Take bytes that stand behind their length.

        Raises:
            MalformedInput: The bytes end before them.
        """
        return self._take(self.number(4))

    def text(self) -> str:
        """Take a text that stands behind its length.

        Raises:
            MalformedInput: The bytes end before it, or it is not UTF-8.
        """
        try:
            return self.data().decode()
        except UnicodeDecodeError:
            raise self.fail("has a text that is not UTF-8") from None

    def flag(self) -> bool:
        """Take one byte that is 0 or 1.

        Raises:
            MalformedInput: It is another, or missing.
        """
        value = self.number(1)
        if value > 1:
            raise self.fail("has a flag that is neither 0 nor 1")
        return bool(value)

    def items(self, read: Callable[[Reader], T], most: int) -> tuple[T, ...]:
        """Take a list: its length as uint32, then `read` for each member.

        Raises:
            MalformedInput: It announces more than `most`, or a member is malformed.
        """
        count = self.number(4)
        if count > most:
            raise self.fail(f"has a list of more than {most}")
        return tuple(read(self) for _ in range(count))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left."""
        return self._at == len(self._data)

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            MalformedInput: Bytes are left.
        """
        if self._at != len(self._data):
            raise self.fail("has bytes left at its end")

    def _take(self, length: int) -> bytes:
        if len(self._data) - self._at < length:
            raise self.fail("ends too early")
        self._at += length
        return self._data[self._at - length : self._at]
