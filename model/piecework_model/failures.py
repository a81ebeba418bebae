"""Which errors of a forward pass end one sequence only, and what they are called."""

from __future__ import annotations

import torch

from piecework_model.errors import NonFiniteError
from piecework_model.requests import FailureKind

_CPU_OUT_OF_MEMORY = "DefaultCPUAllocator"  # torch has no exception type of its own for the CPU


def is_out_of_memory(error: Exception) -> bool:
    """Say whether less work at once could succeed."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _CPU_OUT_OF_MEMORY in str(
        error
    )


def failure_of(error: Exception) -> tuple[FailureKind, str]:
    """Name the failure of a sequence: its kind, and a message without any text of the job.

    An error of a broken accelerator is raised again. No sequence caused it, and the process has to
    be restarted.
    """
    if isinstance(error, torch.AcceleratorError):
        raise error
    if isinstance(error, NonFiniteError):
        return "non_finite", str(error)
    if is_out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return "out_of_memory", "the sequence does not fit into memory"
    return "internal", f"the forward pass failed: {type(error).__name__}"
