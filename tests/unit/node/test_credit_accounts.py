"""How much work the accounts of many payers are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from piecework_node.jobs.offers import OfferAddress, build_offer
from piecework_node.journal.records import StoredChannel
from piecework_node.runtime.credit import CreditAccounts
from piecework_node.runtime.live import LiveChannel
from piecework_protocol.credit import FIRST_PROMPT_TOKENS, CreditTerms, PayerStanding, ceiling
from piecework_protocol.ledger import WorkerLedger
from piecework_protocol.objects import Channel, Endpoint, Route
from piecework_protocol.states import ChannelState
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    PublicKey,
    Seconds,
    Timestamp,
    Uint32,
)
from tests.support.node.fake_engine import CANVAS, FACTS, MAX_STEPS
from tests.support.node.harness import TERMS as DAEMON_TERMS
from tests.support.node.harness import entry
from tests.support.protocol.pair import job

TERMS = CreditTerms(Amount(100), Amount(400), Amount(1500), Amount(350))


class CountedChannels:
    """Channels that count how often one of them is looked at, and how many payers are asked for."""

    def __init__(self, channels: list[LiveChannel]) -> None:
        self._channels, self.looked_at, self.asked_for = channels, 0, 0

    def __iter__(self) -> Iterator[LiveChannel]:
        for live in self._channels:
            self.looked_at += 1
            yield live

    def of_payer(self, payer: Address) -> Iterator[LiveChannel]:
        self.asked_for += 1
        return (live for live in self._channels if live.stored.channel.payer == payer)


def channel(payer: int, number: int, mined: int = 0) -> LiveChannel:
    owner = Address(payer.to_bytes(20, "big"))
    salt = Bytes32(number.to_bytes(32, "big"))
    terms = Channel(owner, owner, owner, owner, owner, Seconds(900), salt)
    name = ChannelId(bytes(salt))
    state = ChannelState.OPEN if mined else ChannelState.NONE
    stored = StoredChannel(name, terms, WorkerLedger(name), state=state, deposit=Amount(mined))
    return LiveChannel(stored, mined=Amount(mined))


def test_the_accounts_of_all_payers_take_one_pass_over_the_channels() -> None:
    channels = CountedChannels([channel(n // 2, n) for n in range(200)])
    credit = CreditAccounts(channels, TERMS)
    assert len(credit.accounts()) == 100
    assert channels.looked_at == 200
    assert credit.totals().bound == TERMS.strangers
    assert channels.looked_at == 400


def test_what_strangers_owe_asks_no_payer_that_has_a_deposit() -> None:
    paid = [channel(n, n, mined=1_000) for n in range(100)]
    channels = CountedChannels([*paid, channel(100, 100), channel(100, 101), channel(101, 102)])
    credit = CreditAccounts(channels, TERMS)
    assert credit.strangers == credit.totals().strangers
    assert channels.asked_for == 2


@pytest.mark.parametrize(("payer", "passes"), [(0, 0), (1, 1)])
def test_only_a_stranger_is_held_to_what_all_strangers_owe(payer: int, passes: int) -> None:
    mined = [channel(0, 0, mined=1_000)]
    channels = CountedChannels(mined + [channel(n, n) for n in range(1, 100)])
    credit = CreditAccounts(channels, TERMS)
    assert credit.fault(Address(payer.to_bytes(20, "big")), 1) is None
    assert channels.looked_at == passes * 100


def test_a_key_that_signed_for_a_debtor_still_signs_for_others() -> None:
    first, second = channel(1, 1), channel(2, 2)
    shared = first.stored.channel.authorizer
    terms = replace(second.stored.channel, authorizer=shared)
    second.stored = replace(second.stored, channel=terms)
    credit = CreditAccounts(CountedChannels([first, second]), TERMS)
    credit.write_off([first.stored.channel.payer])
    assert credit.payer(first.stored.channel.payer).standing is PayerStanding.FALLEN
    assert credit.payer(second.stored.channel.payer).standing is PayerStanding.SIMULATED


def test_a_model_whose_first_canvas_nobody_new_could_begin_is_named_with_the_least_credit() -> None:
    fits = replace(DAEMON_TERMS, credit=CreditTerms(*[Amount(20_000)] * 4))
    assert fits.credit_fault(FACTS) is None
    fault = DAEMON_TERMS.credit_fault(FACTS)
    least = -(-(4096 * 1_500_000 + CANVAS * 2_300_000 + 1000 * MAX_STEPS * 700) // 10**6)
    assert fault is not None and f"Set credit_first to {least} or more" in fault
    enough = replace(fits, credit=CreditTerms(*[Amount(least)] * 4))
    assert enough.credit_fault(FACTS) is None
    asked = job(1, CANVAS)
    work = asked.replace(parameters=asked.parameters.replace(max_steps=Uint32(MAX_STEPS)))
    model = build_offer(
        fits,
        (entry(),),
        OfferAddress(
            (Endpoint(Route.DIRECT, "127.0.0.1:1"),), Digest(bytes(32)), PublicKey(bytes(32))
        ),
        operator=Address(bytes(20)),
        sequence=1,
        now=Timestamp(1),
    ).models[0]
    assert ceiling(model, work, FIRST_PROMPT_TOKENS, None, 1) in (least, least - 1)
