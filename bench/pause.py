"""How soon the engine stands still after the owner's word: `python -m bench.pause [--jobs 4]`.

The engine's own process with the bundled model, under the supervisor of the daemon. Jobs are
denoised all the time. A pause is timed from the command to the engine's word that no step is taken
any more, and so is its end. The daemon adds an HTTP request on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from bench.report import environment, percentile
from piecework_model.requests import CanvasEvent, CanvasFinish, DraftEvent, GenerationRequest
from piecework_node.engine.link import EngineEvent, EnginePaused, EngineReady, EngineResumed
from piecework_node.engine.supervisor import (
    EngineSupervisor,
)
from tests.support.model.engine_process import cpu_engine

GOAL_MS: Final = 100.0
BETWEEN_S: Final = 0.2
"""At most so long a pause comes after the one before."""
SPREAD: Final = 0.618
"""Multiples of it, without their whole part, are spread evenly."""


def request(name: int) -> GenerationRequest:
    """A job that takes long."""
    return GenerationRequest(
        request_id=str(name),
        prompt_ids=(5, 6, 7, 8),
        seed=name,
        max_tokens=256,
        max_steps=48,
        temperature_start=0.8,
        temperature_end=0.4,
        entropy_bound=0.1,
        confidence_threshold=0.0,
        stability_steps=1,
        canvas_limit=99,
        draft_every=1,
    )


class Driver:
    """Keeps the engine busy, and hears its word on pauses."""

    def __init__(self, engine: EngineSupervisor, jobs: int) -> None:
        self._engine, self._jobs = engine, jobs
        self._names = iter(range(10**9))
        self.heard: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self.steps: list[float] = []
        """Milliseconds between two drafts of a job: a step of all jobs."""
        self._drafted: dict[str, float] = {}

    async def follow(self, events: AsyncIterator[EngineEvent]) -> None:
        """Start a job for each that ends."""
        async for event in events:
            if isinstance(event, EngineReady):
                for _ in range(self._jobs):
                    self._engine.start(request(next(self._names)))
            ended = isinstance(event, CanvasEvent) and event.finish is not CanvasFinish.MORE
            if ended:
                self._engine.start(request(next(self._names)))
            if isinstance(event, DraftEvent):
                self._note(event.request_id)
            if isinstance(event, EngineReady | EnginePaused | EngineResumed):
                self._drafted.clear()
                self.heard.put_nowait(event)

    def _note(self, job: str) -> None:
        moment = time.perf_counter()
        before = self._drafted.get(job)
        if before is not None:
            self.steps.append(1000 * (moment - before))
        self._drafted[job] = moment

    async def timed(self, action: Any) -> float:
        """Milliseconds from an action to the engine's word on it."""
        began = time.perf_counter()
        action()
        await self.heard.get()
        return 1000 * (time.perf_counter() - began)


async def measure(pauses: int, jobs: int) -> dict[str, Any]:
    """Pause and resume so many times under so many jobs, at moments spread over BETWEEN_S."""
    engine = cpu_engine(slots=jobs, queue=jobs)
    driver = Driver(engine, jobs)
    tasks = [
        asyncio.ensure_future(engine.run()),
        asyncio.ensure_future(driver.follow(engine.events())),
    ]
    stops: list[float] = []
    goes: list[float] = []
    try:
        await driver.heard.get()
        for number in range(pauses):
            await asyncio.sleep(BETWEEN_S * (number * SPREAD % 1))
            stops.append(await driver.timed(lambda: engine.pause(free_memory=False)))
            goes.append(await driver.timed(engine.resume))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "environment": environment(),
        "pauses": pauses,
        "jobs_at_once": jobs,
        "load": os.getloadavg()[0],
        "step_ms": {"p50": percentile(driver.steps, 0.5), "p99": percentile(driver.steps, 0.99)},
        "stop_ms": {
            "p50": percentile(stops, 0.5),
            "p99": percentile(stops, 0.99),
            "max": max(stops),
        },
        "go_ms": {"p50": percentile(goes, 0.5), "p99": percentile(goes, 0.99), "max": max(goes)},
        "goal_ms": GOAL_MS,
        "within_goal": sum(stop <= GOAL_MS for stop in stops),
    }


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pauses", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=4)
    chosen = parser.parse_args()
    print(json.dumps(asyncio.run(measure(chosen.pauses, chosen.jobs)), indent=1))


if __name__ == "__main__":
    main()
