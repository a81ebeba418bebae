"""A request whose task is cancelled at any moment leaves nothing behind that nobody follows."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import apsw
import pytest

from tests.sim.client.test_failover import Scene
from tests.support.client.client_side import ask, collect
from tests.support.virtual_time import simulate
from tests.support.waiting import pass_time

STEPS = 24
"""Of the loop: what a request takes until its job is sent."""


async def cancelled_after(
    steps: int, folder: Path, *, at_end: bool = False
) -> tuple[list[str], int]:
    """The states of jobs, and how many streams were opened to the worker.

    at_end: whether all is cancelled that the request began, as at the end of a loop.
    """
    scene = Scene(folder)
    scene.worker("w", "honest", 1_000_000)
    async with scene.client() as client:
        await collect(client.run(ask("before")))
        others = asyncio.all_tasks()
        asking = asyncio.create_task(collect(client.run(ask("a story"))))
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in asyncio.all_tasks() - others:
            if at_end or task is asking or task.get_name() == "piecework job":
                task.cancel()
        with suppress(asyncio.CancelledError):
            await asking
        await pass_time(0.001)
        with apsw.Connection(str(folder / "client.db")) as db:
            states = [str(row[0]) for row in db.execute("SELECT status FROM jobs ORDER BY rowid")]
    opened = sum(len(link.calls) for link in scene.market.links)
    await scene.market.close()
    return states, opened


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("steps", range(STEPS))
def test_a_job_that_no_worker_has_seen_is_over(steps: int, at_end: bool, tmp_path: Path) -> None:
    async def play() -> None:
        states, opened = await cancelled_after(steps, tmp_path, at_end=at_end)
        assert states[0] == "complete"
        if len(states) > opened:  # of a job that may have been sent nobody knows
            assert states[1:] == ["refused"]

    simulate(play())
