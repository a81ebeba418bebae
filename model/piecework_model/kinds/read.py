"""Kind `read` for the engine: questions become a prompt and canvases with one free slot a question.

The prompt is the conversation. Its last user message goes on with every question, its number and
its labels, each behind an option code:

    Answer each question with one option.

    q1: Is the fox happy?
    A: yes
    B: no: the text says otherwise

A canvas has one line for each of its questions: `q1: `, the slot, a line break. All but the slots
is pinned, and behind the last line an end-of-text id is. The slot's answer is the softmax over the
tokens of the question's option codes (sampling/answers.py).

The codes are A to Z, then AA to ZZ, a to z and 0 to 9, as far as the vocabulary has a token of its
own for each. If each code in use also has a token with the space before it, as in ` A`, that one
stands in the slot and the line starts with `q1:`. Such a vocabulary writes the line so itself.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from piecework_model.errors import PromptError
from piecework_model.kinds.text import end_id, padded
from piecework_model.requests import HOLE, EncodedContent, ReadSlot
from piecework_model.text.chat import HasTokenizer, codec_of, encode_conversation
from piecework_model.text.literal import literal_ids
from piecework_model.text.tokens import TextCodec
from piecework_protocol.conversation import Conversation, Message, Text
from piecework_protocol.kinds.read import Question, ReadContent, batches, per_canvas

INSTRUCTION: Final = "Answer each question with one option."


def encode(
    source: HasTokenizer | TextCodec, content: ReadContent, canvas_size: int, most: int
) -> EncodedContent:
    """Encode a read. The arguments are those of `kinds.encode`.

    Raises:
        PromptError: The chat template cannot carry it, the vocabulary has fewer option codes than
            a question has labels, or a canvas is too small for a question.
    """
    codec = codec_of(source)
    wanted = max(len(question.labels) for question in content.questions)
    space, codes = option_codes(codec, wanted)
    conversation = _asked(content, [code for code, _ in codes])
    prompt = encode_conversation(source, conversation, most=most)
    tokens = [token for _, token in codes]
    end = end_id(codec, prompt.ids)
    template: list[int] = []
    reads: list[tuple[ReadSlot, ...]] = []
    step = per_canvas(canvas_size)
    for first in range(0, batches(len(content.questions), canvas_size) * step, step):
        form, slots = _canvas(codec, content.questions[first : first + step], first, space, tokens)
        if len(form) > canvas_size:
            raise PromptError("a question's line is longer than its share of a canvas")
        template += padded(tuple(form), canvas_size, end)
        reads.append(slots)
    return EncodedContent(prompt.ids, tuple(template), tuple(reads), images=prompt.images)


def option_codes(codec: TextCodec, wanted: int) -> tuple[str, list[tuple[str, int]]]:
    """Choose `wanted` option codes: what stands before each in its line, and (code, token) pairs.

    Raises:
        PromptError: The vocabulary has fewer.
    """
    codes = dict(itertools.islice(_single(codec), wanted))
    if len(codes) < wanted:
        raise PromptError(
            f"a question has {wanted} labels, but the vocabulary has {len(codes)} option codes"
        )
    spaced = {code: token for code in codes if (token := _token(codec, f" {code}")) is not None}
    if len(set(spaced.values())) == wanted:
        return "", list(spaced.items())
    return " ", list(codes.items())


def _single(codec: TextCodec) -> Iterator[tuple[str, int]]:
    """List the codes that are one token of their own."""
    seen: set[int] = set()
    for code in _codes():
        token = _token(codec, code)
        if token is not None and token not in seen:
            seen.add(token)
            yield code, token


def _token(codec: TextCodec, text: str) -> int | None:
    """Return the token that `text` is inside a line, or None if it is several."""
    try:
        ids = literal_ids(codec, text, start=False)
    except PromptError:  # the vocabulary cannot write it
        return None
    return ids[0] if len(ids) == 1 else None


def _codes() -> Iterator[str]:
    capitals = string.ascii_uppercase
    yield from capitals
    yield from map("".join, itertools.product(capitals, repeat=2))
    yield from string.ascii_lowercase
    yield from string.digits


def _canvas(
    codec: TextCodec, questions: tuple[Question, ...], first: int, space: str, tokens: list[int]
) -> tuple[list[int], tuple[ReadSlot, ...]]:
    """Lay out the lines of a canvas, whose first question has index `first`."""
    form: list[int] = []
    slots: list[ReadSlot] = []
    for index, question in enumerate(questions, first + 1):
        form += literal_ids(codec, f"q{index}:{space}", start=not form)
        slots.append(ReadSlot(len(form), tuple(tokens[: len(question.labels)])))
        form.append(HOLE)
        form += literal_ids(codec, "\n", start=False)
    return form, tuple(slots)


def _asked(content: ReadContent, codes: list[str]) -> Conversation:
    """Return the conversation with the questions at the end of its last user message."""
    blocks = [INSTRUCTION]
    for number, question in enumerate(content.questions, 1):
        lines = [f"q{number}: {question.instructions}"]
        for code, label in zip(codes, question.labels, strict=False):
            meaning = f": {label.description}" if label.description else ""
            lines.append(f"{code}: {label.name}{meaning}")
        blocks.append("\n".join(lines))
    asked = "\n\n".join(blocks)
    *earlier, last = content.conversation.messages
    if last.role != "user":
        messages = (*earlier, last, Message("user", asked))
    elif isinstance(last.content, str):
        text = f"{last.content}\n\n{asked}" if last.content else asked
        messages = (*earlier, replace(last, content=text))
    else:
        *parts, end = last.content
        tail = (Text(f"{end.text}\n\n{asked}"),) if isinstance(end, Text) else (end, Text(asked))
        messages = (*earlier, replace(last, content=(*parts, *tail)))
    return replace(content.conversation, messages=messages)
