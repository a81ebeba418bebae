"""Showing a pull on stderr: bars on a terminal, else one line for each tenth of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from piecework.base.text import one_line
from piecework.commands import _common as common

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from piecework_node.models.name import HubFile, ModelName

STEP = 10
MAX_SHOWN_CHARACTERS = 300


class PullProgress(Protocol):
    """`node.model_pull.Watcher`, and what the hub tells while it waits."""

    def planned(self, model: ModelName, commit: str, files: tuple[HubFile, ...]) -> None: ...

    def at(self, file: HubFile, position: int) -> None: ...

    def done(self, file: HubFile) -> None: ...

    def on_wait(self, reason: str, pause_s: float) -> None: ...


class Lines:
    """For logs and other programs: nothing moves, and a file of 5 GB takes eleven lines."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def planned(self, model: ModelName, commit: str, files: tuple[HubFile, ...]) -> None:
        total = sum(file.size_bytes for file in files)
        _line(f"{model.repository}@{commit}: {len(files)} files, {total} bytes")

    def at(self, file: HubFile, position: int) -> None:
        tenths = STEP * position // file.size_bytes if file.size_bytes else STEP
        if tenths != self._tenths.get(file.name, 0):
            self._tenths[file.name] = tenths
            _line(f"{file.name}: {position} of {file.size_bytes} bytes")

    def done(self, file: HubFile) -> None:
        _line(f"{file.name}: verified")

    def on_wait(self, reason: str, pause_s: float) -> None:
        _line(_waiting(reason, pause_s))


class PullScreen:
    """For a person: a bar for everything, and one for each file that is coming."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._total = bars.add_task("asking the hub", total=None)
        self._tasks: dict[str, TaskID] = {}
        self._positions: dict[str, int] = {}

    def planned(self, model: ModelName, commit: str, files: tuple[HubFile, ...]) -> None:
        total = sum(file.size_bytes for file in files)
        self._bars.update(self._total, description=f"{model.repository}@{commit[:12]}", total=total)

    def at(self, file: HubFile, position: int) -> None:
        if file.name not in self._tasks:
            self._tasks[file.name] = self._bars.add_task(_name(file), total=file.size_bytes)
        self._positions[file.name] = position
        self._bars.update(self._tasks[file.name], completed=position)
        self._bars.update(self._total, completed=sum(self._positions.values()))

    def done(self, file: HubFile) -> None:
        if file.name in self._tasks:
            self._bars.update(self._tasks[file.name], visible=False)

    def on_wait(self, reason: str, pause_s: float) -> None:
        line = one_line(_waiting(reason, pause_s), MAX_SHOWN_CHARACTERS)
        self._bars.console.print(line, markup=False, highlight=False)


@contextmanager
def progress() -> Iterator[PullProgress]:
    """The way that suits stderr."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield PullScreen(bars)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Something that takes minutes and cannot say how far it is."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


def _name(file: HubFile) -> str:
    return one_line(file.name, MAX_SHOWN_CHARACTERS)


def _waiting(reason: str, pause_s: float) -> str:
    return f"{reason}; again in {pause_s:.0f} s"


def _line(text: str) -> None:
    common.say(text, err=True)
