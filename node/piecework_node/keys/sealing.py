"""Sealing keys: random X25519 keys that clients seal prompts to, rotated by age.

They rest in the journal, wrapped by AES-256-GCM under a key that is derived from a secret of the
home. That secret rests in a file of its own, under the home's password. A copy of the journal alone
opens no prompt. The operator's key wraps nothing, so it may be in a signer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from piecework.base.clock import Clock
from piecework.base.files import SYSTEM_DISK, Disk, write_private
from piecework.chain.keystore import KeystoreError, KeystoreMissing, encrypt_keystore, open_keystore
from piecework_node.errors import KeyFileError
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import SealingKeyAdded, SealingKeyDropped, StoredSealingKey
from piecework_node.times import now
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_JOB_LIFETIME_S, MAX_OFFER_LIFETIME_S
from piecework_protocol.sealing import forget_keys, public_key, unseal
from piecework_protocol.types import PublicKey, Timestamp

KEY_ARRIVAL_S: Final = MAX_OFFER_LIFETIME_S + MAX_JOB_LIFETIME_S
"""Prompts sealed to a replaced key can arrive for this long: an offer's life, then a job's."""
_WRAP_INFO: Final = b"piecework/1/sealing-key-wrap"
_NONCE_BYTES: Final = 12
SECRET_BYTES: Final = 32

Entropy = Callable[[int], bytes]


def _wrapping_key(secret: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt=None, info=_WRAP_INFO).derive(secret))


def open_wrapping_secret(
    path: Path, password: str, *, iterations: int | None = None, disk: Disk = SYSTEM_DISK
) -> bytes:
    """Open the home's own secret, or make it. It is slow on purpose: call it once, in a thread.

    It is written whole or not at all. So a kill leaves none, and the next start makes one.

    Args:
        path: Its file.
        password: Of the home.
        iterations: scrypt's N of a new file. None: the usual one.
        disk: The steps of the write.

    Raises:
        FileError: the file cannot be written.
        KeyFileError: it does not open with this password, or is damaged.
    """
    try:
        return open_keystore(path, password).secret
    except KeystoreMissing:
        secret = secrets.token_bytes(SECRET_BYTES)
        write_private(path, encrypt_keystore(secret, password, iterations=iterations), disk=disk)
        return secret
    except KeystoreError as error:
        raise KeyFileError(str(error)) from None


@dataclass(frozen=True, slots=True)
class WrappingSecrets:
    """What sealing keys are wrapped under: the home's own secret.

    Earlier releases wrapped them under the operator's key. `earlier` is that key where the home
    has it, so that an old journal still opens. None: the key is in a signer.
    """

    own: bytes
    earlier: bytes | None = None


@dataclass(frozen=True, slots=True)
class SealingKeys:
    """The sealing keys in use, newest first. Offers name the first. Clients may use any."""

    secrets: tuple[tuple[PublicKey, bytes, Timestamp], ...]

    @classmethod
    def load(cls, stored: tuple[StoredSealingKey, ...], under: WrappingSecrets) -> SealingKeys:
        """Unwrap what the journal holds.

        Raises:
            KeyFileError: the keys were wrapped under another secret.
        """
        every = [_wrapping_key(s) for s in (under.own, under.earlier) if s is not None]
        opened = ((key.public, _unwrap(key, every), key.created_at) for key in stored)
        return cls(tuple(opened))

    def moved(
        self, stored: tuple[StoredSealingKey, ...], secret: bytes, entropy: Entropy
    ) -> tuple[SealingKeyAdded | SealingKeyDropped, ...]:
        """Give the records that wrap every key under `secret`. None are needed if all are so.

        They belong into one commit: a kill leaves all keys as they were, or all moved.
        """
        wrapping = _wrapping_key(secret)
        if all(_opened(key, wrapping) is not None for key in stored):
            return ()
        records: list[SealingKeyAdded | SealingKeyDropped] = []
        for public, bare, at in reversed(self.secrets):  # the journal has the newest last
            nonce = entropy(_NONCE_BYTES)
            wrapped = nonce + wrapping.encrypt(nonce, bare, public)
            records += [SealingKeyDropped(public), SealingKeyAdded(public, wrapped, at)]
        return tuple(records)

    @property
    def current(self) -> PublicKey | None:
        """The key to offer."""
        return self.secrets[0][0] if self.secrets else None

    def rotation_due(self, now: Timestamp, interval_s: int) -> bool:
        """Whether there is no key, or the newest is `interval_s` seconds old."""
        return not self.secrets or now - self.secrets[0][2] >= interval_s

    def rotated(
        self, now: Timestamp, wrapping_secret: bytes, entropy: Entropy
    ) -> tuple[SealingKeys, SealingKeyAdded]:
        """Return the keys with a new one in front, and the record of it. No key is dropped."""
        secret, nonce = entropy(32), entropy(_NONCE_BYTES)
        public = public_key(secret)
        wrapped = nonce + _wrapping_key(wrapping_secret).encrypt(nonce, secret, public)
        return (
            SealingKeys(((public, secret, now), *self.secrets)),
            SealingKeyAdded(public, wrapped, now),
        )

    def without_old(
        self, now: Timestamp, evidence_s: int
    ) -> tuple[SealingKeys, tuple[SealingKeyDropped, ...]]:
        """Return the keys that are still of use, and the records of the others.

        A key is dropped once nothing sealed to it can arrive any more, or be audited.

        evidence_s: seconds after a job's deadline in which it can be audited.
        """
        # A key was replaced when the next newer one was made.
        kept = tuple(
            key
            for i, key in enumerate(self.secrets)
            if i == 0 or now - self.secrets[i - 1][2] < KEY_ARRIVAL_S + evidence_s
        )
        dropped = tuple(SealingKeyDropped(key[0]) for key in self.secrets if key not in kept)
        return SealingKeys(kept), dropped

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Open bytes that were sealed to any of the keys.

        Raises:
            MalformedInput: none of the keys fits.
        """
        for _, secret, _ in self.secrets:
            try:
                return unseal(sealed, secret, context)
            except MalformedInput:
                continue
        raise MalformedInput("sealed bytes open with none of this worker's keys")


