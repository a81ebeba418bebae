"""Ethereum v3 keystores (scrypt): the one form in which a private key of any role rests on disk.

Source: the Web3 Secret Storage Definition,
https://ethereum.org/en/developers/docs/data-structures-and-encoding/web3-secret-storage.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from piecework.base.files import FileError, read, shown
from piecework.base.jsons import loads
from piecework.chain.errors import ChainError
from piecework_protocol.signing import LocalSigner

MAX_KEYSTORE_BYTES: Final = 64 * 1024


class KeystoreError(ChainError):
    """A keystore that cannot be read or does not open; says which file."""


class KeystoreMissing(KeystoreError):
    """There is no such file: the caller knows which command makes it."""


def encrypt_keystore(secret: bytes, password: str, *, iterations: int | None = None) -> bytes:
    """The keystore's bytes. The default scrypt cost takes about 0.6 s: slow on purpose."""
    from eth_account import Account

    return json.dumps(Account.encrypt(secret, password, iterations=iterations)).encode()


def open_keystore(file: Path, password: str) -> LocalSigner:
    """Decrypt the key in `file`. Slow on purpose: call it once, in a thread.

    Raises:
        KeystoreMissing: there is no such file.
        KeystoreError: it cannot be read, is not a keystore, or the password is wrong.
    """
    from eth_account import Account

    keystore = _read(file)
    try:
        return LocalSigner(bytes(Account.decrypt(keystore, password)))
    except (ValueError, KeyError, TypeError, NotImplementedError):
        raise KeystoreError(f"{file} does not open with this password") from None


def keystore_address(file: Path) -> str:
    """Return the address that a keystore names, as hex without a prefix. It needs no password.

    Raises:
        KeystoreMissing: there is no such file.
        KeystoreError: it cannot be read, or is not a keystore.
    """
    try:
        return str(_read(file)["address"]).removeprefix("0x").lower()
    except (KeyError, TypeError):
        raise KeystoreError(f"{shown(file)} names no address") from None


def _read(file: Path) -> Any:
    try:
        return loads(read(file, MAX_KEYSTORE_BYTES))
    except FileError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise KeystoreMissing(f"there is no key at {shown(file)}") from None
        raise KeystoreError(str(error)) from None
    except ValueError:
        raise KeystoreError(f"{shown(file)} is not a keystore") from None
