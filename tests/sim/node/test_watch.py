"""The head, the clock, the gas tank and a node without events are watched while the worker runs."""

from __future__ import annotations

import asyncio

import pytest

from piecework.chain.errors import RpcUnavailable
from piecework.chain.reading.reader import ChannelOnChain
from piecework.chain.sending.transactions import GasPrice
from piecework_node.runtime.faults import CONDITIONS, Code, FaultBoard
from piecework_node.settlement.policy import settle_wei
from piecework_node.settlement.settler import CURSOR_OVERLAP_BLOCKS, Settler
from piecework_node.settlement.simulations import OpeningSimulations
from piecework_node.settlement.watch import WatchLimits
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.types import ChannelId, Timestamp
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import OUTAGE_S, Client, WorkerHarness
from tests.support.node.settlement import MAINNET, make_settler

GWEI = 10**9


class Watchman:
    """A worker on a chain whose blocks come every twelve seconds, unless a test says otherwise."""

    def __init__(self, port: FakePort | None = None) -> None:
        self.harness, self.port = WorkerHarness(), port or FakePort()
        self.harness.chain = self.port
        self.settler: Settler

    async def boot(self, limits: WatchLimits = MAINNET) -> None:
        await self.harness.boot()
        self.settler = await make_settler(self.harness, self.port, limits=limits)
        await self.tick()

    @property
    def board(self) -> FaultBoard:
        return self.harness.faults

    @property
    def codes(self) -> set[Code]:
        return {fault.code for fault in self.board.faults}

    async def tick(self, seconds: float = 0, *, blocks: bool = True) -> None:
        """One round, `seconds` later. Without `blocks` the chain stands still."""
        self.harness.clock.advance(seconds)
        if blocks:
            self.port.height += 1
            self.port.time = Timestamp(int(self.harness.clock.now()))
        await self.settler.tick()

    async def refusal(self, client: Client) -> Refusal:
        with pytest.raises(Refusal) as caught:
            await client.submit(client.job(9))
        return caught.value


async def watchman() -> tuple[Watchman, Client]:
    made = Watchman()
    await made.boot()
    client = Client(made.harness)
    client.open_on_chain()
    return made, client


def test_every_code_has_a_row_and_a_remedy() -> None:
    assert set(CONDITIONS) == set(Code)
    for condition in CONDITIONS.values():
        assert condition.meaning and condition.remedy[0].isupper()
        assert condition.remedy[-1] != "."


async def test_a_head_that_stands_still_stops_new_jobs_until_it_moves() -> None:
    made, client = await watchman()
    limit = MAINNET.head_age_s
    assert limit == 120
    await made.tick(limit, blocks=False)
    assert made.codes == set()
    await made.tick(1, blocks=False)
    assert made.codes == {Code.HEAD_OLD}
    refused = await made.refusal(client)
    assert refused.reason is Reason.CHAIN_UNAVAILABLE
    assert refused.metadata["fault"] == "head-old" and "head-old" in refused.message
    assert "has stood" in made.board.faults[0].line and "clock" in made.board.faults[0].line
    await made.tick(1)
    assert made.codes == set()
    await client.submit(client.job(9))


async def test_blocks_that_keep_coming_and_are_old_point_to_the_clock() -> None:
    made, _ = await watchman()
    made.harness.clock.advance(200)
    made.port.height += 1
    await made.settler.tick()
    made.port.height += 1
    made.port.time = Timestamp(made.port.time + 12)
    await made.settler.tick()
    assert "and the head moves" in made.board.faults[0].line


async def test_a_development_chain_may_stand_still() -> None:
    made = Watchman()
    await made.boot(WatchLimits.of(31337, 12.0))
    await made.tick(10_000, blocks=False)
    assert made.codes == set()


@pytest.mark.parametrize(("block_time_s", "age_s"), [(0.25, 60), (2, 60), (12, 120), (30, 300)])
def test_how_old_a_head_may_be_follows_from_the_block_time(
    block_time_s: float, age_s: float
) -> None:
    assert WatchLimits.of(1, block_time_s).head_age_s == age_s


async def test_a_clock_behind_the_chain_is_told_with_its_code() -> None:
    made, client = await watchman()
    made.port.time = Timestamp(int(made.harness.clock.now()) + 31)
    await made.settler.tick()
    assert made.codes == {Code.CLOCK_BEHIND}
    assert (await made.refusal(client)).metadata["fault"] == "clock-behind"


async def test_a_gas_tank_below_five_settlements_stops_new_jobs_and_not_settlement() -> None:
    made, client = await watchman()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    made.port.price, made.port.gas = 10 * GWEI, 5 * settle_wei(GasPrice(10 * GWEI)) - 1
    made.settler.ask()
    await made.tick(61)
    assert made.codes == {Code.GAS_LOW}
    assert len(made.port.broadcasts) == 1, "what is owed is still brought home"
    assert (await made.refusal(client)).metadata["fault"] == "gas-low"
    shown = made.harness.metrics.registry.get_sample_value("piecework_gas_wei")
    assert shown == float(made.port.gas)
    made.port.gas += 1
    await made.tick(1)
    assert made.codes == set(), "a failing check is made again at once"


