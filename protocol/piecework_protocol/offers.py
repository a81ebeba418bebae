"""Whether an offer can be believed (clause 3.1). Pure: clients and indexes judge by one code.

An index is never trusted. A client that receives an offer repeats every one of these checks.
"""

from __future__ import annotations

import enum
from typing import Protocol

from piecework.base.errors import PieceworkError
from piecework.base.jsons import loads
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_CLOCK_SKEW_S,
    MAX_DENOISING_STEPS,
    MAX_DETAILS_DEPTH,
    MAX_OFFER_LIFETIME_S,
)
from piecework_protocol.objects import Offer, Service
from piecework_protocol.service import offer_fault
from piecework_protocol.signing import recover
from piecework_protocol.types import Address, Timestamp, address_hex
from piecework_protocol.wire import SignedOffer


class OfferFault(enum.Enum):
    """Why an offer is not believed."""

    BAD_SIGNATURE = "bad_signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    BAD_TERMS = "bad_terms"
    NOT_REGISTERED = "not_registered"
    NOT_BONDED = "not_bonded"
    WRONG_RECEIVER = "wrong_receiver"


class OfferRejected(PieceworkError):
    """An offer must not be used. `fault` is the first that was found."""

    def __init__(self, fault: OfferFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


class Standing(Protocol):
    """What the registry says about an operator."""

    @property
    def payout(self) -> Address: ...

    @property
    def active(self) -> bool: ...


def offer_signer(domain: Domain, signed: SignedOffer) -> Address:
    """Find the address that signed the offer for this chain and escrow.

    An offer of another chain gives some other address, which `check_standing` then refuses.

    Raises:
        OfferRejected: The signature is malformed.
    """
    try:
        return recover(domain.digest(signed.offer), signed.signature)
    except MalformedInput as error:
        raise OfferRejected(OfferFault.BAD_SIGNATURE, str(error)) from None


def check_terms(offer: Offer, now: Timestamp) -> None:
    """Check times and bounds: everything that needs neither a key nor the chain.

    Raises:
        OfferRejected: The offer breaks one of them.
    """
    if offer.expires_at <= now:
        raise OfferRejected(OfferFault.EXPIRED, "the offer has expired")
    if offer.issued_at > now + MAX_CLOCK_SKEW_S:
        raise OfferRejected(
            OfferFault.NOT_YET_VALID, "the offer was issued in the future; check the clocks"
        )
    if offer.expires_at - offer.issued_at > MAX_OFFER_LIFETIME_S:
        raise _bad(f"an offer lives at most {MAX_OFFER_LIFETIME_S} seconds")
    if not offer.models or not offer.tokens:
        raise _bad("an offer names at least one model and one token")
    if not offer.endpoints:
        raise _bad("an offer names at least one endpoint")
    if len({(m.digest, m.profile) for m in offer.models}) != len(offer.models):
        raise _bad("an offer names each model and profile once")
    for model in offer.models:
        if not 1 <= model.canvas_size <= MAX_CANVAS_TOKENS:
            raise _bad(f"a canvas is 1 to {MAX_CANVAS_TOKENS} tokens")
        least = int(model.service is Service.REPLAYABLE)
        if not least <= model.max_steps <= MAX_DENOISING_STEPS:
            raise _bad(f"a canvas takes {least} to {MAX_DENOISING_STEPS} denoising steps")
        fault = offer_fault(model)
        if fault is not None:
            raise _bad(fault)
        if not 1 <= model.max_output <= model.max_context:
            raise _bad("a model's output is at least one token and fits its context")


def takes_images(offer: Offer) -> bool | None:
    """Say whether the worker says that its models take images. None: it does not say.

    It says so among its `details`, which bind nobody. It refuses with NO_IMAGES what it cannot do.
    """
    try:
        details = loads(offer.details, max_depth=MAX_DETAILS_DEPTH)
    except ValueError:
        return None
    said = details.get("images") if isinstance(details, dict) else None
    return said if isinstance(said, bool) else None


def check_standing(
    offer: Offer, signer: Address, standing: Standing | None, *, session_key: bool
) -> None:
    """Check an offer against the registry: stake, payout address, signing key.

    `standing` is None for an operator that is not registered. `session_key` says whether the
    registry lists `signer` as a live session key of the operator.

    Raises:
        OfferRejected: The registry does not bear the offer out.
    """
    if standing is None:
        raise OfferRejected(
            OfferFault.NOT_REGISTERED, f"operator {address_hex(offer.operator)} is not registered"
        )
    if signer != offer.operator and not session_key:
        raise OfferRejected(
            OfferFault.BAD_SIGNATURE, "the offer is not signed by its operator for this escrow"
        )
    if not standing.active:
        raise OfferRejected(OfferFault.NOT_BONDED, "the worker's stake is not active")
    if standing.payout != offer.receiver:
        raise OfferRejected(
            OfferFault.WRONG_RECEIVER, "the offer's receiver is not the registered payout address"
        )


def _bad(message: str) -> OfferRejected:
    return OfferRejected(OfferFault.BAD_TERMS, message)
