"""Fixtures that every test folder may use."""

from __future__ import annotations

from tests.support.chains import anvil, any_chain, embedded_chain

__all__ = ["anvil", "any_chain", "embedded_chain"]
