"""Names of this machine."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

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
