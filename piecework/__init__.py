"""The `piecework` command: one program for every role."""

from __future__ import annotations

__version__ = "0.1.0"
