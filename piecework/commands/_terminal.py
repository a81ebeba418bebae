"""A job on the terminal: the canvas while it is denoised, with steps and cost.

Plain text when the output is not a terminal. What a worker wrote is made safe before it is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from piecework.base.text import one_line, printable, write
from piecework.client.jobs.events import (
    CanvasText,
    DraftText,
    JobEvent,
    JobFinished,
    JobResuming,
    JobStarted,
)
from piecework.client.jobs.run import JobRun
from piecework_protocol.types import to_hex

if TYPE_CHECKING:
    from rich.text import Text

SHOWN_CANVASES = 12
"""A live display redraws all it shows. Older canvases scroll away above it."""
MAX_SHOWN_CHARACTERS = 10_000_000
"""More than the longest answer. Nothing of it is cut."""
MAX_NAME_CHARACTERS = 100
MAX_REASON_CHARACTERS = 500


def shown(text: str) -> str:
    """A worker's text as it may stand on a terminal, with its line breaks."""
    return printable(text, lines=True, limit=MAX_SHOWN_CHARACTERS)


@dataclass
class JobProgress:
    """Everything that a display needs, brought up to date event by event."""

    accepted: JobStarted | None = None
    canvases: list[CanvasText] = field(default_factory=list)
    draft: DraftText | None = None
    ended: JobFinished | None = None
    note: str = ""

    def take(self, event: JobEvent) -> None:
        """Bring the picture up to date."""
        if isinstance(event, JobStarted):
            self.accepted, self.note = event, ""
        elif isinstance(event, CanvasText):
            self.canvases.append(event)
            self.draft, self.note = None, ""
        elif isinstance(event, DraftText):
            self.draft = event
        elif isinstance(event, JobResuming):
            self.note = f"connection lost, trying again in {event.wait_s:.1f} s"
        elif isinstance(event, JobFinished):
            self.ended = event

    def status(self, amount: Callable[[int], str]) -> str:
        """One line: where, how far, how much."""
        if self.accepted is None:
            return self.note or "looking for a worker"
        steps = sum(c.steps for c in self.canvases)
        tokens = sum(c.tokens for c in self.canvases)
        cost = self.canvases[-1].cost if self.canvases else 0
        now = (
            f", canvas {self.draft.canvas + 1} at step {self.draft.step + 1}" if self.draft else ""
        )
        worker = to_hex(self.accepted.operator)[:10]
        done = f"{len(self.canvases)} canvases, {tokens} tokens, {steps} denoising steps{now}"
        model = one_line(self.accepted.model, MAX_NAME_CHARACTERS)
        parts = [f"{worker}… {model}", done, f"{amount(cost)} paid", self.note]
        return " | ".join(part for part in parts if part)

    @property
    def has_something(self) -> bool:
        """Whether a worker took the job, so that there may be text that was paid for."""
        return self.accepted is not None

    def summary(self, amount: Callable[[int], str]) -> str:
        """The last lines: the status, the job's id, and for one that stopped early what to do."""
        if self.accepted is None:
            return self.status(amount)
        job = to_hex(self.accepted.job)
        if self.ended is not None:
            return f"{self.status(amount)}\njob {job}"
        return f"{self.status(amount)}\nstopped early; see: piecework client receipts --job {job}"


class Display(Protocol):
    """Where a job is shown."""

    async def show(self, run: JobRun) -> JobProgress: ...


class PlainDisplay:
    """Text on stdout as canvases are finished, a summary on stderr."""

    def __init__(self, amount: Callable[[int], str]) -> None:
        self._amount = amount

    async def show(self, run: JobRun) -> JobProgress:
        progress = JobProgress()
        try:
            async with run:
                async for event in run:
                    self._take(progress, event)
        finally:
            if progress.has_something:
                write(sys.stdout, "\n")
                write(sys.stderr, progress.summary(self._amount) + "\n")
        return progress

    def _take(self, progress: JobProgress, event: JobEvent) -> None:
        progress.take(event)
        if isinstance(event, CanvasText):
            write(sys.stdout, shown(event.text))
            sys.stdout.flush()
        elif isinstance(event, JobResuming):
            why = one_line(event.why, MAX_REASON_CHARACTERS)
            write(sys.stderr, f"\n{progress.note}: {why}\n")


class QuietDisplay:
    """Nothing: the caller prints the result."""

    async def show(self, run: JobRun) -> JobProgress:
        progress = JobProgress()
        async with run:
            async for event in run:
                progress.take(event)
        return progress


class LiveDisplay:
    """The canvas in place, redrawn as it changes."""

    def __init__(self, amount: Callable[[int], str]) -> None:
        self._amount = amount

    async def show(self, run: JobRun) -> JobProgress:
        from rich.console import Console
        from rich.live import Live

        progress, console = JobProgress(), Console()
        try:
            with Live(console=console, refresh_per_second=20, transient=True) as live:
                async with run:
                    async for event in run:
                        progress.take(event)
                        live.update(self._picture(progress))
        finally:
            if progress.has_something:
                whole = shown("".join(c.text for c in progress.canvases))
                console.print(whole, markup=False, highlight=False)
                summary = progress.summary(self._amount)
                console.print(summary, style="dim", markup=False, highlight=False)
        return progress

    def _picture(self, progress: JobProgress) -> Text:
        from rich.text import Text

        text = Text(shown("".join(c.text for c in progress.canvases[-SHOWN_CANVASES:])))
        if progress.draft is not None:
            text.append(shown(progress.draft.text), style="dim italic")
        text.append("\n" + progress.status(self._amount), style="cyan")
        return text


def choose(amount: Callable[[int], str], *, quiet: bool) -> Display:
    """The display that fits where stdout goes."""
    if quiet:
        return QuietDisplay()
    return LiveDisplay(amount) if sys.stdout.isatty() else PlainDisplay(amount)
