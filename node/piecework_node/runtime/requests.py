"""A job's finished canvases as bytes."""

from __future__ import annotations

import struct

from piecework_protocol.errors import MalformedInput


def pack_ids(ids: tuple[int, ...]) -> bytes:
    """Pack token ids as big-endian uint32, to be sealed to ourselves."""
    return struct.pack(f">{len(ids)}I", *ids)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """Undo `pack_ids`."""
    if len(data) % 4:
        raise MalformedInput("packed token ids are a multiple of four bytes")
    return struct.unpack(f">{len(data) // 4}I", data)
