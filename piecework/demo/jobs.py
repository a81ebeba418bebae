"""The demo's client: runs the jobs through the SDK and keeps what each of them gave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from piecework.base.errors import PieceworkError
from piecework.client.errors import NoWorkerFits
from piecework.client.jobs.events import CanvasText, DraftText, JobEvent, JobFinished, JobStarted
from piecework.client.jobs.requests import TextRequest
from piecework.client.sdk import PieceworkClient

PATIENCE_S = 60.0
"""A worker takes one job at a time until a channel's opening is mined; the others wait."""
LONGEST_PAUSE_S = 0.5
"""Workers ask for seconds, because a public chain needs them; the demo's chain mines at once."""


class JobWatcher(Protocol):
    """Whoever looks on while a job runs: the terminal, or nobody."""

    def saw(self, number: int, event: JobEvent) -> None: ...


@dataclass(slots=True)
class JobResult:
    """One job of the demo, as it went. Times in milliseconds."""

    number: int
    prompt: str
    accepted: JobStarted | None = None
    ended: JobFinished | None = None
    texts: list[str] = field(default_factory=list)
    drafts: int = 0
    first_canvas_ms: float = 0.0
    total_ms: float = 0.0
    error: str = ""

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def delivered(self) -> bool:
        return self.ended is not None and self.ended.acknowledged and not self.error


async def run_jobs(
    client: PieceworkClient,
    prompts: Sequence[str],
    requests: Sequence[TextRequest],
    concurrency: int,
    watcher: JobWatcher,
) -> list[JobResult]:
    """Run every request, at most `concurrency` at once. A job that fails says so in its result."""
    results = [JobResult(number, prompt) for number, prompt in enumerate(prompts)]
    places = asyncio.Semaphore(concurrency)

    async def one(result: JobResult, request: TextRequest) -> None:
        async with places:
            try:
                await _patiently(client, request, result, watcher)
            except PieceworkError as error:
                result.error = str(error)

    async with asyncio.TaskGroup() as group:
        for result, request in zip(results, requests, strict=True):
            group.create_task(one(result, request), name=f"demo-job-{result.number}")
    return results


async def _patiently(
    client: PieceworkClient, request: TextRequest, result: JobResult, watcher: JobWatcher
) -> None:
    """Run the job; while the worker is only busy, ask again."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            await _follow(client, request, result, watcher)
            return
        except NoWorkerFits as error:
            if error.retry_after_s is None or time.monotonic() >= give_up:
                raise
            await asyncio.sleep(min(error.retry_after_s, LONGEST_PAUSE_S))


async def _follow(
    client: PieceworkClient, request: TextRequest, result: JobResult, watcher: JobWatcher
) -> None:
    start = time.monotonic()
    async with client.run(request) as run:
        async for event in run:
            watcher.saw(result.number, event)
            if isinstance(event, JobStarted):
                result.accepted = event
            elif isinstance(event, DraftText):
                result.drafts += 1
            elif isinstance(event, CanvasText):
                result.first_canvas_ms = result.first_canvas_ms or (time.monotonic() - start) * 1000
                result.texts.append(event.text)
            elif isinstance(event, JobFinished):
                result.ended = event
    result.total_ms = (time.monotonic() - start) * 1000
