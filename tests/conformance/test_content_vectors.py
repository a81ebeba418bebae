"""Contents and outputs have their recorded bytes and digests, and read back from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from piecework_protocol.content import content_digest, output_digest
from piecework_protocol.kinds import KINDS
from piecework_protocol.objects import Kind
from piecework_protocol.outlines import Outline
from piecework_protocol.types import JobId, keccak256
from tests.vectors import contents

FILE = Path(contents.__file__).parent / "contents.json"
VECTORS: dict[str, Any] = json.loads(FILE.read_text())


def recorded(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


@pytest.mark.parametrize("name", contents.contents())
def test_a_content_has_its_recorded_bytes_digest_and_outline(name: str) -> None:
    content, case = contents.contents()[name], VECTORS["contents"][name]
    data = recorded(case["bytes"])
    assert content.encode() == data and content.kind == case["kind"]
    assert KINDS[Kind(case["kind"])].decode_content(data) == content
    salt = recorded(VECTORS["salt"])
    assert recorded(case["digest"]) == content_digest(contents.SALT, data)
    assert recorded(case["digest"]) == keccak256(salt + data)
    assert Outline.decode(recorded(case["outline"])) == content.outline


@pytest.mark.parametrize("name", contents.outputs())
def test_an_output_has_its_recorded_bytes_and_digest(name: str) -> None:
    output, case = contents.outputs()[name], VECTORS["outputs"][name]
    data = recorded(case["bytes"])
    assert output.encode() == data and output.units == case["units"]
    kind = Kind[name.partition(":")[0].upper()]
    assert KINDS[kind].decode_output(data) == output
    job = JobId(contents.JOB)
    assert recorded(case["digest"]) == output_digest(job, 3, data)


def test_every_recorded_value_is_compared_and_every_kind_is_among_them() -> None:
    assert set(VECTORS["contents"]) == set(contents.contents())
    assert set(VECTORS["outputs"]) == set(contents.outputs())
    assert {case["kind"] for case in VECTORS["contents"].values()} == set(KINDS)
