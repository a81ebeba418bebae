"""The trace leaf: its exact bytes, and that every field of a step moves it."""

import dataclasses
import hashlib
import struct

import pytest

from model import trace

RECORD = trace.StepRecord(
    canvas=1,
    step=2,
    before=(3, 4, 5),
    after=(3, 9, 262143),
    argmax=(3, 4, 6),
    accepted=(True, False, True),
    embedding_digest=bytes(range(32)),
    fingerprint=bytes(range(18)),
)


def test_the_preimage_has_the_documented_layout() -> None:
    expected = b"piecework/step/1" + struct.pack("<III", 1, 2, 3)
    expected += (
        struct.pack("<9I", 3, 4, 5, 3, 9, 262143, 3, 4, 6) + b"\x05" + bytes(range(32)) + bytes(range(18))
    )
    assert trace.preimage(RECORD) == expected
    assert trace.leaf(RECORD) == hashlib.sha256(expected).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"canvas": 2},
        {"step": 3},
        {"before": (3, 4, 4)},
        {"after": (3, 9, 5)},
        {"argmax": (3, 4, 7)},
        {"accepted": (True, True, True)},
        {"embedding_digest": bytes(32)},
        {"fingerprint": bytes(18)},
    ],
)
def test_every_field_moves_the_leaf(change: dict[str, object]) -> None:
    assert trace.leaf(dataclasses.replace(RECORD, **change)) != trace.leaf(RECORD)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [{"after": (1,)}, {"argmax": ()}, {"accepted": (True,)}, {"fingerprint": b""}, {"embedding_digest": b""}],
)
def test_a_record_of_unequal_lengths_has_no_leaf(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="other lengths"):
        trace.leaf(dataclasses.replace(RECORD, **change))  # type: ignore[arg-type]


def test_accepted_positions_fill_bytes_from_the_lowest_bit() -> None:
    assert trace.bitmap((True,) + (False,) * 7 + (False, True)) == b"\x01\x02"


def test_equal_bytes_of_different_number_types_have_different_digests() -> None:
    assert trace.embedding_digest("float32", bytes(8)) != trace.embedding_digest("bfloat16", bytes(8))
