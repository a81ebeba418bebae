"""Settlement against a chain that drops, delays and forgets, with kills at every point: each effect
once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from piecework.chain.contracts.calls import Claim
from piecework.chain.errors import FeeTooHigh
from piecework.chain.sending.rawtx import SignedTransaction
from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.records import TxKind, TxState, Worth
from piecework_node.runtime.credit import BLOCK_S
from piecework_node.settlement.settler import MAX_IN_FLIGHT
from piecework_protocol.credit import CreditTerms
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import CancelJob
from piecework_protocol.ledger import closing_of
from piecework_protocol.objects import CloseChannel
from piecework_protocol.signing import sign
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, ChannelId
from tests.support.node.fake_port import FakePort
from tests.support.node.faults import Killed
from tests.support.node.harness import DOMAIN, Client
from tests.support.node.settlement import Bank, bank


class SlowPort(FakePort):
    """A chain that waits for a word before it gives out the closing that was prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def prepare_close(self, claim: Claim, fee: Amount, worth: Worth) -> SignedTransaction:
        tx = await super().prepare_close(claim, fee, worth)
        self.asked.set()
        await self.go_on.wait()
        return tx


class SlowSimulation(FakePort):
    """A chain that waits for a word before it says what claims would pay."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def payable(self, claims: Sequence[Claim]) -> tuple[int, ...]:
        self.asked.set()
        await self.go_on.wait()
        return await super().payable(claims)


async def test_vouchers_are_settled_after_the_interval_and_not_again() -> None:
    made, client = await bank()
    await made.trade(client)
    await made.settler.tick()
    assert made.port.broadcasts == []
    made.harness.clock.advance(61)
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    made.port.mine()
    await made.settler.tick()
    made.harness.clock.advance(3600)
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.harness.journal.books[client.id].settled == client.book.cumulative
    assert made.harness.channels.unsettled == 0
    assert not made.settler.under_way


class DearPort(FakePort):
    """A chain whose fees are above what some claims are worth."""

    def __init__(self) -> None:
        super().__init__()
        self.dear: set[ChannelId] = set()

    async def prepare_settle(self, claims: Sequence[Claim], worth: Worth) -> SignedTransaction:
        if any(claim.voucher.channel in self.dear for claim in claims):
            raise FeeTooHigh("it costs more than it is worth")
        return await super().prepare_settle(claims, worth)


async def test_a_batch_that_costs_too_much_now_does_not_keep_the_others_back() -> None:
    port = DearPort()
    made = Bank(port)
    await made.boot()
    dear = Client(made.harness, "dear", delay=7200)
    # As many of the same terms as make a transaction of their own.
    others = [Client(made.harness, salt=number) for number in range(9)]
    for seed, client in enumerate([dear, *others]):
        client.open_on_chain()
        await made.trade(client, seed, 60 if client is dear else 20)
    assert dear.book.cumulative > max(client.book.cumulative for client in others)
    port.dear.add(dear.id)
    made.settler.ask()
    await made.settler.tick()
    (stored,) = made.settler.under_way
    assert {subject.channel for subject in stored.subjects} == {client.id for client in others}
    assert [note.where for note in made.harness.metrics.errors] == ["settle"]
    assert not made.settler.idle, "what the operator asked for is not done"
    port.mine()
    port.dear.clear()
    await made.settler.tick()
    port.mine()
    assert port.paid[dear.id] == dear.book.cumulative


async def test_after_a_restart_the_first_round_learns_how_deep_every_open_deposit_lies() -> None:
    made, client = await bank()
    await made.trade(client)
    await made.settler.tick()
    credit = made.harness.runtime.credit
    assert credit is not None and credit.totals().owed == 0
    await made.boot()
    made.port.down = True
    await made.settler.tick()
    made.port.down = False
    await made.settler.tick()
    credit = made.harness.runtime.credit
    assert credit is not None and not credit.is_stranger(client.channel.payer)
    assert (credit.totals().owed, credit.strangers) == (0, 0)
    assert not made.harness.channels.to_ask


async def test_a_job_that_waits_for_credit_goes_on_when_a_deposit_of_its_payer_is_final() -> None:
    """Nobody submits anything meanwhile. The rounds look at it once a block, and then no more."""
    little = CreditTerms(Amount(150), Amount(20_000), Amount(100_000), Amount(600))
    made = Bank()
    made.harness.terms = replace(made.harness.terms, credit=little)
    await made.boot()
    client = Client(made.harness)
    client.open_on_chain()
    made.port.shallow[client.id] = Amount(0)
    line = client.job(3, 64)
    await client.submit(line)
    await client.finish(line)
    assert not line.finished
    assert not made.harness.channels.to_ask
    made.harness.clock.advance(BLOCK_S)
    assert list(made.harness.channels.to_ask) == [client.id]
    await made.settler.tick()
    assert not made.harness.channels.to_ask
    del made.port.shallow[client.id]
    made.harness.clock.advance(BLOCK_S)
    await made.settler.tick()
    await made.harness.worker.tick()
    await client.finish(line)
    assert line.finished
    made.harness.clock.advance(BLOCK_S)
    assert not made.harness.channels.to_ask


async def test_the_operator_can_settle_at_once() -> None:
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1


class InterruptedPort(FakePort):
    """Somebody does something while the node is asked for the price of gas."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: list[Callable[[], None]] = []

    async def gas_price(self) -> GasPrice:
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return await super().gas_price()


