"""No payers, however many and however hostile, cost the worker more than its printed bound.

The machine plays the worker's rules against payers who make identities, open channels that may
never be mined, let one deposit stand behind many channels, take work, leave, pay or do not pay, ask
their money back and call that off, and against a chain that goes back. Debts whose openings never
come are written off, in rounds. What the worker can claim is what the escrow would pay: the rules
see less of it than there is, and never more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from piecework_protocol.credit import (
    ChannelCredit,
    CreditFault,
    CreditTerms,
    PayerCredit,
    PayerStanding,
    bound,
    ceiling,
    most_written_off,
    payer_credit,
    start_fault,
    strangers_owe,
)
from piecework_protocol.pricing import Usage, price, worst_case
from piecework_protocol.types import Amount
from tests.support.protocol.pair import CANVAS, MODEL, PROMPT_TOKENS, job

TERMS = CreditTerms(Amount(100), Amount(400), Amount(1500), Amount(350))
CONFIRMED, FINAL, PATIENCE = 2, 5, 6
"""In blocks. The last is how old a debt is that is written off, and the least between two rounds.
"""
LEAST = 200
"""The least deposit."""
MOST_PAYERS = 8
"""Twice as many as the bound of the strangers has room for. Most steps are then about money."""


@dataclass
class World:
    """One channel on chain and at the worker. Times are blocks."""

    payer: int
    since: int = 0
    deposit: int = 0
    opened_at: int | None = None
    settled: int = 0
    withdrawn: int = 0
    requested: int = 0
    accepted: int = 0
    charged: int = 0
    closed: bool = False
    begun: list[int] = field(default_factory=list)
    """Ceilings of work without a receipt."""

    def depth(self, now: int) -> int:
        return -1 if self.opened_at is None else now - self.opened_at

    def credit(self, now: int) -> ChannelCredit:
        depth = self.depth(now)
        standing = PayerStanding.SIMULATED
        if depth >= CONFIRMED:
            standing = PayerStanding.FINAL if depth >= FINAL else PayerStanding.MINED
        if self.closed:
            standing = PayerStanding.FALLEN
        mined = self.deposit - self.withdrawn if standing >= PayerStanding.MINED else 0
        final = self.deposit - self.withdrawn if standing is PayerStanding.FINAL else 0
        backed = max(self.settled, mined - self.requested)
        secured = max(self.settled, final - self.requested)
        reserved = Amount(sum(self.begun))
        return ChannelCredit(
            standing,
            Amount(self.charged),
            reserved,
            Amount(self.accepted),
            Amount(mined),
            Amount(backed),
            Amount(secured),
        )

    @property
    def claimable(self) -> int:
        """What the escrow has paid or would pay: the worker settles inside the delay."""
        held = self.deposit - self.withdrawn if self.opened_at is not None else 0
        return max(self.settled, min(self.accepted, held))

    @property
    def lost(self) -> int:
        return max(0, self.charged + sum(self.begun) - self.claimable)


class HostilePayers(RuleBasedStateMachine):
    """Payers by number, each with a pool, and their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.pools: list[int] = []
        self.channels: list[World] = []
        self.most: dict[int, int] = {}
        """The highest limit that a payer ever began work under, with a mined deposit.

        A payer whose opening is mined has paid for it, so its first credit counts from there on.
        """
        self.unpromised: dict[int, int] = {}
        """The highest limit of what a payer did not promise to pay."""
        self.undone: set[int] = set()
        """Payers that lost a deposit because the chain went back."""
        self.marked: set[int] = set()
        self.written_off = 0
        """Of payers that never had a mined deposit: what the others' credit does not cover."""
        self.round_at = 0
        self.read = 0
        """Price of everything that was begun, and so could be read in drafts."""

    def payer(self, number: int) -> PayerCredit:
        mine = (c.credit(self.now) for c in self.channels if c.payer == number)
        return payer_credit(TERMS, mine, written_off=number in self.marked)

    def everybody(self) -> list[PayerCredit]:
        return [self.payer(number) for number in range(len(self.pools))]

    def pass_blocks(self, blocks: int) -> None:
        self.now += blocks
        for channel in self.channels:
            if channel.depth(self.now) >= CONFIRMED:
                known = self.most.get(channel.payer, 0)
                self.most[channel.payer] = max(known, TERMS.first)

    def pick(self, data: st.DataObject) -> World:
        return data.draw(st.sampled_from(self.channels))

    @precondition(lambda self: len(self.pools) < MOST_PAYERS)
    @rule(pool=st.sampled_from([0, 200, 2_000, 20_000]))
    def a_new_identity_comes(self, pool: int) -> None:
        self.pools.append(pool)
        self.channels.append(World(len(self.pools) - 1, self.now))

    @precondition(lambda self: 0 < len(self.channels) < 2 * MOST_PAYERS)
    @rule(data=st.data())
    def a_payer_promises_the_same_deposit_to_another_channel(self, data: st.DataObject) -> None:
        self.channels.append(World(self.pick(data).payer, self.now))

    def unopened(self) -> list[World]:
        return [c for c in self.channels if not c.deposit and self.pools[c.payer] >= LEAST]

    @precondition(lambda self: self.unopened())
    @rule(data=st.data())
    def an_opening_that_the_pool_holds_is_mined(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(self.unopened()))
        held = [a for a in (LEAST, 1_000, 4_000) if a <= self.pools[channel.payer]]
        amount = data.draw(st.sampled_from(held))
        self.pools[channel.payer] -= amount
        channel.deposit, channel.opened_at = amount, self.now

    @rule(blocks=st.integers(1, 4))
    def blocks_pass(self, blocks: int) -> None:
        self.pass_blocks(blocks)

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def the_chain_goes_back_behind_an_opening(self, data: st.DataObject) -> None:
        channel = self.pick(data)
        if 0 <= channel.depth(self.now) < FINAL and not channel.settled and not channel.withdrawn:
            self.pools[channel.payer] += channel.deposit
            channel.deposit, channel.opened_at, channel.requested = 0, None, 0
            self.undone.add(channel.payer)

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), cost=st.sampled_from([1, 50, 100, 250, 450]))
    def work_is_asked_for(self, data: st.DataObject, cost: int) -> None:
        channel = self.pick(data)
        payer = self.payer(channel.payer)
        if channel.closed:
            return
        if start_fault(TERMS, payer, strangers_owe(self.everybody()), cost) is None:
            channel.begun.append(cost)
            self.read += cost
            if not payer.is_stranger:
                known = self.most.get(channel.payer, 0)
                self.most[channel.payer] = max(known, payer.limit)
                bare = self.unpromised.get(channel.payer, 0)
                self.unpromised[channel.payer] = max(bare, payer.unpromised_limit)

    @precondition(lambda self: self.now - self.round_at >= PATIENCE)
    @rule()
    def old_debts_without_an_opening_are_written_off(self) -> None:
        self.round_at = self.now
        for number, payer in enumerate(self.everybody()):
            oldest = min(c.since for c in self.channels if c.payer == number)
            if payer.is_stranger and payer.on_openings and self.now - oldest >= PATIENCE:
                self.marked.add(number)
                self.written_off += payer.owed if number not in self.most else 0

    @precondition(lambda self: any(c.begun for c in self.channels))
    @rule(data=st.data(), part=st.integers(0, 100))
    def work_ends_or_its_client_leaves(self, data: st.DataObject, part: int) -> None:
        """The receipt charges the work done: at most what was reserved, at least what was read."""
        channel = data.draw(st.sampled_from([c for c in self.channels if c.begun]))
        cost = channel.begun.pop()
        done = cost * part // 100
        channel.charged += done
        self.read -= cost - done

    @precondition(lambda self: self.channels)
    @rule(data=st.data(), part=st.integers(0, 100))
    def a_voucher_pays_some_receipts(self, data: st.DataObject, part: int) -> None:
        channel = self.pick(data)
        channel.accepted += (channel.charged - channel.accepted) * part // 100

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def the_worker_settles(self, data: st.DataObject) -> None:
        channel = self.pick(data)
        if channel.depth(self.now) >= FINAL:
            channel.settled = channel.claimable

    def opened(self) -> list[World]:
        return [c for c in self.channels if c.opened_at is not None and not c.closed]

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), amount=st.sampled_from([1, 150, 5_000]))
    def money_is_asked_back(self, data: st.DataObject, amount: int) -> None:
        channel = data.draw(st.sampled_from(self.opened()))
        channel.requested = channel.requested or amount

    @precondition(lambda self: self.channels)
    @rule(data=st.data())
    def a_request_is_called_off(self, data: st.DataObject) -> None:
        self.pick(data).requested = 0

    @precondition(lambda self: any(c.requested for c in self.channels))
    @rule(data=st.data())
    def money_goes_back_after_the_delay(self, data: st.DataObject) -> None:
        """The delay is longer than finality, and the worker settles inside of it."""
        channel = data.draw(st.sampled_from([c for c in self.channels if c.requested]))
        self.pass_blocks(FINAL)
        channel.settled = channel.claimable
        rest = channel.deposit - channel.withdrawn - channel.settled
        taken = min(channel.requested, rest)
        channel.withdrawn, channel.requested = channel.withdrawn + taken, 0
        channel.closed = taken == rest
        self.pools[channel.payer] += taken

    @invariant()
    def no_strategy_costs_more_than_what_was_lent(self) -> None:
        lost = sum(c.lost for c in self.channels)
        assert lost <= TERMS.strangers + sum(self.most.values()) + self.written_off
        assert lost <= bound(TERMS, self.everybody())

    @invariant()
    def what_is_written_off_has_a_rate(self) -> None:
        assert self.written_off <= most_written_off(TERMS, PATIENCE, self.round_at)

    @invariant()
    def nobody_that_was_written_off_gets_credit_before_a_deposit_is_mined(self) -> None:
        for number in self.marked:
            payer = self.payer(number)
            assert payer.standing >= PayerStanding.MINED or payer.limit == 0
            assert not payer.is_stranger

    @invariant()
    def without_a_reorganization_nobody_takes_more_than_it_paid_for(self) -> None:
        """Its opening's fee is the first credit at least, and the rest grows with payments."""
        for number in set(range(len(self.pools))) - self.undone:
            lost = sum(c.lost for c in self.channels if c.payer == number)
            assert lost <= max(TERMS.first, self.unpromised.get(number, 0))

    @invariant()
    def only_openings_that_can_still_be_mined_count_for_the_strangers(self) -> None:
        unmined = sum(
            c.credit(self.now).owed
            for c in self.channels
            if not c.closed and c.depth(self.now) < CONFIRMED
        )
        assert strangers_owe(self.everybody()) <= unmined

    @invariant()
    def nobody_reads_more_than_was_paid_and_lent(self) -> None:
        paid = sum(c.claimable for c in self.channels)
        lent = TERMS.strangers + sum(self.most.values()) + self.written_off
        assert self.read <= paid + lent

    @invariant()
    def no_payer_owes_more_than_it_had_when_work_began(self) -> None:
        for number in range(len(self.pools)):
            lost = sum(c.lost for c in self.channels if c.payer == number)
            assert lost <= max(TERMS.first, self.most.get(number, 0))


