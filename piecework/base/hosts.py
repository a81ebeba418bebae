"""Names of this machine."""

from __future__ import annotations

from typing import Final

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that only this machine can reach. What listens elsewhere needs a key or a fence."""
