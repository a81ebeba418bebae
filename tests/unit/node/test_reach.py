"""A worker knows whether clients can find and reach it, and says what keeps it from earning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from piecework.base.errors import PieceworkError
from piecework.base.http import HttpStatus, HttpUnreachable
from piecework_node import logs
from piecework_node.daemon.reach import Onlooker, ReachWatch, Sight
from piecework_node.daemon.standing import StandingWatch
from piecework_node.job_port.relays import RelayAway
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_protocol.dialling import decode_dial, dial_domain
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.signing import signed_by
from piecework_protocol.types import Address, Digest
from tests.support.chain.fake_chain import DOMAIN, FakeChain
from tests.support.clock import FakeClock
from tests.support.market.offers import operator, receiver

WORKER = operator("worker")
DIRECT, RELAY = Endpoint(Route.DIRECT, "gpu1.example:1"), Endpoint(Route.RELAYED, "relay.example:2")
BOTH = (DIRECT, RELAY)
PIN = Digest(b"\x07" * 32)


def new_board() -> FaultBoard:
    return FaultBoard(FakeClock(), Metrics(), logs.silent(), patience_s=0)


def codes(board: FaultBoard) -> set[Code]:
    return {fault.code for fault in board.faults}


class Indexes:
    """Indexes that answer as told, by host."""

    def __init__(self, **answers: Any) -> None:
        """answers: what each shows of the offer, and the outcomes of its dials."""
        self.answers = answers
        self.asked: list[bytes] = []

    async def get_json(self, url: str, *, headers: Mapping[str, str] | None = None) -> Any:
        shown = self.answers[_host(url)][0]
        if isinstance(shown, Exception):
            raise shown
        return shown

    async def post(
        self, url: str, body: bytes, *, headers: Mapping[str, str] | None = None
    ) -> bytes:
        self.asked.append(body)
        found = self.answers[_host(url)][1]
        if isinstance(found, Exception):
            raise found
        if isinstance(found, bytes):
            return found
        rows = [{"address": address, "outcome": outcome} for address, outcome in found.items()]
        return json.dumps({"dialled": rows}).encode()

    async def look(self, *endpoints: Endpoint, sequence: int | None = 7) -> tuple[Sight, ...]:
        urls = [f"http://{host}" for host in self.answers]
        onlooker = Onlooker(urls, self, WORKER, DOMAIN, FakeClock())
        return await onlooker.look(endpoints or BOTH, PIN, sequence)


def _host(url: str) -> str:
    return url.split("/")[2]


SHOWN = {"listed": True, "sequence": 7}
GOOD = {DIRECT.address: "reached", RELAY.address: "reached"}


async def test_an_index_is_asked_with_the_operators_signature_for_this_market() -> None:
    indexes = Indexes(a=(SHOWN, GOOD))
    (sight,) = await indexes.look()
    assert sight == Sight("a", True, GOOD)
    request, signature = decode_dial(indexes.asked[0])
    assert (request.endpoints, request.tls_certificate) == (BOTH, PIN)
    assert signed_by(dial_domain(DOMAIN), request, signature, WORKER.address)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"listed": True, "sequence": 8}, True),
        ({"listed": True, "sequence": 6}, False),
        ({"listed": False, "sequence": 7}, False),
        (HttpStatus("a", 404, b"", None), False),
        (HttpStatus("a", 503, b"", None), None),
        (HttpUnreachable("a", "cannot reach a"), None),
        ({"sequence": 7}, None),
        ({"listed": True, "sequence": "soon"}, None),
        ([], None),
    ],
)
async def test_an_offer_is_shown_if_it_is_this_one_and_live(answer: Any, shown: bool) -> None:
    (sight,) = await Indexes(a=(answer, GOOD)).look()
    assert sight.shown is shown


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (HttpStatus("a", 404, b"", None), "earlier release"),
        (HttpStatus("a", 429, b'{"error":{"code":"rate_limited","message":"x"}}', None), "rate_"),
        (HttpUnreachable("a", "cannot reach a"), "cannot reach"),
        (b"[]", "nonsense"),
        (b'{"dialled": [7]}', "nonsense"),
        ({DIRECT.address: "reached"}, "nonsense"),
        ({**GOOD, "other.example:1": "reached"}, "nonsense"),
        ({**GOOD, DIRECT.address: "<b>"}, "nonsense"),
    ],
)
async def test_an_index_that_has_not_dialled_says_nothing_about_the_worker(
    answer: Any, why: str
) -> None:
    (sight,) = await Indexes(a=(SHOWN, answer)).look()
    assert sight.reached is None and why in sight.why
    board = new_board()
    watch = ReachWatch(board)
    watch.note([sight], BOTH)
    assert watch.reached == {} and watch.obstacles == () and codes(board) == set()
    assert not watch.is_good, "so it is asked again soon"


def noted(*sights: Sight) -> tuple[ReachWatch, FaultBoard]:
    board = new_board()
    watch = ReachWatch(board)
    watch.note(sights, BOTH)
    return watch, board


def test_a_worker_that_all_see_and_reach_has_no_obstacle() -> None:
    watch, board = noted(Sight("a", True, GOOD), Sight("b", True, GOOD))
    assert watch.is_good and watch.obstacles == () and codes(board) == set()
    assert watch.shown_by == {"a": True, "b": True}


def test_an_address_that_one_index_reaches_is_good() -> None:
    """The other index may be the one with the trouble, or it lies."""
    bad = {DIRECT.address: "no-answer", RELAY.address: "reached"}
    watch, board = noted(Sight("a", True, bad), Sight("b", True, GOOD))
    assert watch.is_good and codes(board) == set()


def test_one_address_of_two_that_nobody_reaches_is_a_fault_and_no_obstacle() -> None:
    bad = {DIRECT.address: "no-answer", RELAY.address: "reached"}
    watch, board = noted(Sight("a", True, bad))
    assert codes(board) == {Code.ADDRESS_UNREACHED} and watch.obstacles == ()
    assert board.stopping is None, "an index is not trusted with jobs"
    (fault,) = board.faults
    assert fault.detail == "gpu1.example:1 is not reached by a (no-answer)"
    watch.note([Sight("a", True, GOOD)], BOTH)
    assert codes(board) == set()


def test_a_worker_that_nobody_shows_or_reaches_is_told_what_keeps_it_from_earning() -> None:
    bad = dict.fromkeys(GOOD, "not-public")
    watch, board = noted(Sight("a", False, bad))
    assert codes(board) == {Code.OFFER_HIDDEN, Code.ADDRESS_UNREACHED}
    assert watch.obstacles == (
        "no index shows the offer",
        "no index reaches the worker: gpu1.example:1 not-public, relay.example:2 not-public",
    )
    board.failed("registration", Code.NOT_REGISTERED, "the operator is not in the registry")
    assert watch.obstacles[0].startswith("not-registered: ")


def test_an_index_that_may_not_dial_again_yet_keeps_its_last_word() -> None:
    watch, _ = noted(Sight("a", True, GOOD))
    watch.note([Sight("a", True, None, "rate_limited")], BOTH)
    assert watch.reached == GOOD
    watch.note([Sight("a", True, None, "rate_limited")], [DIRECT])
    assert watch.reached == {}, "of other addresses"


def test_an_address_that_is_no_longer_offered_is_no_fault() -> None:
    watch, board = noted(Sight("a", True, dict.fromkeys(GOOD, "no-tls")))
    assert codes(board) == {Code.ADDRESS_UNREACHED}
    watch.note([Sight("a", True, {RELAY.address: "reached"})], [RELAY])
    assert codes(board) == set()


# --- relays


class RelaysThatDial:
    """Relays that answer as told, by name."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[str]()

    async def ask(self, name: str, request: bytes) -> bytes:
        self.asked.append(name)
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def dialled(found: Mapping[str, str]) -> dict[str, Any]:
    return {"dialled": [{"address": a, "outcome": word} for a, word in found.items()]}


