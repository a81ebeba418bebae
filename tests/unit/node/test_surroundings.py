"""Indexes tell whether the worker is seen, and whether its clock is right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from piecework.base.errors import PieceworkError
from piecework.base.http import HttpStatus, HttpUnreachable
from piecework.chain.addresses import DisputeTerms
from piecework.chain.deployment import Deployment
from piecework_node import logs
from piecework_node.config import check
from piecework_node.daemon.surroundings import (
    FIRST_RETRY_S,
    MAX_RETRY_S,
    MIB,
    DiskWatch,
    IndexWatch,
    check_endpoint,
    check_evidence_time,
)
from piecework_node.errors import ConfigError
from piecework_node.jobs.offers import Dates, IndexAnswer, publish
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_protocol.types import Address, Amount, Seconds
from piecework_protocol.wire import SignedOffer
from tests.support.clock import FakeClock
from tests.support.node.harness import WorkerHarness

PAYOUT = "0x00000000000000000000000000000000000000f1"
MAINNET, DEVELOPMENT = 1, 31337


class Index:
    """An index whose clock differs by `offset_s`, and that takes each offer or says why not."""

    def __init__(self, clock: FakeClock, dates: Dates, offset_s: float = 0) -> None:
        self.clock, self.dates, self.offset_s = clock, dates, offset_s
        self.declines: Exception | None = None

    async def post(self, url: str, body: bytes, *, headers: Mapping[str, str]) -> bytes:
        date = formatdate(int(self.clock.wall() + self.offset_s), usegmt=True)
        self.dates("index", date)
        if self.declines is not None:
            raise self.declines
        return b""


class Publishing:
    """A worker that publishes to one index."""

    def __init__(self, offset_s: float = 0) -> None:
        self.clock, self.metrics, self.dates = FakeClock(), Metrics(), Dates()
        self.board = FaultBoard(self.clock, self.metrics, logs.silent(), patience_s=60)
        self.watch = IndexWatch(self.board, self.metrics)
        self.index = Index(self.clock, self.dates, offset_s)

    async def publish(self) -> set[Code]:
        answers = await publish(
            await an_offer(),
            ["http://index"],
            self.index,
            self.metrics,
            logs.silent(),
            clock=self.clock,
            dates=self.dates,
            backoff_s=0,
        )
        self.watch.note(answers)
        return {fault.code for fault in self.board.faults}


async def an_offer() -> SignedOffer:
    harness = WorkerHarness()
    await harness.boot()
    return harness.offer


@pytest.mark.parametrize(
    ("offset_s", "codes"),
    [
        (0, set()),
        (5, set()),
        (-5, set()),
        (7, {Code.CLOCK_BEHIND}),
        (-7, {Code.CLOCK_AHEAD}),
        (600, {Code.CLOCK_BEHIND}),
        (-120, {Code.CLOCK_AHEAD}),
    ],
)
async def test_a_clock_that_is_off_either_way_is_told_by_the_index(
    offset_s: float, codes: set[Code]
) -> None:
    made = Publishing(offset_s)
    assert await made.publish() == codes
    assert (made.board.stopping is not None) == bool(codes)
    made.index.offset_s = 0
    assert await made.publish() == set(), "only a check that succeeds clears it"


async def test_an_index_that_declines_is_told_with_its_reason() -> None:
    made = Publishing()
    body = json.dumps({"error": {"code": "bad_terms", "message": "issued in the future"}})
    made.index.declines = HttpStatus("index", 400, body.encode(), None)
    assert await made.publish() == {Code.INDEX_DECLINES}
    (fault,) = made.board.faults
    assert "bad_terms: issued in the future" in fault.line
    assert made.board.stopping is None, "clients still find it in the registry"
    assert made.watch.seen_by == {"index": False}
    made.index.declines = HttpUnreachable("index", "cannot reach index")
    assert await made.publish() == {Code.INDEX_AWAY}
    made.index.declines = None
    assert await made.publish() == set()
    assert made.watch.seen_by == {"index": True}


def test_an_index_that_was_away_is_tried_again_soon_and_then_less_often() -> None:
    made = Publishing()
    assert made.watch.retry_s is None
    waits: list[float | None] = []
    for _ in range(8):
        made.watch.note([IndexAnswer("index", taken=False, reason="away")])
        waits.append(made.watch.retry_s)
    assert waits[0] == 2 * FIRST_RETRY_S and waits[-1] == MAX_RETRY_S
    made.watch.note([IndexAnswer("index", taken=True)])
    assert made.watch.retry_s is None


def test_more_than_half_of_the_indexes_must_say_that_the_clock_is_off() -> None:
    made = Publishing()
    good, off = IndexAnswer("a", True, ahead_s=0.0), IndexAnswer("b", True, ahead_s=60.0)
    made.watch.note([good, off])
    assert made.board.stopping is None
    made.watch.note([good, off, IndexAnswer("c", True, ahead_s=61.0)])
    stopping = made.board.stopping
    assert stopping is not None and stopping.code is Code.CLOCK_AHEAD
    made.watch.note([IndexAnswer("a", False, "away")])
    assert made.board.stopping is not None, "who tells no time clears nothing"


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"])
def test_a_date_that_is_none_tells_no_offset(date: str) -> None:
    dates = Dates()
    dates("index", date)
    assert dates.ahead_s("index", 0, 1) is None


# --- addresses


@pytest.mark.parametrize("endpoint", ["0.0.0.0:50051", "[::]:50051", "*:1"])
def test_an_endpoint_that_means_every_address_is_refused_everywhere(endpoint: str) -> None:
    for chain in (MAINNET, DEVELOPMENT):
        with pytest.raises(ConfigError, match="every address"):
            check_endpoint(endpoint, chain, [])


@pytest.mark.parametrize("endpoint", ["127.0.0.1:1", "localhost:1", "[::1]:1", "127.8.9.1:1"])
def test_a_loopback_endpoint_is_for_development_on_one_machine(endpoint: str) -> None:
    check_endpoint(endpoint, DEVELOPMENT, ["http://localhost:8380"])
    with pytest.raises(ConfigError, match="not a development chain"):
        check_endpoint(endpoint, MAINNET, [])
    with pytest.raises(ConfigError, match=r"index\.example\.org is not on it"):
        check_endpoint(endpoint, DEVELOPMENT, ["https://index.example.org"])


def test_an_address_that_others_can_dial_is_good() -> None:
    for endpoint in ("gpu1.example.org:50051", "8.8.8.8:1", "[2606:4700::1111]:1"):
        check_endpoint(endpoint, MAINNET, ["https://index.example.org"])


@pytest.mark.parametrize(
    "endpoint", ["192.168.1.7:1", "10.0.0.1:1", "169.254.1.1:1", "[fd00::1]:1"]
)
def test_an_address_of_a_private_network_is_for_development(endpoint: str) -> None:
    check_endpoint(endpoint, DEVELOPMENT, ["http://192.168.1.1:8380"])
    with pytest.raises(ConfigError, match="private network"):
        check_endpoint(endpoint, MAINNET, [])


def test_evidence_is_kept_as_long_as_a_market_with_disputes_may_ask_for_it() -> None:
    terms = DisputeTerms(Amount(500_000), 10**14, Amount(5_000_000), (), threshold=0)
    token, week = Address(b"\x33" * 20), Seconds(7 * 24 * 3600)
    market = Deployment(31337, token, "tUSDC", 6, Amount(100), week, disputes=terms)
    bare = {"payout": PAYOUT, "endpoint": "gpu1.example.org:50051"}
    short = {**bare, "evidence_s": 4 * 24 * 3600 - 1}
    with pytest.raises(ConfigError, match="Set evidence_s to 345600 or more"):
        check_evidence_time(check(short), market)
    check_evidence_time(check({**short, "evidence_s": 4 * 24 * 3600}), market)
    check_evidence_time(check(bare), market)
    check_evidence_time(check(short), replace(market, disputes=None))
    vllm = {"backend": "vllm", "vllm_endpoints": ("http://127.0.0.1:8000",), "model": "some/model"}
    check_evidence_time(check({**short, **vllm}), market)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bind": "0.0.0.0:50051"}, "set endpoint"),
        ({"endpoint": "[::]:50051"}, "every address"),
        ({"rpc_urls": ("http://a", "http://b"), "rpc_quorum": 3}, "rpc_quorum"),
        ({"rpc_urls": ("http://a",), "rpc_url": "http://b"}, "not both"),
        ({"rpc_urls": ("ws://a",)}, "http://"),
        ({"rpc_urls": ("http://a", "http://a/")}, "twice"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(
    settings: Mapping[str, object], message: str
) -> None:
    with pytest.raises(PieceworkError, match=message):
        check({"payout": PAYOUT, **settings})


def test_a_worker_that_listens_everywhere_and_says_where_is_taken() -> None:
    values = {"payout": PAYOUT, "bind": "0.0.0.0:50051", "endpoint": "gpu1.example.org:50051"}
    assert check(values).endpoint == "gpu1.example.org:50051"


def test_a_worker_takes_no_job_while_its_disk_is_nearly_full(tmp_path: Path) -> None:
    board = FaultBoard(FakeClock(), Metrics(), logs.silent(), patience_s=0)
    free = [10 * MIB]
    watch = DiskWatch(board, tmp_path, 10, lambda folder: free[0] if folder == tmp_path else 0)
    watch.look()
    assert board.stopping is None
    free[0] -= 1
    watch.look()
    assert board.stopping is not None and board.stopping.code is Code.DISK_LOW
    assert "9 MiB are free" in board.stopping.line
    free[0] += 1
    watch.look()
    assert board.stopping is None


def test_the_room_on_a_disk_is_that_of_the_system(tmp_path: Path) -> None:
    board = FaultBoard(FakeClock(), Metrics(), logs.silent(), patience_s=0)
    DiskWatch(board, tmp_path, 2**40).look()
    assert [fault.code for fault in board.faults] == [Code.DISK_LOW]
