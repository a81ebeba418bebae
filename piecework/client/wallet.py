"""The client's keys: payer (owns the money) and authorizer (signs jobs and vouchers), as v3
keystores.

By default one key is both. With two, the authorizer's may be the hotter one: what it can lose is
what the payer has put into channels, never the pooled balance.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from piecework.chain.keystore import KeystoreError, KeystoreMissing, encrypt_keystore, open_keystore
from piecework.client.errors import WalletError
from piecework_protocol.signing import LocalSigner, Signer


@dataclass(frozen=True, slots=True)
class Wallet:
    """Who pays and who promises."""

    payer: Signer
    authorizer: Signer


def create_key(file: Path, password: str, secret: bytes | None = None) -> LocalSigner:
    """Write a new v3 keystore (scrypt), readable by its owner only; `WalletError` if one is there
    already.

    `secret` imports an existing private key of 32 bytes. Takes about a second: scrypt is slow on
    purpose.
    """
    signer = LocalSigner(secret if secret is not None else _fresh_secret())
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise WalletError(f"{file} exists already; it will not be overwritten") from None
    except OSError as error:
        raise WalletError(f"cannot write {file}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(encrypt_keystore(signer.secret, password))
        stream.flush()
        os.fsync(stream.fileno())
    return signer


def open_key(file: Path, password: str) -> LocalSigner:
    """Decrypt a v3 keystore. Slow on purpose: call it once, in a thread."""
    try:
        return open_keystore(file, password)
    except KeystoreMissing as error:
        raise WalletError(f"{error}. Make one: piecework client init") from None
    except KeystoreError as error:
        raise WalletError(str(error)) from None


def open_wallet(payer_file: Path, authorizer_file: Path, password: str) -> Wallet:
    """Both keys; without an authorizer file the payer's key is both."""
    payer = open_key(payer_file, password)
    authorizer = open_key(authorizer_file, password) if authorizer_file.exists() else payer
    return Wallet(payer, authorizer)


def _fresh_secret() -> bytes:
    from piecework_protocol.signing import ORDER

    return (1 + secrets.randbelow(ORDER - 1)).to_bytes(32, "big")
