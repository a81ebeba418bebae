"""Thieves whose openings are never mined fill the strangers' bound, and not for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from piecework.chain.errors import FeeTooHigh
from piecework.chain.sending.rawtx import SignedTransaction
from piecework_node.journal.records import Worth
from piecework_node.runtime.write_offs import written_off
from piecework_node.settlement.settler import Settler
from piecework_protocol.credit import CreditTerms, PayerStanding
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.types import Amount
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import TERMS, Client, JobStream, WorkerHarness
from tests.support.node.settlement import make_settler

EVERY_S = 3600
FIRST = Amount(110)
NARROW = replace(TERMS, credit=CreditTerms(FIRST, Amount(20_000), Amount(100_000), FIRST))
"""One stranger alone may owe all that strangers may."""


class DearOpenings(FakePort):
    """A chain on which an opening costs more than its fee while gas is dear."""

    dear = True

    async def prepare_fund(self, funding: FundingAuthorization, worth: Worth) -> SignedTransaction:
        if self.dear:
            raise FeeTooHigh("gas is dear")
        return await super().prepare_fund(funding, worth)


class Trade:
    """A worker that settles, over a chain on which nobody's opening comes by itself."""

    def __init__(self, port: FakePort | None = None) -> None:
        self.harness = WorkerHarness(terms=NARROW)
        self.port = self.harness.chain = port or FakePort()

    async def boot(self) -> None:
        await self.harness.boot()
        self.settler: Settler = await make_settler(self.harness, self.port, write_off_s=EVERY_S)
        await self.settler.check()

    def client(self, name: str, salt: int = 1) -> Client:
        made = Client(self.harness, name, salt=salt)
        self.port.pooled[made.channel.token, made.channel.payer] = made.deposit
        return made

    async def steal(self, client: Client) -> JobStream:
        """Take work until it is delivered, and leave without a voucher."""
        line = client.job(3, 64)
        await client.submit(line, funding=client.funding())
        await self.harness.run_engine()
        await client.drop(line)
        await self.harness.run_engine()
        return line

    def standing(self, client: Client) -> PayerStanding:
        credit = self.harness.runtime.credit
        assert credit is not None
        return credit.payer(client.channel.payer).standing

    @property
    def strangers(self) -> int:
        credit = self.harness.runtime.credit
        assert credit is not None
        return credit.strangers

    async def later(self, seconds: float = EVERY_S) -> None:
        self.harness.clock.advance(seconds)
        await self.settler.check()
        await self.settler.tick()
        await self.harness.issue_offer()


async def trade() -> Trade:
    made = Trade()
    await made.boot()
    return made


async def refused(client: Client, number: int = 9) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await client.submit(client.job(number, 64), funding=client.funding())
    return caught.value


async def test_an_old_debt_without_an_opening_makes_room_for_new_payers_and_stays_owed() -> None:
    made = await trade()
    thief = made.client("thief")
    await made.steal(thief)
    owed = made.strangers
    assert owed > 0
    fresh = made.client("fresh")
    assert (await refused(fresh)).reason is Reason.CREDIT_EXHAUSTED
    await made.later(EVERY_S - 1)
    assert made.strangers == owed, "not yet"
    await made.later(2)
    assert made.strangers == 0
    assert made.standing(thief) is PayerStanding.FALLEN
    credit = made.harness.runtime.credit
    assert credit is not None
    assert credit.totals().bound == NARROW.credit.strangers + owed
    assert (credit.totals().left, credit.totals().at_limit) == (owed, 0)
    await fresh.submit(fresh.job(9, 64), funding=fresh.funding())


async def test_payers_at_their_limit_are_counted() -> None:
    made = await trade()
    credit = made.harness.runtime.credit
    assert credit is not None and credit.totals().at_limit == 0
    slow = made.client("slow")
    line = slow.job(3, 64)
    await slow.submit(line, funding=slow.funding())
    await made.harness.run_engine()
    assert line.live is not None and line.live.waits_for_credit
    assert (credit.totals().at_limit, credit.totals().left) == (1, 0)
    slow.open_on_chain()
    await made.harness.channels.observe(slow.id)
    await made.harness.worker.tick()
    await slow.finish(line)
    assert line.finished and credit.totals().at_limit == 0


