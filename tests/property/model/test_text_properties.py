"""Text in and out: no string makes a control token, no split of ids changes the text, nothing is
lost."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.bounds import charged_length
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.text.chat import ChatMessage, encode_prompt
from piecework_model.text.tokens import TextStream

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
    plain = [
        id_
        for id_ in encode_prompt(bundled, [ChatMessage("user", "x")])
        if id_ in codec.control_ids
    ]
    assert codec.control_ids.isdisjoint(codec.encode_content(text))
    prompt = encode_prompt(bundled, [ChatMessage("user", text)])
    assert [id_ for id_ in prompt if id_ in codec.control_ids] == plain


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


@given(parts=st.lists(ids | awkward, min_size=1, max_size=6))
def test_the_pieces_of_a_text_add_up_to_the_whole(
    bundled: LoadedModel, parts: list[tuple[int, ...]]
) -> None:
    stream = TextStream(bundled.tokenizer)
    pieces = [
        stream.append(part, final=index == len(parts) - 1) for index, part in enumerate(parts)
    ]
    whole = tuple(id_ for part in parts for id_ in part)
    assert "".join(pieces) == bundled.tokenizer.decode(whole)


@given(first=awkward, second=awkward)
def test_a_preview_changes_nothing(
    bundled: LoadedModel, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    stream, other = TextStream(bundled.tokenizer), TextStream(bundled.tokenizer)
    stream.append(first, final=False)
    other.append(first, final=False)
    stream.preview(second)
    assert stream.append(second, final=True) == other.append(second, final=True)


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
