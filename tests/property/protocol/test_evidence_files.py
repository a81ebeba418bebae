"""Evidence files against a second reader that knows docs/protocol.md alone."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import canonical, evidence_of, read_evidence, write_evidence
from tests.support.protocol.evidence import SIZE, Story, evidence, read_evidence_file
from tests.support.protocol.plain_evidence import fault

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
GOOD = [
    write_evidence(file)
    for file in (
        evidence(Story(contradictory=True)),
        evidence(Story(cancelled=True, others=0)),
        evidence(Story(best_effort=True, others=5)),
        evidence(Story(with_text=False, with_leaves=False)),
        read_evidence_file(),
    )
]


@st.composite
def stories(draw: st.DrawFn) -> Story:
    canvases = draw(st.integers(1, 4))
    return Story(
        steps=tuple(draw(st.integers(1, 48)) for _ in range(canvases)),
        sentences=tuple(draw(WORDS) for _ in range(canvases)),
        prompt=draw(WORDS),
        seed=draw(st.integers(0, 2**64 - 1)),
        cancelled=draw(st.booleans()),
        best_effort=draw(st.booleans()),
        with_text=draw(st.booleans()),
        with_leaves=draw(st.booleans()),
        others=draw(st.integers(0, 9)),
        contradictory=draw(st.booleans()),
    )


def refusal(data: bytes) -> str | None:
    """The member that our own reader blames, or None."""
    try:
        check_evidence(read_evidence(data))
    except EvidenceRefused as refused:
        return refused.member
    return None


@given(stories())
def test_an_honest_file_holds_for_both_readers_and_survives_its_bytes(story: Story) -> None:
    file = evidence(story)
    data = write_evidence(file)
    assert read_evidence(data) == file
    assert evidence_of(json.loads(data)) == file
    assert (refusal(data), fault(data)) == (None, None)
    proven = check_evidence(file)
    assert proven.used.output_tokens == SIZE * (len(story.steps) - 1) + 2


@given(st.sampled_from(GOOD), st.data())
def test_no_byte_of_a_file_can_be_changed(good: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != good[at]))
    changed = good[:at] + bytes([byte]) + good[at + 1 :]
    assert refusal(changed) is not None
    assert fault(changed) is not None


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a JSON value."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in inner:
            found += paths(one, (*path, key))
    return found


@given(st.sampled_from(GOOD), st.data())
def test_both_readers_judge_a_file_with_another_value_alike(
    good: bytes, data: st.DataObject
) -> None:
    file = json.loads(good)
    path = data.draw(st.sampled_from(paths(file)))
    holder = file
    for step in path[:-1]:
        holder = holder[step]
    old = holder[path[-1]]
    others: list[Any] = [None, [], 0, "", "0x", {}]
    if isinstance(old, int):
        others += [old + 1, str(old), old - 1, 2**53]
    if isinstance(old, str):
        others += [old[:-1], old + "0", old.upper(), "0x" + "00" * 32]
    if isinstance(old, list) and old:
        others += [old[:-1], old[1:], [*old, old[0]], old[::-1]]
    holder[path[-1]] = data.draw(st.sampled_from(others))
    changed = canonical(file)
    ours, second = refusal(changed), fault(changed)
    assert (ours is None) == (second is None), (path, old, holder[path[-1]], ours, second)