async def test_who_asks_while_a_round_is_under_way_is_heard_by_the_next_one() -> None:
    """A worker stops in the middle of a round, and asks to settle what it has."""
    port = InterruptedPort()
    made, client = await bank(port)
    await made.trade(client)
    # The first question is the watch's, the second is what a settlement costs.
    port.meanwhile += [lambda: None, made.settler.ask]
    await made.settler.tick()
    assert made.port.broadcasts == [] and not made.settler.idle
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1


async def test_what_is_accepted_behind_a_settlement_under_way_is_settled_after_it() -> None:
    """A worker stops right after such an acceptance. The next start may be a long time away."""
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    await made.trade(client, 2)
    made.settler.ask()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1, "one claim of a channel is under way at a time"
    made.port.mine()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 2 and not made.settler.idle
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.settler.idle


async def test_a_worker_that_stops_settles_also_what_a_channel_being_opened_owes() -> None:
    """Its opening waits for a block. The next start may be a long time away."""
    made = Bank()
    await made.boot()
    client = Client(made.harness)
    made.port.pooled[(client.channel.token, client.channel.payer)] = client.deposit
    line = client.job(3, 20)
    await client.submit(line, funding=client.funding())
    await client.finish(line)
    assert line.finished
    await made.settler.tick()
    (opening,) = made.settler.under_way
    assert opening.kind is TxKind.FUND

    async def blocks() -> None:
        while True:
            await asyncio.sleep(0)
            made.port.mine()

    mining = asyncio.create_task(blocks())
    await made.settler.finish(within_s=60, every_s=0)
    mining.cancel()
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.settler.idle


