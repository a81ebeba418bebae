"""Lines from the engine process: any line is a report or malformed, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.requests import (
    HOLE,
    CanvasEvent,
    CanvasFinish,
    DraftEvent,
    EncodedContent,
    FailedEvent,
    ProgressEvent,
    PromptImage,
    ReadSlot,
    StoppedEvent,
)
from piecework_node.engine.wire import (
    Beat,
    Encoded,
    Ready,
    Report,
    decode_report,
    encode_report,
)
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.text import final_segments
from piecework_protocol.trace import (
    EmbeddingType,
    StepRecord,
    soft_field,
    write_bits,
    write_ids,
)
from tests.support.node.fake_engine import FACTS

RECORD = StepRecord(
    1,
    0,
    *(write_ids((1, 2)),) * 3,
    write_bits((True, False)),
    soft_field(EmbeddingType.BFLOAT16, b"rows"),
    bytes(12),
)
REPORTS: list[Report] = [
    Ready(FACTS),
    Encoded(1, EncodedContent((1, 2, 3), (HOLE, 5), ((ReadSlot(0, (1, 2)),),), 2)),
    Encoded(2, EncodedContent((1, 2), images=(PromptImage(1, 1, 3, 3, bytes(range(256))),))),
    Beat(),
    DraftEvent("row", 0, 1, (1, 2), final_segments("draft")),
    CanvasEvent("row", 0, (1, 2), (1,), final_segments("t"), 1, (bytes(32),), CanvasFinish.MORE),
    CanvasEvent(
        "row", 0, (1, 2), (), (), 1, (bytes(32),), CanvasFinish.MORE, answers=((1 << 15, 1 << 15),)
    ),
    StoppedEvent("row", 1, 1, 23, (bytes(32),), (RECORD,)),
    FailedEvent("row", "non_finite", "broken numbers"),
    ProgressEvent("row", 1, 8, 23),
    StoppedEvent("row", 1, 1, 23, (bytes(32),)),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def damaged_reports(draw: st.DrawFn) -> bytes:
    """A real report with members replaced, left out or added."""
    body: dict[str, Any] = json.loads(encode_report(draw(st.sampled_from(REPORTS))))
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([*body, "unknown"]) if body else st.just("unknown"))
        if draw(st.booleans()):
            body[name] = draw(JSON)
        else:
            body.pop(name, None)
    return json.dumps(body).encode()


@settings(max_examples=400)
@given(damaged_reports() | st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_line_is_a_report_or_malformed(line: bytes) -> None:
    try:
        decode_report(line)
    except MalformedInput as error:
        assert str(error)


def test_every_report_reads_back_as_it_was() -> None:
    assert [decode_report(encode_report(report)) for report in REPORTS] == REPORTS
