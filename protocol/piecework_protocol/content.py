"""The digests of contents and outputs (clauses 3.3 and 4.2). `kinds` says what their bytes are.

Digests are salted with what only the two parties know until a dispute: the job's salt, or the job
id that covers it. So nobody can find a short text by hashing guesses.
"""

from __future__ import annotations

from piecework_protocol.types import Bytes32, Digest, JobId, keccak256


def content_digest(salt: Bytes32, content: bytes) -> Digest:
    """Give keccak256(salt || content bytes)."""
    return Digest(keccak256(salt + content))


def output_digest(job: JobId, canvas: int, output: bytes) -> Digest:
    """Give keccak256(job id || uint32 canvas || output bytes)."""
    return Digest(keccak256(job + canvas.to_bytes(4, "big") + output))
