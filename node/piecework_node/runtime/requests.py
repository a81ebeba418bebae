"""What a job takes of an engine, and its finished canvases as bytes."""

from __future__ import annotations

import struct

from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import KINDS
from piecework_protocol.objects import Job, ModelOffer
from piecework_protocol.pricing import canvases_for


def context_tokens(job: Job, model: ModelOffer) -> int:
    """Count the tokens of the context that a job's canvases take. Those of a read take turns."""
    kept = KINDS[job.kind].keeps_canvases
    canvases = canvases_for(model, job.parameters.max_tokens) if kept else 1
    return canvases * model.canvas_size


def pack_ids(ids: tuple[int, ...]) -> bytes:
    """Pack token ids as big-endian uint32, to be sealed to ourselves."""
    return struct.pack(f">{len(ids)}I", *ids)


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """Undo `pack_ids`."""
    if len(data) % 4:
        raise MalformedInput("packed token ids are a multiple of four bytes")
    return struct.unpack(f">{len(data) // 4}I", data)
