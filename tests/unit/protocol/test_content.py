"""Contents and outputs have one encoding each, and bounds on everything."""

from __future__ import annotations

import itertools
import json
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import piecework_model.kinds
import piecework_protocol.kinds
from piecework_protocol.content import content_digest
from piecework_protocol.conversation import (
    IMAGE_TYPES,
    Conversation,
    Image,
    Message,
    Part,
    Text,
    Tool,
    ToolCall,
)
from piecework_protocol.encoding import Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import KINDS
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
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
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_CANVASES_PER_JOB,
    MAX_CONTENT_BYTES,
    MAX_DRAWS,
    MAX_HOLE_TOKENS,
    MAX_MESSAGES_PER_PROMPT,
    MAX_PARTS_PER_MESSAGE,
    MAX_TOOL_JSON_MARKS,
)
from piecework_protocol.objects import AuditOutcome, Finish, Kind, Service
from piecework_protocol.sealing import canvas_context, content_context, public_key, seal, unseal
from piecework_protocol.service import best_effort_parameters
from piecework_protocol.types import Digest, JobId, Uint32, keccak256
from tests.support.protocol.audits import CLAIM, READ_CLAIM, report_on
from tests.support.protocol.conversations import encode_messages
from tests.vectors import contents
from tests.vectors.generate import DOMAIN

ASKED = Conversation((Message("user", "hello"),))
YES_OR_NO = Question("is it?", (Label("yes"), Label("no")))

text = st.text(st.characters(exclude_categories=["Cs"]))
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
names = st.from_regex(r"[A-Za-z0-9_.:-]{1,12}", fullmatch=True)
objects = st.dictionaries(text, st.integers() | text, max_size=3).map(json.dumps)
call_ids = st.text("abc", max_size=9)
images = st.builds(Image, st.sampled_from(IMAGE_TYPES), st.binary(min_size=1, max_size=40))


def tuples(of: st.SearchStrategy[Any], **bounds: Any) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, **bounds).map(tuple)


@st.composite
def contents_of_messages(draw: st.DrawFn) -> str | tuple[Part, ...]:
    """A text, or parts in which an image keeps two texts apart."""
    if draw(st.booleans()):
        return draw(text)
    parts: list[Part] = [draw(images)]
    for _ in range(draw(st.integers(0, 3))):
        parts += [Text(draw(words)), draw(images)] if draw(st.booleans()) else [draw(images)]
    return tuple(parts)


calls = tuples(st.builds(ToolCall, call_ids, names, objects), max_size=3)
plain = st.builds(Message, st.sampled_from(["system", "user"]), contents_of_messages())
answers = st.builds(Message, st.just("assistant"), text, thought=text, tool_calls=calls)
results = st.builds(Message, st.just("tool"), text, tool_call_id=call_ids, name=names)
tools = st.builds(Tool, names, text, objects)
conversations = st.builds(
    Conversation,
    tuples(plain | answers | results, min_size=1, max_size=3),
    tools=tuples(tools, max_size=3, unique_by=lambda tool: tool.name),
    thinking=st.booleans(),
)
holes = st.builds(Hole, st.integers(1, MAX_HOLE_TOKENS))
templates = st.lists(st.tuples(st.builds(Fixed, words), holes), max_size=3).map(
    lambda pairs: tuple(part for pair in pairs for part in pair)
)
labels = tuples(
    st.builds(Label, text, text), min_size=2, max_size=4, unique_by=lambda label: label.name
)
questions = tuples(st.builds(Question, text, labels), min_size=1, max_size=3)
ids = tuples(st.integers(0, 2**32 - 1), max_size=64)
whole_calls = st.builds(
    lambda name, arguments: f'{{"name": "{name}", "arguments": {arguments}}}', names, objects
)
calls_made = st.builds(OutputSegment, st.just(SegmentKind.TOOL_CALL), whole_calls) | st.builds(
    OutputSegment, st.just(SegmentKind.BROKEN_CALL), words
)


@st.composite
def read_outputs(draw: st.DrawFn) -> ReadOutput:
    """Probabilities that add up to one."""
    answers = []
    for _ in range(draw(st.integers(0, 4))):
        cuts = sorted(draw(st.lists(st.integers(0, ONE), min_size=1, max_size=4)))
        answers.append(tuple(b - a for a, b in itertools.pairwise([0, *cuts, ONE])))
    return ReadOutput(tuple(answers))


digests = st.binary(min_size=32, max_size=32).map(Digest)
wanted_steps = st.lists(
    st.builds(WantedStep, st.integers(0, 255), digests),
    min_size=1,
    max_size=4,
    unique_by=lambda wanted: wanted.step,
).map(lambda steps: tuple(sorted(steps, key=lambda wanted: wanted.step)))