async def look_with(indexes: Indexes, relays: RelaysThatDial) -> tuple[Sight, ...]:
    urls = [f"http://{host}" for host in indexes.answers]
    names = tuple(relays.answers)
    onlooker = Onlooker(
        urls, indexes, WORKER, DOMAIN, FakeClock(), relays=names, ask_relay=relays.ask
    )
    return await onlooker.look(BOTH, PIN, 7)


async def test_a_relay_is_asked_only_if_no_index_dials() -> None:
    relays = RelaysThatDial(one=dialled(GOOD))
    await look_with(Indexes(a=(SHOWN, GOOD)), relays)
    assert relays.asked == []
    old = HttpStatus("a", 404, b"", None)
    sights = await look_with(Indexes(a=(SHOWN, old)), relays)
    assert sights[1] == Sight("one", None, GOOD, is_relay=True)
    watch = ReachWatch(new_board())
    watch.note(sights, BOTH)
    assert watch.is_good and watch.reached == GOOD and watch.dialled_by == ("relay one",)
    assert watch.shown_by == {"a": True}, "a relay shows no offers"


async def test_the_first_relay_that_dials_is_believed_and_the_others_say_why_not() -> None:
    relays = RelaysThatDial(
        away=RelayAway("timed out"),
        nonsense=b"[]",
        number=b"7",
        other={"dialled": [{"address": "x:1", "outcome": "reached"}]},
        busy={"error": {"code": "rate_limited", "message": "one a minute"}},
        good=dialled(dict.fromkeys(GOOD, "no-answer")),
        late=dialled(GOOD),
    )
    sights = await look_with(Indexes(), relays)
    assert relays.asked == ["away", "nonsense", "number", "other", "busy", "good"]
    said = {sight.host: sight.why for sight in sights}
    assert said["away"] == "timed out" and "rate_limited" in said["busy"]
    assert said["nonsense"] == said["number"] == said["other"] == "it answers nonsense"
    watch = ReachWatch(board := new_board())
    watch.note(sights, BOTH)
    assert codes(board) == {Code.ADDRESS_UNREACHED}
    assert watch.obstacles[0].startswith("no relay reaches the worker: ")
    assert "relay good" in board.faults[0].detail