async def test_an_outage_shorter_than_the_patience_stops_nothing() -> None:
    made, client = await watchman()
    await client.submit(client.job(3))
    made.port.down = True
    await made.tick(OUTAGE_S - 1)
    await made.tick(OUTAGE_S - 1)
    assert made.codes == set() and made.board.is_failing("contracts")
    await made.tick(1)
    assert made.codes == {Code.NODE_AWAY}
    made.port.down = False
    await made.tick()
    assert made.codes == set()


async def test_without_events_each_channel_that_holds_money_is_asked_for() -> None:
    made, client = await watchman()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    made.port.most_blocks = 0
    await made.tick(61)
    assert made.codes == {Code.LOGS_REFUSED} and made.board.stopping is None
    made.port.withdraw(client.id, 0)
    await made.tick(1)
    assert len(made.port.broadcasts) == 1, "the withdrawal is seen and answered"


async def test_a_watch_that_cannot_ask_at_all_is_an_outage() -> None:
    class Blind(FakePort):
        """Refuses events, and does not answer for a channel once `blind`."""

        blind = False

        async def channel(self, channel_id: ChannelId) -> ChannelOnChain:
            if self.blind:
                raise RpcUnavailable("away")
            return await super().channel(channel_id)

    port = Blind()
    made = Watchman(port)
    await made.boot()
    client = Client(made.harness)
    client.open_on_chain()
    await client.submit(client.job(3))
    port.most_blocks, port.blind = 0, True
    await made.tick(61)
    assert Code.NODE_AWAY not in made.codes
    await made.tick(OUTAGE_S)
    assert Code.NODE_AWAY in made.codes
    port.blind = False
    await made.tick(1)
    assert made.board.stopping is None


async def test_a_withdrawal_is_seen_through_a_node_that_searches_few_blocks() -> None:
    made, client = await watchman()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    made.port.most_blocks = CURSOR_OVERLAP_BLOCKS // 2
    made.port.withdraw(client.id, 0)
    await made.tick(1)
    assert len(made.port.broadcasts) == 1


# --- waits


class HangingPort(FakePort):
    """A node that can be told to hang."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.answers.set()

    async def channel(self, channel_id: ChannelId) -> ChannelOnChain:
        await self.answers.wait()
        return await super().channel(channel_id)


async def test_a_job_does_not_wait_for_a_node_that_hangs_while_its_last_word_is_fresh() -> None:
    port = HangingPort()
    made = Watchman(port)
    await made.boot()
    client = Client(made.harness)
    client.open_on_chain()
    await client.submit(client.job(3))
    port.answers.clear()
    made.harness.clock.advance(OUTAGE_S - 1)
    await client.submit(client.job(4))
    live = made.harness.channels.get(client.id)
    assert live is not None and live.asking is not None, "the question goes on behind the job"
    reads = port.reads
    port.answers.set()
    await asyncio.wait({live.asking})
    assert port.reads == reads + 1, "one question, however many jobs asked"
    assert made.harness.channels.age_s(live) == 0
    made.harness.channels.stop()


async def test_a_job_on_a_stale_word_waits_and_is_refused_when_no_word_comes() -> None:
    port = HangingPort()
    made = Watchman(port)
    await made.boot()
    client = Client(made.harness)
    client.open_on_chain()
    await client.submit(client.job(3))
    port.answers.clear()
    made.harness.clock.advance(OUTAGE_S + 1)
    asked = asyncio.ensure_future(client.submit(client.job(4)))
    live = made.harness.channels.get(client.id)
    assert live is not None
    for _ in range(20):
        await asyncio.sleep(0)
    assert live.asking is not None and not asked.done()
    port.down = True
    port.answers.set()
    with pytest.raises(Refusal) as caught:
        await asked
    assert caught.value.reason is Reason.CHAIN_UNAVAILABLE


async def test_an_authorization_is_not_judged_by_a_pool_that_nobody_told_of() -> None:
    port = HangingPort()
    made = Watchman(port)
    await made.boot()
    client = Client(made.harness)
    port.pooled[client.channel.token, client.channel.payer] = client.deposit
    port.down = True
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3), funding=client.funding())
    assert caught.value.reason is Reason.CHAIN_UNAVAILABLE
    port.down = False
    await client.submit(client.job(4), funding=client.funding())


# --- simulations


async def test_an_opening_is_simulated_once_for_each_payer_and_block() -> None:
    made, client = await watchman()
    other = Client(made.harness, "other")
    simulations = OpeningSimulations(made.port, lambda: made.port.height)
    funding = client.funding()
    for _ in range(3):
        assert not await simulations.would_open(funding)
    assert made.port.simulations == 1
    await simulations.would_open(other.funding())
    assert made.port.simulations == 2
    made.port.pooled[client.channel.token, client.channel.payer] = client.deposit
    assert not await simulations.would_open(funding), "the block is the same"
    made.port.height += 1
    assert await simulations.would_open(funding)
    assert made.port.simulations == 3
