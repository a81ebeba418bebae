"""Fixtures that every test folder may use."""

from __future__ import annotations

import os

from tests.support.chains import anvil, any_chain, embedded_chain

__all__ = ["anvil", "any_chain", "embedded_chain"]

# When it is imported, which transformers does, Triton settles whether kernels are compiled for a GPU or
# interpreted on a CPU. With TRITON_INTERPRET=0 in the environment the same tests run on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
