"""Kind `read` for the engine: questions become a prompt and canvases with one free slot a question.

The prompt is the conversation. Its last user message goes on with every question, its number and
its labels:

    Answer each question with one option.

    q1: Is the fox happy?
    - yes
    - no: the text says otherwise

    q2: What should happen next?
    A: send a refund
    B: ask again

Where each label of a question is one token of the vocabulary, the slot holds the label itself, and
a small model can answer by copying. The first 16,384 texts of labels in a read are looked up for
that. Else each label stands behind an option code, and the slot holds the code. To bind a code to
its option is a skill that small models lack (Robinson, Rytting and Wingate 2023, "Leveraging Large
Language Models for Multiple Choice Question Answering").

A canvas has one line for each of its questions: `q1:`, the slot, a line break. All but the slots
is pinned, and behind the last line an end-of-text id is. The slot's answer is the softmax over the
tokens of the question's labels or codes (sampling/answers.py). If each of them also has a token
with the space before it, as in ` yes`, that one stands in the slot. Such a vocabulary writes the
line so itself. Else the space stands before the slot.

The codes are A to Z, then AA to ZZ, a to z and 0 to 9, as far as the vocabulary has a token of its
own for each.
"""

from __future__ import annotations

import functools
import itertools
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from piecework_model import limits
from piecework_model.errors import PromptError
from piecework_model.kinds.text import end_id, padded
from piecework_model.requests import HOLE, EncodedContent, ReadSlot
from piecework_model.text.chat import HasTokenizer, codec_of, encode_conversation, too_long
from piecework_model.text.literal import literal_ids
from piecework_model.text.tokens import TextCodec
from piecework_protocol.conversation import Conversation, Message, Text
from piecework_protocol.kinds.read import Question, ReadContent, batches, per_canvas

INSTRUCTION: Final = "Answer each question with one option."
_LONGEST_TOKEN: Final = 64  # characters: no vocabulary has a longer word, so none is looked up


def encode(
    source: HasTokenizer | TextCodec,
    content: ReadContent,
    canvas_size: int,
    context: int,
    most: int | None = None,
) -> EncodedContent:
    """Encode a read. The arguments are those of `kinds.encode`.

    Raises:
        PromptError: The chat template cannot carry it, the vocabulary has fewer option codes than
            a question has labels, or a canvas is too small for a question.
    """
    codec = codec_of(source)
    most = context if most is None else most
    if content.least_tokens > most:
        return EncodedContent(too_long(most).ids)
    answers = _answers(codec, content.questions)
    conversation = _asked(content, answers)
    prompt = encode_conversation(source, conversation, most=most, context=context)
    if len(prompt.ids) > most:
        return EncodedContent(prompt.ids)
    end = end_id(codec, prompt.ids)
    template: list[int] = []
    reads: list[tuple[ReadSlot, ...]] = []
    step = per_canvas(canvas_size)
    for first in range(0, batches(len(content.questions), canvas_size) * step, step):
        form, slots = _canvas(codec, answers[first : first + step], first)
        if len(form) > canvas_size:
            raise PromptError("a question's line is longer than its share of a canvas")
        template += padded(tuple(form), canvas_size, end)
        reads.append(slots)
    return EncodedContent(prompt.ids, tuple(template), tuple(reads), images=prompt.images)


@dataclass(frozen=True, slots=True)
class _Answers:
    """How a question is answered.

    marks: what the prompt shows before each label. space: what stands between the question's name
    and its slot. tokens: one a label, in their order.
    """

    marks: tuple[str, ...]
    space: str
    tokens: tuple[int, ...]


def _answers(codec: TextCodec, questions: tuple[Question, ...]) -> tuple[_Answers, ...]:
    token = _lookup(codec)
    own = [_own_tokens(token, question) for question in questions]
    coded = [
        len(question.labels) for question, tokens in zip(questions, own, strict=True) if not tokens
    ]
    space, codes = option_codes(codec, max(coded, default=0))
    answers = []
    for question, tokens in zip(questions, own, strict=True):
        count = len(question.labels)
        marks = tuple(f"{code}: " for code, _ in codes[:count])
        answers.append(tokens or _Answers(marks, space, tuple(token for _, token in codes[:count])))
    return tuple(answers)


def _lookup(codec: TextCodec) -> Callable[[str], int | None]:
    """Look labels up, each text once, because questions often share them.

    After `MAX_LABEL_LOOKUPS` texts the others have no token.
    """
    left = itertools.count(limits.MAX_LABEL_LOOKUPS, -1)

    @functools.cache
    def token(text: str) -> int | None:
        return _token(codec, text) if next(left) > 0 else None

    return token


def _own_tokens(token: Callable[[str], int | None], question: Question) -> _Answers | None:
    """Let labels stand for themselves, or return None if one of them is not one token."""
    names = [label.name for label in question.labels]
    if not all(name == name.strip() and 0 < len(name) <= _LONGEST_TOKEN for name in names):
        return None
    for lead, space in ((" ", ""), ("", " ")):
        tokens: list[int] = []
        for name in names:
            found = token(lead + name)
            if found is None:
                break
            tokens.append(found)
        if len(set(tokens)) == len(names):
            return _Answers(("- ",) * len(names), space, tuple(tokens))
    return None


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
    codec: TextCodec, answers: tuple[_Answers, ...], first: int
) -> tuple[list[int], tuple[ReadSlot, ...]]:
    """Lay out the lines of a canvas, whose first question has index `first`."""
    form: list[int] = []
    slots: list[ReadSlot] = []
    for index, answer in enumerate(answers, first + 1):
        form += literal_ids(codec, f"q{index}:{answer.space}", start=not form)
        slots.append(ReadSlot(len(form), answer.tokens))
        form.append(HOLE)
        form += literal_ids(codec, "\n", start=False)
    return form, tuple(slots)


def _asked(content: ReadContent, answers: tuple[_Answers, ...]) -> Conversation:
    """Return the conversation with the questions at the end of its last user message."""
    blocks = [INSTRUCTION]
    for number, (question, answer) in enumerate(zip(content.questions, answers, strict=True), 1):
        lines = [f"q{number}: {question.instructions}"]
        for mark, label in zip(answer.marks, question.labels, strict=False):
            meaning = f": {label.description}" if label.description else ""
            lines.append(f"{mark}{label.name}{meaning}")
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