async def test_a_withdrawal_request_stops_new_work_at_once_and_is_answered_in_its_last_third() -> (
    None
):
    made, client = await bank()
    await made.trade(client)
    await made.settler.tick()
    asked_at, delay = made.harness.clock.now(), client.channel.withdrawal_delay
    made.port.withdraw(client.id, asked_at)
    made.settler_waits()
    await made.settler.tick()
    assert made.port.broadcasts == [], "who asks and calls off costs us no gas"
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(9))
    assert caught.value.reason is Reason.CHANNEL_WITHDRAWING
    made.harness.clock.advance(delay * 2 // 3 - 1)
    made.settler_waits()
    await made.settler.tick()
    assert made.port.broadcasts == []
    made.harness.clock.advance(1)
    made.settler_waits()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    made.port.mine()
    assert made.port.paid[client.id] == client.book.cumulative


async def crowd(made: Bank) -> list[Client]:
    """Channels of a payer that has one open, each with an opening to send.

    There are as many as there may be transactions under way. A job that is called off at once
    takes no credit.
    """
    clients = [Client(made.harness, "crowd", salt=number) for number in range(MAX_IN_FLIGHT + 1)]
    first, *others = clients
    made.port.pooled[first.channel.token, first.channel.payer] = len(clients) * first.deposit
    first.open_on_chain()
    await made.trade(first)
    for client in others:
        line = client.job(3, 20)
        await client.submit(line, funding=client.funding())
        assert line.live is not None and line.sink is not None
        await made.harness.worker.receive(line.live, line.sink, CancelJob())
        await made.harness.run_engine()
    return others


async def test_openings_of_a_crowd_do_not_keep_a_claim_back_until_its_payer_has_withdrawn() -> None:
    """The crowd may be the payer's own. It would take back what it owes, with its deposit."""
    made, client = await bank()
    await made.trade(client)
    await made.settler.tick()
    made.port.withdraw(client.id, made.harness.clock.now())
    made.settler_waits()
    await made.settler.tick()
    made.harness.clock.advance(client.channel.withdrawal_delay * 2 // 3 - 1)
    await made.harness.issue_offer()
    await crowd(made)
    made.settler_waits()
    await made.settler.tick()
    assert {stored.kind for stored in made.settler.under_way} == {TxKind.FUND}
    made.harness.clock.advance(1)
    await made.settler.tick()
    made.port.mine()
    assert made.port.paid[client.id] == client.book.cumulative


async def test_closings_of_a_crowd_do_not_keep_a_claim_back_either() -> None:
    made, client = await bank()
    await made.trade(client)
    crowded = await crowd(made)
    for other in crowded:
        made.port.open(other.id, other.deposit)
        await made.harness.channels.observe(other.id)
        await other.ask_to_close(made.settler)
    assert {stored.kind for stored in made.settler.under_way} == {TxKind.CLOSE}
    made.harness.clock.advance(61)
    await made.settler.tick()
    made.port.mine()
    assert made.port.paid[client.id] == client.book.cumulative
    for _ in range(3):
        await made.settler.tick()
        made.port.mine()
    assert {made.port.channels[other.id].state for other in crowded} == {ChannelState.CLOSED}


async def test_a_request_for_a_part_counts_as_gone_at_once_and_jobs_go_on_with_the_rest() -> None:
    made, client = await bank()
    await made.trade(client)
    await made.settler.tick()
    left = client.book.cumulative
    made.port.withdraw(client.id, made.harness.clock.now(), client.deposit - left)
    await made.settler.tick()
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(9))
    assert caught.value.reason is Reason.UNDERFUNDED
    made.port.call_off(client.id)
    await made.harness.channels.observe(client.id)
    await made.trade(client, 11)
    made.port.withdraw(client.id, made.harness.clock.now(), client.deposit // 2)
    await made.settler.tick()
    await made.trade(client, 12)
    # What is left in the channel covers every voucher, so nothing has to be claimed for it.
    made.harness.clock.advance(client.channel.withdrawal_delay)
    made.settler_waits()
    await made.settler.tick()
    assert made.port.broadcasts == []


async def test_an_opening_is_submitted_and_the_job_goes_on_when_it_is_mined() -> None:
    made = Bank()
    await made.boot()
    client = Client(made.harness)
    made.port.pooled[client.channel.token, client.channel.payer] = client.deposit
    line = client.job(3, 64)
    await client.submit(line, funding=client.funding())
    await client.finish(line)
    await made.settler.tick()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    made.port.mine(finalize=False)
    await made.settler.tick()
    await client.finish(line)
    assert line.finished


async def test_an_opening_that_the_chain_refuses_is_given_up() -> None:
    made = Bank()
    await made.boot()
    client = Client(made.harness)
    pool = (client.channel.token, client.channel.payer)
    made.port.pooled[pool] = client.deposit
    await client.submit(client.job(3, 64), funding=client.funding())
    made.port.pooled[pool] = 0
    for _ in range(3):
        await made.settler.tick()
    assert made.port.broadcasts == []
    assert [note.where for note in made.harness.metrics.errors] == ["fund"]


async def test_what_is_asked_for_while_a_round_settles_is_settled_in_the_next_one() -> None:
    port = SlowSimulation()
    made, client = await bank(port)
    await made.trade(client)
    made.settler.ask()
    first = asyncio.create_task(made.settler.tick())
    await port.asked.wait()
    later = Client(made.harness, "later")
    later.open_on_chain()
    await made.trade(later, 4)
    made.settler.ask()
    port.go_on.set()
    await first
    port.mine()
    await made.settler.tick()
    port.mine()
    await made.settler.tick()
    assert port.paid[later.id] == later.book.cumulative
    assert made.settler.idle


async def test_a_dropped_transaction_is_sent_again_byte_for_byte() -> None:
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    made.port.drop_pool()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 2
    assert len(set(made.port.broadcasts)) == 1


async def mined_settlement() -> tuple[Bank, Client]:
    """A worker whose first settlement is in a block that is not final."""
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    await made.settler.tick()
    made.port.mine(finalize=False)
    await made.settler.tick()
    return made, client


async def test_a_mined_transaction_that_is_reorganized_away_is_sent_again() -> None:
    made, client = await mined_settlement()
    assert made.settler.under_way[0].state is TxState.MINED
    made.port.reorganize()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 2
    made.port.mine()
    await made.settler.tick()
    assert not made.settler.under_way
    assert made.port.channels[client.id].settled == client.book.cumulative


async def test_a_transaction_that_goes_back_into_the_pool_waits_for_a_block_again() -> None:
    """A node keeps what a reorganization takes out of a block. It is claimed once all the same."""
    made, client = await mined_settlement()
    assert made.settler.idle
    made.port.reorganize(pooled=True)
    await made.settler.tick()
    assert [stored.state for stored in made.settler.under_way] == [TxState.INTENDED]
    assert not made.settler.idle
    assert made.harness.journal.books[client.id].settled == 0, "the channel was looked at again"
    made.settler.ask()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.settler.under_way == () and made.settler.idle


async def test_a_chain_that_is_down_costs_nothing_and_is_noted() -> None:
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    made.port.down = True
    for _ in range(3):
        await made.settler.tick()
    assert made.harness.metrics.errors
    made.port.down = False
    made.harness.clock.advance(61)
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1


async def test_another_chain_stops_new_work_and_all_settlement() -> None:
    made, client = await bank()
    await made.trade(client)
    made.settler.ask()
    made.port.wrong = True
    await made.settler.tick()
    assert made.port.broadcasts == []
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(9))
    assert caught.value.reason is Reason.CHAIN_UNAVAILABLE


async def test_a_clock_behind_the_chain_stops_new_work() -> None:
    made, client = await bank()
    made.port.time = type(made.port.time)(made.harness.clock.now() + 301)
    await made.settler.tick()
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(9))
    assert "clock" in caught.value.message


