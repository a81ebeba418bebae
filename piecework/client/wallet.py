"""The client's keys: payer (owns the money) and authorizer (signs jobs and vouchers).

By default one key is both. A second key for the authorizer may lie on a busier machine: a thief of
it can spend what is in channels, and never the pooled balance.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from piecework.base.files import SYSTEM_DISK, Disk, FileExists, write_private
from piecework.chain.keystore import KeystoreError, KeystoreMissing, encrypt_keystore, open_keystore
from piecework.client.errors import WalletError
from piecework_protocol.signing import ORDER, HeldKey, LocalSigner


@dataclass(frozen=True, slots=True)
class Wallet:
    """Who pays and who promises."""

    payer: HeldKey
    authorizer: HeldKey


def create_key(
    file: Path, password: str, secret: bytes | None = None, *, disk: Disk = SYSTEM_DISK
) -> LocalSigner:
    """Make a key and write it as a v3 keystore that only its owner can read.

    The key is encrypted before the file is begun. A kill leaves no file or a whole one.

    Args:
        file: Where the keystore goes. It must not exist.
        password: What opens it.
        secret: An existing private key of 32 bytes, to be imported. Drawn at random if None.
        disk: The steps of the write.

    Raises:
        WalletError: there is a file already.
        FileError: the file cannot be written.
    """
    signer = LocalSigner(_fresh_secret() if secret is None else secret)
    keystore = encrypt_keystore(signer.secret, password)
    try:
        write_private(file, keystore, disk=disk)
    except FileExists as error:
        raise WalletError(str(error)) from None
    return signer


def open_key(file: Path, password: str) -> LocalSigner:
    """Decrypt a v3 keystore. Slow on purpose: call it once, in a thread.

    Raises:
        WalletError: the file is missing or damaged, or the password is wrong.
    """
    try:
        return open_keystore(file, password)
    except KeystoreMissing as error:
        raise WalletError(f"{error}. Make one: piecework client init") from None
    except KeystoreError as error:
        raise WalletError(str(error)) from None


def open_wallet(payer_file: Path, authorizer_file: Path, password: str) -> Wallet:
    """Open both keys. Without an authorizer file the payer's key is both.

    Raises:
        WalletError: a file is missing or damaged, or the password is wrong.
    """
    payer = open_key(payer_file, password)
    authorizer = open_key(authorizer_file, password) if authorizer_file.exists() else payer
    return Wallet(payer, authorizer)


def _fresh_secret() -> bytes:
    return (1 + secrets.randbelow(ORDER - 1)).to_bytes(32, "big")
