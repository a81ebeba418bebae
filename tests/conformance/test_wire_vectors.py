"""The bytes on the wire are the recorded ones, and what they decode to is the value they came
from."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from piecework_protocol import wire
from piecework_protocol.frames import ClientFrame, WorkerFrame
from piecework_protocol.objects import Channel, CloseChannel
from piecework_protocol.types import SIGNATURE_BYTES
from tests.vectors import generate

VECTORS: dict[str, Any] = json.loads((Path(generate.__file__).parent / "wire.json").read_text())
Codec = tuple[Callable[[Any], bytes], Callable[[bytes], Any]]
CODECS: dict[str, Codec] = {
    "clientFrames": (wire.encode_client_frame, wire.decode_client_frame),
    "workerFrames": (wire.encode_worker_frame, wire.decode_worker_frame),
    "offers": (wire.encode_offer, wire.decode_offer),
}
VALUES: dict[str, dict[str, Any]] = {
    "clientFrames": dict(generate.client_frames()),
    "workerFrames": dict(generate.worker_frames()),
    "offers": dict(generate.offers()),
}
CASES = [(group, name) for group, values in VALUES.items() for name in values]


def recorded(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


@pytest.mark.parametrize(("group", "name"), CASES)
def test_a_value_has_its_recorded_bytes_and_reads_back_from_them(group: str, name: str) -> None:
    (encode, decode), value = CODECS[group], VALUES[group][name]
    data = recorded(VECTORS[group][name])
    assert encode(value) == data
    assert decode(data) == value


@pytest.mark.parametrize("group", CODECS)
def test_every_recorded_value_is_compared(group: str) -> None:
    assert set(VALUES[group]) == set(VECTORS[group])


@pytest.mark.parametrize(
    ("group", "union"), [("clientFrames", ClientFrame), ("workerFrames", WorkerFrame)]
)
def test_every_kind_of_frame_has_recorded_bytes(group: str, union: Any) -> None:
    assert {type(v) for v in VALUES[group].values()} == set(typing.get_args(union))


def test_a_request_to_close_has_its_recorded_bytes_and_reads_back() -> None:
    objects = generate._objects()
    channel = next(o for o in objects if isinstance(o, Channel))
    final = next(o for o in objects if isinstance(o, CloseChannel))
    signature = generate._signed(final)
    data = recorded(VECTORS["closeRequest"])
    assert wire.encode_close_request(channel, final, signature) == data
    assert wire.decode_close_request(data) == (channel, final, signature)


@pytest.mark.parametrize("name", VECTORS["closeResponses"])
def test_a_response_to_a_close_reads_back_from_its_recorded_bytes(name: str) -> None:
    data = recorded(VECTORS["closeResponses"][name])
    signature, transaction = wire.decode_close_response(data)
    assert wire.encode_close_response(signature, transaction) == data
    assert len(signature) == SIGNATURE_BYTES
    assert len(transaction) == (32 if name == "submitted" else 0)