async def test_who_was_written_off_gets_no_credit_again_after_a_restart_either() -> None:
    made = await trade()
    thief = made.client("thief")
    await made.steal(thief)
    await made.later()
    await made.boot()
    again = made.client("thief", salt=2)
    assert (await refused(again)).reason is Reason.FUND_YOURSELF
    assert made.standing(thief) is PayerStanding.FALLEN


async def test_who_was_written_off_and_opens_its_channel_is_a_payer_as_any_other_then() -> None:
    made = await trade()
    late = made.client("late")
    await made.steal(late)
    await made.later()
    late.open_on_chain()
    await made.harness.channels.observe(late.id)
    assert made.standing(late) is PayerStanding.FINAL
    credit = made.harness.runtime.credit
    assert credit is not None
    account = credit.payer(late.channel.payer)
    assert account.owed > 0 and account.room == FIRST - account.owed


async def test_the_mark_goes_once_a_deposit_is_final_and_stays_gone_after_a_restart() -> None:
    made = await trade()
    late = made.client("late")
    await made.steal(late)
    await made.later()
    assert made.standing(late) is PayerStanding.FALLEN
    late.open_on_chain()
    made.port.shallow[late.id] = late.deposit
    await made.harness.channels.observe(late.id)
    await made.later(1)
    assert made.standing(late) is PayerStanding.MINED
    assert await written_off(made.harness.journal) == {late.channel.payer}, "not yet"
    made.port.shallow.clear()
    await made.harness.channels.observe(late.id)
    await made.later(1)
    assert made.standing(late) is PayerStanding.FINAL
    for _ in range(2):
        assert list((await made.harness.journal.metas("written_off/")).values()) == [""]
        other = made.client("late", salt=2)
        credit = made.harness.runtime.credit
        assert credit is not None and credit.redeemed == []
        assert await written_off(made.harness.journal) == set()
        assert credit.payer(other.channel.payer).room > 0
        await made.boot()
        await made.harness.channels.observe(late.id)


async def test_a_debt_on_another_opening_keeps_the_mark() -> None:
    made = await trade()
    thief, again = made.client("thief"), made.client("thief", salt=2)
    await made.steal(thief)
    await made.later()
    again.open_on_chain()
    channels = made.harness.channels
    channels.hold(await channels.find(again.id, again.channel))
    await channels.observe(again.id)
    await made.later(1)
    assert made.standing(thief) is PayerStanding.FINAL
    assert await written_off(made.harness.journal) == {thief.channel.payer}


async def test_a_payer_that_has_opened_its_channel_meanwhile_is_not_written_off() -> None:
    made = await trade()
    honest = made.client("honest")
    await made.steal(honest)
    honest.open_on_chain()
    await made.later()
    assert made.standing(honest) is PayerStanding.FINAL
    assert await made.harness.journal.metas("written_off/") == {}


async def test_nothing_is_written_off_while_the_chain_does_not_say_what_was_opened() -> None:
    made = await trade()
    thief = made.client("thief")
    await made.steal(thief)
    made.port.mute.add(thief.id)
    await made.later()
    assert made.standing(thief) is PayerStanding.SIMULATED
    made.port.mute.clear()
    await made.later(1)
    assert made.standing(thief) is PayerStanding.FALLEN


async def test_two_rounds_are_as_far_apart_as_a_debt_is_old() -> None:
    made = await trade()
    await made.steal(made.client("one"))
    await made.later()
    assert made.strangers == 0
    await made.later(EVERY_S // 2)
    await made.steal(made.client("two"))
    owed = made.strangers
    await made.later(EVERY_S // 2)
    assert made.strangers == owed, "the second debt is younger than that"
    await made.later(EVERY_S // 2)
    assert made.strangers == 0


async def test_who_promised_all_and_waits_for_us_to_send_its_opening_is_not_written_off() -> None:
    port = DearOpenings()
    made = Trade(port)
    await made.boot()
    honest = made.client("honest")
    line = honest.job(3, 20)
    await honest.submit(line, funding=honest.funding(lifetime_s=10 * EVERY_S))
    await honest.finish(line)
    live = made.harness.channels.get(honest.id)
    assert live is not None and live.charged == live.ledger.cumulative == made.strangers > 0
    await made.later()
    assert made.standing(honest) is PayerStanding.SIMULATED
    assert await made.harness.journal.metas("written_off/") == {}
    made.port.pooled[honest.channel.token, honest.channel.payer] = Amount(0)
    port.dear = False
    await made.later()
    await made.later()
    assert made.standing(honest) is PayerStanding.FALLEN, "its opening failed"
