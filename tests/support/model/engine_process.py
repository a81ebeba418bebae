"""The engine's own process on a CPU, under the supervisor of the daemon."""

from __future__ import annotations

import os
import sys

from piecework.base.clock import SystemClock
from piecework_node import logs
from piecework_node.engine.environment import child_environment
from piecework_node.engine.supervisor import (
    EngineCommandLine,
    EngineSupervisor,
    engine_arguments,
)


def cpu_engine(
    model: str = "", *, precision: str = "auto", slots: int = 1, queue: int = 0
) -> EngineSupervisor:
    """A supervisor that has not begun. `model`: a folder, or "" for the bundled checkpoint."""
    arguments = engine_arguments(
        sys.executable,
        model=model,
        device="cpu",
        precision=precision,
        planned_context=0,
        slots=slots,
        queue=queue,
        threads=1,
        benchmark_s=0.1,
    )
    command = EngineCommandLine(tuple(arguments), child_environment(dict(os.environ)))
    return EngineSupervisor(command, SystemClock(), logs.silent())
