"""How many bytes of tensors a piece of work holds at once, from torch's own allocator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Allocated(Generic[T]):
    """peak_bytes: most that was alive at once. kept_bytes: still alive at the end, `result`
    included."""

    result: T
    peak_bytes: int
    kept_bytes: int


def allocations(work: Callable[[], T], mapped: Iterable[Path] = ()) -> Allocated[T]:
    """Runs `work` and counts every allocation of CPU tensors.

    mapped: files that it maps into memory. torch books such a mapping as an allocation of the
    file's size, but its pages are the file's own and go when they are needed: they do not count.
    """
    files = {path.stat().st_size for path in mapped}
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    peak = alive = 0
    for change in sorted(changes, key=lambda change: change["Ev Idx"]):
        if abs(change["Bytes"]) not in files:
            alive += change["Bytes"]
            peak = max(peak, alive)
    return Allocated(result, peak, alive)
