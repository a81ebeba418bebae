"""A payer that is a contract (ERC-1271) buys text from the real daemon and takes its money back.

The account signs what moves its own money: a deposit, the opening of a channel, a withdrawal. A
plain key signs jobs and vouchers. The account has no coins for gas and sends no transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from piecework.chain.contracts import calls
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.config import load_config
from piecework.client.errors import NoWorkerFits
from piecework.client.jobs.events import JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.journal.store import Store
from piecework.client.orders import ClosingState
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.signing import HeldKey, Unsigned
from piecework_protocol.types import Address, Bytes32, Signature, to_hex
from tests.support.chain.chains import USD, TestMarket, deployed, signer
from tests.support.chain.smart_account import SmartAccount
from tests.support.system.worker_process import RECEIVER, WorkerProcess

pytestmark = pytest.mark.process

MONEY = 5 * USD
AUTHORIZER = signer("authorizer of a smart account")


@dataclass(frozen=True, slots=True)
class AccountSigner:
    """Implements `HeldKey` with what a smart account takes for a signature."""

    account: SmartAccount
    is_owner: bool = True

    @property
    def address(self) -> Address:
        return self.account.address

    def sign_typed(self, domain: Domain, message: TypedData) -> Signature:
        signed = self.account.sign_digest(domain.digest(message))
        return Signature(signed if self.is_owner else signed[::-1])

    def sign_transaction(self, transaction: Unsigned) -> Signature:
        raise AssertionError("a smart account signs no transaction")

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        return self.sign_typed(domain, message)

    async def transaction(self, transaction: Unsigned) -> Signature:
        return self.sign_transaction(transaction)


def client_of(market: TestMarket, folder: Path, payer: HeldKey) -> PieceworkClient:
    """A client whose payer is this, with a home of its own."""
    folder.mkdir()
    store = Store(folder / "client.db", market.deployment.domain, payer.address)
    config = load_config(folder / "no-file", {"deposit": "2.0"})
    wallet, token = Wallet(payer, AUTHORIZER), market.deployment.payment_token
    return PieceworkClient(store, market.reader, wallet, token, config)


async def a_text(client: PieceworkClient, seed: int) -> JobFinished:
    """One paid job of a few canvases."""
    request = TextRequest(
        Conversation((Message("user", "A story, please."),)),
        generation=Generation(seed=seed, max_tokens=24),
    )
    async with client.run(request) as run:
        (ended,) = [event async for event in run if isinstance(event, JobFinished)]
    assert ended.acknowledged
    return ended


@pytest.mark.parametrize("pooled", [True, False], ids=["out of the pool", "in one step"])
async def test_a_smart_account_buys_closes_and_takes_its_money_back(
    tmp_path: Path, embedded_chain: EmbeddedChain, pooled: bool
) -> None:
    async with deployed(embedded_chain) as market:
        worker = await WorkerProcess.register(tmp_path / "worker", market.deployment, pace_s=0.005)
        account = await SmartAccount.create(market)
        await market.give(account.address, tokens=MONEY)
        reader, faucet = market.reader, embedded_chain.faucet
        await worker.start()
        async with client_of(market, tmp_path / "client", AccountSigner(account)) as client:
            if pooled:
                deposit = await client.funds.authorize_deposit("5", 3600, Bytes32(bytes(32)))
                await market.run(
                    faucet, calls.deposit_with_authorization(market.deployment, deposit)
                )
                assert await reader.pooled_balance(market.token, account.address) == MONEY
            spent = sum([(await a_text(client, seed)).cost for seed in range(3)])
            (row,) = client.store.channels()
            assert row.one_step is not pooled and row.channel.payer == account.address
            closing = await client.funds.close(row.id)
            assert closing.state is ClosingState.CLOSED, closing
            free = await reader.pooled_balance(market.token, account.address)
            signed = await client.funds.orders.sign(
                client.payment_token.amount(free), None, "0", 3600
            )
            await market.run(
                faucet,
                calls.withdraw_balance_for(market.deployment, signed.order, signed.signature),
            )
        held = await reader.token_balance(market.token, account.address)
        waiting = await reader.waiting_payout(market.token, RECEIVER)
        earned = waiting + await reader.token_balance(market.token, RECEIVER)
        assert spent > 0 and held + earned == MONEY
        assert earned >= spent, "the receipts, and what the worker asks for opening and closing"
        assert await reader.rpc.call("eth_getBalance", to_hex(account.address), "latest") == "0x0"
        assert await worker.drain() == 0, worker.log_tail()


async def test_who_is_not_the_owner_of_the_account_gets_nothing(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with deployed(embedded_chain) as market:
        worker = await WorkerProcess.register(tmp_path / "worker", market.deployment, pace_s=0.005)
        account = await SmartAccount.create(market)
        await market.give(account.address, tokens=MONEY)
        await worker.start()
        thief = AccountSigner(account, is_owner=False)
        async with client_of(market, tmp_path / "client", thief) as client:
            with pytest.raises(NoWorkerFits, match="BAD_SIGNATURE"):
                await a_text(client, 1)
            assert client.store.channels()[0].book.cumulative == 0
        assert await market.reader.token_balance(market.token, account.address) == MONEY
        assert await worker.drain() == 0, worker.log_tail()
