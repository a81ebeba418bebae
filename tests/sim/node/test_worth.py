"""No attempt, replacement or cancellation costs more than the transaction brings."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from piecework.chain.errors import FeeTooHigh
from piecework_node.journal.records import TxKind, TxState
from piecework_node.settlement.policy import SettlePolicy
from piecework_protocol.ledger import closing_of
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount
from tests.support.node.fake_port import FIRST_FEE, GAS, FakePort
from tests.support.node.harness import DOMAIN, Client, WorkerHarness
from tests.support.node.settlement import STUCK_S, make_settler

WEI_PER_UNIT = 10**5
PRICED = SettlePolicy(gas_multiple=1, interval_s=1, native_coin_price=10**18 // WEI_PER_UNIT)

PATIENT = replace(PRICED, gas_multiple=1e9, interval_s=1e9)


class PricedBank:
    """A worker that settles where gas has a price, and two clients that owe it."""

    def __init__(self) -> None:
        self.harness, self.port = WorkerHarness(), FakePort()
        self.harness.chain = self.port

    async def boot(self, policy: SettlePolicy = PRICED) -> None:
        await self.harness.boot()
        self.settler = await make_settler(self.harness, self.port, policy)

    async def owe(self, name: str, seed: int) -> Client:
        client = Client(self.harness, name)
        client.open_on_chain()
        line = client.job(seed, 40)
        await client.submit(line)
        await client.finish(line)
        assert line.finished
        return client

    async def settle(self) -> None:
        self.harness.clock.advance(2)
        await self.settler.tick()

    async def stuck(self) -> None:
        self.harness.clock.advance(STUCK_S + 1)
        await self.settler.tick()


async def priced_bank(policy: SettlePolicy = PRICED) -> PricedBank:
    made = PricedBank()
    await made.boot(policy)
    return made


async def test_a_transaction_is_journaled_with_what_it_is_worth() -> None:
    made = await priced_bank()
    client = await made.owe("payer", 3)
    await made.settle()
    (stored,) = made.settler.under_way
    value = client.book.cumulative
    assert (stored.worth.units, stored.worth.wei) == (value, value * WEI_PER_UNIT)


async def test_a_stuck_settlement_is_outbid_only_as_far_as_it_is_worth() -> None:
    made = await priced_bank()
    client = await made.owe("payer", 3)
    await made.settle()
    worth = client.book.cumulative * WEI_PER_UNIT
    for _ in range(40):
        await made.stuck()
    txs = made.harness.journal.txs.values()
    dearest = max(stored.tx.max_fee for stored in txs)
    assert len({stored.tx.nonce for stored in txs}) == 1
    assert dearest * GAS <= worth < (dearest + dearest // 8 + 1) * GAS
    assert all(stored.kind is TxKind.SETTLE for stored in txs), "nobody waits: it is left"
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative


async def test_the_worth_of_a_transaction_survives_a_restart() -> None:
    made = await priced_bank()
    client = await made.owe("payer", 3)
    await made.settle()
    await made.boot()
    worth = client.book.cumulative * WEI_PER_UNIT
    for _ in range(40):
        await made.stuck()
    assert max(s.tx.max_fee for s in made.harness.journal.txs.values()) * GAS <= worth


async def test_one_that_is_not_worth_its_fees_gives_way_to_those_behind_it() -> None:
    made = await priced_bank()
    poor = await made.owe("poor", 3)
    # What is claimed first is worth hardly more than its first fee.
    made.port.channels[poor.id].deposit = Amount(FIRST_FEE * GAS // WEI_PER_UNIT + 1)
    await made.harness.channels.observe(poor.id)
    await made.settle()
    (first,) = made.settler.under_way
    assert first.worth.wei is not None and first.worth.wei < (FIRST_FEE + 13) * GAS
    await made.stuck()
    assert len(made.settler.under_way) == 1, "alone it is left"
    rich = await made.owe("rich", 5)
    await made.settle()
    await made.stuck()
    kinds = {stored.kind for stored in made.settler.under_way if stored.tx.nonce == first.tx.nonce}
    assert kinds == {TxKind.SETTLE, TxKind.CANCEL}
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid.get(rich.id) == rich.book.cumulative
    assert poor.id not in made.port.paid
    states = {s.kind: s.state for s in made.harness.journal.txs.values() if s.tx.nonce == 0}
    assert states == {TxKind.SETTLE: TxState.REPLACED, TxKind.CANCEL: TxState.FINAL}


async def test_a_claim_that_the_operator_asks_for_has_no_limit_but_the_policy() -> None:
    made = await priced_bank()
    await made.owe("payer", 3)
    made.settler.ask()
    await made.settler.tick()
    (stored,) = made.settler.under_way
    assert stored.worth.wei is None


async def stopped(made: PricedBank) -> None:
    """Stop settlement as a worker does that stops, with a chain that mines at once."""

    async def blocks() -> None:
        while True:
            await asyncio.sleep(0)
            made.port.mine()
            made.harness.clock.advance(1)

    mining = asyncio.create_task(blocks())
    await made.settler.finish(within_s=60, every_s=0)
    mining.cancel()


async def test_a_worker_that_stops_claims_at_once_what_is_worth_its_gas() -> None:
    made = await priced_bank(PATIENT)
    client = await made.owe("payer", 3)
    await made.settler.tick()
    assert made.port.broadcasts == [], "the interval is not over"
    await stopped(made)
    assert made.port.paid[client.id] == client.book.cumulative
    (stored,) = made.harness.journal.txs.values()
    assert stored.worth.wei == client.book.cumulative * WEI_PER_UNIT


async def test_a_worker_that_stops_pays_no_more_gas_than_its_claims_bring() -> None:
    """Each start and stop, as for an update, would cost more than was earned in between."""
    made = await priced_bank(PATIENT)
    client = await made.owe("payer", 3)
    made.port.price = client.book.cumulative * WEI_PER_UNIT
    await stopped(made)
    assert made.port.broadcasts == [] and made.settler.idle
    made.settler.ask()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1


async def test_an_agreed_closing_that_brings_less_than_its_gas_does_not_keep_a_worker_up() -> None:
    made = await priced_bank(replace(PATIENT, native_coin_price=10**18))
    client = await made.owe("payer", 3)
    final = closing_of(client.book.voucher())
    await made.settler.close_channel(client.channel, final, sign(DOMAIN, final, client.signer))
    await stopped(made)
    assert made.port.broadcasts == [] and made.settler.idle


async def test_a_dropped_claim_that_would_fail_now_is_not_sent_again() -> None:
    made = await priced_bank()
    client = await made.owe("payer", 3)
    await made.settle()
    made.port.drop_pool()
    made.port.channels[client.id].state = ChannelState.CLOSED
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    made.port.channels[client.id].state = ChannelState.OPEN
    await made.settler.tick()
    assert len(made.port.broadcasts) == 2, "it is looked at again"


async def test_a_closing_that_costs_more_than_it_brings_is_left_to_the_client() -> None:
    made = await priced_bank()
    client = Client(made.harness)
    client.open_on_chain()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    made.port.channels[client.id].settled = client.book.cumulative
    await made.harness.channels.observe(client.id)
    signature, transaction = await client.ask_to_close(made.settler)
    assert signature and transaction == b""
    await made.settler.tick()
    assert made.port.broadcasts == []
    assert not [note for note in made.harness.metrics.errors if note.where == "close"]
    again = await client.ask_to_close(made.settler)
    assert again == (signature, b"")


async def test_a_closed_channel_is_neither_unsettled_nor_waiting_for_funding() -> None:
    made = await priced_bank()
    client = Client(made.harness)
    made.port.pooled[client.channel.token, client.channel.payer] = client.deposit + 100
    line = client.job(3, 20)
    await client.submit(line, funding=client.funding(fee=100))
    await client.finish(line)
    await made.settle()
    made.port.mine()
    await made.settle()
    live = made.harness.channels.get(client.id)
    assert live is not None and made.harness.channels.unsettled > 0
    made.port.channels[client.id].state = ChannelState.CLOSED
    made.port.channels[client.id].settled = Amount(1)
    made.port.channels[client.id].deposit = Amount(1)
    await made.harness.channels.observe(client.id)
    assert made.harness.channels.unsettled == 0
    assert live.pending_funding(int(made.harness.clock.now())) == 0
    await made.boot()
    assert not any(channel.wants_funding for channel in made.harness.channels)


async def test_what_only_an_expired_authorization_would_pay_is_not_unsettled() -> None:
    made = await priced_bank()
    client = Client(made.harness)
    made.port.pooled[client.channel.token, client.channel.payer] = client.deposit + 100
    line = client.job(3, 20)
    funding = client.funding(fee=100)
    await client.submit(line, funding=funding)
    await client.finish(line)
    promised, clock = client.book.cumulative, made.harness.clock
    assert made.harness.channels.unsettled == promised > 0
    clock.advance(funding.authorization.deadline - clock.now() - 1)
    assert made.harness.channels.unsettled == promised
    clock.advance(1)
    assert made.harness.channels.unsettled == 0
    # Its payer opened it in another way: then it may be claimed.
    client.open_on_chain()
    await made.harness.channels.observe(client.id)
    assert made.harness.channels.unsettled == promised


async def test_the_port_of_the_tests_holds_a_replacement_to_its_worth() -> None:
    made = await priced_bank()
    await made.owe("payer", 3)
    await made.settle()
    (stored,) = made.settler.under_way
    cheap = type(stored.worth)(Amount(0), 0)
    refused = [call(stored.tx, cheap) for call in (made.port.replace, made.port.cancel)]
    for attempt in refused:
        try:
            await attempt
        except FeeTooHigh:
            continue
        raise AssertionError("it was taken")


async def test_what_an_agreed_closing_claims_comes_home_when_its_settlement_was_lost() -> None:
    made = await priced_bank()
    client = await made.owe("payer", 3)
    await made.settle()
    (lost,) = made.settler.under_way
    _, transaction = await client.ask_to_close(made.settler)
    assert transaction == b"", "its fee alone does not pay for it"
    for _ in range(3):
        await made.settle()
    assert made.settler.under_way == (lost,), "the same money is not claimed twice"
    made.port.supersede(lost.tx)
    for _ in range(3):
        await made.settle()
    assert [stored.kind for stored in made.settler.under_way] == [TxKind.CLOSE]
    made.port.mine()
    await made.settle()
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.port.channels[client.id].state is ChannelState.CLOSED


async def test_a_closing_fee_that_the_deposit_no_longer_holds_counts_as_nothing() -> None:
    made = await priced_bank()
    client = await made.owe("payer", 3)
    _, transaction = await client.ask_to_close(made.settler, 5)
    assert transaction == b""
    left = client.book.cumulative - 10
    made.port.channels[client.id].withdrawn = Amount(client.deposit - left)
    await made.harness.channels.observe(client.id)
    await made.settle()
    (stored,) = made.settler.under_way
    assert stored.kind is TxKind.CLOSE
    assert (stored.worth.units, stored.worth.wei) == (0, left * WEI_PER_UNIT)
