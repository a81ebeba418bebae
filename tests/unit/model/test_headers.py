"""Safetensors headers and the index: what is true is read, what is not is named by its file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from piecework_model import limits
from piecework_model.checkpoint import headers
from piecework_model.checkpoint.manifest import bundled_checkpoint_path
from piecework_model.errors import CheckpointError
from tests.support.model.small_models import write_small


def shard(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_what_is_read_is_what_the_library_reads() -> None:
    found = headers.read_folder(bundled_checkpoint_path())
    with safe_open(bundled_checkpoint_path() / "model.safetensors", framework="pt") as library:
        assert found.keys() == set(library.keys())
        for name, header in found.items():
            part = library.get_slice(name)
            assert (list(header.shape), header.dtype) == (part.get_shape(), part.get_dtype())


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "small")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    found = headers.read_folder(folder)
    assert len(set(index.values())) > 2
    assert {name: header.path.name for name, header in found.items()} == index


BAD_HEADERS: dict[str, Any] = {
    "empty file": b"",
    "shorter than its length": b"\x02\x00",
    "length beyond the file": struct.pack("<Q", 2**62) + b"{}",
    "length beyond the bound": struct.pack("<Q", limits.MAX_SHARD_HEADER_BYTES + 1),
    "no JSON": struct.pack("<Q", 2) + b"{]",
    "no UTF-8": struct.pack("<Q", 4) + b'"\xff"}',
    "a list": struct.pack("<Q", 2) + b"[]",
    "nested without end": struct.pack("<Q", 200_000) + b"[" * 200_000,
}


@pytest.mark.parametrize("defect", BAD_HEADERS)
def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path, defect: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(BAD_HEADERS[defect])
    with pytest.raises(CheckpointError) as caught:
        headers.read_file(path)
    assert caught.value.path == str(path)


BAD_ENTRIES: dict[str, Any] = {
    "no object": 3,
    "no type": {"shape": [1], "data_offsets": [0, 4]},
    "unknown type": entry([1], 0, 4, "F4"),
    "negative shape": entry([-1], 0, 4),
    "shape of text": entry(["1"], 0, 4),  # type: ignore[list-item]
    "a boolean as a size": entry([True], 0, 4),
    "one offset": {"dtype": "F32", "shape": [1], "data_offsets": [0]},
    "too few bytes": entry([2], 0, 4),
    "ends before it begins": entry([1], 4, 0),
    "a gap before it": entry([1], 4, 8),
    "beyond the data": entry([2], 0, 8),
}


@pytest.mark.parametrize("defect", BAD_ENTRIES)
def test_an_entry_that_does_not_fit_its_file_is_named(tmp_path: Path, defect: str) -> None:
    path = shard(tmp_path / "bad.safetensors", {"a": BAD_ENTRIES[defect]}, bytes(4))
    with pytest.raises(CheckpointError) as caught:
        headers.read_file(path)
    assert caught.value.path == str(path)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "x.safetensors", {"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)
    )
    with pytest.raises(CheckpointError, match="begins at 0"):
        headers.read_file(path)


def test_tensors_of_no_bytes_are_no_overlap(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.safetensors", {"b": entry([0], 0, 0), "a": entry([0, 3], 0, 0)})
    assert {header.name for header in headers.read_file(path)} == {"a", "b"}


def edit_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return path


NORM = "model.decoder.norm.weight"
BAD_INDEXES: dict[str, tuple[Callable[[dict[str, str]], object], str]] = {
    "a shard that is not there": (
        lambda m: m.update({NORM: "model-9.safetensors"}),
        "model-9.safetensors",
    ),
    "a tensor that is nowhere": (
        lambda m: m.update({"x": "model-00001-of-{n}.safetensors"}),
        "00001",
    ),
    "a path out of the folder": (lambda m: m.update({NORM: "../x.safetensors"}), "index"),
    "a number for a file": (lambda m: m.update({NORM: 3}), "index"),  # type: ignore[dict-item]
    "another kind of file": (lambda m: m.update({NORM: "config.json"}), "index"),
    "nothing": (lambda m: m.clear(), "index"),
    "a tensor less than there are": (lambda m: m.pop(NORM), "safetensors"),
}


@pytest.mark.parametrize("defect", BAD_INDEXES)
def test_an_index_that_points_nowhere_is_refused(tmp_path: Path, defect: str) -> None:
    folder = write_small(tmp_path / "small")
    shards = len(list(folder.glob("*.safetensors")))
    change, named = BAD_INDEXES[defect]
    path = edit_index(folder, change)
    path.write_text(path.read_text().replace("{n}", f"{shards:05}"))
    with pytest.raises(CheckpointError) as caught:
        headers.read_folder(folder)
    assert named in Path(caught.value.path).name


def test_a_shard_that_no_index_knows_is_refused(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "small")
    shard(folder / "extra.safetensors", {})
    with pytest.raises(CheckpointError, match="not in the index") as caught:
        headers.read_folder(folder)
    assert caught.value.path == str(folder / "extra.safetensors")


def test_several_shards_without_an_index_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shard(tmp_path / f"{name}.safetensors", {})
    with pytest.raises(CheckpointError, match="2 safetensors files and no index"):
        headers.read_folder(tmp_path)


def test_one_name_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shard(tmp_path / f"{name}.safetensors", {"w": entry([1], 0, 4)}, bytes(4))
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"w is in a\.safetensors too"):
        headers.read_folder(tmp_path)


@given(st.binary(max_size=64), st.integers(0, 2**64 - 1))
def test_any_bytes_are_tensors_or_a_named_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.safetensors"
    for start in (struct.pack("<Q", length), struct.pack("<Q", len(content)), b""):
        path.write_bytes(start + content)
        try:
            headers.read_file(path)
        except CheckpointError as error:
            assert error.path == str(path)


@given(st.integers(0, 199), st.integers(1, 255))
def test_a_flipped_byte_of_a_header_is_never_another_error(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    header = {"first": entry([2, 2], 0, 16), "second": entry([4], 16, 24, "BF16")}
    path = shard(tmp_path_factory.mktemp("flip") / "flip.safetensors", header, bytes(24))
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= flip
    path.write_bytes(content)
    try:
        found = headers.read_file(path)
    except CheckpointError as error:
        assert error.path == str(path)
    else:
        assert sum(tensor.data_bytes for tensor in found) == 24
