"""A line that repeats is logged once a second, with a count."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import structlog

from piecework.base.logs import DropRepeats
from piecework.base.repeats import MAX_KEYS, DropRepeatedRecords, Repeats


class Time:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line(level: str = "warning", **fields: Any) -> dict[str, Any]:
    return {"level": level, "event": "request failed", **fields}


def logged(processor: DropRepeats, event: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return dict(processor(None, "", event))
    except structlog.DropEvent:
        return None


def test_a_warning_that_repeats_is_logged_once_a_second_with_a_count() -> None:
    time = Time()
    processor = DropRepeats(Repeats(time))
    assert logged(processor, line(job="a")) == line(job="a")
    assert [logged(processor, line(job=str(n))) for n in range(1000)] == [None] * 1000
    time.now = 1.0
    assert logged(processor, line(job="b")) == line(job="b", repeated=1000)
    time.now = 2.0
    assert logged(processor, line(job="c")) == line(job="c")


def test_warnings_of_other_kinds_are_logged() -> None:
    processor = DropRepeats(Repeats(Time()))
    assert logged(processor, line(code="a"))
    assert logged(processor, line(code="b"))


def test_facts_that_differ_are_all_logged() -> None:
    processor = DropRepeats(Repeats(Time()))
    assert logged(processor, line("info", job="a"))
    assert logged(processor, line("info", job="b"))
    assert logged(processor, line("info", job="b")) is None


def test_the_kinds_that_are_remembered_are_bounded() -> None:
    repeats = Repeats(Time())
    for n in range(MAX_KEYS + 1):
        assert repeats.passes(n) == 0
    assert repeats.passes(0) == 0
    assert repeats.passes(MAX_KEYS) is None


def test_a_traceback_of_a_library_is_written_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    time = Time()
    keep = DropRepeatedRecords(Repeats(time))
    records = [
        logging.LogRecord("asyncio", logging.ERROR, "", 0, "accept failed", None, None)
        for _ in range(3)
    ]
    assert [keep.filter(record) for record in records[:2]] == [True, False]
    time.now = 1.0
    assert keep.filter(records[2])
    assert records[2].getMessage() == "accept failed (and 1 more like it)"
