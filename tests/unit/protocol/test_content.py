from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework_protocol.content import (
    CanvasOutput,
    Message,
    content_digest,
    decode_prompt,
    encode_prompt,
)
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CANVAS_TOKENS, MAX_CONTENT_BYTES
from piecework_protocol.sealing import canvas_context, content_context, public_key, seal, unseal
from piecework_protocol.types import JobId, keccak256
from tests.vectors.generate import DOMAIN

text = st.text(st.characters(exclude_categories=["Cs"]))
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text),
    min_size=1,
    max_size=5,
)


@given(messages)
def test_a_prompt_reads_back(items: list[Message]) -> None:
    assert decode_prompt(encode_prompt(tuple(items))) == tuple(items)


@given(st.binary(max_size=200))
def test_garbage_is_a_malformed_prompt_or_reads_back(data: bytes) -> None:
    try:
        items = decode_prompt(data)
    except MalformedInput:
        return
    assert encode_prompt(items) == data


@given(st.lists(st.integers(0, 2**32 - 1), max_size=64), text)
def test_a_canvas_output_reads_back(ids: list[int], words: str) -> None:
    output = CanvasOutput(tuple(ids), words)
    assert CanvasOutput.decode(output.encode()) == output


@given(st.binary(max_size=200))
def test_garbage_is_a_malformed_output_or_reads_back(data: bytes) -> None:
    try:
        output = CanvasOutput.decode(data)
    except MalformedInput:
        return
    assert output.encode() == data


def _field(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


HELLO = _field(b"user") + _field(b"hello")
ONE = (1).to_bytes(4, "big")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        bytes(4),
        (1025).to_bytes(4, "big") + HELLO * 1025,
        b"\xff\xff\xff\xff" + HELLO,
        ONE,
        ONE + HELLO[:-1],
        ONE + HELLO + b"!",
        ONE + _field(b"root") + _field(b"x"),
        ONE + _field(b"user") + _field(b"\xff"),
        ONE + _field(b"user") + b"\xff\xff\xff\xff",
        bytes(MAX_CONTENT_BYTES + 1),
    ],
    ids=[
        "empty",
        "no count",
        "no message",
        "too many messages",
        "absurd count",
        "ends before a message",
        "ends inside a text",
        "bytes left over",
        "unknown role",
        "not UTF-8",
        "absurd length",
        "oversized",
    ],
)
def test_a_malformed_prompt_is_refused_without_repeating_it(data: bytes) -> None:
    with pytest.raises(MalformedInput) as caught:
        decode_prompt(data)
    assert len(str(caught.value)) < 100


def test_a_canvas_of_too_many_tokens_is_refused() -> None:
    with pytest.raises(MalformedInput):
        CanvasOutput((0,) * (MAX_CANVAS_TOKENS + 1), "").encode()


def test_the_same_prompt_under_another_salt_has_another_digest() -> None:
    prompt = encode_prompt((Message("user", "hello"),))
    assert content_digest(keccak256(b"a"), prompt) != content_digest(keccak256(b"b"), prompt)


SECRET = bytes(keccak256(b"reply key"))
JOB = JobId(keccak256(b"job"))


def test_what_is_sealed_opens_in_its_context_only() -> None:
    sealed = seal(b"text", public_key(SECRET), canvas_context(DOMAIN, JOB, 3))
    assert unseal(sealed, SECRET, canvas_context(DOMAIN, JOB, 3)) == b"text"
    for context in (canvas_context(DOMAIN, JOB, 4), content_context(DOMAIN, JOB)):
        with pytest.raises(MalformedInput):
            unseal(sealed, SECRET, context)
    with pytest.raises(MalformedInput):
        unseal(sealed, bytes(keccak256(b"another key")), canvas_context(DOMAIN, JOB, 3))


@pytest.mark.parametrize("cut", [0, 10, 47, 48, 51])
def test_truncated_sealed_bytes_do_not_open(cut: int) -> None:
    sealed = seal(b"text", public_key(SECRET), content_context(DOMAIN, JOB))
    with pytest.raises(MalformedInput):
        unseal(sealed[:cut], SECRET, content_context(DOMAIN, JOB))


def test_a_key_of_low_order_is_refused() -> None:
    with pytest.raises(MalformedInput):
        seal(b"text", bytes(32), content_context(DOMAIN, JOB))  # type: ignore[arg-type]
