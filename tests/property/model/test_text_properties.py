"""Text in and out: no string makes a control token, no split of ids changes the text, nothing is
lost."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.bounds import charged_length
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.errors import PromptError
from piecework_model.text.chat import encode_prompt
from piecework_model.text.segments import SegmentStream
from piecework_protocol.conversation import Conversation, Message, Tool, ToolCall
from piecework_protocol.kinds.text import OutputSegment, SegmentKind, TextOutput, final_text
from tests.support.model import gemma_grammar
from tests.support.protocol.conversations import said

CONTROL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<|turn>",
    "<turn|>",
    "<start_of_turn>",
    "▁",
    "<0x41>",
    "<",
    ">",
    "|",
]
BYTE_LITERAL = re.compile("<0x[0-9A-F]{2}>")
ids = st.lists(st.integers(0, 1126), max_size=80).map(tuple)
# Ids that matter most for splitting text: bytes (the last 256), control tokens, and a few words.
awkward = st.lists(
    st.integers(871, 1126) | st.integers(0, 5) | st.integers(100, 110), max_size=40
).map(tuple)
hostile = st.lists(st.sampled_from(CONTROL) | st.text(max_size=6), max_size=12).map("".join)
texts = hostile | st.text(max_size=200)


@given(text=texts)
def test_user_text_never_becomes_a_control_token(bundled: LoadedModel, text: str) -> None:
    codec = bundled.tokenizer
    plain = [id_ for id_ in encode_prompt(bundled, said("x")) if id_ in codec.control_ids]
    assert codec.control_ids.isdisjoint(codec.encode_content(text))
    prompt = encode_prompt(bundled, said(text))
    assert [id_ for id_ in prompt if id_ in codec.control_ids] == plain


@st.composite
def schemas(draw: st.DrawFn, strings: st.SearchStrategy[str]) -> dict[str, Any]:
    """A JSON schema in which every string that a person writes is drawn."""
    properties = {
        draw(strings): {
            "type": draw(st.sampled_from(["string", "integer", "array"]) | strings),
            "description": draw(strings),
            "enum": draw(st.lists(strings, max_size=2)),
            draw(strings): draw(strings),
        }
        for _ in range(draw(st.integers(0, 3)))
    }
    required = draw(st.lists(strings, max_size=2))
    return {"type": "object", "properties": properties, "required": required}


@st.composite
def conversations(draw: st.DrawFn, strings: st.SearchStrategy[str]) -> Conversation:
    """Messages of every role, tools, calls and answers, with drawn strings in all places."""
    tools = tuple(
        Tool(f"tool-{n}", draw(strings), json.dumps(draw(schemas(strings))))
        for n in range(draw(st.integers(0, 2)))
    )
    messages = [Message("system", draw(strings)), Message("user", draw(strings))]
    for _ in range(draw(st.integers(0, 2))):
        arguments = draw(st.dictionaries(strings, strings | st.lists(strings, max_size=2)))
        call = ToolCall("1", "call", json.dumps(arguments))
        thought = draw(strings)
        messages += [
            Message("assistant", draw(strings), thought=thought, tool_calls=(call,)),
            Message("tool", draw(strings), tool_call_id="1", name="call"),
        ]
    return Conversation(tuple(messages), tools, draw(st.booleans()))


GRAMMAR = st.lists(st.sampled_from(gemma_grammar.SPECIAL) | st.text(max_size=3), max_size=4)
STRINGS = (GRAMMAR.map("".join) | st.text(max_size=9)).filter(
    lambda text: not any("\ud800" <= character <= "\udfff" for character in text)
)


def _harmless(conversation: Conversation) -> Conversation:
    """The same conversation with other strings, equal where they were equal."""
    names: dict[str, str] = {}

    def other(text: str) -> str:
        return names.setdefault(text, f"s{len(names)}") if text else ""

    def said(text: str) -> str:
        return other(text) if text.strip() else ""  # templates trim what people say

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return value if value in ("object", "string", "integer", "array") else other(value)
        if isinstance(value, dict):
            words = ("type", "properties", "required", "description", "enum")
            return {k if k in words else (other(k) or k): of(v) for k, v in value.items()}
        return [of(item) for item in value] if isinstance(value, list) else value

    def arguments(text: str) -> str:
        return json.dumps({other(k) or k: of(v) for k, v in json.loads(text).items()})

    return replace(
        conversation,
        tools=tuple(
            Tool(t.name, other(t.description), json.dumps(of(json.loads(t.parameters))))
            for t in conversation.tools
        ),
        messages=tuple(
            replace(
                m,
                content=said(m.text),
                thought=said(m.thought),
                tool_calls=tuple(
                    ToolCall(c.id, c.name, arguments(c.arguments)) for c in m.tool_calls
                ),
            )
            for m in conversation.messages
        ),
    )


@settings(max_examples=150)
@given(conversation=conversations(STRINGS))
def test_nothing_that_a_stranger_writes_becomes_a_control_token(
    conversation: Conversation,
) -> None:
    codec = gemma_grammar.codec()
    try:
        expected = encode_prompt(codec, _harmless(conversation))
    except PromptError:
        return
    ids = encode_prompt(codec, conversation)
    counts = [Counter(i for i in some if i in codec.control_ids) for some in (ids, expected)]
    assert counts[0] == counts[1]


@given(text=texts)
def test_every_string_has_a_bounded_encoding_that_decodes_to_it(
    bundled: LoadedModel, text: str
) -> None:
    codec = bundled.tokenizer
    encoded = codec.encode_content(text)
    assert len(encoded) <= len(text.encode()) + text.count("<") + 1
    assert all(0 <= id_ < bundled.limits.vocab_size for id_ in encoded)
    # The space mark itself is read as a space, a byte spelled out is read as that byte, and a cut
    # control string gains spaces: nothing else changes.
    if BYTE_LITERAL.search(text):
        return
    assert "".join(codec.decode(encoded).split()) == "".join(text.replace("▁", " ").split())


GRAMMAR_IDS = st.lists(
    st.integers(0, len(gemma_grammar.SPECIAL) - 1) | st.integers(0, 370), max_size=60
).map(tuple)
FRAGMENTS = st.lists(
    st.sampled_from(
        [
            *gemma_grammar.SPECIAL,
            *("call:", "get_weather", "{", "}", "city:", ",", "[", "]", "1", "true", "Oslo"),
            *("thought\n", "thought", "thou", "ght", "é", "\n", " ", "\t", " a fox"),
        ]
    ),
    max_size=24,
).map(lambda parts: gemma_grammar.written("".join(parts)))


def _cut(whole: tuple[int, ...], cuts: list[int]) -> list[tuple[int, ...]]:
    bounds = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(bounds)]


def _merged(segments: Iterable[OutputSegment]) -> list[tuple[SegmentKind, str]]:
    """Segments without the borders of canvases."""
    merged: list[tuple[SegmentKind, str]] = []
    for segment in segments:
        texts = (SegmentKind.FINAL, SegmentKind.THOUGHT)
        if merged and merged[-1][0] is segment.kind and segment.kind in texts:
            merged[-1] = (segment.kind, merged[-1][1] + segment.text)
        else:
            merged.append((segment.kind, segment.text))
    return merged


@settings(max_examples=300)
@given(whole=GRAMMAR_IDS | FRAGMENTS, cuts=st.lists(st.integers(0, 60), max_size=5))
def test_an_answer_does_not_depend_on_where_canvases_end(
    whole: tuple[int, ...], cuts: list[int]
) -> None:
    """So it adds up to the whole, and no sequence of tokens raises anything."""
    stream, found = SegmentStream(gemma_grammar.codec()), list[OutputSegment]()
    parts = _cut(whole, cuts)
    for index, part in enumerate(parts):
        segments = stream.append(part, final=index == len(parts) - 1)
        TextOutput(part, segments).encode()  # what the protocol can carry
        found += segments
    at_once = SegmentStream(gemma_grammar.codec()).append(whole, final=True)
    assert _merged(found) == _merged(at_once)


def _answer(parts: list[tuple[int, ...]]) -> list[tuple[SegmentKind, str]]:
    stream, found = SegmentStream(gemma_grammar.codec()), list[OutputSegment]()
    for index, part in enumerate(parts):
        found += stream.append(part, final=index == len(parts) - 1)
    return _merged(found)


@settings(max_examples=300)
@given(whole=GRAMMAR_IDS | FRAGMENTS)
def test_an_answer_is_the_same_at_every_cut_and_token_by_token(whole: tuple[int, ...]) -> None:
    at_once = _answer([whole])
    assert _answer([*((token,) for token in whole), ()]) == at_once
    for cut in range(len(whole)):
        assert _answer([whole[:cut], whole[cut:]]) == at_once


@settings(max_examples=200)
@given(first=GRAMMAR_IDS | FRAGMENTS, second=GRAMMAR_IDS | FRAGMENTS)
def test_a_preview_changes_nothing_and_says_what_would_come(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    stream, other = (SegmentStream(gemma_grammar.codec()) for _ in range(2))
    stream.append(first, final=False)
    other.append(first, final=False)
    seen = stream.preview(second)
    assert other.append(second, final=False) == seen == stream.append(second, final=False)


@given(parts=st.lists(ids | awkward, min_size=1, max_size=6))
def test_the_pieces_of_a_plain_text_add_up_to_the_whole(
    bundled: LoadedModel, parts: list[tuple[int, ...]]
) -> None:
    plain = replace(bundled.tokenizer, control_ids=frozenset(range(6)))
    stream = SegmentStream(plain)
    pieces = [
        stream.append(part, final=index == len(parts) - 1) for index, part in enumerate(parts)
    ]
    whole = tuple(id_ for part in parts for id_ in part)
    assert "".join(map(final_text, pieces)) == plain.decode(whole)


@settings(max_examples=200)
@given(
    canvas=st.lists(st.integers(0, 9), min_size=1, max_size=16).map(tuple),
    remaining=st.integers(1, 20),
)
def test_what_is_charged_ends_before_the_end_mark_and_within_the_limit(
    canvas: tuple[int, ...], remaining: int
) -> None:
    eos_ids = frozenset({1, 5})
    length, ended = charged_length(canvas, eos_ids, remaining)
    assert length <= remaining
    assert eos_ids.isdisjoint(canvas[:length])
    assert ended == (length < len(canvas) and canvas[length] in eos_ids)
    assert ended or length in (remaining, len(canvas))
