"""What a model writes becomes final text, thoughts and calls, and nothing else becomes them."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import pytest

from piecework_model.text.segments import SegmentStream
from piecework_model.text.tokens import TextCodec
from piecework_protocol.kinds.text import OutputSegment, SegmentKind
from piecework_protocol.limits import MAX_CALL_BYTES
from tests.support.model.gemma_grammar import codec, written

FINAL, THOUGHT, CALL, BROKEN = SegmentKind


def parsed(text: str) -> list[tuple[SegmentKind, str]]:
    """The segments of an answer that was written as this text."""
    found = SegmentStream(codec()).append(written(text), final=True)
    return [(segment.kind, segment.text) for segment in found]


def call(arguments: str) -> str:
    """A call of the tool `f`."""
    return f"<|tool_call>call:f{{{arguments}}}<tool_call|>"


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("Hello.", [(FINAL, "Hello.")]),
        ("<|channel>thought\nHm.\n<channel|>Yes.", [(THOUGHT, "Hm."), (FINAL, "Yes.")]),
        ("<|channel>thought\n<channel|>Yes.", [(FINAL, "Yes.")]),
        ("<|channel>thought<channel|>Yes.", [(FINAL, "Yes.")]),
        ("<|channel> thought<channel|>Yes.", [(THOUGHT, " thought"), (FINAL, "Yes.")]),
        ("<|channel>thought \nHm.<channel|>", [(THOUGHT, "thought \nHm.")]),
        ("<|channel>thoughtful<channel|>Yes.", [(THOUGHT, "thoughtful"), (FINAL, "Yes.")]),
        ("<|channel>plan\nOne.<channel|>", [(THOUGHT, "plan\nOne.")]),
        ("<|channel>thought\nA.<channel|><|channel>thought\nB.<channel|>", [(THOUGHT, "A.\nB.")]),
        ("<|channel>thought\nHm", [(THOUGHT, "Hm")]),
        ("<|channel>tho", [(THOUGHT, "tho")]),
        ('One <pad>text<channel|> <|"|>here<tool_call|>.', [(FINAL, "One text here.")]),
        ("<|tool_call><tool_call|>Yes.", [(FINAL, "Yes.")]),
    ],
)
def test_texts_and_thoughts_are_told_apart(
    text: str, segments: list[tuple[SegmentKind, str]]
) -> None:
    assert parsed(text) == segments


@pytest.mark.parametrize(
    ("written_arguments", "arguments"),
    [
        ("", {}),
        ('city:<|"|>Oslo<|"|>', {"city": "Oslo"}),
        ('city:<|"|>a "b" \\ {c}, [d]: 1<|"|>', {"city": 'a "b" \\ {c}, [d]: 1'}),
        ('city:<|"|>two\nlines<|"|>,days:3', {"city": "two\nlines", "days": 3}),
        (
            "a:-1.5e3,b:true,c:false,d:null,e:None",
            {"a": -1500, "b": 1, "c": 0, "d": None, "e": None},
        ),
        ('a:[1,[<|"|>x<|"|>],{}],b:{c:{d:[]}}', {"a": [1, ["x"], {}], "b": {"c": {"d": []}}}),
        ('<|"|>a key<|"|>:1, b : <|"|><|"|>', {"a key": 1, "b": ""}),
        ('a:"json \\"quotes\\""', {"a": 'json "quotes"'}),
        (r'a:"\ud83e\udd8a"', {"a": "🦊"}),
        ('text:<|"|><|turn>é漢<|"|>', {"text": "é漢"}),
    ],
)
def test_a_call_becomes_json(written_arguments: str, arguments: dict[str, object]) -> None:
    ((kind, text),) = parsed(call(written_arguments))
    assert kind is CALL
    assert json.loads(text) == {"name": "f", "arguments": arguments}


def test_calls_between_texts_keep_their_place() -> None:
    text = f"First.{call('a:1')}{call('a:2')}Then."
    kinds = [kind for kind, _ in parsed(text)]
    assert kinds == [FINAL, CALL, CALL, FINAL]


@pytest.mark.parametrize(
    "body",
    [
        "call:f{a:1",
        "call:f{a:1}}",
        "call:f{a:1,}",
        "call:f{a}",
        "call:f{a:Oslo}",
        "call:f{a:01}",
        "call:f{a:NaN}",
        'call:f{a:<|"|>open}',
        "call:f[1]",
        "call:f",
        "call:{}",
        "f{}",
        "call:a name{}",
        f"call:{'f' * 65}{{}}",
        f"call:f{{a:{'[' * 40}{']' * 40}}}",
        'call:f{a:"open}',
        r'call:f{a:"\ud800"}',
        r'call:f{"\ud800":1}',
    ],
)
def test_a_call_that_is_not_in_the_grammar_is_handed_out_as_it_was_written(body: str) -> None:
    assert parsed(f"<|tool_call>{body}<tool_call|>Yes.") == [(BROKEN, body), (FINAL, "Yes.")]


@pytest.mark.parametrize("then", ["", "<|channel>thought\nHm.", "<|tool_call>call:g{}<tool_call|>"])
def test_a_call_that_ends_too_early_is_broken(then: str) -> None:
    segments = parsed(f'<|tool_call>call:f{{a:<|"|>x{then}')
    assert segments[0] == (BROKEN, 'call:f{a:<|"|>x')
    assert len(segments) == 1 + bool(then)


def test_a_call_stands_in_the_canvas_that_ends_it() -> None:
    ids = written(call('city:<|"|>Oslo<|"|>'))
    stream = SegmentStream(codec())
    assert stream.append(ids[:8], final=False) == () == stream.preview(ids[8:9])
    (segment,) = stream.append(ids[8:], final=False)
    assert segment.kind is CALL


def test_a_call_that_is_too_long_is_handed_out_as_it_is_written() -> None:
    stream, whole = SegmentStream(codec()), call(f'a:<|"|>{"x" * (MAX_CALL_BYTES + 9)}<|"|>')
    ids, found = written(whole), list[OutputSegment]()
    for start in range(0, len(ids), 100_000):
        part = ids[start : start + 100_000]
        found += stream.append(part, final=start + len(part) == len(ids))
    assert {segment.kind for segment in found} == {BROKEN}
    text = "".join(segment.text for segment in found)
    assert f"<|tool_call>{text}<tool_call|>" == whole


@pytest.mark.parametrize("cut", [0, MAX_CALL_BYTES + 99])
def test_a_call_that_is_too_long_as_it_was_written_is_broken_at_every_cut(cut: int) -> None:
    ids = written(call(f"a:{' ' * (MAX_CALL_BYTES + 200)}1"))
    stream = SegmentStream(codec())
    found = [*stream.append(ids[:cut], final=False), *stream.append(ids[cut:], final=True)]
    assert {segment.kind for segment in found} == {BROKEN}


class CountingCodec(TextCodec):
    """A codec that notes how many ids it decodes."""

    decoded: ClassVar[list[int]] = []

    def decode(self, ids: tuple[int, ...]) -> str:
        """Decode as before."""
        self.decoded.append(len(ids))
        return super().decode(ids)


@pytest.mark.parametrize("start", ["", "<|channel>thought\n", '<|tool_call>call:f{a:<|"|>'])
def test_the_cost_of_a_canvas_does_not_grow_with_the_answer(start: str) -> None:
    values = {field.name: getattr(codec(), field.name) for field in dataclasses.fields(codec())}
    stream = SegmentStream(CountingCodec(**values))
    stream.append(written(start), final=False)
    canvas = written("a fox and a wolf are " * 2)
    CountingCodec.decoded.clear()
    for _ in range(100):
        stream.append(canvas, final=False)
        stream.preview(canvas)
    assert sum(CountingCodec.decoded) < 3 * 200 * len(canvas)


def test_a_checkpoint_without_the_grammar_writes_final_text_alone() -> None:
    plain = dataclasses.replace(codec(), control_ids=frozenset(range(6)))
    ids = written("<|channel>thought\na fox<channel|><|tool_call>call:f{}<tool_call|>")
    (segment,) = SegmentStream(plain).append(ids, final=True)
    assert segment == OutputSegment(FINAL, plain.decode(ids))
