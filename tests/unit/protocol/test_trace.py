"""The trace: the exact bytes of its fields, what moves a leaf, and what opens."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Callable
from typing import Any

import pytest

from piecework_protocol import merkle
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CANVAS_TOKENS, MAX_CANVASES_PER_JOB, MAX_DENOISING_STEPS
from piecework_protocol.merkle import InclusionProof
from piecework_protocol.objects import Kind
from piecework_protocol.trace import (
    CanvasField,
    CanvasRecord,
    EmbeddingType,
    OpenedField,
    StepField,
    StepHeader,
    StepRecord,
    open_field,
    pinned_leaf,
    pinned_root,
    read_bits,
    read_fingerprint,
    read_ids,
    soft_field,
    trace_root,
    write_bits,
    write_ids,
)

STEP = StepRecord(
    canvas=1,
    step=2,
    before=write_ids((3, 4, 5)),
    after=write_ids((3, 9, 262143)),
    argmax=write_ids((3, 4, 6)),
    accepted=b"\x05",
    soft=soft_field(EmbeddingType.BFLOAT16, b"soft"),
    fingerprint=struct.pack("<9e", *range(9)),
)
CANVAS = CanvasRecord(
    canvas=1,
    size=3,
    vocab_size=262144,
    kind=Kind.TEXT,
    seed=2**64 - 2,
    parameters=b"\1" * 32,
    content=b"\2" * 32,
    pinned=merkle.EMPTY_ROOT,
    prompt_tokens=321,
)


def test_the_fields_of_a_step_have_the_documented_bytes() -> None:
    assert STEP.fields() == (
        b"piecework/step/2" + struct.pack("<III", 1, 2, 3),
        struct.pack("<3I", 3, 4, 5),
        struct.pack("<3I", 3, 9, 262143),
        struct.pack("<3I", 3, 4, 6),
        b"\x05",
        b"\x02" + hashlib.sha256(b"\x02soft").digest(),
        struct.pack("<9e", *range(9)),
    )


def test_the_fields_of_a_canvas_have_the_documented_bytes() -> None:
    assert CANVAS.fields() == (
        b"piecework/canvas/1" + struct.pack("<III", 1, 3, 262144) + b"\0",
        struct.pack("<Q", 2**64 - 2),
        b"\1" * 32,
        b"\2" * 32,
        merkle.EMPTY_ROOT,
        struct.pack("<I", 321),
    )


def test_what_is_written_reads_back() -> None:
    assert StepRecord.parse(STEP.fields()) == STEP
    assert CanvasRecord.parse(CANVAS.fields()) == CANVAS
    assert StepHeader.parse(STEP.fields()[0]) == StepHeader(1, 2, 3)
    assert read_ids(STEP.after) == (3, 9, 262143)
    assert read_bits(STEP.accepted, 3) == (True, False, True)
    assert write_bits((True, False, True)) == STEP.accepted
    assert read_fingerprint(STEP.fingerprint) == ((0, 1, 2), (3, 4, 5), (6, 7, 8))


STEP_CHANGES: list[dict[str, Any]] = [
    {"canvas": 2},
    {"step": 3},
    {"before": write_ids((3, 4, 4))},
    {"after": write_ids((3, 9, 5))},
    {"argmax": write_ids((3, 4, 7))},
    {"accepted": b"\x07"},
    {"soft": soft_field(EmbeddingType.FLOAT16, b"soft")},
    {"fingerprint": bytes(18)},
]
CANVAS_CHANGES: list[dict[str, Any]] = [
    {"canvas": 2},
    {"size": 4},
    {"vocab_size": 262143},
    {"kind": Kind.READ},
    {"seed": 0},
    {"parameters": b"\2" * 32},
    {"content": b"\1" * 32},
    {"pinned": pinned_root([(0, 3)])},
    {"prompt_tokens": 322},
]


@pytest.mark.parametrize("change", STEP_CHANGES, ids=str)
def test_every_member_of_a_step_moves_its_leaf(change: dict[str, Any]) -> None:
    assert dataclasses.replace(STEP, **change).leaf() != STEP.leaf()


@pytest.mark.parametrize("change", CANVAS_CHANGES, ids=str)
def test_every_member_of_a_canvas_moves_its_leaf(change: dict[str, Any]) -> None:
    assert dataclasses.replace(CANVAS, **change).leaf() != CANVAS.leaf()


@pytest.mark.parametrize(
    "change",
    [
        {"canvas": -1},
        {"canvas": MAX_CANVASES_PER_JOB},
        {"step": MAX_DENOISING_STEPS},
        {"before": bytes(11)},
        {"before": b""},
        {"before": bytes(4 * (MAX_CANVAS_TOKENS + 1))},
        {"after": write_ids((1,))},
        {"argmax": b""},
        {"accepted": b"\0\0"},
        {"accepted": b"\x08"},
        {"soft": b""},
        {"soft": b"\0" + bytes(32)},
        {"soft": b"\4" + bytes(32)},
        {"fingerprint": bytes(17)},
    ],
    ids=str,
)
def test_a_step_of_other_lengths_or_ranges_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedInput):
        dataclasses.replace(STEP, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"canvas": MAX_CANVASES_PER_JOB},
        {"size": 0},
        {"size": MAX_CANVAS_TOKENS + 1},
        {"vocab_size": 0},
        {"vocab_size": 2**32},
        {"seed": 2**64},
        {"parameters": bytes(31)},
        {"content": bytes(33)},
        {"pinned": b""},
        {"prompt_tokens": -1},
    ],
    ids=str,
)
def test_a_canvas_of_other_lengths_or_ranges_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedInput):
        dataclasses.replace(CANVAS, **change)


@pytest.mark.parametrize(
    ("parse", "fields"),
    [
        (StepRecord.parse, STEP.fields()[:-1]),
        (StepRecord.parse, (STEP.fields()[0][:-1], *STEP.fields()[1:])),
        (StepRecord.parse, (b"piecework/step/1" + STEP.fields()[0][16:], *STEP.fields()[1:])),
        (StepRecord.parse, (STEP.fields()[0][:-4] + b"\4\0\0\0", *STEP.fields()[1:])),
        (CanvasRecord.parse, CANVAS.fields()[1:]),
        (CanvasRecord.parse, (CANVAS.fields()[0][:-1] + b"\5", *CANVAS.fields()[1:])),
        (CanvasRecord.parse, (b"x" + CANVAS.fields()[0][1:], *CANVAS.fields()[1:])),
        (CanvasRecord.parse, (CANVAS.fields()[0], b"", *CANVAS.fields()[2:])),
        (CanvasRecord.parse, (*CANVAS.fields()[:-1], bytes(8))),
    ],
)
def test_fields_that_are_not_those_of_a_leaf_are_malformed(
    parse: Callable[[tuple[bytes, ...]], object], fields: tuple[bytes, ...]
) -> None:
    with pytest.raises(MalformedInput):
        parse(fields)


@pytest.mark.parametrize("read", [read_ids, read_fingerprint])
def test_broken_numbers_are_malformed(read: Callable[[bytes], object]) -> None:
    with pytest.raises(MalformedInput):
        read(bytes(5))
    with pytest.raises(MalformedInput):
        read_bits(b"\0", 9)


@pytest.mark.parametrize("record", [STEP, CANVAS])
def test_each_field_opens_alone_and_only_as_itself(record: StepRecord | CanvasRecord) -> None:
    fields, kinds = record.fields(), StepField if isinstance(record, StepRecord) else CanvasField
    leaf, count = record.leaf(), len(kinds)
    for kind in kinds:
        opened = open_field(fields, kind)
        assert opened.data == fields[kind] and opened.proof.index == kind
        assert opened.belongs_to(leaf, count)
        assert not OpenedField(opened.data + b"\0", opened.proof).belongs_to(leaf, count)
        assert not opened.belongs_to(leaf, count + 1)
        assert not opened.belongs_to(leaf[::-1], count)
        moved = InclusionProof((kind + 1) % count, count, opened.proof.siblings)
        assert not OpenedField(opened.data, moved).belongs_to(leaf, count)


def test_pins_are_leaves_in_ascending_order() -> None:
    pins = [(0, 5), (2, 7), (9, 5)]
    leaves = [hashlib.sha256(struct.pack("<II", *pin)).digest() for pin in pins]
    assert pinned_root(pins) == merkle.root(leaves)
    assert [pinned_leaf(*pin) for pin in pins] == leaves
    assert pinned_root([]) == merkle.EMPTY_ROOT


@pytest.mark.parametrize(
    "pins",
    [[(1, 0), (0, 0)], [(1, 0), (1, 0)], [(-1, 0)], [(MAX_CANVAS_TOKENS, 0)], [(0, 2**32)]],
    ids=str,
)
def test_pins_that_do_not_ascend_or_fit_are_malformed(pins: list[tuple[int, int]]) -> None:
    with pytest.raises(MalformedInput):
        pinned_root(pins)


def test_the_trace_root_is_the_tree_over_the_leaves_and_empty_without_steps() -> None:
    leaves = [CANVAS.leaf(), STEP.leaf()]
    assert trace_root(leaves) == merkle.root(leaves)
    assert trace_root([]) == merkle.EMPTY_ROOT


def test_equal_bytes_of_different_number_types_have_different_digests() -> None:
    digests = {soft_field(kind, bytes(8))[1:] for kind in EmbeddingType}
    assert len(digests) == len(EmbeddingType)
    assert [kind.width for kind in EmbeddingType] == [4, 2, 2]
