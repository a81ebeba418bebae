"""Where a signer is: a unix socket, as the setting `signer` of a worker names it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from piecework.signer.limits import MAX_SOCKET_PATH_BYTES

SCHEME: Final = "unix:"


def socket_path(place: str) -> Path:
    """Read where a signer is.

    Raises:
        ValueError: it is not unix: and an absolute path.
    """
    path = Path(place.removeprefix(SCHEME))
    if not place.startswith(SCHEME) or not path.is_absolute():
        raise ValueError(f"it is {SCHEME} and an absolute path, such as unix:/run/signer/socket")
    if len(str(path).encode()) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes")
    return path


def _checked(place: str) -> str:
    if place:
        socket_path(place)
    return place


SignerPlace = Annotated[
    str,
    AfterValidator(_checked),
    Field(
        description="the signer that has the operator key, as unix: and the path of its socket. "
        "Empty: the key is in this home"
    ),
]
"""The setting."""
