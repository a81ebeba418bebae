"""The trace of a canvas, layout 2 (clause 7.1): what its leaves commit to, and how a field opens.

A canvas with n denoising steps has n + 1 leaves. Leaf 0 is the *canvas leaf*: it binds what decides
the canvas. Leaf k + 1 is the *step leaf* of step k. The trace root of the receipt is the tree of
`merkle` over them.

A leaf is itself a tree of `merkle`, over the SHA-256 of each of its fields. So one field opens with
its own bytes and a proof, and the others stay closed. All integers are little-endian. C is the
canvas size in tokens.

| field of a step | bytes | holds |
|---|---|---|
| 0 header | 28 | tag `piecework/step/2`, canvas, step from 0, C: uint32 each |
| 1 before | 4 C | the canvas before the step, uint32 ids |
| 2 after | 4 C | the canvas after it: accepted tokens kept, the rest renoised |
| 3 argmax | 4 C | the most likely token of each position |
| 4 accepted | ceil(C / 8) | position i in bit i % 8 (from the lowest) of byte i // 8 |
| 5 soft | 33 | a type byte, SHA-256 of the soft embedding (`soft_field`) |
| 6 fingerprint | 6 C | three float16 a position: entropy in nats, log-probability of the sample, |
|   |   | gap of the two largest logits, all after temperature scaling |

| field of a canvas | bytes | holds |
|---|---|---|
| 0 header | 31 | tag `piecework/canvas/1`, canvas, C, vocabulary size: uint32 each, kind: uint8 |
| 1 seed | 8 | the job's seed, uint64 |
| 2 parameters | 32 | the EIP-712 struct hash of the job's parameters |
| 3 content | 32 | the content digest of the job |
| 4 pinned | 32 | root over the pinned positions (`pinned_root`) |
| 5 prompt tokens | 4 | uint32 |

Exact, whatever the hardware: the canvas leaf, both indices, the canvas before step 0 and every
renoised id, which follow from the seed and the pinned tokens. Equal bit for bit only between equal
engine profiles: the argmax canvas, accepted positions and sampled tokens near ties, soft embedding
and fingerprint.
"""

from __future__ import annotations

import enum
import hashlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework_protocol import merkle
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_CANVASES_PER_JOB,
    MAX_DENOISING_STEPS,
)
from piecework_protocol.merkle import InclusionProof
from piecework_protocol.objects import Kind
from piecework_protocol.types import DIGEST_BYTES, Bytes32, Digest

STEP_TAG: Final = b"piecework/step/2"
CANVAS_TAG: Final = b"piecework/canvas/1"
ID_BYTES: Final = 4
NUMBERS_PER_POSITION: Final = 3
_HALF_BYTES: Final = 2
_STEP_HEADER: Final = struct.Struct("<16sIII")
_CANVAS_HEADER: Final = struct.Struct("<18sIIIB")
_MAX_UINT32: Final = 2**32 - 1
_MAX_UINT64: Final = 2**64 - 1


class StepField(enum.IntEnum):
    """The fields of a step leaf, by their index."""

    HEADER = 0
    BEFORE = 1
    AFTER = 2
    ARGMAX = 3
    ACCEPTED = 4
    SOFT = 5
    FINGERPRINT = 6


class CanvasField(enum.IntEnum):
    """The fields of a canvas leaf, by their index."""

    HEADER = 0
    SEED = 1
    PARAMETERS = 2
    CONTENT = 3
    PINNED = 4
    PROMPT_TOKENS = 5