async def test_a_channel_is_closed_together_and_everything_is_paid() -> None:
    made, client = await bank()
    await made.trade(client)
    agreed = client.book.voucher()
    final = closing_of(agreed)
    asked = sign(DOMAIN, final, client.signer)
    signature, transaction = await made.settler.close_channel(client.channel, final, asked)
    assert transaction
    again = await made.settler.close_channel(client.channel, final, asked)
    assert again == (signature, transaction)
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(9))
    assert caught.value.reason is Reason.CHANNEL_CLOSED
    made.port.mine()
    await made.settler.tick()
    assert made.port.channels[client.id].state is ChannelState.CLOSED
    assert made.port.paid[client.id] == client.book.cumulative
    assert len(made.port.broadcasts) == 1


async def test_a_client_that_hangs_up_during_a_closing_leaves_no_gap_in_the_nonces() -> None:
    port = SlowPort()
    made, client = await bank(port)
    await made.trade(client)
    agreed = client.book.voucher()
    final = closing_of(agreed)
    asked = sign(DOMAIN, final, client.signer)
    call = asyncio.create_task(made.settler.close_channel(client.channel, final, asked))
    await port.asked.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    port.go_on.set()
    await made.harness.runtime.wait_idle()
    assert [tx.tx.nonce for tx in made.settler.under_way] == [0]
    assert port.broadcasts == [made.settler.under_way[0].tx.hash]