TestHostilePayers = HostilePayers.TestCase
TestHostilePayers.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


def channel(**changes: object) -> ChannelCredit:
    zero = Amount(0)
    values = {
        "standing": PayerStanding.FINAL,
        "charged": zero,
        "reserved": zero,
        "accepted": zero,
        "deposit": zero,
        "backed": zero,
        "secured": zero,
    }
    return ChannelCredit(**(values | changes))  # type: ignore[arg-type]


def test_a_voucher_beyond_a_final_deposit_pays_nothing() -> None:
    promised = channel(charged=Amount(90), accepted=Amount(90), secured=Amount(30))
    assert (promised.covered, promised.owed) == (30, 60)


@pytest.mark.parametrize(
    ("standing", "deposit", "paid", "limit"),
    [
        (PayerStanding.SIMULATED, 0, 0, 100),
        (PayerStanding.MINED, 200, 0, 100),
        (PayerStanding.MINED, 1_000, 0, 250),
        (PayerStanding.MINED, 10**6, 0, 400),
        (PayerStanding.FINAL, 1_000, 80, 260),
        (PayerStanding.FINAL, 10**6, 10**5, 1_500),
    ],
)
def test_a_limit_grows_with_the_deposit_and_with_what_was_paid(
    standing: PayerStanding, deposit: int, paid: int, limit: int
) -> None:
    one = channel(
        standing=standing,
        deposit=Amount(deposit),
        charged=Amount(paid),
        accepted=Amount(paid),
        secured=Amount(paid),
    )
    assert payer_credit(TERMS, [one]).limit == limit


