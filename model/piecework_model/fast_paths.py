"""Which fast paths an engine has, and why it lacks one. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FastPath:
    """One path that makes a step faster. reason: why it is off, or empty."""

    name: str
    reason: str = ""


def describe(paths: Sequence[FastPath]) -> str:
    """Write them in one line for logs and people."""
    on = [path.name for path in paths if not path.reason]
    off = [f"{path.name} ({path.reason})" for path in paths if path.reason]
    parts = [f"on: {', '.join(on)}"] * bool(on) + [f"off: {', '.join(off)}"] * bool(off)
    return "; ".join(parts) or "none on a CPU"
