"""An address that cannot be listened on is one line, without what Python says about it."""

from __future__ import annotations

import socket

import pytest
from aiohttp import web

from piecework.commands._server import CannotListen, listen


async def test_a_port_that_is_taken_is_named_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            await listen(web.AppRunner(web.Application()), "127.0.0.1", port)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: address already in use"


async def test_a_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(CannotListen, match=r"^cannot listen on no\.invalid:0: the host name was"):
        await listen(web.AppRunner(web.Application()), "no.invalid", 0)