def _opened(key: StoredSealingKey, wrapping: AESGCM) -> bytes | None:
    nonce, sealed = key.wrapped[:_NONCE_BYTES], key.wrapped[_NONCE_BYTES:]
    try:
        return wrapping.decrypt(nonce, sealed, key.public)
    except InvalidTag:
        return None


def _unwrap(key: StoredSealingKey, every: Sequence[AESGCM]) -> bytes:
    for wrapping in every:
        secret = _opened(key, wrapping)
        if secret is not None:
            return secret
    raise KeyFileError(
        "the journal's sealing keys do not open. They belong to another sealing.json, or to an "
        "operator key that is not in this home"
    )


class SealingKeyring:
    """The sealing keys of a running worker. The journal holds what this holds."""

    def __init__(
        self,
        journal: Journal,
        wrapping_secret: bytes,
        clock: Clock,
        entropy: Entropy,
        evidence_s: int = 0,
    ) -> None:
        self._journal, self._secret = journal, wrapping_secret
        self._clock, self._entropy = clock, entropy
        self._keys, self._evidence_s = SealingKeys(()), evidence_s

    @classmethod
    async def load(
        cls,
        journal: Journal,
        under: WrappingSecrets,
        *,
        clock: Clock,
        entropy: Entropy,
        rotation_s: int,
        evidence_s: int = 0,
    ) -> Self:
        """Read the keys from the journal, and make a new one if it is time.

        Keys that an earlier release wrapped under the operator's key are wrapped again.

        evidence_s: seconds after a job's deadline for which its content must stay readable.

        Raises:
            KeyFileError: the keys were wrapped under another secret.
        """
        keyring = cls(journal, under.own, clock, entropy, evidence_s)
        stored = await journal.sealing_keys()
        keyring._keys = SealingKeys.load(stored, under)
        moved = keyring._keys.moved(stored, under.own, entropy)
        if moved:
            await journal.append(moved)
        await keyring.rotate_if_due(rotation_s)
        return keyring

    @property
    def current(self) -> PublicKey | None:
        """The key that offers name."""
        return self._keys.current

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Open bytes that were sealed to any of the keys.

        Raises:
            MalformedInput: none of the keys fits.
        """
        return self._keys.open(sealed, context)

    async def rotate_if_due(self, rotation_s: int) -> None:
        """Make a new key if there is none, or if the newest is `rotation_s` seconds old.

        The old ones stay until `drop_old`: a challenge may need what was sealed to them.
        """
        time = now(self._clock)
        if not self._keys.rotation_due(time, rotation_s):
            return
        keys, added = self._keys.rotated(time, self._secret, self._entropy)
        await self._journal.append([added])
        self._keys = keys
        forget_keys()

    async def drop_old(self) -> None:
        """Let go of the keys that nothing needs any more."""
        keys, records = self._keys.without_old(now(self._clock), self._evidence_s)
        if not records:
            return
        await self._journal.append(records)
        self._keys = keys
        forget_keys()
