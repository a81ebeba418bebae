"""An address that somebody else named is dialled with care: which one, how long, how much."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import pytest

from piecework.base.dialling import MAX_LOOKUPS, Dialled, Dialler, SystemResolver
from piecework.base.hosts import is_public
from piecework_protocol.relaying import server_name
from piecework_protocol.types import Digest
from tests.support.market.offers import operator
from tests.support.network.tls_listener import saying, tls_listener

WORKER, OTHER = operator("worker").address, operator("other").address
NAME = server_name(WORKER)
PIN = Digest(bytes(32))


class Names:
    """A resolver that answers as told, once each, and remembers what it was asked."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers, self.asked = list(answers), list[str]()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        return self.answers.pop(0)


def dialler(*answers: Sequence[str], public_only: bool = False) -> Dialler:
    return Dialler(public_only=public_only, resolve=Names(*answers or (["127.0.0.1"],)))


async def dial(by: Dialler, host: str, port: int, name: str, pin: bytes) -> Dialled:
    return await by.dial(await by.look_up(host, port), port, name, pin)


async def test_the_certificate_that_is_expected_is_reached_by_the_operators_server_name() -> None:
    async with tls_listener(WORKER) as (port, pin, names):
        assert await dial(dialler(), "worker.example", port, NAME, pin) is Dialled.REACHED
        assert names == [NAME]
        found = await dial(dialler(), "worker.example", port, NAME, PIN)
        assert found is Dialled.OTHER_CERTIFICATE


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x16\x03\x03\xff\xff" * 4000])
async def test_what_does_not_speak_tls_is_told_apart(answer: bytes) -> None:
    async with saying(answer) as port:
        assert await dial(dialler(), "worker.example", port, NAME, PIN) is Dialled.NO_TLS


async def test_what_says_nothing_is_left_in_time() -> None:
    async with saying(b"") as port:
        quick = Dialler(public_only=False, resolve=Names(["127.0.0.1"]), seconds=0.05)
        assert await dial(quick, "worker.example", port, NAME, PIN) is Dialled.NO_TLS


async def test_a_port_that_is_closed_is_no_answer() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert await dial(dialler(), "worker.example", port, NAME, PIN) is Dialled.NO_ANSWER


async def test_a_name_without_an_address_is_no_name() -> None:
    assert await dial(dialler([]), "worker.example", 1, NAME, PIN) is Dialled.NO_NAME
    system = Dialler(public_only=False)
    assert await dial(system, "worker.invalid", 1, NAME, PIN) is Dialled.NO_NAME
    assert await dial(system, "a" * 70 + ".example", 1, NAME, PIN) is Dialled.NO_NAME


async def test_an_address_is_tried_after_another_that_takes_no_connection() -> None:
    async with tls_listener(WORKER) as (port, pin, _):
        found = dialler(["127.0.0.2", "127.0.0.1"])
        assert await dial(found, "worker.example", port, NAME, pin) is Dialled.REACHED


# --- whom it dials


PRIVATE = """
10.1.2.3 172.16.0.1 192.168.1.1 127.0.0.1 127.8.9.1 169.254.169.254 100.64.0.1 0.0.0.0
192.0.2.1 198.18.0.1 192.0.0.8 192.88.99.1 224.0.0.1 240.0.0.1 255.255.255.255
:: ::1 ::127.0.0.1 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1
::ffff:10.0.0.1 ::ffff:127.0.0.1 2002:7f00:1::1 2002:a00:1::1 2001:0:1::1 64:ff9b::a00:1
64:ff9b:1::1 localhost worker.example
"""
PUBLIC = "8.8.8.8 1.1.1.1 2606:4700::1111 ::ffff:8.8.8.8 64:ff9b::808:808 2002:808:808::1"


@pytest.mark.parametrize("address", PRIVATE.split())
async def test_on_a_public_market_no_address_of_a_network_of_its_own_is_dialled(
    address: str,
) -> None:
    assert not is_public(address)
    async with tls_listener(WORKER) as (port, pin, names):
        found = dialler([address], public_only=True)
        assert await dial(found, "worker.example", port, NAME, pin) is Dialled.NOT_PUBLIC
        assert names == []


@pytest.mark.parametrize("address", PUBLIC.split())
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


async def test_one_private_address_beside_a_public_one_is_enough_to_dial_none() -> None:
    async with tls_listener(WORKER) as (port, pin, names):
        found = dialler(["8.8.8.8", "127.0.0.1"], public_only=True)
        assert await dial(found, "worker.example", port, NAME, pin) is Dialled.NOT_PUBLIC
        assert names == []


async def test_a_name_that_changes_its_mind_is_asked_once() -> None:
    """DNS rebinding: the first answer is judged and dialled, and a second one is never asked."""
    async with tls_listener(WORKER) as (port, pin, names):
        resolver = Names(["203.0.113.9"], ["127.0.0.1"])
        found = Dialler(public_only=False, resolve=resolver, seconds=0.2)
        assert await dial(found, "rebinding.example", port, NAME, pin) is not Dialled.REACHED
        assert resolver.asked == ["rebinding.example"] and names == []


class Hanging:
    """Never says."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        await asyncio.get_running_loop().create_future()
        return []


async def test_a_lookup_that_hangs_is_not_held_against_the_port() -> None:
    hanging = Dialler(public_only=False, resolve=Hanging(), seconds=0.05)
    assert await dial(hanging, "worker.example", 1, NAME, PIN) is Dialled.NO_NAME


async def test_an_address_waits_for_no_lookup() -> None:
    async with tls_listener(WORKER) as (port, pin, _):
        hanging = Dialler(public_only=False, resolve=Hanging())
        assert await dial(hanging, "127.0.0.1", port, NAME, pin) is Dialled.REACHED


# --- the system's resolver


async def test_lookups_that_hang_leave_no_more_than_their_own_threads() -> None:
    resolver = SystemResolver()
    assert await resolver("127.0.0.1", 1) == ["127.0.0.1"]
    many = [asyncio.create_task(resolver("127.0.0.1", 1)) for _ in range(4 * MAX_LOOKUPS)]
    many[0].cancel()
    answers = await asyncio.gather(*many, return_exceptions=True)
    assert answers[1:] == [["127.0.0.1"]] * (len(many) - 1)
