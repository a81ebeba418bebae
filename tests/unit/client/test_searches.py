"""A search that several callers share."""

from __future__ import annotations

import gc

from piecework.client.network.searches import Search, SearchResult
from tests.support.clock import FakeClock


async def test_a_search_that_is_closed_before_it_begins_asks_nobody() -> None:
    asked = []

    async def gather() -> SearchResult:
        asked.append("somebody")
        return SearchResult()

    search = Search()
    search.refresh(gather, FakeClock())
    await search.close()
    gc.collect()  # a coroutine that nobody awaited would warn here, and warnings are errors
    assert asked == []