# --- the registry

PAYOUT, ELSEWHERE = receiver("worker"), Address(b"\x05" * 20)


@pytest.mark.parametrize(
    ("registered", "found"),
    [
        ({}, set()),
        ({"payout": ELSEWHERE}, {Code.PAYOUT_DIFFERS}),
        ({"active": False}, {Code.STAKE_INACTIVE}),
        ({"endpoint": "old.example:1"}, {Code.ENDPOINT_DIFFERS}),
        (None, {Code.NOT_REGISTERED}),
    ],
)
async def test_what_the_registry_says_of_a_worker_decides_whether_it_may_earn(
    registered: dict[str, Any] | None, found: set[Code]
) -> None:
    chain, board = FakeChain(), new_board()
    standing = StandingWatch(
        chain,
        board,
        operator=WORKER.address,
        receiver=PAYOUT,
        addresses=("gpu1.example:1", "relay.example:2"),
    )
    if registered is not None:
        values = {"payout": PAYOUT, "endpoint": "gpu1.example:1", **registered}
        chain.register(WORKER.address, **values)
    await standing.look()
    assert codes(board) == found
    assert (board.stopping is not None) == bool(found - {Code.ENDPOINT_DIFFERS})
    chain.away = True
    await standing.look_if_told()
    assert codes(board) == found, "a node that does not answer changes nothing"
    with pytest.raises(PieceworkError):
        await standing.look()
    chain.away = False
    chain.register(WORKER.address, PAYOUT, "gpu1.example:1")
    await standing.look()
    assert codes(board) == set()
