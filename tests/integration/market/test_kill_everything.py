"""kill -9 of worker, gateway, customer, index and the way to the chain: the books stay exact."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kills.storm import COMPLETE, run

pytestmark = [pytest.mark.process, pytest.mark.kill, pytest.mark.slow]

KILLS = 60


async def test_sixty_kills_of_five_processes_leave_exact_books(tmp_path: Path) -> None:
    report = await run(tmp_path, KILLS, seed=3)
    assert sum(report.kills.values()) >= KILLS - 5, "a victim was dead already"
    assert report.receipts > 0 and report.texts > 0 and report.answers[COMPLETE] > 0
