"""The trace has its recorded bytes. The leaves are computed again by plain hashing."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from piecework_protocol import merkle
from piecework_protocol.merkle import InclusionProof
from piecework_protocol.types import Bytes32, keccak256
from tests.vectors import traces

VECTORS: dict[str, Any] = json.loads((Path(traces.__file__).parent / "trace.json").read_text())
CASES = {case["size"]: case for case in VECTORS["cases"]}


def recorded(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


def tree(leaves: list[bytes]) -> bytes:
    """The root of RFC 9162 by its recursive definition, over Keccak-256."""
    if len(leaves) == 1:
        return keccak256(b"\0" + leaves[0])
    half = 1
    while 2 * half < len(leaves):
        half *= 2
    return keccak256(b"\1" + tree(leaves[:half]) + tree(leaves[half:]))


def leaf(fields: list[dict[str, Any]]) -> bytes:
    return tree([hashlib.sha256(recorded(field["data"])).digest() for field in fields])


@pytest.mark.parametrize("size", traces.SIZES)
def test_every_record_has_its_recorded_fields(size: int) -> None:
    case = CASES[size]
    fields = tuple(recorded(field["data"]) for field in case["canvasFields"])
    assert traces.canvas(size).fields() == fields
    for index, step in enumerate(case["stepFields"]):
        recorded_fields = tuple(recorded(field["data"]) for field in step)
        assert traces.step(size, index).fields() == recorded_fields


@pytest.mark.parametrize("size", traces.SIZES)
def test_leaves_and_root_are_those_of_plain_hashing(size: int) -> None:
    case = CASES[size]
    leaves = [recorded(text) for text in case["leaves"]]
    assert [leaf(case["canvasFields"]), *map(leaf, case["stepFields"])] == leaves
    assert tree(leaves) == recorded(case["root"])
    assert len(leaves) == traces.STEPS + 1


@pytest.mark.parametrize("size", traces.SIZES)
def test_the_pinned_field_is_the_tree_over_the_pins(size: int) -> None:
    case = CASES[size]
    pins = [
        hashlib.sha256(struct.pack("<II", pin["position"], pin["id"])).digest()
        for pin in case["pins"]
    ]
    assert recorded(case["pinned"]) == (tree(pins) if pins else keccak256(b""))
    assert recorded(case["canvasFields"][4]["data"]) == recorded(case["pinned"])


@pytest.mark.parametrize("size", traces.SIZES)
def test_every_recorded_proof_opens_its_field(size: int) -> None:
    case = CASES[size]
    opened = [case["canvasFields"], *case["stepFields"]]
    for fields, parent in zip(opened, case["leaves"], strict=True):
        for index, field in enumerate(fields):
            siblings = tuple(Bytes32(recorded(text)) for text in field["proof"]["siblings"])
            proof = InclusionProof(field["proof"]["index"], field["proof"]["count"], siblings)
            digest = hashlib.sha256(recorded(field["data"])).digest()
            assert (proof.index, proof.count) == (index, len(fields))
            assert merkle.verify(proof, digest, recorded(parent))
