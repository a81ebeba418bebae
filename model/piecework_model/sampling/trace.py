"""The trace: one leaf digest per denoising step, so that an auditor can replay any single step.

Layout of a leaf's preimage (all integers little-endian), C = canvas size in tokens:

| bytes | field |
|---|---|
| 16 | domain tag, `piecework/step/1` |
| 4 | canvas index, uint32 |
| 4 | step index within the canvas, uint32, from 0 |
| 4 | C, uint32 |
| 4 C | canvas before the step, uint32 ids |
| 4 C | canvas after it (accepted tokens kept, the rest renoised), uint32 ids |
| 4 C | argmax canvas, uint32 ids |
| ceil(C / 8) | accepted positions, position i in bit i % 8 (from the lowest) of byte i // 8 |
| 32 | SHA-256 of the soft embedding that conditions the next step: a type byte (1 float32, |
|    | 2 bfloat16, 3 float16), then the [C, H] values row by row in that type |
| 6 C | fingerprint, three float16 a position: entropy in nats, log-probability of the sample, |
|     | gap between the two largest logits, all after temperature scaling |

leaf = SHA-256(preimage)

Exact, whatever the hardware: canvas and step index, the canvas before step 0, every renoised id
(both follow from the seed and the pinned tokens, sampling/philox.py and templates.py), and that
"after" follows from sampled and pinned tokens, accepted positions and renoised ids. A pinned
position counts as accepted, and its fingerprint is what the model said there. Profile-dependent,
equal bit for bit only between equal engine profiles (machine/probe.py): the argmax canvas, the
accepted positions and sampled tokens near ties, the soft embedding digest and the fingerprint. An
auditor on another profile replays from the canvas before and compares the fingerprint within
calibrated margins instead.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

DOMAIN_TAG = b"piecework/step/1"
DIGEST_BYTES = 32

EmbeddingType = Literal["float32", "bfloat16", "float16"]
_TYPE_TAGS: dict[EmbeddingType, bytes] = {
    "float32": b"\x01",
    "bfloat16": b"\x02",
    "float16": b"\x03",
}


@dataclass(frozen=True, slots=True)
class StepRecord:
    """Everything that one leaf commits to, as the bytes of the layout.

    ids: C little-endian uint32. accepted: the bitmap. fingerprint: 3 C little-endian float16.
    """

    canvas: int
    step: int
    before: bytes
    after: bytes
    argmax: bytes
    accepted: bytes
    embedding_digest: bytes
    fingerprint: bytes


def embedding_digest(kind: EmbeddingType, little_endian_rows: bytes | memoryview) -> bytes:
    """Hash a soft embedding, given as its raw [C, H] values, row by row."""
    digest = hashlib.sha256(_TYPE_TAGS[kind])
    digest.update(little_endian_rows)
    return digest.digest()


def preimage(record: StepRecord) -> bytes:
    """Compose the bytes that are hashed. Raises ValueError if the fields disagree about C."""
    size, odd = divmod(len(record.before), 4)
    lengths = (
        len(record.after) / 4,
        len(record.argmax) / 4,
        len(record.fingerprint) / 6,
    )
    bitmap_bytes = (size + 7) // 8
    if (
        odd
        or any(length != size for length in lengths)
        or len(record.accepted) != bitmap_bytes
        or len(record.embedding_digest) != DIGEST_BYTES
    ):
        raise ValueError(f"step record of {size} positions has fields of other lengths: {lengths}")
    return b"".join(
        (
            DOMAIN_TAG,
            struct.pack("<III", record.canvas, record.step, size),
            record.before,
            record.after,
            record.argmax,
            record.accepted,
            record.embedding_digest,
            record.fingerprint,
        )
    )


def leaf(record: StepRecord) -> bytes:
    """Compute the 32-byte leaf digest of one denoising step."""
    return hashlib.sha256(preimage(record)).digest()
