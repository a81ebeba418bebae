"""Leaving a market on a real chain: killed at every point, repeated, and everything paid once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.chain.contracts.calls import Call
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import ChainError, RpcUnavailable
from piecework.chain.nodes.rpc import JsonRpc
from piecework.chain.reading.reader import ChainReader
from piecework_node import config
from piecework_node.journal.records import ChannelObserved, ChannelSeen, MetaSet
from piecework_node.operations.leaving import Leaver, LeaveStep
from piecework_node.operations.owning import OwnerHands
from piecework_node.operations.running import open_journal
from piecework_node.settlement.payouts import META
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId, Timestamp, parse_address
from tests.support.chain.chains import (
    MIN_STAKE,
    UNBONDING_DELAY_S,
    USD,
    TestMarket,
    channel_of,
    deployed,
)
from tests.support.node.leaving import SENDING, killed, leave, leave_here
from tests.support.node.owed import (
    FEE,
    OPERATOR,
    OWED,
    OWNER,
    OwedWorker,
    count_on_a_top_up,
    owed_worker,
)
from tests.support.system.commands import piecework
from tests.support.system.worker_process import PASSWORD, POLL_S, RECEIVER

pytestmark = pytest.mark.process

MOST_POINTS = 60
ENVIRONMENT = {"PIECEWORK_PASSWORD": PASSWORD}


async def tokens(market: TestMarket) -> tuple[int, int]:
    """What the payout address and the owner hold."""
    reader = market.reader
    return (
        await reader.token_balance(market.token, RECEIVER),
        await reader.token_balance(market.token, OWNER.address),
    )


async def killed_until_it_ends(owed: OwedWorker) -> int:
    """Kill each attempt a point later than the one before; how many died."""
    for point in range(MOST_POINTS):
        if not await killed(leave_here, owed.hands, point):
            return point
    pytest.fail("leaving never came to its end")


async def heard(owed: OwedWorker) -> tuple[int, int]:
    """What the journal knows as settled, and as waiting in the escrow."""
    journal = await open_journal(owed.worker.home)
    try:
        waiting = await journal.metas(META)
        return (await journal.earnings()).settled, sum(map(int, waiting.values()))
    finally:
        await journal.close()


async def test_a_kill_at_any_point_costs_nothing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        before = await tokens(market)
        assert await killed_until_it_ends(owed) > 8
        assert await tokens(market) == (before[0] + OWED + FEE, before[1])
        assert await heard(owed) == (OWED, 0)

        waiting = await leave(owed.hands)
        assert waiting.next is LeaveStep.WAIT and waiting.at is not None and waiting.call is None
        assert [step.new for step in waiting.steps] == [False] * 5
        known = await market.reader.worker(OPERATOR.address)
        assert known is not None and not known.active
        assert waiting.at == known.unbond_requested_at + UNBONDING_DELAY_S

        await market.pass_time(UNBONDING_DELAY_S)
        assert await killed_until_it_ends(owed) > 8
        done = await leave(owed.hands)
        assert done.next is None and any("coin" in line for line in done.left)
        assert await tokens(market) == (before[0] + OWED + FEE, before[1] + MIN_STAKE)
        assert await market.reader.worker(OPERATOR.address) is None


async def test_the_journal_hears_what_leaving_has_settled_and_pushed(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        journal = await open_journal(owed.worker.home)
        # As the worker had last seen it.
        await journal.append([MetaSet(META + market.token.hex(), str(FEE))])
        await journal.close()
        assert await heard(owed) == (0, FEE)
        await leave(owed.hands)
        assert await heard(owed) == (OWED, 0)
        command = ("worker", "earnings", "--json", "--home", str(owed.hands.home))
        sums = (await piecework(*command, environment=ENVIRONMENT)).json()
        assert (sums["accepted"], sums["settled"], sums["waiting"]) == (OWED, OWED, 0)
        journal = await open_journal(owed.worker.home)
        (stored,) = [await journal.channel(one) for one in await journal.channel_ids()]
        assert await journal.verify(deep=False) > 0
        await journal.close()
        assert stored is not None and stored.state is ChannelState.OPEN
        assert (stored.deposit, stored.settled) == (5 * USD, OWED)


class OddRpc:
    """A node that answers otherwise about one channel once a transaction was sent."""

    def __init__(self, inner: JsonRpc, channel: ChannelId, answer: str | ChainError) -> None:
        self._inner, self._channel, self._answer = inner, channel, answer
        self._odd = False

    async def call(self, method: str, *params: Any) -> Any:
        if self._odd and method == "eth_call" and self._channel.hex() in params[0]["data"]:
            if isinstance(self._answer, ChainError):
                raise self._answer
            return self._answer
        self._odd = self._odd or method == SENDING
        return await self._inner.call(method, *params)

    async def close(self) -> None:
        await self._inner.close()


IMPOSSIBLE = "0x" + "".join(f"{word:064x}" for word in (1, 7 * USD, 0, 0, 0, 0, 0))
"""More settled than was ever put in."""


@pytest.mark.parametrize("answer", [IMPOSSIBLE, RpcUnavailable("the node is away")])
async def test_what_is_settled_is_heard_whatever_a_node_says_of_another_channel(
    tmp_path: Path, answer: str | ChainError
) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        other = channel_of(market, OWNER, OPERATOR, receiver=RECEIVER)
        id_ = other.id(market.reader.domain)
        journal = await open_journal(owed.worker.home)
        seen = ChannelObserved(id_, ChannelState.OPEN, Amount(USD), Amount(0), Timestamp(1))
        await journal.append([ChannelSeen(id_, other), seen])
        await journal.close()
        reader = ChainReader(OddRpc(market.reader.rpc, id_, answer), market.deployment)
        settings = config.load(owed.worker.home.root, environment={})
        leaver = Leaver(
            owed.worker.home, settings, OPERATOR, OwnerHands(reader, poll_s=POLL_S), poll_s=POLL_S
        )
        if isinstance(answer, ChainError):
            with pytest.raises(RpcUnavailable):
                await leaver.run(LeaveStep.SETTLE)
        else:
            await leaver.run(LeaveStep.SETTLE)
        assert (await heard(owed))[0] == OWED


async def test_a_top_up_that_vouchers_count_on_is_sent_before_they_are_settled(
    tmp_path: Path,
) -> None:
    """It waits in the journal of a worker whose gas was too dear for its fee."""
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        promised = await count_on_a_top_up(owed, market)
        before, _ = await tokens(market)
        report = await leave(owed.hands)
        assert report.next is LeaveStep.WAIT
        assert (await tokens(market))[0] == before + promised + 2 * FEE


async def test_what_vouchers_promise_and_no_channel_pays_is_said(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        await count_on_a_top_up(owed, market, until=Timestamp(1))
        report = await leave(owed.hands)
        settle = next(step for step in report.steps if step.step == LeaveStep.SETTLE.value)
        assert "2.00 tUSDC of vouchers is above what their channels pay" in settle.detail


async def test_without_the_owners_key_it_says_what_to_send_and_goes_on_when_that_is_mined(
    tmp_path: Path,
) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        owed = await owed_worker(tmp_path, market, chain.url)
        command = ("worker", "leave", "--home", str(owed.hands.home))
        unasked = await piecework(*command, environment=ENVIRONMENT)
        assert unasked.code == 2 and "Say --yes" in unasked.err
        assert "7 d from then on" in unasked.out

        told = await piecework(*command, "--yes", "--json", environment=ENVIRONMENT)
        found = told.json()
        assert [step["step"] for step in found["steps"]] == [
            "drain",
            "settle",
            "offers",
            "earnings",
        ]
        call = found["transaction"]
        assert found["next"] == "unbond" and call["what"] == "requestUnbond"
        assert int(call["to"], 16) == int.from_bytes(market.deployment.registry)

        await market.run(OWNER, _as_call(call))
        waiting = await piecework(*command, environment=ENVIRONMENT)
        assert "next   wait      the delay holds the stake for " in waiting.out
        assert "Run this again after " in waiting.out


def _as_call(call: dict[str, str]) -> Call:
    to = parse_address(call["to"])
    return Call(call["what"], to, bytes.fromhex(call["data"][2:]), 200_000)
