"""How many bytes of tensors a piece of work holds at once, from torch's own allocator."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Allocated(Generic[T]):
    """peak_bytes: most that was alive at once. kept_bytes: still alive at the end, `result` included."""

    result: T
    peak_bytes: int
    kept_bytes: int


def allocations(work: Callable[[], T]) -> Allocated[T]:
    """Runs `work`; every allocation of CPU tensors counts, mapped files do not."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        result = work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    peak = alive = 0
    for change in sorted(changes, key=lambda event: event["args"]["Ev Idx"]):
        alive += change["args"]["Bytes"]
        peak = max(peak, alive)
    return Allocated(result, peak, alive)