@st.composite
def audit_contents(draw: st.DrawFn) -> AuditContent:
    """Claims about texts with whole canvases before them, and about reads."""
    numbers = st.integers(1, 256), st.sampled_from(Finish), st.integers(1, 2**31 - 1)
    steps, finish, prompt_tokens = map(draw, numbers)
    claim = draw(st.sampled_from([CLAIM, READ_CLAIM]))
    if claim is CLAIM:
        size = draw(st.integers(1, 4))
        whole = st.lists(st.integers(0, 2**32 - 1), min_size=size, max_size=size).map(tuple)
        before = tuple(draw(st.lists(whole, max_size=3)))
        claim = replace(claim, canvas=len(before), committed=before)
    profile = draw(text.filter(lambda name: 1 <= len(name.encode()) <= 128))
    return replace(
        claim,
        profile=profile,
        steps=steps,
        finish=finish,
        prompt_tokens=prompt_tokens,
        trace_root=draw(digests),
    )


CONTENTS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: st.builds(TextContent, conversations, templates),
    Kind.READ: st.builds(ReadContent, conversations, questions, st.integers(1, MAX_DRAWS)),
    Kind.AUDIT: audit_contents(),
    Kind.OPEN: st.builds(
        OpenContent,
        digests.map(JobId),
        st.integers(0, MAX_CANVASES_PER_JOB - 1),
        st.integers(1, 2**31 - 1),
        digests,
        wanted_steps,
        st.booleans(),
    ),
}
OUTPUTS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.TEXT: st.builds(TextOutput, ids, tuples(calls_made, max_size=3))
    | st.builds(TextOutput.plain, ids, text),
    Kind.READ: read_outputs(),
    Kind.AUDIT: st.sampled_from(
        [AuditOutput(), *(report_on(CLAIM, one) for one in (AuditOutcome.PASS, AuditOutcome.FAIL))]
    ),
    Kind.OPEN: st.just(OpenOutput())
    | st.builds(
        OpenOutput,
        st.just(contents.RECORD.fields()),
        st.just(contents.STEP.fields()),
        st.none() | st.binary(max_size=40),
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@given(st.data())
def test_a_content_reads_back(kind: Kind, data: st.DataObject) -> None:
    content = data.draw(CONTENTS[kind])
    assert KINDS[kind].decode_content(content.encode()) == content


@kinds
@given(st.data())
def test_an_output_reads_back(kind: Kind, data: st.DataObject) -> None:
    output = data.draw(OUTPUTS[kind])
    assert KINDS[kind].decode_output(output.encode()) == output


@kinds
@given(st.data())
def test_damaged_bytes_are_malformed_or_read_back(kind: Kind, data: st.DataObject) -> None:
    """So two encodings never mean one thing."""
    rules = KINDS[kind]
    decoders: tuple[tuple[Any, Callable[[bytes], Any]], ...] = (
        (CONTENTS, rules.decode_content),
        (OUTPUTS, rules.decode_output),
    )
    for strategies, decode in decoders:
        good = bytearray(data.draw(strategies[kind]).encode())
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, len(good)))
        for bad in (bytes(good), bytes(good[:cut]), bytes(good) + b"!"):
            try:
                value = decode(bad)
            except MalformedInput as error:
                assert len(str(error)) < 100, "an error names the defect and never the content"
            else:
                assert value.encode() == bad


PICTURE = Image("image/png", b"1")
CALL = ToolCall("", "a", "{}")


