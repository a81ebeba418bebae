"""What a worker opens of a canvas: the fields of its leaves, in a file and in a compact form. Pure.

An *openings file* is one JSON object on one line:

    {"format": "piecework-openings/1", "canvas": ["0x…", …],
     "steps": [{"fields": ["0x…", …], "soft": "0x…" or null}, …]}

canvas: the six fields of `trace.CanvasField`. fields: the seven fields of `trace.StepField`, in
their order. soft: the soft embedding's values, row by row, in the number type that the step's own
field names. The fields of a canvas or a step lead to its leaf without a proof, because all of them
are there.

The compact form is what a worker keeps: fields without soft embeddings, compressed.
"""

from __future__ import annotations

import enum
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, overload

from piecework.base.jsons import loads
from piecework_protocol.encoding import Reader, Writer
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_CANVAS_TOKENS, MAX_DENOISING_STEPS
from piecework_protocol.trace import CanvasField, CanvasRecord, StepField, StepRecord

FORMAT: Final = "piecework-openings/1"
MAX_OPENINGS_BYTES: Final = 512 * 2**20
"""48 steps of the released model in hex take 140 MB."""
MAX_STEP_BYTES: Final = 128 + 20 * MAX_CANVAS_TOKENS
"""The fields of one step without its soft embedding, with their lengths."""
MAX_KEPT_BYTES: Final = 1024 + MAX_DENOISING_STEPS * MAX_STEP_BYTES
"""What is kept of a canvas, before it is compressed."""
_KEPT_VERSION: Final = 1
_COMPRESSION: Final = 1
"""The fastest. A step's canvas repeats the one before it, which any level finds."""
OpenSteps: TypeAlias = Mapping[int, Mapping[StepField, bytes]]
"""The fields of steps, by step."""


@dataclass(frozen=True, slots=True)
class StepOpening:
    """All fields of a step, and its soft embedding as bytes if it is opened."""

    fields: tuple[bytes, ...]
    soft: bytes | None = None


@dataclass(frozen=True, slots=True)
class OpenedCanvas:
    """The record of a canvas and some of its steps.

    canvas: None where only steps are known.
    """

    canvas: CanvasRecord | None
    steps: tuple[StepOpening, ...]


@dataclass(frozen=True, slots=True)
class KeptCanvas:
    """What a worker keeps of a canvas: all that its leaves commit to, without soft embeddings."""

    canvas: CanvasRecord
    steps: Sequence[StepRecord]


class PackedRecords(Sequence[StepRecord]):
    """Steps as `pack_records` writes them. They are read when one of them is asked for.

    Nearly all that a worker keeps is never opened, and to read 23 steps takes a third of a
    millisecond.

    Raises:
        MalformedInput: The bytes begin with no number of steps. Later: they are not such steps.
    """

    def __init__(self, data: bytes) -> None:
        count = Reader(data, "a list of steps").number(4)
        if count > MAX_DENOISING_STEPS:
            raise MalformedInput(f"a canvas has at most {MAX_DENOISING_STEPS} steps")
        self._data, self._count = data, count
        self._steps: tuple[StepRecord, ...] | None = None

    def __bytes__(self) -> bytes:
        return self._data

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> StepRecord: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[StepRecord, ...]: ...

    def __getitem__(self, index: int | slice) -> StepRecord | tuple[StepRecord, ...]:
        return self._read()[index]

    def __iter__(self) -> Iterator[StepRecord]:
        return iter(self._read())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedRecords):
            return self._data == other._data
        return self._read() == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._data)

    def _read(self) -> tuple[StepRecord, ...]:
        if self._steps is None:
            self._steps = unpack_records(self._data)
        return self._steps


# --- the file


def read_openings(data: bytes) -> OpenedCanvas:
    """Read an openings file. Whether it is of a canvas that was signed is not checked here.

    Raises:
        MalformedInput: It is not such a file.
    """
    try:
        return openings_of(loads(data))
    except (ValueError, MalformedInput) as error:
        raise MalformedInput(f"this is not an openings file: {error}") from None


def openings_of(body: Any) -> OpenedCanvas:
    """Read the JSON object of an openings file. Only its form is checked here.

    Raises:
        MalformedInput: It is not such an object. The text names the place.
    """
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise MalformedInput(f"the format is not {FORMAT}")
    for name in ("canvas", "steps"):
        if name not in body:
            raise MalformedInput(f"it lacks {name!r}")
    steps = body["steps"]
    if not isinstance(steps, list) or len(steps) > MAX_DENOISING_STEPS:
        raise MalformedInput(f"steps is not a list of at most {MAX_DENOISING_STEPS}")
    canvas = body["canvas"]
    return OpenedCanvas(
        None if canvas is None else CanvasRecord.parse(_fields(canvas, "canvas", CanvasField)),
        tuple(_step(one, f"steps[{i}]") for i, one in enumerate(steps)),
    )


