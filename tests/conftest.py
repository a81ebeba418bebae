"""Fixtures that every test folder may use."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.chain.chains import anvil, any_chain, embedded_chain

__all__ = ["anvil", "any_chain", "embedded_chain"]

# A time limit on one example would measure the machine, not the code. pytest-timeout ends what
# hangs.
settings.register_profile("piecework", deadline=None, print_blob=True)
settings.load_profile("piecework")

# When it is imported, which transformers does, Triton settles whether kernels are compiled for a
# GPU or interpreted on a CPU. With an NVIDIA driver and a torch that knows it, kernels are tested
# compiled.
if "+cpu" in version("torch") or not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def programs_that_are_killed_are_not_traced(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave coverage out of the children of tests that kill them.

    A program that is killed writes no figures. To trace it makes its start half as long again.
    """
    if request.node.get_closest_marker("kill") is not None:
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
