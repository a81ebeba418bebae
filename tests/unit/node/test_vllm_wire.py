"""What is believed of a vLLM server's answers. The good ones were recorded from vLLM 0.32."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from piecework_node.errors import EndpointLost, EndpointUnfit, RequestDeclined
from piecework_node.vllm.wire import (
    END,
    MAX_CHUNK_TOKENS,
    Chunk,
    ServedModel,
    completion_body,
    failure,
    parse_ids,
    parse_line,
    parse_models,
    parse_version,
)

VOCAB = 295
HEAD = (
    b'data: {"id":"cmpl-884b056019420184","object":"text_completion",'
    b'"created":1795574307,"model":"tiny",'
)
FIRST = (
    HEAD
    + b'"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":null,"stop_reason":null,'
    + b'"prompt_token_ids":[2,3,10,11],"token_ids":[109]}]}\n'
)
LAST = (
    HEAD
    + b'"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"stop","stop_reason":4,'
    + b'"prompt_token_ids":null,"token_ids":[4]}]}\n'
)
USAGE = HEAD + b'"choices":[],"usage":{"prompt_tokens":4,"total_tokens":9,"completion_tokens":5}}\n'
FAILED = (
    b'data: {"error": {"message": "EngineCore encountered an issue.", "type": '
    b'"InternalServerError", '
    b'"param": null, "code": 500}}\n'
)
DECLINED = (
    b'data: {"error": {"message": "Token id 999999 is out of vocabulary", "type": '
    b'"BadRequestError", '
    b'"param": null, "code": 400}}\n'
)
MODELS = (
    b'{"object":"list","data":[{"id":"tiny","object":"model","created":1795574306,"owned_by":"vllm",'
    b'"root":"/models/tiny","parent":null,"max_model_len":512,"permission":[]}]}'
)


@pytest.mark.parametrize(
    ("line", "chunk"),
    [
        (FIRST, Chunk((109,))),
        (LAST, Chunk((4,), "stop", 4)),
        (USAGE, None),
        (b"\n", None),
        (b": a comment\n", None),
        (b"data: [DONE]\n", END),
    ],
)
def test_a_line_of_a_stream_is_read_as_it_was_recorded(line: bytes, chunk: object) -> None:
    assert parse_line(line, VOCAB) == chunk


def choice(endpoints: str) -> bytes:
    return b'data: {"choices":[{' + endpoints.encode() + b"}]}\n"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (FAILED, EndpointLost),
        (DECLINED, RequestDeclined),
        (b'data: {"error": "a word"}', EndpointLost),
        (b'data: {"error": {"code": true}}', EndpointLost),
        (b"event: message\n", EndpointLost),
        (b"data: [1]\n", EndpointLost),
        (b'data: {"choices":[{},{}]}\n', EndpointLost),
        (b'data: {"choices":[1]}\n', EndpointLost),
        (choice('"text":"no ids"'), EndpointUnfit),
        (choice('"token_ids":[295]'), EndpointLost),
        (choice('"token_ids":[-1]'), EndpointLost),
        (choice('"token_ids":[true]'), EndpointLost),
        (choice('"token_ids":"12"'), EndpointLost),
        (choice('"token_ids":[1],"finish_reason":1'), EndpointLost),
        (choice('"token_ids":' + str([1] * (MAX_CHUNK_TOKENS + 1))), EndpointLost),
        (b"data: " + b"[" * 1000, EndpointLost),
    ],
)
def test_a_line_that_says_something_else_is_somebodys_typed_fault(line: bytes, error: type) -> None:
    with pytest.raises(error):
        parse_line(line, VOCAB)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda b: b"data: " + b))
@example(b"data: 1e999")
@example(b"data: \xff")
def test_no_bytes_do_anything_but_parse_or_raise_a_typed_error(line: bytes) -> None:
    try:
        parse_line(line, VOCAB)
        parse_models(line, "")
    except (EndpointLost, EndpointUnfit, RequestDeclined):
        return


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, RequestDeclined),
        (413, RequestDeclined),
        (422, RequestDeclined),
        (401, EndpointUnfit),
        (404, EndpointUnfit),
        (302, EndpointLost),
        (429, EndpointLost),
        (500, EndpointLost),
    ],
)
def test_a_status_says_whose_fault_it_is_and_the_servers_words_are_not_repeated(
    status: int, error: type
) -> None:
    found = failure(status, {"error": {"message": "your prompt was: the secret", "code": 1}})
    assert type(found) is error
    assert str(status) in str(found) and "secret" not in str(found)


def test_the_model_is_found_by_its_name_or_as_the_only_one() -> None:
    assert parse_models(MODELS, "tiny") == parse_models(MODELS, "") == ServedModel("tiny", 512)
    two = MODELS.replace(b'"data":[', b'"data":[{"id":"other","max_model_len":9},')
    assert parse_models(two, "tiny") == ServedModel("tiny", 512)
    for data, wanted in ((two, ""), (MODELS, "other"), (b'{"data":[]}', ""), (b'{"data":1}', "")):
        with pytest.raises(EndpointUnfit):
            parse_models(data, wanted)


@pytest.mark.parametrize("length", [b"null", b'"512"', b"-1", b"true", b"4294967296"])
def test_a_model_without_a_usable_length_is_not_vllms(length: bytes) -> None:
    with pytest.raises(EndpointUnfit):
        parse_models(MODELS.replace(b"512", length), "tiny")


def test_ids_and_versions_are_read_within_bounds() -> None:
    assert parse_ids(b'{"count":2,"max_model_len":512,"tokens":[262,290],"token_strs":null}') == (
        262,
        290,
    )
    with pytest.raises(EndpointUnfit):
        parse_ids(b'{"tokens":[-1]}')
    assert parse_version(b'{"version":"0.32.0"}') == "0.32.0"
    assert parse_version(b'{"version":"0.\\u00e4\\n 1' + b"9" * 99 + b'"}') == "0.1" + "9" * 29
    with pytest.raises(EndpointUnfit):
        parse_version(b"{}")


def test_a_request_names_no_seed_and_no_temperature() -> None:
    body = completion_body("tiny", (1, 2), 5)
    assert body == {
        "model": "tiny",
        "prompt": [1, 2],
        "max_tokens": 5,
        "stream": True,
        "return_token_ids": True,
    }
