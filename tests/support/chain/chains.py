"""Chains for tests: the embedded one and real anvil, with the contracts deployed.

Fixtures: `embedded_chain`, `anvil`, `any_chain` (both, one after the other). A missing anvil is a
failure with a clear message, never a skip: what is only checked sometimes is not checked.

    async def test_x(any_chain):
        async with deployed(any_chain) as market: ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import pytest

from piecework.chain.contracts.authorizations import SignedDeposit, sign_deposit
from piecework.chain.contracts.calls import (
    Call,
    Claim,
    cancel_withdrawal,
    close,
    deposit_with_authorization,
    mint,
    request_withdrawal,
    send_native,
    submit_funding,
)
from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil, find_anvil
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import AnvilMissing
from piecework.chain.nodes.rpc import HttpRpc
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.deploy import deploy
from piecework.chain.sending.transactions import Mined, TransactionSender
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.objects import (
    EVERYTHING,
    CancelWithdrawal,
    Channel,
    CloseChannel,
    FundChannel,
    RequestWithdrawal,
    Voucher,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    PayerSignature,
    Seconds,
    Timestamp,
    Uint64,
    keccak256,
)

Chain: TypeAlias = EmbeddedChain | Anvil
ETHER = 10**18
USD = 10**6
MIN_STAKE = Amount(100 * USD)
UNBONDING_DELAY_S = Seconds(7 * 24 * 3600)
POLL_S = 0.02
FAR = Timestamp(2**40 - 1)
RECEIPTS_ROOT = Digest(keccak256(b"receipts"))


@pytest.fixture
async def embedded_chain() -> AsyncIterator[EmbeddedChain]:
    """A fresh embedded chain on a free port."""
    async with EmbeddedChain() as chain:
        yield chain


@pytest.fixture
async def anvil() -> AsyncIterator[Anvil]:
    """A fresh anvil on a free port."""
    require_anvil()
    async with Anvil() as chain:
        yield chain


@pytest.fixture(params=["embedded", "anvil"])
async def any_chain(request: pytest.FixtureRequest) -> AsyncIterator[Chain]:
    """The test runs once on each kind of chain."""
    if request.param == "anvil":
        require_anvil()
    async with Anvil() if request.param == "anvil" else EmbeddedChain() as chain:
        yield chain


def require_anvil() -> None:
    """Fail the test, with what to do, when there is no anvil."""
    try:
        find_anvil()
    except AnvilMissing as error:
        pytest.fail(f"{error} (`make test` does it)", pytrace=False)


def signer(name: str) -> LocalSigner:
    """A key that is the same in every run."""
    return LocalSigner(keccak256(f"piecework test key: {name}".encode()))


@dataclass
class TestMarket:
    """A deployment on a development chain, with hands to move money and time."""

    __test__ = False  # pytest takes the name for that of a test

    chain: Chain
    deployment: Deployment
    reader: ChainReader

    @property
    def rpc(self) -> HttpRpc:
        assert isinstance(self.reader.rpc, HttpRpc)
        return self.reader.rpc

    @property
    def token(self) -> Address:
        return self.deployment.token

    def sender(self, key: LocalSigner) -> TransactionSender:
        """A sender for a key; make one per key and test."""
        return TransactionSender.of(self.reader, key)

    async def give(self, to: Address, *, wei: int = 0, tokens: int = 0) -> None:
        """Coins and test tokens from the faucet."""
        faucet = TransactionSender.of(self.reader, self.chain.faucet)
        if wei:
            await faucet.execute(send_native(to, wei), poll_s=POLL_S)
        if tokens:
            await faucet.execute(mint(self.token, to, Amount(tokens)), poll_s=POLL_S)

    async def run(self, key: LocalSigner, call: Call) -> Mined:
        """Execute a call, and hold its gas hint to the promise that it is an upper estimate."""
        mined = await self.sender(key).execute(call, poll_s=POLL_S)
        assert mined.gas_used <= call.gas_hint, f"{call.what} used {mined.gas_used} gas"
        return mined

    async def pool(self, payer: LocalSigner, relayer: LocalSigner, amount: int) -> None:
        """Mint tokens for the payer and put them into its pooled balance, by EIP-3009: it needs no
        gas."""
        await self.give(payer.address, tokens=amount)
        signed = sign_deposit(
            await self.reader.token_domain(self.token),
            self.deployment.escrow,
            payer,
            Amount(amount),
            valid_before=Timestamp(await self.reader.timestamp() + 3600),
            salt=Bytes32(amount.to_bytes(32, "big")),
        )
        relayed = SignedDeposit.from_json(signed.to_json())
        await self.run(relayer, deposit_with_authorization(self.deployment, relayed))

    async def open_channel(
        self,
        payer: LocalSigner,
        relayer: LocalSigner,
        channel: Channel,
        funded: int,
        *,
        fee: int = 0,
    ) -> None:
        """Open or top up by the payer's signature; the relayer pays the gas. Needs a pooled
        balance."""
        terms = FundChannel(channel, Amount(funded), Amount(fee), FAR)
        signed = FundingAuthorization(terms, signature_of(self.reader.domain, terms, payer))
        await self.run(relayer, submit_funding(self.deployment, channel, signed))

    async def pass_time(self, seconds: int) -> None:
        """Move the chain's clock forward and mine a block."""
        await self.rpc.call("evm_increaseTime", seconds)
        await self.rpc.call("evm_mine")


