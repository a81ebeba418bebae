"""Step records and canvas records for the golden vectors of the trace (clause 7.1)."""

from __future__ import annotations

import struct
from typing import Any

from piecework_protocol.merkle import InclusionProof
from piecework_protocol.objects import Kind
from piecework_protocol.trace import (
    CanvasField,
    CanvasRecord,
    EmbeddingType,
    StepField,
    StepRecord,
    open_field,
    pinned_root,
    soft_field,
    trace_root,
    write_bits,
    write_ids,
)
from piecework_protocol.types import Digest, keccak256

SIZES = (1, 3, 32)
STEPS = 4
VOCABULARY = 262_144
PINS: dict[int, tuple[tuple[int, int], ...]] = {
    1: (),
    3: ((0, 7),),
    32: tuple((2 * i, 1000 + i) for i in range(11)),
}
"""Pinned positions of the canvas of each size."""


def step(size: int, index: int) -> StepRecord:
    """Make one step of a canvas of `size` tokens. Its values are fixed and arbitrary."""
    ids = [(7919 * (index + 1) * (position + 1)) % VOCABULARY for position in range(size)]
    accepted = [(position + index) % 3 == 0 for position in range(size)]
    numbers = [(position + index) / 8 for position in range(3 * size)]
    return StepRecord(
        canvas=size,
        step=index,
        before=write_ids(ids),
        after=write_ids(ids[::-1]),
        argmax=write_ids([VOCABULARY - 1 - token for token in ids]),
        accepted=write_bits(accepted),
        soft=soft_field(EmbeddingType(1 + index % 3), bytes([index]) * 64),
        fingerprint=struct.pack(f"<{3 * size}e", *numbers),
    )


def canvas(size: int) -> CanvasRecord:
    """Make the canvas record of the canvas of `size` tokens."""
    return CanvasRecord(
        canvas=size,
        size=size,
        vocab_size=VOCABULARY,
        kind=Kind.READ if size == 3 else Kind.TEXT,
        seed=2**64 - size,
        parameters=keccak256(b"parameters"),
        content=Digest(keccak256(b"content")),
        pinned=pinned_root(PINS[size]),
        prompt_tokens=321,
    )


def vectors() -> dict[str, Any]:
    """All fields of each canvas, their proofs, the leaves and the trace root."""
    return {"cases": [_case(size) for size in SIZES]}


def _case(size: int) -> dict[str, Any]:
    record, steps = canvas(size), [step(size, index) for index in range(STEPS)]
    leaves = [record.leaf(), *(step.leaf() for step in steps)]
    return {
        "canvas": size,
        "size": size,
        "vocabulary": record.vocab_size,
        "kind": int(record.kind),
        "seed": str(record.seed),
        "promptTokens": record.prompt_tokens,
        "pins": [{"position": position, "id": token} for position, token in PINS[size]],
        "pinned": _hex(record.pinned),
        "leaves": [_hex(leaf) for leaf in leaves],
        "root": _hex(trace_root(leaves)),
        "canvasFields": [_opened(record.fields(), field) for field in CanvasField],
        "stepFields": [[_opened(step.fields(), field) for field in StepField] for step in steps],
    }


def _opened(fields: tuple[bytes, ...], field: StepField | CanvasField) -> dict[str, Any]:
    opened = open_field(fields, field)
    return {"data": _hex(opened.data), "proof": _proof(opened.proof)}


def _proof(proof: InclusionProof) -> dict[str, Any]:
    return {
        "index": proof.index,
        "count": proof.count,
        "siblings": [_hex(sibling) for sibling in proof.siblings],
    }


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
