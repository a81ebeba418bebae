"""The trace: one leaf digest per denoising step, so that an auditor can replay any single step.

Layout of a leaf's preimage (all integers little-endian), C = canvas size in tokens:

    bytes            field 16               domain tag, b"piecework/step/1" 4                canvas index,
    uint32 4                step index within the canvas, uint32, from 0 4                C, uint32 4 * C
    canvas before the step, uint32 ids 4 * C            canvas after it (accepted tokens kept, the rest
    renoised), uint32 ids 4 * C            argmax canvas, uint32 ids ceil(C / 8)      accepted positions, bit
    i % 8 (from the lowest) of byte i // 8 for position i 32               SHA-256 of the soft embedding that
    conditions the next step: a one-byte type tag (1 float32, 2 bfloat16, 3 float16), then the [C, H] values
    row by row in that type, little-endian 6 * C            fingerprint: for each position three float16:
    entropy in nats, log-probability of the sampled token, and the gap between the two largest logits, all
    after temperature scaling

    leaf = SHA-256(preimage)

Exact, whatever the hardware: canvas and step index, the canvas before step 0, every renoised id (both follow
from the seed alone, model/philox.py), and that "after" follows from sampled tokens, accepted positions and
renoised ids. Profile-dependent, equal bit for bit only between equal engine profiles (model/probe.py): the
argmax canvas, the accepted positions and sampled tokens near ties, the soft embedding digest and the
fingerprint. An auditor on another profile replays from the canvas before and compares the fingerprint within
calibrated margins instead.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

DOMAIN_TAG = b"piecework/step/1"
DIGEST_BYTES = 32

EmbeddingType = Literal["float32", "bfloat16", "float16"]
_TYPE_TAGS: dict[EmbeddingType, bytes] = {"float32": b"\x01", "bfloat16": b"\x02", "float16": b"\x03"}


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Everything that one leaf commits to. All id tuples have C entries; `fingerprint` has 6 * C bytes."""

    canvas: int
    step: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    argmax: tuple[int, ...]
    accepted: tuple[bool, ...]
    embedding_digest: bytes
    fingerprint: bytes


def embedding_digest(kind: EmbeddingType, little_endian_rows: bytes | memoryview) -> bytes:
    """Digest of a soft embedding given as its raw [C, H] values, row by row."""
    digest = hashlib.sha256(_TYPE_TAGS[kind])
    digest.update(little_endian_rows)
    return digest.digest()


def bitmap(flags: tuple[bool, ...]) -> bytes:
    """Packs flags into bytes, position 0 in the lowest bit of byte 0."""
    packed = bytearray((len(flags) + 7) // 8)
    for position, flag in enumerate(flags):
        packed[position // 8] |= int(flag) << (position % 8)
    return bytes(packed)


def preimage(record: StepRecord) -> bytes:
    """The bytes that the leaf digest is taken over. Raises ValueError when the fields do not have one
    length.
    """
    size = len(record.before)
    lengths = (len(record.after), len(record.argmax), len(record.accepted), len(record.fingerprint) / 6)
    if any(length != size for length in lengths) or len(record.embedding_digest) != DIGEST_BYTES:
        raise ValueError(f"step record of {size} positions has fields of other lengths: {lengths}")
    ids = struct.Struct(f"<{size}I")
    return b"".join(
        (
            DOMAIN_TAG,
            struct.pack("<III", record.canvas, record.step, size),
            ids.pack(*record.before),
            ids.pack(*record.after),
            ids.pack(*record.argmax),
            bitmap(record.accepted),
            record.embedding_digest,
            record.fingerprint,
        )
    )


def leaf(record: StepRecord) -> bytes:
    """The 32-byte leaf digest of one denoising step."""
    return hashlib.sha256(preimage(record)).digest()
