"""Who pays for a client's transaction: the worker sends one only if its fee covers the gas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from piecework.chain.sending.transactions import GasPrice
from piecework_node.journal.records import TxKind, TxState
from piecework_node.settlement.fees import COVER_PERCENT, Errand, FeeSettings, errand_wei
from piecework_node.settlement.payouts import META, PUSH_GAS
from piecework_node.settlement.policy import SettlePolicy
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import Funding
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Amount, PayerSignature, Timestamp
from tests.support.node.fake_port import FIRST_FEE, GAS, FakePort
from tests.support.node.harness import TOKEN, Client, WorkerHarness
from tests.support.node.settlement import make_settler

WEI_PER_UNIT = 10**5
PRICED = SettlePolicy(gas_multiple=20, interval_s=60, native_coin_price=10**18 // WEI_PER_UNIT)
PRICE = 10
OPENING = -(-errand_wei(GasPrice(PRICE), Errand.OPEN) * COVER_PERCENT // (100 * WEI_PER_UNIT))
"""The least fee that pays for an opening, in base units."""
SENT = FIRST_FEE * GAS * COVER_PERCENT // (100 * WEI_PER_UNIT) + 1
"""The least fee for which the fake chain's transaction is sent."""


class Counter:
    """A worker whose transactions cost something."""

    def __init__(self) -> None:
        self.harness, self.port = WorkerHarness(), FakePort()
        self.harness.chain, self.port.price = self.port, PRICE

    async def boot(self) -> None:
        await self.harness.boot()
        settings = FeeSettings(min_top_up=Amount(500))
        self.settler = await make_settler(self.harness, self.port, PRICED, fees=settings)
        await self.settler.check()

    def client(self, name: str = "payer") -> Client:
        made = Client(self.harness, name)
        self.port.pooled[made.channel.token, made.channel.payer] = 3 * made.deposit
        return made

    def kinds(self) -> list[TxKind]:
        return [stored.kind for stored in self.settler.under_way]


async def counter() -> Counter:
    made = Counter()
    await made.boot()
    return made


async def refused(client: Client, fee: int, funded: int | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3, 64), funding=client.funding(fee=fee, funded=funded))
    return caught.value


async def test_an_opening_whose_fee_does_not_cover_the_gas_is_left_to_its_payer() -> None:
    made = await counter()
    refusal = await refused(made.client(), OPENING - 1)
    assert refusal.reason is Reason.FUND_YOURSELF
    assert made.harness.openings is not None
    assert refusal.metadata["fee"] == str(made.harness.openings.fees.asked().open)
    assert made.port.simulations == 0, "what is not paid for costs the node no question"


async def test_an_opening_whose_fee_covers_the_gas_is_sent_and_weighed_by_the_fee_alone() -> None:
    made = await counter()
    client = made.client()
    fee = max(OPENING, SENT)
    await client.submit(client.job(3, 64), funding=client.funding(fee=fee))
    await made.settler.tick()
    (stored,) = made.settler.under_way
    assert stored.kind is TxKind.FUND
    assert stored.worth.units == fee
    assert stored.worth.wei == fee * WEI_PER_UNIT * 100 // COVER_PERCENT


async def test_an_opening_that_has_become_too_dear_waits_and_is_no_error() -> None:
    made = await counter()
    client = made.client()
    made.port.price = 0
    await made.settler.check()
    await client.submit(client.job(3, 64), funding=client.funding(fee=1))
    for _ in range(3):
        await made.settler.tick()
    assert made.settler.under_way == ()
    assert list(made.harness.metrics.errors) == []


@pytest.mark.parametrize("one_step", [False, True])
async def test_what_a_payer_holds_covers_the_fees_of_its_other_openings_too(
    one_step: bool,
) -> None:
    """Of two openings that it covers only without their fees, one reverts and costs us the gas."""
    made = await counter()
    fee, first, second = max(OPENING, SENT), made.client(), Client(made.harness, salt=2)
    purse = (first.channel.token, first.channel.payer)
    held = made.port.held if one_step else made.port.pooled
    held[purse] = 2 * first.deposit + fee

    def signed(client: Client) -> Funding:
        return client.opening(fee=fee) if one_step else client.funding(fee=fee)

    await first.submit(first.job(3), funding=signed(first))
    with pytest.raises(Refusal) as caught:
        await second.submit(second.job(4), funding=signed(second))
    assert caught.value.reason is Reason.UNDERFUNDED
    held[purse] += fee
    await second.submit(second.job(4), funding=signed(second))