def held_to(leaves: Sequence[bytes] | None, opened: OpenedCanvas) -> tuple[CanvasRecord, OpenSteps]:
    """Hold an opened canvas to the leaves that the worker signed. Returns its record and its steps.

    What is not under a leaf says nothing about the worker: anybody can write it.

    Raises:
        MalformedInput: There are no leaves, or what is open is not under them.
    """
    if not leaves:
        raise MalformedInput("the evidence has no leaves of this canvas, so no opening can be held")
    if opened.canvas is None:
        raise MalformedInput("the canvas is not open")
    if opened.canvas.leaf() != leaves[0]:
        raise MalformedInput("the opened canvas is not the one that was committed")
    steps = {}
    for one in opened.steps:
        step = StepRecord.parse(one.fields)
        if step.step + 1 >= len(leaves) or step.leaf() != leaves[step.step + 1]:
            raise MalformedInput(f"the opened step {step.step} is not the one that was committed")
        steps[step.step] = dict(zip(StepField, one.fields, strict=True))
    return opened.canvas, steps


def write_openings(canvas: CanvasRecord, steps: Sequence[StepOpening]) -> bytes:
    """Give the bytes of an openings file."""
    body = {
        "format": FORMAT,
        "canvas": [_hexed(field) for field in canvas.fields()],
        "steps": [
            {
                "fields": [_hexed(field) for field in step.fields],
                "soft": None if step.soft is None else _hexed(step.soft),
            }
            for step in steps
        ],
    }
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def _step(body: Any, where: str) -> StepOpening:
    if not isinstance(body, dict) or not {"fields", "soft"} <= body.keys():
        raise MalformedInput(f"{where}: it does not have the members 'fields' and 'soft'")
    fields = _fields(body["fields"], f"{where}.fields", StepField)
    soft = body["soft"]
    return StepOpening(fields, None if soft is None else _bytes(soft, f"{where}.soft"))


def _fields(listed: Any, where: str, layout: type[enum.IntEnum]) -> tuple[bytes, ...]:
    if not isinstance(listed, list) or len(listed) != len(layout):
        raise MalformedInput(f"{where}: it does not have {len(layout)} fields")
    return tuple(_bytes(one, f"{where}[{i}]") for i, one in enumerate(listed))


def _bytes(text: Any, where: str) -> bytes:
    if isinstance(text, str):
        try:
            found = bytes.fromhex(text.removeprefix("0x"))
        except ValueError:
            found = b""
        if _hexed(found) == text:
            return found
    raise MalformedInput(f"{where}: it is not 0x and lower-case hex")


def _hexed(data: bytes) -> str:
    return "0x" + data.hex()


# --- the compact form


def pack_records(steps: Sequence[StepRecord]) -> bytes:
    """Put the fields of steps behind each other, each behind its length."""
    if isinstance(steps, PackedRecords):
        return bytes(steps)
    writer = Writer()
    writer.number(len(steps), 4)
    for step in steps:
        for field in step.fields():
            writer.data(field)
    return bytes(writer)


def unpack_records(data: bytes) -> tuple[StepRecord, ...]:
    """Undo `pack_records`.

    Raises:
        MalformedInput: The bytes are not such.
    """
    reader = Reader(data, "a list of steps")
    steps = reader.items(_record, MAX_DENOISING_STEPS)
    reader.end()
    return steps


def _record(reader: Reader) -> StepRecord:
    return StepRecord.parse([reader.data() for _ in StepField])


def pack_canvas(kept: KeptCanvas) -> bytes:
    """Compress a canvas as a worker keeps it."""
    writer = Writer()
    writer.number(_KEPT_VERSION, 1)
    for field in kept.canvas.fields():
        writer.data(field)
    return zlib.compress(bytes(writer) + pack_records(kept.steps), _COMPRESSION)


def unpack_canvas(data: bytes) -> KeptCanvas:
    """Undo `pack_canvas`.

    Raises:
        MalformedInput: The bytes are not such, or would be larger than any canvas.
    """
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(data, MAX_KEPT_BYTES)
    except zlib.error:
        raise MalformedInput("a kept canvas is not compressed as it should be") from None
    if not unpacker.eof:
        raise MalformedInput(f"a kept canvas has at most {MAX_KEPT_BYTES} bytes")
    reader = Reader(plain, "a kept canvas")
    if reader.number(1) != _KEPT_VERSION:
        raise MalformedInput(f"a kept canvas has version {_KEPT_VERSION}")
    canvas = CanvasRecord.parse([reader.data() for _ in CanvasField])
    steps = reader.items(_record, MAX_DENOISING_STEPS)
    reader.end()
    return KeptCanvas(canvas, steps)
