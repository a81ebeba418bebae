"""Contents and outputs of each kind for the golden vectors: every member, set and left out."""

from __future__ import annotations

from typing import Any

from piecework_protocol.content import content_digest, output_digest
from piecework_protocol.conversation import Conversation, Image, Message, Text, Tool, ToolCall
from piecework_protocol.kinds import Content, Output
from piecework_protocol.kinds.audit import AuditOutput
from piecework_protocol.kinds.open import OpenContent, OpenOutput, WantedStep
from piecework_protocol.kinds.read import ONE, Label, Question, ReadContent, ReadOutput
from piecework_protocol.kinds.text import (
    Fixed,
    Hole,
    OutputSegment,
    SegmentKind,
    TextContent,
    TextOutput,
)
from piecework_protocol.objects import AuditOutcome, Kind
from piecework_protocol.outlines import Outline
from piecework_protocol.trace import (
    CanvasRecord,
    EmbeddingType,
    StepRecord,
    soft_field,
    write_bits,
    write_ids,
)
from piecework_protocol.types import Digest, JobId, keccak256
from tests.support.protocol.audits import CLAIM, READ_CLAIM, report_on

SALT = keccak256(b"content salt")
JOB = JobId(keccak256(b"vector job"))
WEATHER = Tool(
    "get_weather",
    "Sagt, wie das Wetter in einer größeren Stadt ist.",
    '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
)
ASKED = Conversation((Message("user", "Erzähl mir eine Geschichte."),))
TALK = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "How is it in Oslo?"),
        Message(
            "assistant",
            "",
            thought="I ask the tool.",
            tool_calls=(ToolCall("call-0", "get_weather", '{"city":"Oslo"}'),),
        ),
        Message("tool", '{"rain":true}', tool_call_id="call-0", name="get_weather"),
        Message("user", (Text("And here?"), Image("image/png", b"a picture"))),
    ),
    (WEATHER, Tool("clock", "", "{}")),
    thinking=True,
)
MOOD = Question(
    "What is the mood?", (Label("glad"), Label("sad", "the text says so"), Label("neither"))
)
DOUBT = Question("Is it?", (Label("yes"), Label("no")))
FORM = (Fixed('{"hero": "'), Hole(8), Fixed('"}'), Hole(1))
SOFT = bytes(range(16))
"""The soft embedding of four positions, two numbers of 16 bits each."""
STEP = StepRecord(
    0,
    3,
    write_ids((1, 2, 3, 4)),
    write_ids((1, 9, 3, 8)),
    write_ids((1, 7, 3, 7)),
    write_bits((True, False, True, False)),
    soft_field(EmbeddingType.BFLOAT16, SOFT),
    bytes(range(24)),
)
RECORD = CanvasRecord(0, 4, 100, Kind.TEXT, 7, *(bytes(keccak256(b"field")),) * 3, 5)
CANVAS_LEAF = RECORD.leaf()
CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'


def contents() -> dict[str, Content]:
    """Contents by name."""
    return {
        "text: one message": TextContent(ASKED),
        "text: tools, calls, answers, thinking and an image": TextContent(TALK),
        "text: a template": TextContent(
            ASKED, (Fixed('{"hero": "'), Hole(8), Fixed('"}'), Hole(1))
        ),
        "read: one question": ReadContent(
            ASKED, (Question("Is it?", (Label("yes"), Label("no"))),)
        ),
        "read: many questions and draws": ReadContent(TALK, (MOOD,) * 17, draws=64),
        "audit: a text": CLAIM,
        "audit: a read": READ_CLAIM,
        "open: one step": OpenContent(JOB, 0, 1, CANVAS_LEAF, (WantedStep(0, STEP.leaf()),)),
        "open: two steps with their soft embeddings": OpenContent(
            JOB,
            8191,
            2**31 - 1,
            CANVAS_LEAF,
            (WantedStep(3, STEP.leaf()), WantedStep(255, Digest(keccak256(b"last")))),
            soft=True,
        ),
    }


def outputs() -> dict[str, Output]:
    """Outputs by name."""
    return {
        "text: nothing": TextOutput((), ()),
        "text: final text": TextOutput.plain((0, 7, 2**32 - 1), "größer"),
        "text: every kind of segment": TextOutput(
            tuple(range(9)),
            (
                OutputSegment(SegmentKind.THOUGHT, "I ask the tool."),
                OutputSegment(SegmentKind.TOOL_CALL, CALL),
                OutputSegment(SegmentKind.BROKEN_CALL, "call:get_weather{city:"),
                OutputSegment(SegmentKind.FINAL, "Done."),
            ),
        ),
        "read: nothing": ReadOutput(()),
        "read: two questions": ReadOutput(((ONE, 0), (1, ONE - 3, 2))),
        "audit: nothing": AuditOutput(),
        "audit: passed": report_on(CLAIM, AuditOutcome.PASS),
        "audit: failed": report_on(READ_CLAIM, AuditOutcome.FAIL),
        "open: nothing": OpenOutput(),
        "open: a step": OpenOutput(RECORD.fields(), STEP.fields()),
        "open: a step with its soft embedding": OpenOutput(RECORD.fields(), STEP.fields(), SOFT),
    }


def vectors() -> dict[str, Any]:
    """Bytes and digests of contents and outputs, and the outlines that clients keep."""
    return {
        "salt": _hex(SALT),
        "job": _hex(JOB),
        "contents": {
            name: {
                "kind": content.kind,
                "bytes": _hex(data := content.encode()),
                "digest": _hex(content_digest(SALT, data)),
                "outline": _outline(content.outline),
            }
            for name, content in contents().items()
        },
        "outputs": {
            name: {
                "bytes": _hex(data := output.encode()),
                "digest": _hex(output_digest(JOB, 3, data)),
                "units": output.units,
            }
            for name, output in outputs().items()
        },
    }


def _outline(outline: Outline) -> str:
    return _hex(outline.encode())


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
