"""Token buckets and the names under which peers are counted."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from piecework.base.rates import Rate, RateLimiter, client_behind, peer_key


def test_a_burst_passes_and_the_next_one_waits() -> None:
    limiter = RateLimiter(Rate(per_s=2, burst=3), keys=10)
    assert [limiter.take("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]


def test_who_waits_as_told_passes() -> None:
    limiter = RateLimiter(Rate(per_s=3, burst=1), keys=10)
    assert limiter.take("a", 0.0) == 0
    wait = limiter.take("a", 0.1)
    assert limiter.take("a", 0.1 + wait) == 0


def test_a_refused_request_costs_nothing() -> None:
    limiter = RateLimiter(Rate(per_s=1, burst=1), keys=10)
    limiter.take("a", 0.0)
    for tick in range(1, 10):
        assert limiter.take("a", tick / 10) == pytest.approx(1 - tick / 10)
    assert limiter.take("a", 1.0) == 0


def test_a_token_that_was_taken_for_nothing_is_there_again_after_the_wait_that_was_told() -> None:
    limiter = RateLimiter(Rate.per_minute(1, 1), keys=10)
    limiter.take("a", 0.0)
    limiter.forgive("a", 5.0, 2.0)
    assert limiter.take("a", 2.0) == pytest.approx(5)
    assert limiter.take("a", 7.0) == 0
    assert limiter.take("a", 7.0) == pytest.approx(60)


def test_who_is_forgiven_loses_nothing_that_it_has() -> None:
    limiter = RateLimiter(Rate(per_s=1, burst=3), keys=10)
    limiter.take("a", 0.0)
    limiter.forgive("a", 5.0, 0.0)
    assert [limiter.take("a", 0.0) for _ in range(3)] == [0, 0, 1]


def test_an_idle_key_saves_no_more_than_the_burst() -> None:
    limiter = RateLimiter(Rate(per_s=1, burst=2), keys=10)
    limiter.take("a", 0.0)
    assert [limiter.take("a", 1e6) for _ in range(3)] == [0, 0, 1]


def test_keys_do_not_share_a_bucket() -> None:
    limiter = RateLimiter(Rate.per_minute(60, burst=1), keys=10)
    assert limiter.take("a", 0.0) == 0
    assert limiter.take("b", 0.0) == 0
    assert limiter.take("a", 0.0) == 1


def test_the_key_that_was_idle_longest_is_forgotten_first() -> None:
    limiter = RateLimiter(Rate(per_s=0.001, burst=1), keys=2)
    for key in ("a", "b", "a", "c"):
        limiter.take(key, 0.0)
    assert len(limiter) == 2
    assert limiter.take("a", 0.0) > 0
    assert limiter.take("b", 0.0) == 0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    limiter = RateLimiter(Rate(per_s=1, burst=1), keys=10)
    limiter.take("a", 100.0)
    assert limiter.take("a", 50.0) == 1
    assert limiter.take("a", 100.5) == 0.5


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0.5), (float("nan"), 1)])
def test_a_rate_that_lets_nothing_pass_is_refused(per_s: float, burst: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rate(per_s, burst)


def test_a_limiter_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        RateLimiter(Rate(1, 1), keys=0)


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:5000", "10.0.0.1"),
        ("ipv4:10.0.0.1:5000", "10.0.0.1"),
        ("ipv6:[2001:db8:1:2:3::4]:5000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:3::4%5D:5000", "2001:db8:1:2::/64"),
        ("[2001:db8::1]:5000", "2001:db8::/64"),
        ("2001:db8::1", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("ipv6:[::ffff:10.0.0.1]:5000", "10.0.0.1"),
        ("unix:/run/worker.sock", "unix:/run/worker.sock"),
        ("", ""),
        ("10.0.0.1.5", "10.0.0.1.5"),
        ("unix:\x1b[2J" + "x" * 1000, "unix:[2J" + "x" * 55 + "…"),
    ],
)
def test_a_peer_is_counted_by_what_one_host_has(peer: str, key: str) -> None:
    assert peer_key(peer) == key


PROXIES = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


@pytest.mark.parametrize(
    ("peer", "header", "client"),
    [
        ("203.0.113.9", "", "203.0.113.9"),
        (
            "203.0.113.9",
            "198.51.100.1",
            "203.0.113.9",
        ),  # not a proxy of ours: it may write anything
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        (
            "10.0.0.1",
            "1.1.1.1, 198.51.100.1",
            "198.51.100.1",
        ),  # the left part is the client's claim
        ("10.0.0.1", "1.1.1.1, 198.51.100.1, 10.2.2.2", "198.51.100.1"),
        ("10.0.0.1", "10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("fd00::1", "2001:db8::5", "2001:db8::5"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", ", ,", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1," * 50 + "10.2.2.2", "198.51.100.1"),
        ("10.0.0.1", "x" * 100_000, "10.0.0.1"),
        ("unix:/run/s", "198.51.100.1", "unix:/run/s"),
    ],
)
def test_a_forwarded_address_is_believed_from_a_trusted_proxy_only(
    peer: str, header: str, client: str
) -> None:
    assert client_behind(peer, header, PROXIES) == client
