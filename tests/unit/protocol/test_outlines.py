"""What a client holds a canvas to by the outline of its content alone."""

from __future__ import annotations

import pytest

from piecework_protocol.conversation import Conversation, Message, Tool
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.read import ONE, Label, Question, ReadContent, ReadOutput
from piecework_protocol.kinds.text import Fixed, Hole, TextContent, TextOutput
from piecework_protocol.objects import Finish
from piecework_protocol.outlines import Outline

ASKED = Conversation((Message("user", "hello"),))
TWO = Question("?", (Label("yes"), Label("no")))
THREE = Question("?", (Label("a"), Label("b"), Label("c")))
READ = ReadContent(ASKED, (TWO, TWO, THREE), draws=2)
"""Two questions stand on a canvas of 32. So four canvases, the last two with the third question."""
CANVAS = 32


def short(finish: Finish, content: TextContent) -> str | None:
    output = TextOutput.plain((1,) * (CANVAS - 1), "x")
    return output.fault(content.outline, 0, CANVAS, finish)


def test_free_text_fills_its_canvases_and_a_template_need_not() -> None:
    free, form = TextContent(ASKED), TextContent(ASKED, (Hole(40), Fixed(".")))
    assert short(Finish.MORE, free) == "a canvas that is not the job's last is full"
    assert short(Finish.END_OF_TEXT, free) is None
    assert short(Finish.MORE, form) is None


@pytest.mark.parametrize(
    ("canvas", "answers", "finish", "fault"),
    [
        (0, ((ONE, 0),) * 2, Finish.MORE, None),
        (1, ((ONE, 0),) * 2, Finish.MORE, None),
        (2, ((ONE, 0, 0),), Finish.MORE, None),
        (3, ((ONE, 0, 0),), Finish.END_OF_TEXT, None),
        (0, ((ONE, 0),), Finish.MORE, "answers"),
        (2, ((ONE, 0),), Finish.MORE, "answers"),
        (2, ((ONE, 0, 0),), Finish.END_OF_TEXT, "ends with its last"),
        (3, ((ONE, 0, 0),), Finish.MORE, "ends with its last"),
        (3, ((ONE, 0, 0),), Finish.TOKEN_LIMIT, "ends with its last"),
        (4, (), Finish.END_OF_TEXT, "ends with its last"),
    ],
)
def test_a_read_answers_each_question_of_its_canvas_and_ends_with_its_last(
    canvas: int, answers: tuple[tuple[int, ...], ...], finish: Finish, fault: str | None
) -> None:
    said = ReadOutput(answers).fault(READ.outline, canvas, CANVAS, finish)
    assert said is None if fault is None else said is not None and fault in said


@pytest.mark.parametrize("content", [READ, TextContent(ASKED), TextContent(ASKED, (Hole(1),))])
def test_an_outline_reads_back_and_holds_no_text(content: TextContent | ReadContent) -> None:
    data = content.outline.encode()
    assert Outline.decode(data) == content.outline
    assert b"hello" not in data
    with pytest.raises(MalformedInput):
        Outline.decode(data + b"!")


def test_the_bound_of_a_prompt_grows_with_everything_in_it() -> None:
    tool = Tool("clock", "Tell the time.", '{"type": "object"}')
    grown = [
        ASKED,
        Conversation((Message("user", "hello!"),)),
        Conversation((*ASKED.messages, Message("user", ""))),
        Conversation(ASKED.messages, (tool,)),
        Conversation(ASKED.messages, (tool, Tool("date", "", "{}"))),
    ]
    bounds = [TextContent(conversation).outline.prompt_tokens for conversation in grown]
    assert bounds == sorted(set(bounds))
    assert READ.outline.prompt_tokens > bounds[0]
