"""Keys and certificates of a worker, and how they rest on disk.

The operator key is a v3 keystore. Sealing keys are random X25519 keys that are rotated; they rest
in the journal, wrapped by AES-256-GCM under a key derived from the operator's secret, so that
whoever copies the journal cannot open prompts. The TLS certificate is self-signed: clients pin its
digest, which the offer carries.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from piecework.base.jsons import loads
from piecework.chain.keystore import KeystoreError, KeystoreMissing, encrypt_keystore, open_keystore
from piecework_node.errors import KeyFileError
from piecework_node.journal.records import SealingKeyAdded, SealingKeyDropped, StoredSealingKey
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import MAX_JOB_LIFETIME_S, MAX_OFFER_LIFETIME_S
from piecework_protocol.sealing import public_key, unseal
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Digest, PublicKey, Timestamp

TLS_NAME: Final = "piecework-worker"
"""The name that clients expect in every worker's certificate; what they trust is its digest."""
TLS_LIFETIME_DAYS: Final = 3650
"""Replaced by `worker init` when lost; the digest in the offer is what binds it, not this date."""
KEY_ARRIVAL_S: Final = MAX_OFFER_LIFETIME_S + MAX_JOB_LIFETIME_S
"""After a key was replaced, prompts sealed to it can arrive for this long: an offer's life, then a
job's."""
_WRAP_INFO: Final = b"piecework/1/sealing-key-wrap"
_NONCE_BYTES: Final = 12

Entropy = Callable[[int], bytes]


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write a file of mode 0600 atomically; refuses to overwrite unless `replace`."""
    if path.exists() and not replace:
        raise KeyFileError(f"{path} exists already and is not overwritten")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


# --- operator


def create_keystore(
    path: Path, password: str, secret: bytes, *, iterations: int | None = None
) -> None:
    """Write `secret` as a v3 keystore. The default scrypt cost takes about 0.6 s."""
    write_private(path, encrypt_keystore(secret, password, iterations=iterations))


def load_operator(path: Path, password: str) -> LocalSigner:
    """Open the keystore. Slow on purpose: call it once, in a thread. `KeyFileError` says what is
    wrong."""
    try:
        return open_keystore(path, password)
    except KeystoreMissing as error:
        raise KeyFileError(f"{error}. Run `piecework worker init` first.") from None
    except KeystoreError as error:
        raise KeyFileError(str(error)) from None


def keystore_address(path: Path) -> str:
    """The address that a keystore says it holds, as hex without a prefix; needs no password."""
    try:
        return str(loads(path.read_bytes())["address"]).removeprefix("0x").lower()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KeyFileError(f"{path} is not a readable keystore: {error}") from None


# --- TLS


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A certificate with its key, both PEM. `digest` is the SHA-256 of the certificate's DER
    form."""

    certificate: bytes
    key: bytes
    digest: Digest


def create_tls(now: Timestamp) -> tuple[bytes, bytes]:
    """A fresh P-256 key with its self-signed certificate: (certificate PEM, key PEM)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, TLS_NAME)])
    start = datetime.datetime.fromtimestamp(now, datetime.UTC) - datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=TLS_LIFETIME_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(TLS_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def load_tls(certificate: Path, key: Path) -> TlsIdentity:
    """Read both files and take the certificate's digest."""
    try:
        pem, secret = certificate.read_bytes(), key.read_bytes()
        der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
        serialization.load_pem_private_key(secret, password=None)
    except FileNotFoundError as error:
        raise KeyFileError(
            f"{error.filename} is missing. Run `piecework worker init` first."
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise KeyFileError(f"{certificate} or {key} is unusable: {error}") from None
    return TlsIdentity(pem, secret, Digest(sha256(der).digest()))


# --- sealing keys


def _wrapping_key(operator_secret: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), 32, salt=None, info=_WRAP_INFO).derive(operator_secret))


@dataclass(frozen=True, slots=True)
class SealingKeys:
    """The sealing keys in use, newest first: the first is offered, every one may still be sealed
    to."""

    secrets: tuple[tuple[PublicKey, bytes, Timestamp], ...]

    @classmethod
    def load(cls, stored: tuple[StoredSealingKey, ...], operator_secret: bytes) -> SealingKeys:
        """Unwrap what the journal holds. `KeyFileError` when it was wrapped under another operator
        key."""
        wrapping = _wrapping_key(operator_secret)
        opened = []
        for key in stored:
            nonce, sealed = key.wrapped[:_NONCE_BYTES], key.wrapped[_NONCE_BYTES:]
            try:
                secret = wrapping.decrypt(nonce, sealed, key.public)
            except InvalidTag:
                raise KeyFileError(
                    "the journal's sealing keys do not open with this operator key"
                ) from None
            opened.append((key.public, secret, key.created_at))
        return cls(tuple(opened))

    @property
    def current(self) -> PublicKey | None:
        """The key to offer."""
        return self.secrets[0][0] if self.secrets else None

    def rotation_due(self, now: Timestamp, interval_s: int) -> bool:
        """Whether there is no key, or the newest is `interval_s` seconds old."""
        return not self.secrets or now - self.secrets[0][2] >= interval_s

    def rotated(
        self, now: Timestamp, operator_secret: bytes, entropy: Entropy
    ) -> tuple[SealingKeys, tuple[SealingKeyAdded | SealingKeyDropped, ...]]:
        """The keys with a new one in front and those dropped that nothing can arrive for, and the
        records."""
        secret, nonce = entropy(32), entropy(_NONCE_BYTES)
        public = public_key(secret)
        wrapped = nonce + _wrapping_key(operator_secret).encrypt(nonce, secret, public)
        every = ((public, secret, now), *self.secrets)
        # A key was replaced when the next newer one was made.
        kept = tuple(
            key for i, key in enumerate(every) if i == 0 or now - every[i - 1][2] < KEY_ARRIVAL_S
        )
        dropped = tuple(SealingKeyDropped(key[0]) for key in every if key not in kept)
        return SealingKeys(kept), (SealingKeyAdded(public, wrapped, now), *dropped)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Open bytes that were sealed to any of the keys; `MalformedInput` when none fits."""
        for _, secret, _ in self.secrets:
            try:
                return unseal(sealed, secret, context)
            except MalformedInput:
                continue
        raise MalformedInput("sealed bytes open with none of this worker's keys")
