"""Whether an offer can be believed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from piecework_protocol.eip712 import Domain
from piecework_protocol.offers import (
    OfferFault,
    OfferRejected,
    check_standing,
    check_terms,
    offer_signer,
)
from piecework_protocol.types import Address, Signature, Timestamp, Uint32
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import DOMAIN, FakeChain
from tests.support.market.offers import model, offer, operator, receiver

NOW = Timestamp(1_800_000_000)


def standing(*, active: bool = True, payout: str = "worker") -> Any:
    chain = FakeChain()
    chain.register(operator("worker").address, receiver(payout), active=active)
    return chain.registered[operator("worker").address]


def fault_of(call: Any) -> OfferFault:
    with pytest.raises(OfferRejected) as caught:
        call()
    return caught.value.fault


def test_an_honest_offer_passes_every_check() -> None:
    signed = offer()
    check_terms(signed.offer, NOW)
    signer = offer_signer(DOMAIN, signed)
    check_standing(signed.offer, signer, standing(), session_key=False)


def test_an_offer_is_good_until_the_second_before_it_expires() -> None:
    signed = offer()
    check_terms(signed.offer, Timestamp(NOW + 299))
    assert fault_of(lambda: check_terms(signed.offer, Timestamp(NOW + 300))) is OfferFault.EXPIRED


def test_a_few_seconds_of_clock_skew_are_forgiven() -> None:
    check_terms(offer(now=NOW + 5).offer, NOW)
    assert fault_of(lambda: check_terms(offer(now=NOW + 6).offer, NOW)) is OfferFault.NOT_YET_VALID


@pytest.mark.parametrize(
    "changes",
    [
        {"expires_at": Timestamp(NOW + 3601)},
        {"tokens": ()},
        {"models": ()},
        {"models": (model(), model())},
        {"endpoints": ()},
        {"models": (model(canvas_size=Uint32(1025)),)},
        {"models": (model(max_steps=Uint32(257)),)},
        {"models": (model(max_output=Uint32(8193)),)},
        {"models": (model(max_output=Uint32(0)),)},
    ],
)
def test_terms_out_of_bounds_are_refused(changes: dict[str, Any]) -> None:
    assert fault_of(lambda: check_terms(offer(**changes).offer, NOW)) is OfferFault.BAD_TERMS


def test_an_offer_for_another_chain_or_escrow_is_signed_by_nobody_who_matters() -> None:
    for domain in (
        Domain(1, DOMAIN.verifying_contract),
        Domain(DOMAIN.chain_id, Address(bytes(20))),
    ):
        signed = offer(domain=domain)
        signer = offer_signer(DOMAIN, signed)
        check = partial(check_standing, signed.offer, signer, standing(), session_key=False)
        fault = fault_of(check)
        assert fault is OfferFault.BAD_SIGNATURE


def test_a_malformed_signature_is_refused() -> None:
    signed = SignedOffer(offer().offer, Signature(bytes(65)))
    assert fault_of(lambda: offer_signer(DOMAIN, signed)) is OfferFault.BAD_SIGNATURE


def test_the_registry_decides_who_may_offer() -> None:
    signed = offer(signer=operator("hot"))
    hot = operator("hot").address
    check_standing(signed.offer, hot, standing(), session_key=True)
    cases = [
        (None, False, OfferFault.NOT_REGISTERED),
        (standing(), False, OfferFault.BAD_SIGNATURE),
        (standing(active=False), True, OfferFault.NOT_BONDED),
        (standing(payout="thief"), True, OfferFault.WRONG_RECEIVER),
    ]
    for known, session_key, fault in cases:
        assert (
            fault_of(
                lambda k=known, s=session_key: check_standing(signed.offer, hot, k, session_key=s)
            )
            is fault
        )
