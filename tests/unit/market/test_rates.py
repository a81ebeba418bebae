"""Token buckets."""

from __future__ import annotations

from piecework.market.rates import Buckets, Rate


def test_a_burst_is_allowed_and_then_the_wait_is_told() -> None:
    buckets = Buckets(Rate(per_minute=60, burst=3), most=10)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 0.0) == 1.0
    assert buckets.take("a", 0.5) == 0.5
    assert buckets.take("a", 1.0) == 0


def test_one_key_does_not_use_up_anothers() -> None:
    buckets = Buckets(Rate(60, 1), most=10)
    assert buckets.take("a", 0.0) == 0
    assert buckets.take("b", 0.0) == 0
    assert buckets.take("a", 0.0) > 0


def test_the_number_of_keys_is_bounded_and_the_longest_unused_goes() -> None:
    buckets = Buckets(Rate(60, 1), most=2)
    for key in ("a", "b", "c"):
        assert buckets.take(key, 0.0) == 0
    assert buckets.take("c", 0.0) > 0
    assert buckets.take("a", 0.0) == 0


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    buckets = Buckets(Rate(60, 1), most=2)
    assert buckets.take("a", 100.0) == 0
    assert buckets.take("a", 50.0) > 0
