"""Names of this machine, and of where web pages come from."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
"""Hosts that only this machine can reach. What listens elsewhere needs a key or a fence."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    if host in LOOPBACK or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def is_unspecified(host: str) -> bool:
    """Whether an address means every address of a machine, such as 0.0.0.0 and ::."""
    try:
        return ip_address(host.partition("%")[0]).is_unspecified
    except ValueError:
        return host in ("", "*")


def check_origin(text: str) -> str:
    """Return an origin as browsers write it, such as "https://chat.example:8443".

    Raises:
        ValueError: the text is not an origin, or is a wildcard.
    """
    parts = urlsplit(text)
    plain = f"{parts.scheme}://{parts.netloc}"
    if text != plain or text != text.lower() or not parts.hostname or "@" in parts.netloc:
        raise ValueError(
            'an origin is written as "https://chat.example" or "http://localhost:3000", without a '
            "path. There is no wildcard"
        )
    return text
