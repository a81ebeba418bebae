"""Names of this machine, and of where web pages come from."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
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


_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
"""IPv4 addresses as networks with IPv6 alone write them (RFC 6052)."""
_SPECIAL: Final = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
"""Of protocols, not of machines. Python counts parts of them as global."""


def is_address(host: str) -> bool:
    """Whether a host is an IP address and no name."""
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address can be reached from anywhere on the internet.

    Private, loopback, link-local, shared (RFC 6598), reserved, documentation and multicast ones
    cannot. An IPv6 address that stands for an IPv4 one is judged by both. A name is not an address.
    """
    try:
        known = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return all(map(_is_unicast_and_global, (known, *_inside(known))))


def _is_unicast_and_global(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None or address in _TRANSLATED:
            return True  # the address inside is judged
        if address.is_site_local:
            return False
    elif any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses to which packets for an IPv6 one may go."""
    if isinstance(address, IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _TRANSLATED:
        found.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


MAX_NODES: Final = 16
"""Nodes of one chain in the settings."""


def check_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    """Return addresses of http servers, each of which is given once.

    Raises:
        ValueError: one is not such an address, or is given twice.
    """
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise ValueError("an address begins with http:// or https://")
    if len({url.rstrip("/") for url in urls}) != len(urls):
        raise ValueError("an address is given twice")
    return urls


def check_nodes(rpc_url: str | None, rpc_urls: tuple[str, ...], rpc_quorum: int) -> None:
    """Check that the settings of the chain's nodes fit together.

    Raises:
        ValueError: one node and several are named, or too few for the quorum.
    """
    if rpc_quorum > len(rpc_urls):
        raise ValueError("rpc_quorum is more than there are rpc_urls")
    if rpc_urls and rpc_url:
        raise ValueError("set rpc_url or rpc_urls, not both")


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