@pytest.mark.parametrize(
    ("standing", "paid", "limit"),
    [
        (PayerStanding.SIMULATED, 0, 100),
        (PayerStanding.MINED, 0, 100),
        (PayerStanding.FINAL, 0, 100),
        (PayerStanding.FINAL, 80, 110),
        (PayerStanding.FINAL, 10**5, 1_500),
    ],
)
def test_what_is_not_promised_grows_with_payments_alone(
    standing: PayerStanding, paid: int, limit: int
) -> None:
    taken = channel(
        standing=standing,
        deposit=Amount(10**6),
        charged=Amount(paid + limit),
        accepted=Amount(paid),
        backed=Amount(10**6),
        secured=Amount(paid),
    )
    payer = payer_credit(TERMS, [taken])
    assert (payer.unpromised, payer.unpromised_limit, payer.room) == (limit, limit, 0)
    assert start_fault(TERMS, payer, 0, 1) is CreditFault.PAYER


def test_vouchers_inside_a_mined_deposit_give_more_credit_until_it_is_final() -> None:
    promised = channel(
        standing=PayerStanding.MINED,
        deposit=Amount(1_000),
        charged=Amount(200),
        accepted=Amount(180),
        backed=Amount(1_000),
    )
    payer = payer_credit(TERMS, [promised])
    assert (payer.owed, payer.limit) == (200, 250)
    assert (payer.unpromised, payer.unpromised_limit, payer.room) == (20, 100, 50)


