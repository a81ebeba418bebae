"""Pulling from the fake hub: a watcher that remembers, and a sleep that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from piecework_model.checkpoint.manifest import (
    MANIFEST_FILE,
    bundled_checkpoint_path,
    manifest_digest,
)
from piecework_node.models.hub import Hub
from piecework_node.models.name import HubFile, ModelName
from piecework_node.models.pull import Received, pull
from piecework_node.models.retries import RetryPolicy
from piecework_node.models.store import ModelStore
from tests.support.model.hub import FakeHub

TINY: Final = ModelName("example", "tiny-stories")
WEIGHTS: Final = "model.safetensors"
IMPATIENT: Final = RetryPolicy(connect_s=5.0, read_s=5.0, answer_s=5.0)
"""As patient as by default in attempts; pauses are not slept."""


def bundled_digest() -> bytes:
    """The model digest of the bundled checkpoint, by its own manifest."""
    return manifest_digest((bundled_checkpoint_path() / MANIFEST_FILE).read_text())


class Told:
    """A `Watcher`, and the hub's `on_wait` and `sleep`."""

    def __init__(self) -> None:
        self.files: tuple[HubFile, ...] = ()
        self.positions: dict[str, list[int]] = {}
        self.finished: list[str] = []
        self.reasons: list[str] = []
        self.pauses: list[float] = []
        self._moved = asyncio.Event()

    def planned(self, model: ModelName, commit: str, files: tuple[HubFile, ...]) -> None:
        self.files = files

    def at(self, file: HubFile, position: int) -> None:
        self.positions.setdefault(file.name, []).append(position)
        self._moved.set()
        self._moved = asyncio.Event()

    async def has_received(self, name: str, least_bytes: int) -> None:
        """Return when so much of a file has arrived."""
        while max(self.positions.get(name, [0])) < least_bytes:
            await self._moved.wait()

    def done(self, file: HubFile) -> None:
        self.finished.append(file.name)

    def on_wait(self, reason: str, pause_s: float) -> None:
        self.reasons.append(reason)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


async def pull_tiny(
    hub: FakeHub,
    store: ModelStore,
    *,
    model: ModelName = TINY,
    token: str = "",
    told: Told | None = None,
    policy: RetryPolicy = IMPATIENT,
    expected_digest: bytes | None = None,
    free: Callable[[Path], int] = lambda _: 2**40,
) -> Received:
    """One pull, as the command does it."""
    told = told or Told()
    async with Hub.connect(
        hub.url, token, on_wait=told.on_wait, policy=policy, sleep=told.sleep
    ) as client:
        return await pull(
            client, store, model, watcher=told, expected_digest=expected_digest, free=free
        )
