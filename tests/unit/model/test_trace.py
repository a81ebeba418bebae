"""The trace leaf: its exact bytes, and that every field of a step moves it."""

from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest

from piecework_model.sampling import trace


def ids(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


RECORD = trace.StepRecord(
    canvas=1,
    step=2,
    before=ids(3, 4, 5),
    after=ids(3, 9, 262143),
    argmax=ids(3, 4, 6),
    accepted=b"\x05",
    embedding_digest=bytes(range(32)),
    fingerprint=bytes(range(18)),
)


def test_the_preimage_has_the_documented_layout() -> None:
    expected = b"piecework/step/1" + struct.pack("<III", 1, 2, 3)
    expected += (
        struct.pack("<9I", 3, 4, 5, 3, 9, 262143, 3, 4, 6)
        + b"\x05"
        + bytes(range(32))
        + bytes(range(18))
    )
    assert trace.preimage(RECORD) == expected
    assert trace.leaf(RECORD) == hashlib.sha256(expected).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"canvas": 2},
        {"step": 3},
        {"before": ids(3, 4, 4)},
        {"after": ids(3, 9, 5)},
        {"argmax": ids(3, 4, 7)},
        {"accepted": b"\x07"},
        {"embedding_digest": bytes(32)},
        {"fingerprint": bytes(18)},
    ],
)
def test_every_field_moves_the_leaf(change: dict[str, object]) -> None:
    assert trace.leaf(dataclasses.replace(RECORD, **change)) != trace.leaf(RECORD)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"before": b"\x00" * 11},
        {"after": ids(1)},
        {"argmax": b""},
        {"accepted": b"\x00\x00"},
        {"fingerprint": b""},
        {"embedding_digest": b""},
    ],
)
def test_a_record_of_unequal_lengths_has_no_leaf(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="other lengths"):
        trace.leaf(dataclasses.replace(RECORD, **change))  # type: ignore[arg-type]


def test_equal_bytes_of_different_number_types_have_different_digests() -> None:
    assert trace.embedding_digest("float32", bytes(8)) != trace.embedding_digest(
        "bfloat16", bytes(8)
    )
