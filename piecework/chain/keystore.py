"""Ethereum v3 keystores (scrypt): the one form in which a private key of any role rests on disk.

Source: the Web3 Secret Storage Definition,
https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage.
"""

from __future__ import annotations

import json
from pathlib import Path

from piecework.base.jsons import loads
from piecework.chain.errors import ChainError
from piecework_protocol.signing import LocalSigner


class KeystoreError(ChainError):
    """A keystore that cannot be read or does not open; says which file."""


class KeystoreMissing(KeystoreError):
    """There is no such file: the caller knows which command makes it."""


def encrypt_keystore(secret: bytes, password: str, *, iterations: int | None = None) -> bytes:
    """The keystore's bytes. The default scrypt cost takes about 0.6 s: slow on purpose."""
    from eth_account import Account

    return json.dumps(Account.encrypt(secret, password, iterations=iterations)).encode()


def open_keystore(file: Path, password: str) -> LocalSigner:
    """Decrypt the key in `file`. Slow on purpose: call it once, in a thread."""
    from eth_account import Account

    try:
        keystore = loads(file.read_bytes())
    except FileNotFoundError:
        raise KeystoreMissing(f"there is no key at {file}") from None
    except (OSError, ValueError) as error:
        raise KeystoreError(f"{file} is not a readable keystore: {error}") from None
    try:
        return LocalSigner(bytes(Account.decrypt(keystore, password)))
    except (ValueError, KeyError, TypeError, NotImplementedError):
        raise KeystoreError(f"{file} does not open with this password") from None
