"""The databases that the tests of an index use."""

from __future__ import annotations

from tests.support.market.databases import place, postgres

__all__ = ["place", "postgres"]