async def test_a_closing_that_is_not_the_latest_voucher_is_refused() -> None:
    made, client = await bank()
    await made.trade(client)
    agreed = client.book.voucher()
    less = CloseChannel(
        agreed.channel, type(agreed.cumulative)(0), agreed.count, agreed.receipts_root, Amount(0)
    )
    with pytest.raises(Refusal) as caught:
        await made.settler.close_channel(client.channel, less, sign(DOMAIN, less, client.signer))
    assert caught.value.reason is Reason.BROKEN_CLAUSE
    final = closing_of(agreed)
    with pytest.raises(Refusal) as caught:
        stranger = Client(made.harness, "stranger").signer
        await made.settler.close_channel(client.channel, final, sign(DOMAIN, final, stranger))
    assert caught.value.reason is Reason.BAD_SIGNATURE


async def settle_all(made: Bank) -> None:
    """Settle, mine and follow until nothing is under way."""
    for _ in range(4):
        made.settler.ask()
        await made.settler.tick()
        made.port.mine()
    await made.settler.tick()


async def test_a_kill_at_every_point_of_settlement_pays_exactly_once() -> None:
    probe, client = await bank()
    await probe.trade(client)
    start = probe.harness.switch.passed
    await settle_all(probe)
    total = probe.harness.switch.passed - start
    assert total >= 6
    for at in range(1, total + 1):
        made, client = await bank()
        await made.trade(client)
        made.harness.switch.at = made.harness.switch.passed + at
        with pytest.raises(Killed):
            await settle_all(made)
        await made.boot()
        await settle_all(made)
        await settle_all(made)
        assert made.port.paid[client.id] == client.book.cumulative, f"killed at point {at}"
        assert not made.settler.under_way
        settles = [tx for tx in made.harness.journal.txs.values() if tx.kind is TxKind.SETTLE]
        assert len({tx.tx.nonce for tx in settles}) == len(settles)


async def test_a_word_of_the_chain_that_no_escrow_can_say_changes_nothing() -> None:
    made, client = await bank()
    await made.trade(client)
    before = made.harness.journal.books[client.id]
    made.port.channels[client.id].settled = Amount(client.deposit + 1)
    await made.harness.channels.observe(client.id)
    assert made.harness.journal.books[client.id] == before
    live = made.harness.channels.get(client.id)
    assert live is not None and live.stored == before


async def test_a_channel_that_a_reorganization_reopens_is_claimed_again() -> None:
    made, client = await bank()
    await made.trade(client)
    ledger = made.harness.journal.books[client.id].ledger
    made.port.channels[client.id].state = ChannelState.CLOSED
    await made.harness.channels.observe(client.id)
    made.settler.ask()
    await made.settler.tick()
    assert made.port.broadcasts == []
    made.port.channels[client.id].state = ChannelState.OPEN
    await made.harness.channels.observe(client.id)
    assert made.harness.journal.books[client.id].ledger == ledger
    made.settler.ask()
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1