async def test_an_opening_that_the_chain_would_refuse_is_not_taken() -> None:
    made = await counter()
    client = made.client()
    # The pool covers the deposit when the channel is looked at, and not when it is simulated.
    made.port.simulate_refuses = True
    refusal = await refused(client, OPENING)
    assert refusal.reason is Reason.FUND_YOURSELF
    assert made.port.simulations == 1


async def test_a_payer_whose_opening_reverted_once_opens_for_itself_from_then_on() -> None:
    made = await counter()
    client = made.client()
    fee = max(OPENING, SENT)
    await client.submit(client.job(3, 64), funding=client.funding(fee=fee))
    await made.settler.tick()
    made.port.reverting.add(made.settler.under_way[0].tx.hash)
    made.port.mine()
    for _ in range(3):
        await made.settler.tick()
    assert len(made.port.broadcasts) == 1, "a dead authorization is not sent again"
    await made.boot()
    assert made.harness.openings is not None
    assert await made.harness.openings.must_open_itself(client.channel.payer)
    again = Client(made.harness, salt=2)
    assert (await refused(again, fee)).reason is Reason.FUND_YOURSELF
    assert not await made.harness.openings.must_open_itself(made.client("other").channel.payer)


async def sent_opening(made: Counter) -> tuple[Client, bytes]:
    """A client whose opening was broadcast, and the hash of the transaction."""
    client = made.client()
    await client.submit(client.job(3, 64), funding=client.funding(fee=max(OPENING, SENT)))
    await made.settler.tick()
    (stored,) = made.settler.under_way
    return client, stored.tx.hash


async def opens_itself(made: Counter, client: Client) -> bool:
    assert made.harness.openings is not None
    return await made.harness.openings.must_open_itself(client.channel.payer)


async def test_an_opening_that_reverted_is_not_repeated_before_that_is_final() -> None:
    made = await counter()
    client, transaction = await sent_opening(made)
    made.port.reverting.add(transaction)
    made.port.mine(finalize=False)
    for _ in range(3):
        await made.settler.tick()
    assert len(made.port.broadcasts) == 1
    assert await opens_itself(made, client)
    again = Client(made.harness, salt=2)
    assert (await refused(again, max(OPENING, SENT))).reason is Reason.FUND_YOURSELF


async def test_a_dead_authorization_carries_no_further_job() -> None:
    made = await counter()
    client, transaction = await sent_opening(made)
    made.port.reverting.add(transaction)
    made.port.mine()
    for _ in range(3):
        await made.settler.tick()
    known = client.funding(fee=max(OPENING, SENT))
    for funding in (known, None):
        with pytest.raises(Refusal) as caught:
            await client.submit(client.job(4, 64), funding=funding)
        assert caught.value.reason is Reason.FUND_YOURSELF
    client.open_on_chain()
    await made.harness.channels.observe(client.id)
    await client.submit(client.job(5, 64))


async def test_a_revert_is_held_against_its_payer_even_if_the_node_fails_right_then() -> None:
    made = await counter()
    client, transaction = await sent_opening(made)
    made.port.reverting.add(transaction)
    made.port.mine()
    made.port.mute.add(client.id)
    await made.settler.tick()
    assert [stored.state for stored in made.settler.under_way] == [TxState.INTENDED]
    made.port.mute.clear()
    await made.settler.tick()
    assert made.settler.under_way == ()
    assert await opens_itself(made, client)


async def test_an_opening_that_somebody_else_sent_first_is_not_held_against_its_payer() -> None:
    made = await counter()
    client, transaction = await sent_opening(made)
    # Seen in the mempool, copied, and mined before ours, which then finds nothing to raise.
    made.port.open(client.id, client.deposit)
    made.port.reverting.add(transaction)
    made.port.mine(finalize=False)
    await made.settler.tick()
    assert not await opens_itself(made, client)
    made.port.channels[client.id].state = ChannelState.CLOSED
    made.port.channels[client.id].deposit = Amount(0)
    made.port.final.add(transaction)
    await made.settler.tick()
    assert made.settler.under_way == ()
    assert not await opens_itself(made, client)
    again = Client(made.harness, salt=2)
    await again.submit(again.job(4, 64), funding=again.funding(fee=max(OPENING, SENT)))


