"""A file on its way: what is in it when the process dies, and when it counts as the one that was
listed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from piecework_node.errors import ModelStoreError
from piecework_node.models.name import HubFile
from piecework_node.models.partial_file import PartialFile, hash_file
from tests.support.model.hub import git_blob_id

CONTENT = b"twelve bytes"
LARGE = HubFile("model.safetensors", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
SMALL = HubFile("config.json", len(CONTENT), git_blob_id(CONTENT))


@pytest.mark.parametrize("file", [LARGE, SMALL], ids=["sha256", "git"])
async def test_what_was_counted_is_in_the_file_and_is_continued(
    tmp_path: Path, file: HubFile
) -> None:
    path, target = tmp_path / "partial" / "x", tmp_path / file.name
    first = await PartialFile.open(path, file)
    first.begin(0)
    first.write(CONTENT[:5])
    assert (first.position, path.read_bytes()) == (5, CONTENT[:5])  # before anything is closed
    first.close()

    second = await PartialFile.open(path, file)
    assert (second.position, second.pieces, second.is_listed) == (5, 1, False)
    second.begin(5)
    second.write(CONTENT[5:])
    assert second.is_listed and second.pieces == 2
    assert await second.finish(target) == LARGE.digest
    second.close()
    assert target.read_bytes() == CONTENT and not path.exists()
    read: list[int] = []
    assert (await hash_file(target, file, read.append)).is_listed and read == [len(CONTENT)]


async def test_a_transfer_from_the_start_forgets_what_was_there(tmp_path: Path) -> None:
    partial = await PartialFile.open(tmp_path / "x", LARGE)
    partial.write(b"wrong")
    partial.begin(0)
    partial.write(CONTENT)
    assert partial.is_listed and partial.pieces == 1
    partial.close()
    assert (tmp_path / "x").read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], b"twelve bytez", b""])
async def test_anything_else_is_not_the_file_that_is_listed(tmp_path: Path, content: bytes) -> None:
    for file in (LARGE, SMALL):
        partial = await PartialFile.open(tmp_path / file.name, file)
        partial.write(content)
        assert not partial.is_listed
        partial.discard()
        partial.close()
        assert not (tmp_path / file.name).exists()


async def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelStoreError, match=f"cannot open {tmp_path}"):
        await PartialFile.open(tmp_path, LARGE)
    with pytest.raises(ModelStoreError, match="cannot read"):
        await hash_file(tmp_path / "nothing", LARGE, print)
