"""Logs of many blocks from nodes that limit what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.contracts.events import event_topics, topic
from piecework.chain.deployment import Deployment
from piecework.chain.errors import (
    AnswerTooLarge,
    BadAnswer,
    ChainError,
    LogRangeRefused,
    MethodMissing,
    RpcLimited,
    RpcRefused,
    RpcUnavailable,
)
from piecework.chain.limits import (
    MAX_CHANNELS_PER_LOG_QUERY,
    MAX_LOG_RANGE_BLOCKS,
    MAX_LOG_SEARCH_BLOCKS,
)
from piecework.chain.nodes.logs import LogSearch, Scanned
from piecework.chain.reading.reader import ChainReader
from piecework_protocol.errors import InvariantBroken
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Seconds, to_hex

ESCROW = Address(b"\x01" * 20)
TOPIC = "0x" + "07" * 32
DEPLOYMENT = Deployment(31337, ESCROW, "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600))


class Node:
    """A node with one log in each of some blocks, and a rule for what it refuses."""

    def __init__(
        self, blocks: set[int], refuse: Callable[[int, int], ChainError | None] = lambda *_: None
    ) -> None:
        self.blocks = blocks
        self.refuse = refuse
        self.asked: list[tuple[int, int]] = []
        self.change: dict[str, Any] = {}

    async def call(self, method: str, *params: Any) -> Any:
        assert method == "eth_getLogs"
        (query,) = params
        first, last = int(query["fromBlock"], 16), int(query["toBlock"], 16)
        self.asked.append((first, last))
        error = self.refuse(first, last)
        if error is not None:
            raise error
        return [
            {
                "address": query["address"],
                "topics": [TOPIC],
                "data": "0x",
                "blockNumber": hex(number),
                "logIndex": "0x0",
                "transactionHash": "0x" + number.to_bytes(32, "big").hex(),
            }
            | self.change
            for number in sorted(self.blocks, reverse=True)
            if first <= number <= last
        ]

    async def close(self) -> None:
        """Nothing to close."""


def too_many(code: int = -32005) -> RpcRefused:
    return RpcRefused("eth_getLogs", code, "query returned more than 10000 results")


async def scanned(
    node: Node, first: int, last: int, search: LogSearch | None = None
) -> list[Scanned]:
    search = search or LogSearch(node)
    return [part async for part in search.scan(ESCROW, [[TOPIC]], first, last)]


def assert_whole(parts: list[Scanned], node: Node, first: int, last: int) -> None:
    """The parts cover every block once and in order, with every log."""
    assert [part.first for part in parts] == [first, *[part.last + 1 for part in parts[:-1]]]
    assert parts[-1].last == last
    found = [log.block for part in parts for log in part.logs]
    assert found == sorted(b for b in node.blocks if first <= b <= last)


async def test_a_wide_range_is_asked_in_parts() -> None:
    node = Node({5, 2_001, 4_100})
    parts = await scanned(node, 0, 4_500)
    assert_whole(parts, node, 0, 4_500)
    assert node.asked == [(0, 1_999), (2_000, 4_500)]


async def test_nothing_is_asked_of_an_empty_range() -> None:
    node = Node(set())
    assert await scanned(node, 10, 9) == []
    assert node.asked == []


@given(
    limit=st.integers(1, 300),
    blocks=st.sets(st.integers(0, 3_000), max_size=40),
    first=st.integers(0, 100),
    length=st.integers(1, 2_500),
    kind=st.sampled_from([too_many(), too_many(-32602), AnswerTooLarge("too large")]),
)
async def test_a_limit_on_blocks_costs_more_questions_and_no_log(
    *, limit: int, blocks: set[int], first: int, length: int, kind: ChainError
) -> None:
    node = Node(blocks, lambda a, b: kind if b - a + 1 > limit else None)
    last = first + length - 1
    assert_whole(await scanned(node, first, last), node, first, last)
    # Halving leaves more than half of what is allowed. Growth is tried now and then.
    assert len(node.asked) < 2.5 * (length / limit) + 40


@given(st.sets(st.integers(0, 500), max_size=200), st.integers(1, 5))
async def test_a_limit_on_results_is_met_down_to_one_block(blocks: set[int], most: int) -> None:
    def refuse(first: int, last: int) -> ChainError | None:
        return too_many() if len(blocks & set(range(first, last + 1))) > most else None

    node = Node(blocks, refuse)
    assert_whole(await scanned(node, 0, 500), node, 0, 500)


async def test_a_node_without_limits_is_asked_for_ever_wider_ranges() -> None:
    node = Node({7, 900_000})
    assert_whole(await scanned(node, 0, 1_000_000), node, 0, 1_000_000)
    widths = [last - first + 1 for first, last in node.asked]
    assert widths[0] == MAX_LOG_RANGE_BLOCKS and max(widths) == MAX_LOG_SEARCH_BLOCKS
    assert len(widths) < 30


async def test_a_range_grows_again_after_a_busy_stretch() -> None:
    node = Node(set(), lambda a, b: too_many() if a < 64 and b - a + 1 > 4 else None)
    parts = await scanned(node, 0, 60_000)
    assert_whole(parts, node, 0, 60_000)
    assert max(part.last - part.first + 1 for part in parts) > MAX_LOG_RANGE_BLOCKS // 2


@pytest.mark.parametrize("most", [1, 3, 10])
async def test_the_width_is_remembered_for_the_next_search(most: int) -> None:
    node = Node(set(range(200)), lambda a, b: too_many() if b - a + 1 > most else None)
    search = LogSearch(node)
    assert_whole(await scanned(node, 5, 68, search), node, 5, 68)
    node.asked.clear()
    await scanned(node, 100, 115)
    anew = len(node.asked)
    node.asked.clear()
    assert_whole(await scanned(node, 100, 115, search), node, 100, 115)
    assert len(node.asked) < anew


async def test_a_search_that_would_take_too_many_requests_is_given_up_early() -> None:
    node = Node(set(), lambda a, b: too_many() if a != b else None)
    with pytest.raises(LogRangeRefused, match=r"it takes . of"):
        await scanned(node, 0, 20_000)
    assert len(node.asked) == 200


async def test_a_node_that_refuses_one_block_is_named_with_the_block() -> None:
    node = Node(set(), lambda a, b: too_many() if a <= 7 <= b else None)
    parts: list[Scanned] = []
    with pytest.raises(LogRangeRefused, match=r"more than 10000 results \(block 7 alone\)"):
        async for part in LogSearch(node).scan(ESCROW, [[TOPIC]], 0, 100):
            parts.append(part)
    assert parts[-1].last == 6  # what was read stays read


async def test_a_scan_goes_on_where_it_was_broken_off() -> None:
    down = True
    node = Node({3, 2_500, 5_000})
    node.refuse = lambda a, _: RpcUnavailable("down") if down and a >= 2_000 else None
    seen: list[Scanned] = []
    with pytest.raises(RpcUnavailable):
        async for part in LogSearch(node).scan(ESCROW, [[TOPIC]], 0, 6_000):
            seen.append(part)
    assert [part.last for part in seen] == [1_999]
    down = False
    seen += await scanned(node, seen[-1].last + 1, 6_000)
    assert_whole(seen, node, 0, 6_000)


async def test_a_node_that_is_down_is_not_asked_for_ever() -> None:
    node = Node(set(), lambda *_: RpcUnavailable("down"))
    with pytest.raises(RpcUnavailable):
        await scanned(node, 0, 10_000)
    assert len(node.asked) == 4


async def test_a_node_that_times_out_over_wide_ranges_is_asked_for_narrow_ones() -> None:
    node = Node({9, 1_500}, lambda a, b: RpcUnavailable("late") if b - a >= 300 else None)
    assert_whole(await scanned(node, 0, 2_000), node, 0, 2_000)


@pytest.mark.parametrize(
    "error", [MethodMissing("eth_getLogs", -32601, "no such method"), RpcLimited("slow down")]
)
async def test_a_refusal_that_no_narrower_range_helps_is_passed_on_at_once(
    error: ChainError,
) -> None:
    node = Node(set(), lambda *_: error)
    with pytest.raises(type(error)):
        await scanned(node, 0, 10_000)
    assert len(node.asked) == 1


async def test_something_else_than_a_list_is_no_empty_list() -> None:
    class Null(Node):
        async def call(self, method: str, *params: Any) -> Any:
            return None

    with pytest.raises(BadAnswer):
        await scanned(Null(set()), 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"blockNumber": "0x7fffffff"},
        {"address": "0x" + "02" * 20},
        {"data": "0xzz"},
        {"topics": ["0x00"]},
        {"logIndex": None},
        {"transactionHash": 7},
    ],
)
async def test_logs_that_were_not_asked_for_are_a_bad_answer(change: dict[str, Any]) -> None:
    node = Node({5})
    node.change = change
    with pytest.raises(BadAnswer):
        await scanned(node, 0, 10)


# --- channels from their openings on


def channel_at(number: int) -> ChannelId:
    return ChannelId(Bytes32(number.to_bytes(32, "big")))


async def test_the_logs_of_channels_are_asked_for_from_their_openings_on() -> None:
    node = Node(set())
    # The later a channel opened the smaller is its name.
    opened = {channel_at(1000 - n): 10_000 + n for n in range(MAX_CHANNELS_PER_LOG_QUERY + 1)}
    opened[channel_at(7)] = 90_000
    reader = ChainReader(node, DEPLOYMENT)
    assert await reader.events_of(("Settled",), opened, 91_000) == ()
    firsts = [first for first, _ in node.asked if first - 1 not in {last for _, last in node.asked}]
    assert firsts == [10_000, 10_000 + MAX_CHANNELS_PER_LOG_QUERY]
    assert max(last for _, last in node.asked) == 91_000
    assert not (await reader.events_of(("Settled",), {}, 91_000))


async def test_the_openings_of_an_operator_are_found_in_one_walk() -> None:
    node = Node({5, 3_000})
    one = bytes(12) + ESCROW
    members = [*(one,) * 5, (1).to_bytes(32, "big"), bytes(32)]
    node.change = {
        "topics": [to_hex(topic("ChannelOpened")), "0x" + "09" * 32, *[to_hex(Bytes32(one))] * 2],
        "data": "0x" + b"".join(members).hex(),
        "address": to_hex(DEPLOYMENT.escrow),
    }
    reader = ChainReader(node, DEPLOYMENT)
    found = await reader.opening_blocks(ESCROW, 4_000)
    assert found == {ChannelId(Bytes32(b"\x09" * 32)): 3_000}
    assert node.asked == [(0, 1_999), (2_000, 4_000)]


# --- what is asked for


def test_an_indexed_argument_becomes_the_topic_in_its_place() -> None:
    payer = Address(b"\x09" * 20)
    assert event_topics(("ChannelOpened",), {"payer": payer}) == [
        [to_hex(topic("ChannelOpened"))],
        None,
        "0x" + "00" * 12 + "09" * 20,
    ]
    both = ("Settled", "ChannelFunded")
    channel = bytes(range(32))
    assert event_topics(both, {"channelId": channel}) == [
        [to_hex(topic(name)) for name in both],
        to_hex(channel),
    ]
    assert event_topics(both, {}) == [[to_hex(topic(name)) for name in both]]


def test_an_argument_that_is_not_one_topic_is_our_mistake() -> None:
    for names, argument in (
        (("Settled",), "payer"),
        (("Settled", "Deposited"), "receiver"),
        (("ChannelOpened", "ChannelClosed"), "operator"),
        (("Settled",), "amount"),
    ):
        with pytest.raises(InvariantBroken):
            event_topics(names, {argument: bytes(20)})
