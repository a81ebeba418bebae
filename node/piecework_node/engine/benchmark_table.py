"""What `piecework bench --home` measured, kept in the worker's home and shown in its offers.

The offer's own two figures come from the start-up benchmark, at the worker's own number of slots.
The table shows how speed changes with the number of jobs. It is shown only for the model and the
engine profile that it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from piecework.base.files import write_private
from piecework.base.jsons import loads
from piecework_node.engine.link import EngineFacts
from piecework_node.home import Home

MAX_FILE_BYTES: Final = 64 * 1024
"""A table of a few lines and the machine's names."""
MAX_LINES: Final = 16
"""Lines of the table, in an offer that every client downloads."""
SHOWN: Final = (
    "rows",
    "tokens_per_second",
    "steps_per_second",
    "steps_per_canvas",
    "first_canvas_ms",
)


def write_speeds(home: Home, report: Mapping[str, Any]) -> None:
    """Keep a report of `piecework bench`."""
    write_private(home.speeds, json.dumps(report).encode(), replace=True)


def with_speeds(home: Home, facts: EngineFacts) -> EngineFacts:
    """Add the kept table to the details of the facts, if it is of this model on this engine."""
    report = _read(home)
    known = (report.get("digest"), report.get("profile"))
    if known != ("0x" + facts.digest.hex(), facts.details.get("profile")):
        return facts
    lines = report.get("measurements")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        return facts
    table = [{key: _number(line.get(key)) for key in SHOWN} for line in lines[:MAX_LINES]]
    return replace(facts, details={**facts.details, "benchmark": table})


def kept_table(home: Home) -> tuple[str, list[dict[str, Any]]]:
    """Return the model's digest in hex and the lines of the kept report. Empty: there is none."""
    report = _read(home)
    lines = report.get("measurements")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        return "", []
    return str(report.get("digest", "")), lines[:MAX_LINES]


def _read(home: Home) -> dict[str, Any]:
    """Read the kept report. It is empty if there is none or it is malformed: the offer then shows
    less.
    """
    try:
        with home.speeds.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        report = loads(data) if len(data) <= MAX_FILE_BYTES else None
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def _number(value: object) -> float | None:
    return (
        round(value, 1) if isinstance(value, int | float) and not isinstance(value, bool) else None
    )