async def test_a_payer_that_has_put_in_more_since_its_opening_reverted_is_served_again() -> None:
    made = await counter()
    client = made.client()
    client.open_on_chain()
    await client.submit(client.job(3, 40))
    raised = client.deposit + 1000
    other = Client(made.harness, salt=2)
    await other.submit(other.job(4, 64), funding=other.funding(fee=max(OPENING, SENT)))
    await made.settler.tick()
    transaction = made.settler.under_way[0].tx.hash
    made.port.reverting.add(transaction)
    made.port.mine(finalize=False)
    await made.settler.tick()
    assert await opens_itself(made, client), "what was final before does not count"
    made.port.open(client.id, raised)
    made.port.shallow[client.id] = Amount(raised)
    await made.harness.channels.observe(client.id)
    assert await opens_itself(made, client), "it is not final yet"
    made.port.final.add(transaction)
    await made.settler.tick()
    assert made.settler.under_way == (), "the revert is final before the deposit"
    made.port.shallow.clear()
    await made.harness.channels.observe(client.id)
    assert not await opens_itself(made, client)
    made.port.channels[client.id].state = ChannelState.CLOSED
    await made.boot()
    assert not await opens_itself(made, client), "it ended for good"


async def test_a_top_up_below_the_least_is_refused() -> None:
    made = await counter()
    client = made.client()
    client.open_on_chain()
    refusal = await refused(client, OPENING, client.deposit + 499)
    assert refusal.reason is Reason.UNDERFUNDED
    assert refusal.metadata["min_top_up"] == "500"
    await client.submit(
        client.job(3, 64), funding=client.funding(fee=OPENING, funded=client.deposit + 500)
    )


async def closing(made: Counter, fee: int) -> tuple[Client, bytes]:
    client = made.client()
    client.open_on_chain()
    line = client.job(3, 40)
    await client.submit(line)
    await client.finish(line)
    signature, transaction = await client.ask_to_close(made.settler, fee)
    assert signature
    return client, transaction


async def test_a_closing_whose_fee_does_not_cover_its_gas_is_signed_and_not_sent() -> None:
    made = await counter()
    client, transaction = await closing(made, SENT - 1)
    assert transaction == b""
    await made.settler.tick()
    assert made.port.broadcasts == []
    assert client.book.cumulative * WEI_PER_UNIT > FIRST_FEE * GAS, "the claim alone would pay"


async def test_a_closing_that_pays_for_itself_is_sent_with_its_fee_even_after_a_restart() -> None:
    made = await counter()
    client, transaction = await closing(made, SENT)
    assert transaction
    assert made.harness.journal.books[client.id].close_fee == SENT
    made.port.drop_pool()
    await made.boot()
    await made.settler.tick()
    made.port.mine()
    assert made.port.channels[client.id].state is ChannelState.CLOSED


async def test_what_a_closing_claims_is_brought_home_when_its_client_does_not_send_it() -> None:
    made = await counter()
    client, _ = await closing(made, 0)
    made.harness.clock.advance(61)
    await made.settler.tick()
    assert made.kinds() == [TxKind.CLOSE]
    made.port.mine()
    assert made.port.paid[client.id] == client.book.cumulative


async def test_what_a_closing_claims_is_brought_home_at_once_if_the_operator_asks() -> None:
    """A worker asks when it stops. Its next start may be a long time away."""
    made = await counter()
    client, _ = await closing(made, 0)
    made.settler.ask()
    await made.settler.tick()
    assert made.kinds() == [TxKind.CLOSE] and not made.settler.idle
    made.port.mine()
    await made.settler.tick()
    assert made.port.paid[client.id] == client.book.cumulative
    assert made.settler.idle


async def test_an_ask_is_not_answered_while_a_closing_that_claims_something_cannot_be_sent() -> (
    None
):
    made = await counter()
    client, _ = await closing(made, 0)
    made.settler.ask()
    made.port.mute_closings = True
    await made.settler.tick()
    assert not made.settler.idle
    made.port.mute_closings = False
    await made.settler.tick()
    assert made.kinds() == [TxKind.CLOSE]
    made.port.mine()
    assert made.port.paid[client.id] == client.book.cumulative


async def test_a_closing_that_its_client_sent_itself_is_seen_and_not_tried_again() -> None:
    """Its deposit is back with the payer, so it carries no credit any more."""
    made = await counter()
    client, transaction = await closing(made, 0)
    assert transaction == b""
    await made.settler.tick()
    made.port.channels[client.id].state = ChannelState.CLOSED
    for _ in range(3):
        await made.settler.tick()
    assert made.harness.journal.books[client.id].state is ChannelState.CLOSED
    assert [note.where for note in made.harness.metrics.errors] == ["close"]
    assert made.port.broadcasts == []


