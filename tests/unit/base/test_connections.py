"""How many connections an address may hold, and who makes room when a server is full."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from piecework.base.connections import ConnectionLimits, ConnectionTable, Refused
from piecework.base.rates import peer_key


@dataclass(eq=False)
class Held:
    """A connection that a test moves."""

    address: str
    is_idle: bool = True
    aborted: bool = False

    def abort(self) -> None:
        self.aborted = True


def table(total: int = 8, per_address: int = 4, **more: object) -> ConnectionTable:
    return ConnectionTable(ConnectionLimits(total, per_address, **more))  # type: ignore[arg-type]


def fill(held: ConnectionTable, peer: str, count: int, *, idle: bool = True) -> list[Held]:
    made = [Held(peer_key(peer), idle) for _ in range(count)]
    for connection in made:
        assert held.refusal(peer, 0.0) is None
        held.add(connection)
    return made


def test_an_address_holds_its_number_and_no_more() -> None:
    held = table()
    made = fill(held, "10.0.0.1", 4)
    assert held.refusal("10.0.0.1", 0.0) is Refused.ADDRESS
    assert held.refusal("10.0.0.2", 0.0) is None
    held.remove(made[0])
    held.remove(made[0])
    assert len(held) == 3
    assert held.refusal("10.0.0.1", 0.0) is None


def test_an_ipv6_host_counts_by_its_network() -> None:
    held = table()
    fill(held, "2001:db8::1", 4)
    assert held.refusal("2001:db8::ffff", 0.0) is Refused.ADDRESS
    assert held.refusal("2001:db8:0:1::1", 0.0) is None


def test_a_trusted_proxy_may_hold_more() -> None:
    held = table(trusted=(ip_network("10.0.0.0/24"),))
    fill(held, "10.0.0.9", 8)
    assert held.refusal("10.0.0.9", 0.0) is Refused.TOTAL


def test_a_busy_address_does_not_shield_the_idle_ones_of_others() -> None:
    held = table()
    busy = fill(held, "10.0.0.1", 4, idle=False)
    idle = fill(held, "10.0.0.2", 2) + fill(held, "10.0.0.3", 2)
    assert held.refusal("10.0.0.4", 0.0) is None
    assert [c.aborted for c in (*busy, *idle)] == [False] * 4 + [True] + [False] * 3


def test_a_full_server_makes_room_at_the_cost_of_who_holds_most() -> None:
    held = table(total=6)
    large = fill(held, "10.0.0.1", 4)
    large[0].is_idle = False
    small = fill(held, "10.0.0.2", 2)
    assert held.refusal("10.0.0.3", 0.0) is None
    assert [c.aborted for c in large] == [False, True, False, False]
    assert not any(c.aborted for c in small)


def test_a_full_server_breaks_off_no_work() -> None:
    held = table(total=4)
    busy = fill(held, "10.0.0.1", 4, idle=False)
    assert held.refusal("10.0.0.3", 0.0) is Refused.TOTAL
    assert not any(c.aborted for c in busy)


def test_connections_that_come_too_fast_are_refused_until_time_passes() -> None:
    held = table(opened_per_s=10.0, opened_burst=2.0)
    for connection in fill(held, "10.0.0.1", 2):
        held.remove(connection)
    assert held.refusal("10.0.0.1", 0.0) is Refused.RATE
    assert held.refusal("10.0.0.1", 0.2) is None


def test_a_barred_address_loses_its_connections_and_comes_back_later() -> None:
    held = table()
    made = fill(held, "10.0.0.1", 2)
    held.bar("10.0.0.1", until=10.0)
    assert all(c.aborted for c in made)
    assert held.refusal("10.0.0.1", 9.9) is Refused.BARRED
    assert held.refusal("10.0.0.1", 10.0) is None
