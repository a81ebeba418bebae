"""End-to-end sealing of content and outputs with HPKE (RFC 9180).

What is sealed is bound to chain, escrow, job and direction. The suite is DHKEM(X25519,
HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305. Every message is a one-shot encapsulation of its own,
so frames may be lost or replayed without state to keep in step. The library takes no associated
data. So the whole context goes into `info`, which HPKE authenticates as well.

`seal` draws the ephemeral key from the operating system. It is the only function of this package
that does not depend on its arguments alone. Sessions never call it: they carry sealed bytes.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import SEALING_OVERHEAD_BYTES
from piecework_protocol.types import DIGEST_BYTES, JobId, PublicKey

_SUITE: Final = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
BAD_KEY: Final = "an X25519 public key of low order or wrong length"
_TAG: Final = b"piecework/2/"
KEPT_KEYS: Final = 512
"""Secrets whose keys are kept. To make one again takes as long as half of an opening."""
_PRIME: Final = 2**255 - 19
_LOW_ORDER: Final = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _PRIME - 1,
        _PRIME,
        _PRIME + 1,
    }
)
"""Every point of low order, on the curve and on its twist, as X25519 reads it (RFC 7748, section
6.1): of order 4, 1 or 2, 8, 8, 4, and two that are not reduced."""


def public_key(secret: bytes) -> PublicKey:
    """Give the X25519 public key of a 32-byte secret."""
    return PublicKey(_private_key(secret).public_key().public_bytes_raw())


@lru_cache(maxsize=KEPT_KEYS)
def _private_key(secret: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(secret)


def forget_keys() -> None:
    """Keep no secret here any longer. Whoever drops a key calls this."""
    _private_key.cache_clear()


def check_key(key: PublicKey) -> None:
    """Refuse what `seal` could not seal to.

    Raises:
        MalformedInput: The key has a low order or the wrong length.
    """
    # X25519 does not look at the highest bit.
    if len(key) != DIGEST_BYTES or int.from_bytes(key, "little") % 2**255 in _LOW_ORDER:
        raise MalformedInput(BAD_KEY)


def content_context(domain: Domain, job: JobId) -> bytes:
    """Give the context of a job's content, from client to worker."""
    return _context(domain, b"content", job)


def canvas_context(domain: Domain, job: JobId, canvas: int) -> bytes:
    """Give the context of a finished canvas, from worker to client."""
    return _context(domain, b"canvas", job) + struct.pack(">I", canvas)


def draft_context(domain: Domain, job: JobId, canvas: int, step: int) -> bytes:
    """Give the context of a draft, from worker to client."""
    return _context(domain, b"draft", job) + struct.pack(">II", canvas, step)


def resume_context(domain: Domain, job: JobId, canvas: int) -> bytes:
    """Give the context of a canvas's token ids, which a worker seals to itself for a restart."""
    return _context(domain, b"resume", job) + struct.pack(">I", canvas)


def kept_context(domain: Domain, job: JobId, canvas: int) -> bytes:
    """Give the context of a canvas's steps, which a worker seals to itself as evidence."""
    return _context(domain, b"steps", job) + struct.pack(">I", canvas)


def seal(plaintext: bytes, key: PublicKey, context: bytes) -> bytes:
    """Encrypt to `key`. The result is 48 bytes longer than the plaintext.

    Raises:
        MalformedInput: The key has a low order or the wrong length.
    """
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(key), context)
    except ValueError:
        raise MalformedInput(BAD_KEY) from None


def unseal(sealed: bytes, secret: bytes, context: bytes) -> bytes:
    """Decrypt what `seal` made for `secret` in the same context.

    Raises:
        MalformedInput: The bytes do not open with this key in this context.
    """
    if len(sealed) < SEALING_OVERHEAD_BYTES:
        raise MalformedInput("sealed bytes are shorter than the sealing overhead")
    try:
        return _SUITE.decrypt(sealed, _private_key(secret), context)
    except (InvalidTag, ValueError):
        raise MalformedInput("sealed bytes do not open with this key in this context") from None


def _context(domain: Domain, direction: bytes, job: JobId) -> bytes:
    return _TAG + direction + struct.pack(">Q", domain.chain_id) + domain.verifying_contract + job
