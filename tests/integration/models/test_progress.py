"""What a person sees of a pull, drawn into a string."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from piecework.commands._progress import Lines, PullProgress, PullScreen, progress
from piecework_model.checkpoint.manifest import covers
from piecework_node.models.hub import Hub
from piecework_node.models.pull import Received, pull
from piecework_node.models.store import ModelStore
from tests.support.model.hub import Cut, FakeHub, bundled_files, fake_hub
from tests.support.model.pulls import TINY, WEIGHTS, Told
from tests.support.system.terminal import FakeTerminal


async def shown_pull(hub: FakeHub, store: ModelStore, shown: PullProgress) -> Received:
    async with Hub.connect(hub.url, on_wait=shown.on_wait, sleep=Told().sleep) as client:
        return await pull(client, store, TINY, watcher=shown)


async def test_bars_on_a_terminal_show_files_the_whole_and_why_it_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    store, screen = ModelStore(tmp_path), FakeTerminal()
    async with fake_hub() as hub:
        commit = hub.add(TINY.repository, bundled_files())
        hub.fail("storage", WEIGHTS, Cut(1_500_000))
        with contextlib.redirect_stderr(screen), progress() as shown:
            assert isinstance(shown, PullScreen)
            await shown_pull(hub, store, shown)
            # A complete model has nothing to show, and breaks nothing.
            await shown_pull(hub, store, shown)
    drawn = screen.getvalue()
    assert f"{TINY.repository}@{commit[:12]}" in drawn and WEIGHTS in drawn
    pulled = (len(data) for name, data in bundled_files().items() if covers(name))
    whole = f"{sum(pulled) / 1e6:.1f}"
    assert "again in 1 s" in drawn and f"{whole}/{whole} MB" in drawn


async def test_elsewhere_every_tenth_of_a_file_is_a_line(tmp_path: Path) -> None:
    log = io.StringIO()
    async with fake_hub() as hub:
        hub.add(TINY.repository, {**bundled_files(), "empty.safetensors": b""})
        with contextlib.redirect_stderr(log), progress() as shown:
            assert isinstance(shown, Lines)
            await shown_pull(hub, ModelStore(tmp_path), shown)
    lines = log.getvalue().splitlines()
    moves = [line for line in lines if line.startswith(f"{WEIGHTS}: ") and " of " in line]
    assert 1 <= len(moves) <= 10 and lines.count(f"{WEIGHTS}: verified") == 1
    assert "empty.safetensors: verified" in lines and lines[0].startswith(f"{TINY.repository}@")
