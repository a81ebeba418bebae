"""Leaves of canvases that nobody denoised."""

from __future__ import annotations

from piecework_protocol.types import Digest, keccak256


def made_up_leaves(what: bytes, steps: int) -> tuple[Digest, ...]:
    """As many leaves as a canvas of so many steps has, different for each `what`."""
    count = steps + 1 if steps else 0
    return tuple(Digest(keccak256(what + index.to_bytes(4, "big"))) for index in range(count))