def json_of(marks: int) -> str:
    """Return an object with so many commas, colons and opening brackets."""
    return '{"a":[' + ",".join(["1"] * (marks - 2)) + "]}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Message("root", "x"),
        lambda: Message("user", "x", thought="hm"),
        lambda: Message("user", "x", tool_call_id="1"),
        lambda: Message("tool", "x", tool_call_id="1"),
        lambda: Message("user", (Text("x"),)),
        lambda: Message("user", (Text("x"), Text("y"), PICTURE)),
        lambda: Message("user", (PICTURE,) * (MAX_PARTS_PER_MESSAGE + 1)),
        lambda: Image("image/gif", b"1"),
        lambda: Image("image/png", b""),
        lambda: ToolCall("1", "a name", "{}"),
        lambda: ToolCall("1" * 200, "name", "{}"),
        lambda: ToolCall("1", "name", "[]"),
        lambda: ToolCall("1", "name", "{"),
        lambda: ToolCall("1", "name", r'{"a": ["\ud800"]}'),
        lambda: ToolCall("1", "name", r'{"\udfff": 1}'),
        lambda: Tool("name", "", r'{"title": "\udc00\ud800"}'),
        lambda: Tool("name", "", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        lambda: Conversation(()),
        lambda: Conversation((Message("user"),) * (MAX_MESSAGES_PER_PROMPT + 1)),
        lambda: Conversation((Message("user"),), (Tool("a", "", "{}"), Tool("a", "", "{}"))),
        lambda: Conversation((Message("user", (PICTURE,) * 9),) * 2),
        lambda: Conversation((Message("assistant", tool_calls=(CALL,) * 128),) * 5),
        lambda: Conversation(ASKED.messages, (Tool("a", "", json_of(MAX_TOOL_JSON_MARKS + 1)),)),
        lambda: Conversation(
            (
                Message(
                    "assistant",
                    tool_calls=(ToolCall("", "a", json_of(MAX_TOOL_JSON_MARKS // 2)),) * 2,
                ),
            ),
            (Tool("a", "", "{}"),),
        ),
        lambda: TextContent(ASKED, (Fixed("all of it"),)),
        lambda: TextContent(ASKED, (Hole(0),)),
        lambda: TextContent(ASKED, (Fixed("a"), Fixed("b"), Hole(1))),
        lambda: TextContent(ASKED, (Fixed(""), Hole(1))),
        lambda: Question("?", (Label("one"),)),
        lambda: Question("?", (Label("one"), Label("one"))),
        lambda: ReadContent(ASKED, ()),
        lambda: ReadContent(ASKED, (YES_OR_NO,), draws=0),
        lambda: ReadOutput(((ONE, 1),)),
        lambda: TextOutput((0,) * (MAX_CANVAS_TOKENS + 1), ()),
        lambda: TextOutput((), (OutputSegment(SegmentKind.FINAL, ""),)),
        lambda: OutputSegment(SegmentKind.TOOL_CALL, "call:f{}"),
        lambda: OutputSegment(SegmentKind.TOOL_CALL, '{"name": "f"}'),
        lambda: OutputSegment(SegmentKind.TOOL_CALL, '{"name": "f", "arguments": []}'),
        lambda: OutputSegment(SegmentKind.TOOL_CALL, '{"name": 1, "arguments": {}}'),
        lambda: TextOutput(
            (), (OutputSegment(SegmentKind.FINAL, "a"), OutputSegment(SegmentKind.FINAL, "b"))
        ),
        lambda: encode_messages((Message("user", "x" * MAX_CONTENT_BYTES),)),
        lambda: encode_messages((Message("user", "\ud800"),)),
    ],
)
def test_what_is_out_of_bounds_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(MalformedInput):
        make()


def test_marks_inside_of_strings_do_not_count() -> None:
    code = json.dumps({"text": 'f("a", [b, {c: d}])\\\n' * 4000})
    call = Message("assistant", tool_calls=(ToolCall("1", "write", code),))
    tool = Tool("a", "", json_of(MAX_TOOL_JSON_MARKS - 2))
    content = TextContent(Conversation((call,), (tool,)))
    assert TextContent.decode(content.encode()) == content


@pytest.mark.parametrize(
    "text",
    ['{"a":[' + ",".join(["{}"] * 600_000) + "]}", '""' * 1_000_000, "[" * 2_000_000],
    ids=["objects", "strings", "brackets"],
)
def test_json_that_is_much_to_parse_is_refused_before_it_is_parsed(text: str) -> None:
    writer = Writer()
    for number, width in ((2, 1), (0, 1), (1, 4)):
        writer.number(number, width)
    for part in ("a", "", text):
        writer.text(part)
    with pytest.raises(MalformedInput, match=r"commas, colons|a JSON object"):
        TextContent.decode(bytes(writer))


def test_the_engine_has_a_module_for_every_kind_of_the_protocol() -> None:
    both = (piecework_model.kinds, piecework_protocol.kinds)
    of_engine, of_protocol = (
        {module.name for module in pkgutil.iter_modules(package.__path__)} for package in both
    )
    assert of_engine == of_protocol == {kind.name.lower() for kind in KINDS}


def test_an_older_version_of_a_content_is_refused_by_name() -> None:
    data = encode_messages((Message("user", "hello"),))
    with pytest.raises(MalformedInput, match="version is 2, not 1"):
        TextContent.decode(b"\x01" + data[1:])


def test_every_question_of_a_read_stands_on_as_many_canvases_as_there_are_draws() -> None:
    content = ReadContent(ASKED, (YES_OR_NO,) * 35, draws=3)
    seen = [list(content.on_canvas(canvas, 256)) for canvas in range(content.canvases(256))]
    assert len(seen) == 9 and seen[0] == seen[2] == list(range(16)) and seen[8] == [32, 33, 34]
    assert sorted(index for one in seen for index in one) == sorted([*range(35)] * 3)


def test_the_same_prompt_under_another_salt_has_another_digest() -> None:
    prompt = encode_messages((Message("user", "hello"),))
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


@pytest.mark.parametrize(("questions", "draws"), [(1, 2), (35, 1), (35, 2)])
def test_a_best_effort_read_has_one_canvas_because_nobody_charges_more(
    questions: int, draws: int
) -> None:
    size = 32
    more = ReadContent(ASKED, (YES_OR_NO,) * questions, draws=draws)
    positions = Uint32(more.canvases(size) * size)
    fault = more.parameters_fault(best_effort_parameters(positions), size)
    assert fault is not None and "one canvas" in fault
    replayable = best_effort_parameters(positions).replace(
        service=Service.REPLAYABLE, max_steps=Uint32(1)
    )
    assert more.parameters_fault(replayable, size) is None
    one = ReadContent(ASKED, (YES_OR_NO,))
    assert one.parameters_fault(best_effort_parameters(Uint32(size)), size) is None
