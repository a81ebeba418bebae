"""Several nodes of the chain in a client's and a worker's settings. The first one lies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import NodesDisagree, WrongChain
from piecework.client.config import ClientConfig, ClientHome
from piecework.client.sdk import PieceworkClient
from piecework.client.setup import set_up
from piecework_node.home import Home
from piecework_node.operations.setup import NewStake, set_up_worker
from piecework_protocol.types import parse_address, to_hex
from tests.sim.node.test_lying_nodes import LIARS
from tests.support.chain.chains import ETHER, USD, TestMarket, deployed, signer
from tests.support.chain.node_proxy import Kind, NodeProxy, over_http

pytestmark = pytest.mark.slow  # twenty lies, two transactions each

PASSWORD = "correct horse"


@asynccontextmanager
async def three_nodes(market: TestMarket) -> AsyncIterator[list[NodeProxy]]:
    """Three nodes of one chain."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(over_http(market.rpc.url))
        yield [await stack.enter_async_context(NodeProxy(upstream).serving()) for _ in range(3)]


async def test_one_liar_of_three_moves_no_money_of_a_client(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market, three_nodes(market) as proxies:
        file, home = tmp_path / "deployment.json", ClientHome(tmp_path / "client")
        market.deployment.save(file)
        made = await set_up(home.path, file, (), second_key=False, password=lambda: PASSWORD)
        await market.give(made.payer, wei=ETHER, tokens=100 * USD)
        three = ClientConfig(rpc_urls=tuple(proxy.url for proxy in proxies))
        liar = proxies[0]
        async with await PieceworkClient.open(home, three, password=PASSWORD) as client:
            for name, (method, made_up, about) in LIARS.items():
                liar.lies[method], liar.lies_about = made_up, about
                liar.faults = {method: Kind.LIES}
                before = (await client.balance()).pooled
                await client.funds.deposit("2")
                await client.funds.withdraw("1")
                after = (await client.balance()).pooled
                assert after == before + client.amount("1"), name
                assert all(proxy.asked for proxy in proxies)
        liar.lies_about, liar.faults = "", {"eth_getCode": Kind.LIES}
        async with await PieceworkClient.open(home, three, password=PASSWORD):
            pass
        alone = ClientConfig(rpc_url=liar.url)
        with pytest.raises(WrongChain):
            await PieceworkClient.open(home, alone, password=PASSWORD)
        two = ClientConfig(rpc_urls=(liar.url, proxies[1].url))
        with pytest.raises(NodesDisagree):
            await PieceworkClient.open(home, two, password=PASSWORD)


async def test_a_worker_registers_through_its_several_nodes(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market, three_nodes(market) as proxies:
        file, home = tmp_path / "deployment.json", Home(tmp_path / "worker")
        replace(market.deployment, rpc_url=None).save(file)
        proxies[0].lies_about = "pending"
        proxies[0].lies["eth_getTransactionCount"] = lambda _: "0x3e8"
        proxies[0].faults = {"eth_getTransactionCount": Kind.LIES}
        values = {
            "payout": to_hex(signer("payout").address),
            "rpc_urls": tuple(proxy.url for proxy in proxies),
        }
        done = await set_up_worker(
            home,
            file,
            values,
            PASSWORD,
            NewStake(owner=signer("owner").address, faucet=True),
            asked=frozenset(values),
        )
        operator = parse_address(done["operator"])
        assert await market.reader.worker(operator) is not None