class EmbeddingType(enum.IntEnum):
    """The number type of a soft embedding: the type byte of its field."""

    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3

    @property
    def width(self) -> int:
        """Give the bytes of one number."""
        return 4 if self is EmbeddingType.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one denoising step commits to.

    before, after, argmax, accepted, soft and fingerprint are the bytes of their fields.

    Raises:
        MalformedInput: A number is out of range, or the fields disagree about the canvas size.
    """

    canvas: int
    step: int
    before: bytes
    after: bytes
    argmax: bytes
    accepted: bytes
    soft: bytes
    fingerprint: bytes

    def __post_init__(self) -> None:
        _check("canvas index", self.canvas, 0, MAX_CANVASES_PER_JOB - 1)
        _check("step index", self.step, 0, MAX_DENOISING_STEPS - 1)
        size, odd = divmod(len(self.before), ID_BYTES)
        _check("canvas size", size, 1, MAX_CANVAS_TOKENS)
        for name, data, expected in (
            ("canvas before it", self.before, len(self.before) - odd),
            ("canvas after it", self.after, ID_BYTES * size),
            ("argmax canvas", self.argmax, ID_BYTES * size),
            ("accepted positions", self.accepted, _bitmap_bytes(size)),
            ("soft embedding", self.soft, 1 + DIGEST_BYTES),
            ("fingerprint", self.fingerprint, _fingerprint_bytes(size)),
        ):
            if len(data) != expected:
                raise MalformedInput(
                    f"a step's {name} of {size} positions has {expected} bytes, not {len(data)}"
                )
        if size % 8 and self.accepted[-1] >> size % 8:
            raise MalformedInput("a step accepts only positions of its canvas")
        if not min(EmbeddingType) <= self.soft[0] <= max(EmbeddingType):
            raise MalformedInput("a soft embedding is of a known number type")

    @property
    def size(self) -> int:
        """Give the canvas size in tokens."""
        return len(self.before) // ID_BYTES

    def fields(self) -> tuple[bytes, ...]:
        """List the bytes of all fields, in the order of `StepField`."""
        return (
            _STEP_HEADER.pack(STEP_TAG, self.canvas, self.step, self.size),
            self.before,
            self.after,
            self.argmax,
            self.accepted,
            self.soft,
            self.fingerprint,
        )

    def leaf(self) -> Digest:
        """Compute the step leaf."""
        return leaf_of(self.fields())

    @classmethod
    def parse(cls, fields: Sequence[bytes]) -> StepRecord:
        """Parse what `fields` lists.

        Raises:
            MalformedInput: The fields are not those of a step.
        """
        if len(fields) != len(StepField):
            raise MalformedInput(f"a step has {len(StepField)} fields, not {len(fields)}")
        header = StepHeader.parse(fields[StepField.HEADER])
        record = cls(header.canvas, header.step, *fields[StepField.BEFORE :])
        if record.size != header.size:
            raise MalformedInput("a step's fields are of the canvas size in its header")
        return record


@dataclass(frozen=True, slots=True)
class StepHeader:
    """The header of a step leaf, when it is opened alone. size: of the canvas, in tokens."""

    canvas: int
    step: int
    size: int

    @classmethod
    def parse(cls, data: bytes) -> StepHeader:
        """Parse the field.

        Raises:
            MalformedInput: The bytes are not the header of a step.
        """
        tag, canvas, step, size = _unpack(_STEP_HEADER, data, "step header")
        if tag != STEP_TAG:
            raise MalformedInput("a step header begins with its tag")
        _check("canvas index", canvas, 0, MAX_CANVASES_PER_JOB - 1)
        _check("step index", step, 0, MAX_DENOISING_STEPS - 1)
        _check("canvas size", size, 1, MAX_CANVAS_TOKENS)
        return cls(canvas, step, size)


@dataclass(frozen=True, slots=True)
class CanvasRecord:
    """What decides a canvas, as its leaf commits to it. size: of the canvas, in tokens.

    parameters: the struct hash of the job's parameters. content: the job's content digest. pinned:
    from `pinned_root`.

    Raises:
        MalformedInput: A number or a digest is out of range.
    """

    canvas: int
    size: int
    vocab_size: int
    kind: Kind
    seed: int
    parameters: bytes
    content: bytes
    pinned: bytes
    prompt_tokens: int

    def __post_init__(self) -> None:
        _check("canvas index", self.canvas, 0, MAX_CANVASES_PER_JOB - 1)
        _check("canvas size", self.size, 1, MAX_CANVAS_TOKENS)
        _check("vocabulary size", self.vocab_size, 1, _MAX_UINT32)
        _check("seed", self.seed, 0, _MAX_UINT64)
        _check("number of prompt tokens", self.prompt_tokens, 0, _MAX_UINT32)
        for digest in (self.parameters, self.content, self.pinned):
            if len(digest) != DIGEST_BYTES:
                raise MalformedInput(f"a digest of a canvas leaf has {DIGEST_BYTES} bytes")

    def fields(self) -> tuple[bytes, ...]:
        """List the bytes of all fields, in the order of `CanvasField`."""
        return (
            _CANVAS_HEADER.pack(CANVAS_TAG, self.canvas, self.size, self.vocab_size, self.kind),
            self.seed.to_bytes(8, "little"),
            self.parameters,
            self.content,
            self.pinned,
            self.prompt_tokens.to_bytes(4, "little"),
        )

    def leaf(self) -> Digest:
        """Compute the canvas leaf."""
        return leaf_of(self.fields())

    @classmethod
    def parse(cls, fields: Sequence[bytes]) -> CanvasRecord:
        """Parse what `fields` lists.

        Raises:
            MalformedInput: The fields are not those of a canvas.
        """
        if len(fields) != len(CanvasField):
            raise MalformedInput(f"a canvas leaf has {len(CanvasField)} fields, not {len(fields)}")
        header, seed, parameters, content, pinned, prompt_tokens = fields
        tag, canvas, size, vocab_size, kind = _unpack(_CANVAS_HEADER, header, "canvas header")
        if tag != CANVAS_TAG:
            raise MalformedInput("a canvas header begins with its tag")
        if kind > max(Kind):
            raise MalformedInput("a canvas is of a known kind")
        return cls(
            canvas,
            size,
            vocab_size,
            Kind(kind),
            _number(seed, 8, "seed"),
            parameters,
            content,
            pinned,
            _number(prompt_tokens, 4, "number of prompt tokens"),
        )


@dataclass(frozen=True, slots=True)
class OpenedField:
    """One field of a leaf: its bytes, and the proof that they belong to the leaf."""

    data: bytes
    proof: InclusionProof

    def belongs_to(self, leaf: bytes, fields: int) -> bool:
        """Say whether it is a field of `leaf`, which has so many. Its index is the proof's."""
        digest = hashlib.sha256(self.data).digest()
        return self.proof.count == fields and merkle.verify(self.proof, digest, leaf)


