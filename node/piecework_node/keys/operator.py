"""The operator key: a v3 keystore in the worker's home, or behind the socket of a signer.

A home whose key is in a signer has a record of the operator's address in the keystore's place. It
pins whose signatures the worker takes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from piecework.base.files import read, shown, write_private
from piecework.base.jsons import loads
from piecework.chain import keystore
from piecework.chain.deployment import Deployment
from piecework.chain.keystore import KeystoreError, KeystoreMissing, encrypt_keystore, open_keystore
from piecework.signer.place import socket_path
from piecework.signer.remote import RemoteSigner
from piecework_node.errors import KeyFileError
from piecework_protocol.signing import AsyncSigner, LocalSigner
from piecework_protocol.types import Address, parse_address

IN_A_SIGNER: Final = "in_a_signer"


def create_keystore(
    path: Path, password: str, secret: bytes, *, iterations: int | None = None
) -> None:
    """Write `secret` as a v3 keystore. The default scrypt cost takes about 0.6 s.

    Raises:
        FileError: the file exists, or cannot be written.
    """
    write_private(path, encrypt_keystore(secret, password, iterations=iterations))


def load_operator(path: Path, password: str) -> LocalSigner:
    """Open the keystore. It is slow on purpose: call it once, in a thread.

    Raises:
        KeyFileError: the file is missing or damaged, or the password is wrong.
    """
    with _translated(path):
        if is_record(path):
            raise KeyFileError(
                f"{shown(path)} has the address alone: the key is in a signer. Set signer"
            )
        return open_keystore(path, password)


async def open_operator(
    path: Path, signer: str, password: str, deployment: Deployment
) -> AsyncSigner:
    """Open the operator's key where it is.

    Args:
        path: Of the keystore, or of the record of the address.
        signer: The setting `signer`. Empty: the key is in the home.
        password: Of the keystore.
        deployment: The market that a signer must be for.

    Raises:
        KeyFileError: the file is missing or damaged, or the password is wrong.
        SignerError: the signer does not answer, has another key, or serves another market.
    """
    if not signer:
        return await asyncio.to_thread(load_operator, path, password)
    remote = remote_operator(path, signer, deployment)
    await remote.state()
    return remote


def remote_operator(path: Path, signer: str, deployment: Deployment) -> RemoteSigner:
    """Give the operator's key in a signer, which may be away. Nobody is asked.

    Raises:
        KeyFileError: the record of the address is missing or damaged.
    """
    pinned = parse_address("0x" + keystore_address(path))
    return RemoteSigner(socket_path(signer), pinned, deployment)


async def close_operator(operator: AsyncSigner) -> None:
    """Hang up, if the key is in a signer."""
    if isinstance(operator, RemoteSigner):
        await operator.close()


def write_record(path: Path, operator: Address) -> None:
    """Pin the address of an operator whose key is in a signer.

    Raises:
        FileError: the file exists, or cannot be written.
    """
    record = {"address": operator.hex(), IN_A_SIGNER: True}
    write_private(path, json.dumps(record).encode())


def is_record(path: Path) -> bool:
    """Whether a home has the address of its operator alone.

    Raises:
        KeyFileError: the file is missing, or cannot be read.
    """
    with _translated(path):
        keystore.keystore_address(path)
        return bool(loads(read(path, keystore.MAX_KEYSTORE_BYTES)).get(IN_A_SIGNER) is True)


def secret_of(operator: AsyncSigner) -> bytes | None:
    """Give the private key of an operator, if it is in this process."""
    return operator.secret if isinstance(operator, LocalSigner) else None


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except KeystoreMissing as error:
        if (path.parent / "next" / path.name).is_file():
            raise KeyFileError(
                f"{error}: it is being replaced. Run `piecework worker rotate-key` again"
            ) from None
        raise KeyFileError(f"{error}. Run `piecework worker init` first.") from None
    except KeystoreError as error:
        raise KeyFileError(str(error)) from None


def keystore_address(path: Path) -> str:
    """Return the address that a keystore names, as hex without a prefix. It needs no password.

    Raises:
        KeyFileError: the file cannot be read.
    """
    with _translated(path):
        return keystore.keystore_address(path)
