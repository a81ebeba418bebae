"""Digests of files: right, read once, remembered, and never those of a file that has changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework_model.checkpoint.digests import BLOCK_BYTES, DigestStore
from piecework_model.checkpoint.loading import load
from piecework_model.checkpoint.manifest import (
    MANIFEST_FILE,
    bundled_checkpoint_path,
    manifest_text,
)
from piecework_model.errors import CheckpointError

LATER_NS = 2**62


def later() -> int:
    """A clock long after any file here was written."""
    return LATER_NS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 1000)
    return path


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    for size in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1):
        path = tmp_path / str(size)
        path.write_bytes(os.urandom(size))
        assert DigestStore().of(path) == digest_of(path)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3500), max_size=6).map(sorted))
def test_steps_change_no_digest(tmp_path_factory: pytest.TempPathFactory, ends: list[int]) -> None:
    path = tmp_path_factory.mktemp("steps") / "file"
    path.write_bytes(bytes(range(256)) * 12)
    store = DigestStore()
    with store.reading(path) as reader:
        for end in ends:
            reader.advance(end)
    assert store.known(path) == digest_of(path)


def test_a_digest_outlives_the_process(tmp_path: Path, file: Path) -> None:
    store = DigestStore(tmp_path / "digests.json", later)
    store.of(file)
    store.save()
    assert DigestStore(tmp_path / "digests.json").known(file) == digest_of(file)
    assert (tmp_path / "digests.json").stat().st_mode & 0o777 == 0o600


def _longer(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"x")


def _other_bytes(path: Path) -> None:
    """As many, and with the times of before: only the inode's own time tells."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"z")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replaced(path: Path) -> None:
    """By a file of the same size and times."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    with other.open("r+b") as stream:
        stream.write(b"z")
    shutil.copystat(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [_longer, _other_bytes, _replaced])
def test_a_changed_file_is_found(
    tmp_path: Path, file: Path, change: Callable[[Path], None]
) -> None:
    store = DigestStore(tmp_path / "digests.json", later)
    before = store.of(file)
    store.save()
    change(file)
    for later_store in (store, DigestStore(tmp_path / "digests.json", later)):
        assert later_store.known(file) is None
        assert later_store.of(file) == digest_of(file) != before


def test_what_changed_a_moment_ago_is_not_written_down(tmp_path: Path, file: Path) -> None:
    now = file.stat().st_ctime_ns + 1_000_000_000
    store = DigestStore(tmp_path / "digests.json", lambda: now)
    assert store.of(file) == digest_of(file)
    store.save()
    assert DigestStore(tmp_path / "digests.json").known(file) is None


def test_a_file_that_changes_while_it_is_read_is_refused(file: Path) -> None:
    store = DigestStore()
    with pytest.raises(CheckpointError, match="changed while it was read"):  # noqa: SIM117
        with store.reading(file) as reader:
            reader.advance(10)
            _longer(file)
    assert store.known(file) is None


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"files": 5}', '{"files": {"a": 5, "b": {"sha256": "x"}}}', "\x00" * 40],
)
def test_a_damaged_store_counts_as_empty(tmp_path: Path, file: Path, content: str) -> None:
    path = tmp_path / "digests.json"
    path.write_text(content)
    store = DigestStore(path, later)
    assert store.known(file) is None and store.of(file) == digest_of(file)
    store.save()
    assert list(json.loads(path.read_text())["files"]) == [str(file)]


def test_files_that_are_gone_are_forgotten(tmp_path: Path, file: Path) -> None:
    store = DigestStore(tmp_path / "digests.json", later)
    store.of(file)
    file.unlink()
    store.save()
    assert json.loads((tmp_path / "digests.json").read_text()) == {"files": {}}
    with pytest.raises(CheckpointError, match="cannot be read"):
        store.of(file)


def test_loading_hashes_what_is_not_known_and_nothing_twice(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_checkpoint_path(), folder)
    store = DigestStore(tmp_path / "digests.json", later)
    loaded = load(folder, device="cpu", digests=store)
    store.save()
    expected = hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).digest()
    assert loaded.digest == expected
    covered = json.loads((tmp_path / "digests.json").read_text())["files"]
    assert {Path(path).name for path in covered} == {
        line[66:] for line in (folder / MANIFEST_FILE).read_text().splitlines()
    }
    again = DigestStore(tmp_path / "digests.json", later)
    assert manifest_text(folder, again) == (folder / MANIFEST_FILE).read_text()
    assert load(folder, device="cpu", digests=again).digest == expected


def test_weights_that_changed_since_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_checkpoint_path(), folder)
    store = DigestStore(None, later)
    load(folder, device="cpu", digests=store)
    weights = next(folder.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    before = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CheckpointError, match=f"does not match {MANIFEST_FILE}"):
        load(folder, device="cpu", digests=store)