# --- opening in one step


async def test_a_channel_is_opened_out_of_the_payers_own_tokens_by_one_signature() -> None:
    made = await counter()
    client = Client(made.harness)
    made.port.held[client.channel.token, client.channel.payer] = client.deposit + 10 * OPENING
    fee = max(OPENING, SENT)
    line = client.job(3, 64)
    await client.submit(line, funding=client.opening(fee=fee))
    assert made.port.simulations == 1
    await made.boot()  # the journal holds it
    await made.settler.tick()
    (stored,) = made.settler.under_way
    assert (stored.kind, stored.worth.units) == (TxKind.FUND, fee)
    made.port.mine()
    await made.settler.tick()
    live = made.harness.channels.get(client.id)
    assert live is not None and live.stored.deposit == client.deposit
    await client.drop(line)
    await client.submit(line, funding=client.opening(fee=fee))
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1, "what is mined is not sent again"


@pytest.mark.parametrize(
    ("held", "changes", "reason"),
    [
        (0, {}, Reason.UNDERFUNDED),
        (1, {}, Reason.UNDERFUNDED),
        (10**9, {"signature": PayerSignature(bytes(64) + b"\x1b")}, Reason.BAD_SIGNATURE),
        (10**9, {"amount": Amount(2_000_000)}, Reason.BAD_SIGNATURE),
        (10**9, {"fee": Amount(10**6)}, Reason.BAD_SIGNATURE),
        (10**9, {"valid_before": Timestamp(1)}, Reason.BAD_SIGNATURE),
    ],
)
async def test_an_opening_in_one_step_is_checked_before_its_job_is_taken(
    held: int, changes: dict[str, Any], reason: Reason
) -> None:
    made = await counter()
    client = Client(made.harness)
    made.port.held[client.channel.token, client.channel.payer] = held
    opening = replace(client.opening(fee=OPENING), **changes)
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3, 64), funding=opening)
    assert caught.value.reason is reason
    assert made.port.simulations == 0


async def test_an_opening_in_one_step_does_not_raise_a_channel() -> None:
    made = await counter()
    client = Client(made.harness)
    made.port.held[client.channel.token, client.channel.payer] = 10**9
    made.port.open(client.id, 5_000)
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(3, 64), funding=client.opening(fee=OPENING))
    assert caught.value.reason is Reason.FUND_YOURSELF


# --- payouts that wait

PUSH = -(-(PUSH_GAS * PRICE) // WEI_PER_UNIT)
"""What a push costs, in base units."""


async def test_what_waits_is_pushed_when_it_is_worth_many_times_its_gas() -> None:
    made = await counter()
    made.port.waiting = 20 * PUSH - 1
    await made.settler.tick()
    assert made.settler.payouts.waiting == {TOKEN: 20 * PUSH - 1}
    assert made.port.broadcasts == []
    made.port.waiting = 20 * PUSH
    made.harness.clock.advance(30)
    await made.settler.tick()
    assert made.port.broadcasts == [], "the escrow is asked once a minute"
    made.harness.clock.advance(31)
    await made.settler.tick()
    assert made.kinds() == [TxKind.PUSH]
    await made.settler.tick()
    assert len(made.port.broadcasts) == 1, "one push at a time"
    made.port.mine()
    await made.settler.tick()
    assert (made.port.pushed, made.settler.payouts.waiting) == (20 * PUSH, {})


async def test_what_has_waited_for_the_interval_is_pushed_if_it_is_worth_its_gas() -> None:
    made = await counter()
    made.port.waiting = SENT
    await made.settler.tick()
    made.harness.clock.advance(61)
    await made.settler.tick()
    assert made.kinds() == [TxKind.PUSH]
    made.port.mine()
    await made.settler.tick()
    made.port.waiting = PUSH
    for _ in range(3):
        made.harness.clock.advance(61)
        await made.settler.tick()
    assert len(made.port.broadcasts) == 1


async def test_what_waits_is_pushed_when_the_operator_asks_and_the_journal_tells_it() -> None:
    made = await counter()
    made.port.waiting = 1
    await made.settler.tick()
    assert await made.harness.journal.meta(META + TOKEN.hex()) == "1"
    made.settler.ask()
    await made.settler.tick()
    assert made.kinds() == [TxKind.PUSH]
    made.port.mine()
    await made.settler.tick()
    assert await made.harness.journal.meta(META + TOKEN.hex()) == "0"
