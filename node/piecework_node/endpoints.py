"""Network endpoints as people write them."""

from __future__ import annotations


def split_endpoint(text: str) -> tuple[str, int]:
    """Split "host:port" or "[v6]:port" into host and port.

    Raises:
        ValueError: the text has another form. The message says so.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
