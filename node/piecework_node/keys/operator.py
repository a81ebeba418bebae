"""The operator key: a v3 keystore in the worker's home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piecework.base.files import write_private
from piecework.chain import keystore
from piecework.chain.keystore import KeystoreError, KeystoreMissing, encrypt_keystore, open_keystore
from piecework_node.errors import KeyFileError
from piecework_protocol.signing import LocalSigner


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
        return open_keystore(path, password)


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
