"""Bytes that almost parse: real frames with bits flipped, cut, doubled or spliced into another.

Every parser of what a stranger sends gives a value that encodes to the same value again, or its
typed error, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import typing
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from piecework.base.jsons import MAX_JSON_DEPTH, loads
from piecework_protocol.errors import MalformedInput
from piecework_protocol.frames import CancelJob
from piecework_protocol.wire import (
    CallMessage,
    decode_call,
    decode_client_frame,
    decode_offer,
    decode_worker_frame,
    encode_call,
    encode_client_frame,
    encode_offer,
    encode_worker_frame,
)
from tests.support.market.offers import offer
from tests.support.protocol.pair import PairedMarket, job
from tests.vectors import generate


def frames_of_a_job() -> tuple[list[bytes], list[bytes]]:
    """What a client and a worker say to each other in one whole job."""
    market = PairedMarket(10**9)
    line = market.submit(job(3, 24))
    said: tuple[list[bytes], list[bytes]] = ([encode_client_frame(CancelJob())], [])
    while line.upward or line.downward or market.engine_step(line):
        if line.upward:
            said[0].append(line.upward[0])
            market.worker_reads(line)
        elif line.downward:
            said[1].append(line.downward[0])
            market.client_reads(line)
    return said


CLIENT_FRAMES, WORKER_FRAMES = frames_of_a_job()
CALLS = [encode_call(call) for call in generate.calls().values()]
OFFERS = [encode_offer(offer()), encode_offer(offer("other"))]


@st.composite
def damaged(draw: st.DrawFn, originals: list[bytes]) -> bytes:
    """One of the originals after up to four blows."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["flip", "cut", "double", "splice", "insert"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 40))]
            case "splice":
                other = draw(st.sampled_from(originals))
                data[at:] = other[at:]
            case _:
                data[at:at] = draw(st.binary(max_size=12))
    return bytes(data)


def parses_or_is_malformed(data: bytes, decode: Any, encode: Any) -> None:
    try:
        value = decode(data)
    except MalformedInput as error:
        assert str(error)
        return
    assert decode(encode(value)) == value


@settings(max_examples=400)
@given(damaged(CLIENT_FRAMES))
def test_a_damaged_frame_of_a_client_parses_or_is_malformed(data: bytes) -> None:
    parses_or_is_malformed(data, decode_client_frame, encode_client_frame)


@settings(max_examples=400)
@given(damaged(WORKER_FRAMES))
def test_a_damaged_frame_of_a_worker_parses_or_is_malformed(data: bytes) -> None:
    parses_or_is_malformed(data, decode_worker_frame, encode_worker_frame)


@settings(max_examples=200)
@given(damaged(OFFERS))
def test_a_damaged_offer_parses_or_is_malformed(data: bytes) -> None:
    parses_or_is_malformed(data, decode_offer, encode_offer)


@given(st.binary(max_size=300) | damaged(CLIENT_FRAMES + OFFERS + CALLS))
def test_anything_in_place_of_a_call_is_malformed_or_a_call(data: bytes) -> None:
    for kind in typing.get_args(CallMessage):
        with contextlib.suppress(MalformedInput):
            decode_call(kind, data)


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nested = max(map(depth, inner), default=0)
    return nested + isinstance(value, dict | list)


@settings(max_examples=400)
@given(
    st.binary(max_size=200)
    | st.text('[]{}",:\\ 0123456789eEtrufalsn-.', max_size=200).map(str.encode)
    | st.integers(0, 3 * MAX_JSON_DEPTH).map(lambda n: b"[" * n + b"]" * n)
)
def test_any_bytes_are_bounded_json_or_a_value_error(data: bytes) -> None:
    try:
        value = loads(data)
    except ValueError:
        return
    assert depth(value) <= MAX_JSON_DEPTH
    assert json.loads(json.dumps(value, allow_nan=False)) == value
