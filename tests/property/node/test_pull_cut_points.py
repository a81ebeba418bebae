"""Wherever a download is cut, and whatever a killed process left behind, the same model ends in the
store."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.checkpoint.manifest import bundled_checkpoint_path, verify
from piecework_node.models.name import HubFile
from piecework_node.models.pull import Received
from piecework_node.models.retries import RetryPolicy
from piecework_node.models.store import ModelStore
from tests.support.model.hub import (
    Cut,
    FakeHub,
    Fault,
    NoRanges,
    Short,
    Status,
    Unannounced,
    WrongRange,
    bundled_files,
    fake_hub,
)
from tests.support.model.pulls import TINY, WEIGHTS, Told, bundled_digest, pull_tiny

FILES = bundled_files()
SIZE = (bundled_checkpoint_path() / WEIGHTS).stat().st_size
MAX_FAULTS = 6
PATIENCE = RetryPolicy(attempts=MAX_FAULTS + 1)

cuts = st.integers(0, SIZE).map(Cut)
resumable: st.SearchStrategy[Fault] = cuts | st.sampled_from([500, 503, 429, 403]).map(Status)
faults = (
    resumable
    | st.just(NoRanges())
    | st.integers(1, SIZE).map(Short)
    | st.integers(1, SIZE).map(Unannounced)
    | st.integers(1, 100).map(WrongRange)
)


async def pulled_through(
    store: ModelStore, chain: list[Fault], left: bytes | None = None
) -> tuple[FakeHub, Received]:
    async with fake_hub() as hub:
        commit = hub.add(TINY.repository, FILES)
        hub.fail("storage", WEIGHTS, *chain)
        if left is not None:
            await leave(hub, store, commit, left)
        return hub, await pull_tiny(hub, store, policy=PATIENCE)


async def leave(hub: FakeHub, store: ModelStore, commit: str, data: bytes) -> None:
    """What a process that was killed leaves: a partial file of the weights, and nothing that says
    so."""
    (entry,) = (
        e for e in hub.repositories[TINY.repository].entries(commit) if e["path"] == WEIGHTS
    )
    path = store.revision(TINY, commit).partial(HubFile(WEIGHTS, SIZE, entry["lfs"]["oid"]))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


@settings(max_examples=15, deadline=None)
@given(st.lists(resumable, max_size=MAX_FAULTS))
def test_cuts_and_refusals_cost_no_byte_twice(chain: list[Fault]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        hub, received = asyncio.run(pulled_through(ModelStore(Path(folder)), chain))
        assert received.pulled.digest == bundled_digest() == verify(received.pulled.folder)
        assert received.downloaded_bytes == received.pulled.size_bytes
        offsets = [int((seen.range or "bytes=0-")[6:-1]) for seen in hub.requests(WEIGHTS)]
        assert offsets == sorted(offsets)


@settings(max_examples=15, deadline=None)
@given(st.lists(faults, max_size=MAX_FAULTS))
def test_a_server_that_misbehaves_in_any_order_cannot_spoil_the_file(chain: list[Fault]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, received = asyncio.run(pulled_through(ModelStore(Path(folder)), chain))
        assert received.pulled.digest == bundled_digest() == verify(received.pulled.folder)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, SIZE))
def test_a_process_killed_at_any_byte_is_continued_at_that_byte(at: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder))
        hub, received = asyncio.run(pulled_through(store, [], FILES[WEIGHTS][:at]))
        assert received.pulled.digest == bundled_digest() == verify(received.pulled.folder)
        assert hub.sent(WEIGHTS) == SIZE - at
        assert [seen.range for seen in hub.requests(WEIGHTS)] == (
            [f"bytes={at}-" if at else None] if at < SIZE else []
        )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, SIZE + 5), st.integers(0, 5), st.booleans())
def test_bytes_that_a_power_cut_spoiled_are_downloaded_again(
    length: int, spoiled: int, zeros: bool
) -> None:
    """The last pages of a file that was not synced are zeros or anything else."""
    whole = FILES[WEIGHTS][: max(length - spoiled, 0)]
    end = bytes(length - len(whole)) if zeros else b"\xa5" * (length - len(whole))
    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder))
        _, received = asyncio.run(pulled_through(store, [], whole + end))
        assert received.pulled.digest == bundled_digest() == verify(received.pulled.folder)
        assert not list(store.root.rglob("*.safetensors.*"))


def test_the_pauses_of_a_chain_of_faults_are_told() -> None:
    async def run(store: ModelStore) -> Told:
        told = Told()
        async with fake_hub() as hub:
            hub.add(TINY.repository, FILES)
            hub.fail("storage", WEIGHTS, Status(500), Status(503))
            await pull_tiny(hub, store, told=told)
        return told

    with tempfile.TemporaryDirectory() as folder:
        told = asyncio.run(run(ModelStore(Path(folder))))
    assert told.pauses == [1.0, 2.0] and len(told.reasons) == 2