def signature_of(domain: Domain, message: TypedData, payer: LocalSigner) -> PayerSignature:
    """A payer's signature by a plain key."""
    return PayerSignature(sign(domain, message, payer))


def claim_of(
    domain: Domain, channel: Channel, authorizer: LocalSigner, cumulative: int, *, count: int = 1
) -> Claim:
    """A voucher that the authorizer signed, ready to settle."""
    voucher = Voucher(channel.id(domain), Amount(cumulative), Uint64(count), RECEIPTS_ROOT)
    return Claim(channel, voucher, sign(domain, voucher, authorizer))


def request_of(
    market: TestMarket,
    channel: Channel,
    payer: LocalSigner,
    amount: Amount = EVERYTHING,
    nonce: int = 0,
) -> Call:
    """The payer's signed withdrawal request, for anybody to submit."""
    domain = market.reader.domain
    wish = RequestWithdrawal(channel.id(domain), amount, Uint64(nonce), FAR)
    signature = signature_of(domain, wish, payer)
    return request_withdrawal(
        market.deployment, channel, amount, Uint64(nonce), deadline=FAR, signature=signature
    )


def cancel_of(market: TestMarket, channel: Channel, payer: LocalSigner, nonce: int = 0) -> Call:
    """The payer calls its request off, for anybody to submit."""
    domain = market.reader.domain
    wish = CancelWithdrawal(channel.id(domain), Uint64(nonce), FAR)
    signature = signature_of(domain, wish, payer)
    return cancel_withdrawal(
        market.deployment, channel, Uint64(nonce), deadline=FAR, signature=signature
    )


def close_of(
    market: TestMarket,
    claim: Claim,
    operator: LocalSigner,
    authorizer: LocalSigner | None = None,
    fee: int = 0,
) -> Call:
    """A closing that both sides agreed to, for anybody to submit. A fee needs the authorizer."""
    domain, v = market.reader.domain, claim.voucher
    final = CloseChannel(v.channel, v.cumulative, v.count, v.receipts_root, Amount(fee))
    agreed = sign(domain, final, operator)
    if authorizer is not None:
        claim = replace(claim, signature=sign(domain, final, authorizer))
    return close(market.deployment, claim, Amount(fee), agreed)


@asynccontextmanager
async def deployed(chain: Chain) -> AsyncIterator[TestMarket]:
    """Deploy the contracts on a chain and connect to them."""
    deployment = await deploy(
        chain.url,
        chain.faucet,
        min_stake=MIN_STAKE,
        unbonding_delay_s=UNBONDING_DELAY_S,
        poll_s=POLL_S,
    )
    async with await ChainReader.connect(deployment) as reader:
        yield TestMarket(chain, deployment, reader)


def channel_of(
    market: TestMarket,
    payer: LocalSigner,
    operator: LocalSigner,
    *,
    salt: int = 0,
    receiver: Address | None = None,
) -> Channel:
    """A channel in the market's token; the payer is its own authorizer."""
    return Channel(
        payer=payer.address,
        authorizer=payer.address,
        receiver=receiver or operator.address,
        operator=operator.address,
        token=market.token,
        withdrawal_delay=Seconds(3600),
        salt=Bytes32(salt.to_bytes(32, "big")),
    )
