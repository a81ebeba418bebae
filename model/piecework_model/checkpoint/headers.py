"""What safetensors files say about themselves: names, types, shapes, byte ranges.

No weight is read, and no torch is imported. The format (github.com/huggingface/safetensors,
"Format") is: 8 bytes little-endian length N, N bytes of JSON `{name: {"dtype", "shape",
"data_offsets": [begin, end]}}`, then the data. The ranges cover the data without gap or overlap. A
checkpoint of several files has an index, `{"weight_map": {name: file}}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework_model import files, limits
from piecework_model.errors import CheckpointError

METADATA_KEY: Final = "__metadata__"
INDEX_SUFFIX: Final = ".safetensors.index.json"
_LENGTH_BYTES: Final = 8
BITS: Final[Mapping[str, int]] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
}
"""Bits of one element, by the format's name of the type."""
FLOATS: Final = frozenset({"F16", "BF16", "F32"})
"""The types in which weights are published."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor of a file, unread.

    dtype: a key of BITS. data_bytes: its size in the file. end: its last byte's place in the file,
    plus one.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    data_bytes: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def read_folder(folder: Path) -> dict[str, TensorHeader]:
    """List every tensor of a checkpoint folder by name, from the headers alone.

    Raises CheckpointError, which names the file, if a shard is missing, truncated or malformed, if
    the index and the shards disagree, or if two shards have the same name.
    """
    weight_map = _weight_map(folder)
    found: dict[str, TensorHeader] = {}
    for path in _shards(folder, weight_map):
        for header in read_file(path):
            if header.name in found:
                raise CheckpointError(
                    path, f"{header.name} is in {found[header.name].path.name} too"
                )
            found[header.name] = header
    if weight_map is not None:
        _hold_to_index(folder, weight_map, found)
    return found


def read_file(path: Path) -> list[TensorHeader]:
    """List the tensors of one safetensors file. Raises CheckpointError, which names it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            if not 2 <= length <= min(limits.MAX_SHARD_HEADER_BYTES, size - _LENGTH_BYTES):
                raise CheckpointError(
                    path,
                    f"is not a safetensors file: it announces a header of {length} bytes in {size}",
                )
            text = stream.read(length).decode("utf-8")
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(path, f"cannot be read: {error}") from error
    entries = files.parse_json(text, path)
    entries.pop(METADATA_KEY, None)
    return _check_layout(path, entries, _LENGTH_BYTES + length, size)


def _check_layout(
    path: Path, entries: dict[str, Any], data_start: int, size: int
) -> list[TensorHeader]:
    """Check the entries of one header against the size of the data behind it."""
    data_bytes = size - data_start
    headers = [_entry(path, name, entry, data_start) for name, entry in entries.items()]
    position = 0
    for begin, end, header in sorted(
        headers, key=lambda found: (found[0], found[1], found[2].name)
    ):
        if begin != position:
            raise CheckpointError(
                path, f"{header.name} begins at {begin}, the data before it ends at {position}"
            )
        position = end
    if position != data_bytes:
        raise CheckpointError(
            path, f"holds {data_bytes} bytes of weights, its header describes {position}"
        )
    return [header for _, _, header in headers]


def _entry(path: Path, name: str, entry: Any, data_start: int) -> tuple[int, int, TensorHeader]:
    """Parse one entry to (begin, end, header). Raises CheckpointError if it is malformed."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(path, f"the header of {name[:100]} is malformed") from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and number >= 0 for number in numbers) or dtype not in BITS:
        raise CheckpointError(path, f"the header of {name[:100]} is malformed")
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise CheckpointError(
            path, f"{name[:100]} has {end - begin} bytes, not those of {dtype} {list(shape)}"
        )
    return begin, end, TensorHeader(name, path, dtype, shape, end - begin, data_start + end)


def _weight_map(folder: Path) -> dict[str, str] | None:
    """Read the index's `{tensor: file name}`. Returns None in a folder without an index."""
    found = sorted(folder.glob("*" + INDEX_SUFFIX))
    if not found:
        return None
    if len(found) > 1:
        raise CheckpointError(found[1], f"is a second index beside {found[0].name}")
    weight_map = files.read_json(found[0]).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(found[0], "has no weight_map")
    for name, file in weight_map.items():
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or not file.endswith(".safetensors")
        ):
            raise CheckpointError(
                found[0], f"{name[:100]} does not point at a safetensors file of this folder"
            )
    return weight_map


def _shards(folder: Path, weight_map: dict[str, str] | None) -> list[Path]:
    """List the weight files, sorted. Without an index there must be exactly one."""
    present = sorted(folder.glob("*.safetensors"))
    if weight_map is None:
        if len(present) != 1:
            raise CheckpointError(folder, f"{len(present)} safetensors files and no index")
        return present
    named = set(weight_map.values())
    for path in present:
        if path.name not in named:
            raise CheckpointError(path, "is not in the index")
    return [folder / name for name in sorted(named)]


def _hold_to_index(
    folder: Path, weight_map: dict[str, str], found: dict[str, TensorHeader]
) -> None:
    for name, file in weight_map.items():
        if name not in found or found[name].path.name != file:
            raise CheckpointError(folder / file, f"lacks {name[:100]}, which the index puts there")
    for name, header in found.items():
        if name not in weight_map:
            raise CheckpointError(header.path, f"has {name[:100]}, which the index does not list")
