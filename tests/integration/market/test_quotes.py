"""Quotes and bills of the bundled model, in a market of real processes."""

from __future__ import annotations

import pytest

from bench.quotes import GOAL, LENGTHS, QuotedJob, measure, report, requests

pytestmark = [pytest.mark.process, pytest.mark.slow]


async def test_a_quote_is_near_the_bill_after_the_clients_first_job() -> None:
    found = await measure(13)
    assert found["over_ceiling"] == 0
    later = sorted(job["error"] for job in found["each"][1:])
    assert later[len(later) // 2] <= GOAL
    # The steps are most of the bill, and the quotes know it.
    assert found["paid_per_million_p50"] > 2 * found["output_price_per_million"]
    assert found["rate_of_the_last_quote"] == pytest.approx(found["paid_per_million_p50"], rel=0.5)


def test_the_report_counts_what_was_off() -> None:
    near = QuotedJob(100, 500, 110, 90, 100, 60, 70, "benchmark", 1_000_000)
    far = QuotedJob(400, 350, 200, 90, 100, 60, 70, "receipts", 1_200_000)
    broken = QuotedJob(400, 350, 400, 90, 100, 60, 70, "receipts", 1_200_000)
    found = report([near, far, broken], 200_000)
    assert found["error_p50"] == pytest.approx(10 / 110, abs=1e-4)
    assert (found["error_p90"], found["over_ceiling"]) == (1.0, 1)
    assert found["paid_per_million_p50"] == 2_000_000
    assert found["sources"] == ["benchmark", "receipts"]
    assert {request.generation.max_tokens for request in requests(3)} == set(LENGTHS)
