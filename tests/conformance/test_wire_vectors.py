"""The bytes on the wire are the recorded ones, and what they decode to is the value they came
from."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from piecework_protocol import wire
from piecework_protocol.frames import ClientFrame, WorkerFrame
from tests.vectors import generate

VECTORS: dict[str, Any] = json.loads((Path(generate.__file__).parent / "wire.json").read_text())
Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
KINDS_OF_CALLS = {name: type(value) for name, value in generate.calls().items()}
CODECS: dict[str, Codec] = {
    "clientFrames": (wire.encode_client_frame, wire.decode_client_frame),
    "workerFrames": (wire.encode_worker_frame, wire.decode_worker_frame),
    "offers": (wire.encode_offer, wire.decode_offer),
}
VALUES: dict[str, dict[str, Any]] = {
    "clientFrames": dict(generate.client_frames()),
    "workerFrames": dict(generate.worker_frames()),
    "offers": dict(generate.offers()),
    "calls": dict(generate.calls()),
}
CASES = [(group, name) for group, values in VALUES.items() for name in values]


def _call(name: str) -> Codec:
    return wire.encode_call, partial(wire.decode_call, KINDS_OF_CALLS[name])


def recorded(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


@pytest.mark.parametrize(("group", "name"), CASES)
def test_a_value_has_its_recorded_bytes_and_reads_back_from_them(group: str, name: str) -> None:
    value = VALUES[group][name]
    encode, decode = CODECS[group] if group in CODECS else _call(name)
    data = recorded(VECTORS[group][name])
    assert encode(value) == data
    assert decode(data) == value


@pytest.mark.parametrize("group", VALUES)
def test_every_recorded_value_is_compared(group: str) -> None:
    assert set(VALUES[group]) == set(VECTORS[group])


@pytest.mark.parametrize(
    ("group", "union"), [("clientFrames", ClientFrame), ("workerFrames", WorkerFrame)]
)
def test_every_kind_of_frame_has_recorded_bytes(group: str, union: Any) -> None:
    assert {type(v) for v in VALUES[group].values()} == set(typing.get_args(union))


def test_every_kind_of_call_has_recorded_bytes() -> None:
    assert {type(v) for v in VALUES["calls"].values()} == set(typing.get_args(wire.CallMessage))
