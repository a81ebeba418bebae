"""No pattern of requests passes more than the rate and the burst allow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from piecework.base.rates import Rate, RateLimiter, peer_key

GAPS = st.lists(st.floats(0, 10, allow_nan=False), max_size=100)


@given(st.floats(0.01, 100), st.integers(1, 50), GAPS)
def test_what_passes_is_bounded_by_burst_and_time(
    per_s: float, burst: int, gaps: list[float]
) -> None:
    limiter = RateLimiter(Rate(per_s, burst), keys=4)
    now, passed = 1000.0, 0
    for gap in gaps:
        now += gap
        passed += limiter.take("k", now) == 0
    assert passed <= burst + (now - 1000.0) * per_s + 1e-3


@given(st.floats(0.01, 100), st.integers(1, 50), GAPS)
def test_waiting_as_told_always_passes(per_s: float, burst: int, gaps: list[float]) -> None:
    limiter = RateLimiter(Rate(per_s, burst), keys=4)
    now = 0.0
    for gap in gaps:
        now += gap
        wait = limiter.take("k", now)
        if wait:
            now += wait
            assert limiter.take("k", now) == 0


@given(st.lists(st.integers(0, 30), max_size=200))
def test_the_number_of_keys_is_bounded(keys: list[int]) -> None:
    limiter = RateLimiter(Rate(1, 1), keys=7)
    for at, key in enumerate(keys):
        limiter.take(key, float(at))
        assert len(limiter) <= 7


@given(st.text(max_size=200))
def test_any_peer_has_a_bounded_key(peer: str) -> None:
    assert len(peer_key(peer)) <= 64


@given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_64_are_one_key(address: object, host: int) -> None:
    low = int(address)  # type: ignore[call-overload]
    other = low >> 64 << 64 | host
    if low >> 64 == 0:  # where IPv4 addresses are kept
        return
    import ipaddress

    assert peer_key(str(ipaddress.IPv6Address(other))) == peer_key(str(address))