def test_a_payer_that_was_written_off_has_no_credit_until_its_deposit_is_mined() -> None:
    opening = channel(standing=PayerStanding.SIMULATED, charged=Amount(40))
    gone = payer_credit(TERMS, [opening], written_off=True)
    assert (gone.standing, gone.limit, gone.room) == (PayerStanding.FALLEN, 0, -40)
    assert strangers_owe([gone]) == 0
    assert bound(TERMS, [gone]) == TERMS.strangers + 40
    mined = channel(standing=PayerStanding.MINED, charged=Amount(40), deposit=Amount(1_000))
    back = payer_credit(TERMS, [mined], written_off=True)
    assert (back.standing, back.room) == (PayerStanding.MINED, 60)


def test_what_is_written_off_in_a_day_is_what_strangers_may_owe_in_each_round() -> None:
    assert most_written_off(TERMS, 6 * 3600, 24 * 3600) == 4 * TERMS.strangers
    assert most_written_off(TERMS, 5 * 3600, 24 * 3600) == 5 * TERMS.strangers


def test_one_payer_has_one_limit_over_all_of_its_channels() -> None:
    both = payer_credit(TERMS, [channel(charged=Amount(60)), channel(charged=Amount(41))])
    assert both.owed == 101
    assert start_fault(TERMS, both, 0, 0) is CreditFault.PAYER


def test_strangers_share_what_all_of_them_may_owe() -> None:
    stranger = payer_credit(TERMS, [channel(standing=PayerStanding.SIMULATED)])
    assert start_fault(TERMS, stranger, TERMS.strangers - 10, 10) is None
    assert start_fault(TERMS, stranger, TERMS.strangers - 9, 10) is CreditFault.STRANGERS
    assert start_fault(TERMS, payer_credit(TERMS, [channel()]), 10**6, 100) is None


@pytest.mark.parametrize("terms", [(5, 4, 9, 9), (1, 5, 4, 9), (3, 4, 5, 2)])
def test_credit_grows_with_standing_and_strangers_get_at_least_one(
    terms: tuple[int, int, int, int],
) -> None:
    with pytest.raises(ValueError, match=r"credit grows|all strangers"):
        CreditTerms(*map(Amount, terms))


def test_the_ceilings_of_a_jobs_canvases_are_its_worst_case_together() -> None:
    work = job(1, 3 * CANVAS)
    first = ceiling(MODEL, work, PROMPT_TOKENS, None, 1)
    done = Usage(PROMPT_TOKENS, CANVAS, work.parameters.max_steps)
    rest = ceiling(MODEL, work, PROMPT_TOKENS, done, 2)
    assert first + rest == worst_case(MODEL, work.kind, work.parameters, PROMPT_TOKENS)
    assert first == price(MODEL, done)


def test_a_debt_that_lost_what_carried_it_is_in_the_bound() -> None:
    fallen = payer_credit(TERMS, [channel(standing=PayerStanding.SIMULATED, charged=Amount(300))])
    late = payer_credit(TERMS, [channel(charged=Amount(900), deposit=Amount(400))])
    assert bound(TERMS, [fallen, late]) == TERMS.strangers + 300 + 900


def test_what_a_payer_leaves_behind_on_a_closed_channel_keeps_no_stranger_out() -> None:
    left = channel(standing=PayerStanding.FALLEN, charged=Amount(90))
    gone = [payer_credit(TERMS, [left]) for _ in range(50)]
    assert strangers_owe(gone) == 0
    assert start_fault(TERMS, gone[0], 0, 1) is CreditFault.PAYER
    assert bound(TERMS, gone) == TERMS.strangers + 50 * 90


def test_who_comes_back_pays_its_old_debt_out_of_its_own_first_credit() -> None:
    left = channel(standing=PayerStanding.FALLEN, charged=Amount(90))
    opening = channel(standing=PayerStanding.SIMULATED, reserved=Amount(10))
    back = payer_credit(TERMS, [left, opening])
    assert (back.owed, back.limit, strangers_owe([back])) == (100, 100, 10)
    assert start_fault(TERMS, back, 10, 1) is CreditFault.PAYER
    assert bound(TERMS, [back]) == TERMS.strangers + 90


def test_a_payer_that_owes_more_than_a_stranger_may_has_fallen_and_leaves_the_pool() -> None:
    fallen = payer_credit(TERMS, [channel(standing=PayerStanding.SIMULATED, charged=Amount(101))])
    assert (fallen.standing, fallen.limit) == (PayerStanding.FALLEN, 0)
    assert strangers_owe([fallen]) == 0


def test_strangers_that_a_reorganization_made_are_in_the_bound_with_all_that_they_owe() -> None:
    one = payer_credit(TERMS, [channel(standing=PayerStanding.SIMULATED, charged=Amount(100))])
    assert bound(TERMS, [one] * 9) == 900
