"""The contracts are where everybody computes them to be, and other code there fools nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import rlp  # type: ignore[import-untyped]

from piecework.chain.addresses import FACTORY, FACTORY_CODE, FACTORY_CREATOR, FACTORY_TRANSACTION
from piecework.chain.artifacts import load_artifact
from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.calls import Call, send_native
from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import BadDeployment, RpcRefused, WrongChain
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.reading.presence import Presence, code_at, places
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.deploy import block_of_creation, deploy
from piecework.chain.sending.transactions import TransactionSender
from piecework_protocol.eip712 import Domain
from piecework_protocol.types import Address, Amount, Seconds, keccak256, to_hex
from tests.support.chain.chains import (
    ETHER,
    MIN_STAKE,
    POLL_S,
    USD,
    Chain,
    deployed,
    require_anvil,
    signer,
)

pytestmark = pytest.mark.process

EVIL, STRANGER = signer("evil"), signer("stranger")


async def put_code(rpc: HttpRpc, address: Address, code: bytes) -> None:
    """What only anvil can do: code at an address, whoever made it."""
    await rpc.call("anvil_setCode", to_hex(address), "0x" + code.hex())


# --- what is deployed


async def test_every_development_chain_has_the_factory(any_chain: Chain) -> None:
    async with HttpRpc(any_chain.url) as rpc:
        assert await code_at(rpc, FACTORY) == FACTORY_CODE


async def test_both_kinds_of_chain_have_the_same_escrow() -> None:
    require_anvil()
    found = []
    for kind in (EmbeddedChain, Anvil):
        async with kind() as chain, deployed(chain) as market:
            found.append(await places(market.rpc, market.deployment))
    embedded, anvil = found
    assert embedded[:2] == anvil[:2]  # the factory and the escrow
    assert all(place.presence is Presence.OURS for place in embedded + anvil)


async def test_a_second_market_shares_the_escrow_and_has_a_registry_of_its_own(
    any_chain: Chain,
) -> None:
    async with deployed(any_chain) as market:
        first = market.deployment
        same = await deploy(
            any_chain.url, any_chain.faucet, min_stake=MIN_STAKE, token=market.token, poll_s=POLL_S
        )
        assert same == first
        dearer = await deploy(
            any_chain.url, any_chain.faucet, min_stake="7", token=market.token, poll_s=POLL_S
        )
        assert dearer.min_stake == 7 * USD
        assert dearer.escrow == first.escrow
        assert dearer.registry != first.registry
        async with await ChainReader.connect(dearer) as reader:
            assert (await reader.stake_requirements()).min_stake == 7 * USD
        with pytest.raises(BadDeployment, match="no token"):
            await deploy(any_chain.url, any_chain.faucet, token=STRANGER.address, poll_s=POLL_S)


async def test_two_deployers_at_once_do_not_disturb_each_other(anvil: Anvil) -> None:
    async with deployed(anvil) as market:
        await market.give(EVIL.address, wei=ETHER)
        both = (
            deploy(anvil.url, key, min_stake="9", token=market.token, poll_s=POLL_S)
            for key in (anvil.faucet, EVIL)
        )
        one, other = await asyncio.gather(*both)
        assert one == other


async def test_the_file_says_where_the_escrow_began(any_chain: Chain) -> None:
    async with HttpRpc(any_chain.url) as rpc:
        for _ in range(5):
            await rpc.call("evm_mine")
        async with deployed(any_chain) as market:
            began = market.deployment.from_block
            assert began is not None and began > 5
            assert await code_at(rpc, market.deployment.escrow, hex(began))
            assert not await code_at(rpc, market.deployment.escrow, hex(began - 1))


class Pruned:
    """A node that keeps no old states."""

    def __init__(self, rpc: HttpRpc) -> None:
        self._rpc = rpc

    async def call(self, method: str, *params: object) -> object:
        if method == "eth_getCode" and params[1] != "latest":
            raise RpcRefused(method, -32000, "missing trie node")
        return await self._rpc.call(method, *params)

    async def close(self) -> None:
        await self._rpc.close()


async def test_a_node_without_old_states_leaves_the_first_block_open(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        assert await block_of_creation(Pruned(market.rpc), market.deployment.escrow) is None


async def test_terms_that_no_dispute_could_meet_are_refused_before_anything_is_sent(
    anvil: Anvil,
) -> None:
    for days in (6.9, 181):
        with pytest.raises(BadDeployment, match="7 to 180 days"):
            await deploy(anvil.url, anvil.faucet, unbonding_delay_s=Seconds(int(days * 24 * 3600)))
    async with HttpRpc(anvil.url) as rpc:
        assert await rpc.call("eth_blockNumber") == "0x0"


# --- the factory


async def test_a_missing_factory_is_created_by_its_one_transaction(anvil: Anvil) -> None:
    async with HttpRpc(anvil.url) as rpc:
        await put_code(rpc, FACTORY, b"")
        made = await deploy(anvil.url, anvil.faucet, min_stake=MIN_STAKE, poll_s=POLL_S)
        assert await code_at(rpc, FACTORY) == FACTORY_CODE
        async with await ChainReader.connect(made):
            pass


async def test_other_code_in_place_of_the_factory_is_refused(anvil: Anvil) -> None:
    async with HttpRpc(anvil.url) as rpc:
        await put_code(rpc, FACTORY, b"\x00")
        with pytest.raises(BadDeployment, match="is not the CREATE2 factory's"):
            await deploy(anvil.url, anvil.faucet, poll_s=POLL_S)


async def test_a_factory_that_cannot_be_created_any_more_is_said_so(anvil: Anvil) -> None:
    async with HttpRpc(anvil.url) as rpc:
        await put_code(rpc, FACTORY, b"")
        await rpc.call("anvil_setNonce", to_hex(FACTORY_CREATOR), "0x1")
        with pytest.raises(BadDeployment, match="was used up there"):
            await deploy(anvil.url, anvil.faucet, poll_s=POLL_S)


async def test_a_node_that_refuses_the_factorys_transaction_is_said_so_with_the_bytes() -> None:
    """Above 100 gwei of base fee the transaction is too cheap, whatever anybody does."""
    require_anvil()
    async with Anvil(("--base-fee", str(200 * 10**9))) as dear, HttpRpc(dear.url) as rpc:
        await put_code(rpc, FACTORY, b"")
        with pytest.raises(BadDeployment, match="node refuses the transaction") as refused:
            await deploy(dear.url, dear.faucet, poll_s=POLL_S)
        assert FACTORY_TRANSACTION.hex() in str(refused.value)


async def test_a_chain_with_its_own_create2_is_refused_before_anything_is_sent() -> None:
    require_anvil()
    async with Anvil(chain_id=324) as era, HttpRpc(era.url) as rpc:
        with pytest.raises(WrongChain, match="zkSync Era"):
            await deploy(era.url, era.faucet, poll_s=POLL_S)
        assert await rpc.call("eth_blockNumber") == "0x0"
        market = Deployment(324, STRANGER.address, "USDC", 6, Amount(1), Seconds(7 * 24 * 3600))
        with pytest.raises(WrongChain, match="zkSync Era"):
            await ChainReader.connect(market, rpc_url=era.url)


# --- what is refused


async def test_another_chain_and_other_terms_are_refused_at_once(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        real = market.deployment
        for changed, words in (
            (replace(real, chain_id=real.chain_id + 1), "serves chain"),
            (replace(real, token=STRANGER.address), "there is no WorkerRegistry"),
            (replace(real, min_stake=Amount(1)), "there is no WorkerRegistry"),
        ):
            with pytest.raises(WrongChain, match=words):
                await ChainReader.connect(changed)


async def test_other_code_at_the_address_of_the_escrow_is_refused(anvil: Anvil) -> None:
    """Nobody can put it there on Ethereum. A chain of another kind or a lying node might."""
    async with deployed(anvil) as market:
        separator = market.deployment.domain.separator()
        answers_everything = b"\x7f" + separator + b"\x5f\x52\x60\x20\x5f\xf3"
        for code, words in ((answers_everything, "is not this program's Escrow"), (b"", "no Escr")):
            await put_code(market.rpc, market.deployment.escrow, code)
            with pytest.raises(WrongChain, match=words):
                await market.reader.verify()


def doctored_creation(runtime: bytes, slots: Sequence[bytes], value: int) -> bytes:
    """Creation code that writes `value` to storage slots and then returns `runtime`."""
    size = len(runtime).to_bytes(2, "big")
    stored = b"\x7f" + value.to_bytes(32, "big")
    write = b"".join(stored + b"\x7f" + slot + b"\x55" for slot in slots)
    offset = (len(write) + 13).to_bytes(2, "big")
    copy = b"\x61" + size + b"\x61" + offset + b"\x5f\x39"
    return write + copy + b"\x61" + size + b"\x5f\xf3" + runtime


def balance_slots(token: Address, owner: Address) -> list[bytes]:
    """Where a mapping of a mapping may keep a balance, for the first ten places of the layout."""
    inner = (keccak256(bytes(12) + token + n.to_bytes(32, "big")) for n in range(10))
    return [keccak256(bytes(12) + owner + place) for place in inner]


async def test_an_escrow_whose_creation_wrote_a_balance_has_no_way_into_a_deployment(
    any_chain: Chain,
) -> None:
    """The runtime code of the copy is the escrow's, byte for byte, and it owes its maker a
    fortune. Only its address gives it away, and no file can name an address."""
    async with deployed(any_chain) as market:
        await market.give(EVIL.address, wei=ETHER)
        real, sender = market.deployment, market.sender(EVIL)
        nonce = int(
            await market.rpc.call("eth_getTransactionCount", to_hex(EVIL.address), "latest"), 16
        )
        members = [bytes(EVIL.address), nonce.to_bytes(1, "big").lstrip(b"\0")]
        there = Address(keccak256(rlp.encode(members))[12:])
        honest = await market.reader.code(real.escrow)
        mine = Domain(real.chain_id, there).separator()
        runtime = honest.replace(bytes(real.escrow), bytes(there))
        runtime = runtime.replace(real.domain.separator(), mine)
        slots = balance_slots(market.token, EVIL.address)
        creation = doctored_creation(runtime, slots, 10**30)
        await sender.execute(Call("create", None, creation, 8_000_000), poll_s=POLL_S)
        copy = await market.reader.code(there)
        assert load_artifact("Escrow").matches(copy)  # what a comparison of code would accept
        abi = interface("Escrow")
        question = abi.encode("balanceOf", (market.token, EVIL.address))
        request = {"to": to_hex(there), "data": "0x" + question.hex()}
        answer = await market.rpc.call("eth_call", request, "latest")
        assert int(answer, 16) == 10**30
        doctored = real.to_json() | {"escrow": to_hex(there)}
        with pytest.raises(BadDeployment, match="unknown escrow"):
            Deployment.from_json(doctored)
        old = {"chain_id": real.chain_id, "escrow": to_hex(there)}
        with pytest.raises(BadDeployment, match="version 1"):
            Deployment.from_json(old)
        async with await ChainReader.connect(Deployment.from_json(real.to_json())) as reader:
            assert reader.deployment.escrow == real.escrow != there


async def test_nobody_reaches_the_escrows_address_with_other_init_code(any_chain: Chain) -> None:
    async with deployed(any_chain) as market:
        await market.give(EVIL.address, wei=ETHER)
        runtime = await market.reader.code(market.deployment.escrow)
        creation = doctored_creation(runtime, [bytes(32)], 1)
        call = Call("create", FACTORY, bytes(32) + creation, 8_000_000)
        before = await market.reader.code(market.deployment.escrow)
        await TransactionSender.of(market.reader, EVIL).execute(call, poll_s=POLL_S)
        assert await market.reader.code(market.deployment.escrow) == before
        await market.reader.verify()


async def test_an_escrow_that_was_paid_before_it_existed_is_the_same_escrow(
    any_chain: Chain,
) -> None:
    """Coins sent to the address beforehand are nobody's, and hinder nothing."""
    async with HttpRpc(any_chain.url) as rpc:
        async with deployed(any_chain) as market:
            terms = replace(market.deployment, min_stake=Amount(3 * USD))
            sender = TransactionSender.of(market.reader, any_chain.faucet)
            await sender.execute(send_native(terms.registry, 1), poll_s=POLL_S)
        made = await deploy(
            any_chain.url, any_chain.faucet, min_stake="3", token=terms.token, poll_s=POLL_S
        )
        assert made.registry == terms.registry
        assert (await places(rpc, made))[2].presence is Presence.OURS
