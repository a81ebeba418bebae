"""End-to-end sealing of prompts and outputs with HPKE (RFC 9180), bound to chain, escrow, job and
direction.

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. Every message is its own one-shot
encapsulation: frames may be lost or replayed without any state to keep in step. The library takes
no associated data, so the whole context goes into `info`, which HPKE authenticates just as well.

The callee draws the ephemeral key from the operating system: the one place in this package that is
not a function of its arguments. Sessions never call it; they carry sealed bytes.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import SEALING_OVERHEAD_BYTES
from piecework_protocol.types import JobId, PublicKey

_SUITE: Final = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
_TAG: Final = b"piecework/1/"


def public_key(secret: bytes) -> PublicKey:
    """The X25519 public key of a 32-byte secret."""
    return PublicKey(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())


def prompt_context(domain: Domain, job: JobId) -> bytes:
    """Client to worker: the prompt of `job`."""
    return _context(domain, b"prompt", job)


def canvas_context(domain: Domain, job: JobId, canvas: int) -> bytes:
    """Worker to client: the output of a finished canvas."""
    return _context(domain, b"canvas", job) + struct.pack(">I", canvas)


def draft_context(domain: Domain, job: JobId, canvas: int, step: int) -> bytes:
    """Worker to client: a canvas as it is being denoised."""
    return _context(domain, b"draft", job) + struct.pack(">II", canvas, step)


def resume_context(domain: Domain, job: JobId, canvas: int) -> bytes:
    """Worker to itself: the token ids of a finished canvas, so that a restart can go on from
    there."""
    return _context(domain, b"resume", job) + struct.pack(">I", canvas)


def seal(plaintext: bytes, key: PublicKey, context: bytes) -> bytes:
    """Encrypt to `key`; 48 bytes longer than the plaintext. `MalformedInput` when the key is
    unusable."""
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(key), context)
    except ValueError:
        raise MalformedInput("an X25519 public key of low order or wrong length") from None


def unseal(sealed: bytes, secret: bytes, context: bytes) -> bytes:
    """Decrypt what `seal` made for `secret` in the same context; `MalformedInput` for anything
    else."""
    if len(sealed) < SEALING_OVERHEAD_BYTES:
        raise MalformedInput("sealed bytes are shorter than the sealing overhead")
    try:
        return _SUITE.decrypt(sealed, X25519PrivateKey.from_private_bytes(secret), context)
    except (InvalidTag, ValueError):
        raise MalformedInput("sealed bytes do not open with this key in this context") from None


def _context(domain: Domain, direction: bytes, job: JobId) -> bytes:
    return _TAG + direction + struct.pack(">Q", domain.chain_id) + domain.verifying_contract + job
