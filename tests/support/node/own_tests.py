"""Test jobs of an owner whose engine makes no step by itself."""

from __future__ import annotations

from piecework.base.clock import SystemClock
from piecework_node.jobs.own_test import OwnTests
from piecework_node.runtime.cards import EngineCard, EngineCards
from tests.support.node.fake_engine import FakeEngine


def idle_tests() -> OwnTests:
    """The test jobs of a worker with one card."""
    return OwnTests(EngineCards([EngineCard("0", FakeEngine(), slots=1, queue=0)]), SystemClock())