def leaf_of(fields: Iterable[bytes]) -> Digest:
    """Compute the leaf of such fields."""
    return merkle.root([hashlib.sha256(field).digest() for field in fields])


def open_field(fields: Sequence[bytes], index: StepField | CanvasField) -> OpenedField:
    """Open one of the fields of a leaf."""
    digests = [hashlib.sha256(field).digest() for field in fields]
    return OpenedField(fields[index], merkle.prove(digests, index))


def soft_field(kind: EmbeddingType, rows: bytes | memoryview) -> bytes:
    """Compute the field of a soft embedding, given as its raw [C, H] values row by row.

    It is the type byte and SHA-256(type byte || values).
    """
    tag = bytes([kind])
    digest = hashlib.sha256(tag)
    digest.update(rows)
    return tag + digest.digest()


def trace_root(leaves: Sequence[bytes]) -> Digest:
    """Compute the trace root of a canvas: its canvas leaf, then its step leaves.

    Of no leaves it is the empty root. That is the trace of a canvas without steps.
    """
    return merkle.root(leaves)


def pinned_root(pins: Iterable[tuple[int, int]]) -> Digest:
    """Compute the root over pinned positions, given as (position, id) with positions ascending.

    Each is a leaf: SHA-256 of both numbers, uint32 each. Of none it is the empty root.

    Raises:
        MalformedInput: The positions do not ascend within a canvas, or an id is out of range.
    """
    leaves: list[Bytes32] = []
    least = 0
    for position, token in pins:
        _check("pinned position", position, least, MAX_CANVAS_TOKENS - 1)
        _check("pinned id", token, 0, _MAX_UINT32)
        leaves.append(pinned_leaf(position, token))
        least = position + 1
    return merkle.root(leaves)


def pinned_leaf(position: int, token: int) -> Bytes32:
    """Compute the leaf of one pinned position: SHA-256 of (position, id), uint32 each."""
    return Bytes32(hashlib.sha256(struct.pack("<II", position, token)).digest())


def read_ids(data: bytes) -> tuple[int, ...]:
    """Read the ids of a canvas.

    Raises:
        MalformedInput: The bytes are not whole ids.
    """
    size, odd = divmod(len(data), ID_BYTES)
    if odd:
        raise MalformedInput("a canvas has whole ids")
    return struct.unpack(f"<{size}I", data)


def write_ids(ids: Sequence[int]) -> bytes:
    """Write the ids of a canvas. The inverse of `read_ids`."""
    return struct.pack(f"<{len(ids)}I", *ids)


def read_bits(data: bytes, size: int) -> tuple[bool, ...]:
    """Read the accepted positions of a canvas of `size` tokens.

    Raises:
        MalformedInput: The bitmap is of another size.
    """
    if len(data) != _bitmap_bytes(size):
        raise MalformedInput(f"the bitmap of {size} positions has {_bitmap_bytes(size)} bytes")
    return tuple(bool(data[i // 8] >> i % 8 & 1) for i in range(size))


def write_bits(accepted: Sequence[bool]) -> bytes:
    """Write accepted positions. The inverse of `read_bits`."""
    data = bytearray(_bitmap_bytes(len(accepted)))
    for position, flag in enumerate(accepted):
        data[position // 8] |= flag << position % 8
    return bytes(data)


def read_fingerprint(data: bytes) -> tuple[tuple[float, float, float], ...]:
    """Read (entropy, log-probability, gap) of each position.

    Raises:
        MalformedInput: The bytes are not whole positions.
    """
    size, odd = divmod(len(data), _fingerprint_bytes(1))
    if odd:
        raise MalformedInput("a fingerprint has three numbers a position")
    numbers = struct.unpack(f"<{NUMBERS_PER_POSITION * size}e", data)
    return tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))


def _bitmap_bytes(size: int) -> int:
    return (size + 7) // 8


def _fingerprint_bytes(size: int) -> int:
    return _HALF_BYTES * NUMBERS_PER_POSITION * size


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise MalformedInput(f"the {name} is {least} to {most}, not {value}")


def _unpack(form: struct.Struct, data: bytes, name: str) -> tuple[Any, ...]:
    if len(data) != form.size:
        raise MalformedInput(f"a {name} has {form.size} bytes, not {len(data)}")
    return form.unpack(data)


def _number(data: bytes, width: int, name: str) -> int:
    if len(data) != width:
        raise MalformedInput(f"the {name} of a canvas leaf has {width} bytes, not {len(data)}")
    return int.from_bytes(data, "little")
