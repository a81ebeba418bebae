"""Where a worker listens, as its offer says it."""

from __future__ import annotations

import pytest

from piecework.client.errors import WorkerUnreachable
from piecework.client.network.transport import WorkerEndpoint


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("a.example:7000", "dns:///a.example:7000"),
        ("grpcs://a.example:7000", "dns:///a.example:7000"),
        ("https://a.example:443/", "dns:///a.example:443"),
        ("[2001:db8::1]:7000", "dns:///[2001:db8::1]:7000"),
    ],
)
def test_endpoints_are_host_and_port(text: str, target: str) -> None:
    assert WorkerEndpoint.parse(text).target == target


@pytest.mark.parametrize(
    "text",
    ["", "a.example", "a:0", "a:99999", "a:x", "unix:///etc:1", "http://a:1", "user@a:1", "a b:1"],
)
def test_anything_else_is_no_endpoint(text: str) -> None:
    with pytest.raises(WorkerUnreachable):
        WorkerEndpoint.parse(text)
