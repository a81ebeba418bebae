"""Signed offers for tests, without a worker behind them."""

from __future__ import annotations

from typing import Any

from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Endpoint, Kind, ModelOffer, Offer, Route, Service
from piecework_protocol.signing import LocalSigner, Signer, sign
from piecework_protocol.types import (
    Address,
    Amount,
    Digest,
    PublicKey,
    Seconds,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import SignedOffer
from tests.support.chain.fake_chain import DOMAIN, TOKEN

NO_CREDIT_TERMS: dict[str, Any] = {
    "credit_first": Amount(0),
    "credit_mined": Amount(0),
    "credit_max": Amount(0),
    "open_fee": Amount(0),
    "top_up_fee": Amount(0),
    "close_fee": Amount(0),
    "min_top_up": Amount(0),
    "evidence_seconds": Uint64(0),
}
"""Credit and fees of an offer that asks for none."""


def operator(name: str) -> LocalSigner:
    """A worker's key."""
    return LocalSigner(bytes(keccak256(name.encode())))


def receiver(name: str) -> Address:
    """Its cold address."""
    return Address(bytes(keccak256(b"cold " + name.encode()))[:20])


def model(name: str = "tale-1", **changes: Any) -> ModelOffer:
    """A model with prices in whole tokens."""
    values: dict[str, Any] = {
        "name": name,
        "digest": Digest(keccak256(name.encode())),
        "profile": "fake gpu",
        "kinds": Uint32(Kind.TEXT.bit),
        "service": Service.REPLAYABLE,
        "price_per_million_prompt_tokens": Amount(100_000),
        "price_per_million_output_tokens": Amount(2_000_000),
        "price_per_thousand_steps": Amount(1_000),
        "max_context": Uint32(8192),
        "max_output": Uint32(4096),
        "canvas_size": Uint32(256),
        "max_steps": Uint32(48),
        "tokens_per_second": Uint32(500),
        "first_canvas_ms": Uint32(300),
    }
    return ModelOffer(**(values | changes))


def offer(
    name: str = "worker",
    now: int = 1_800_000_000,
    *,
    signer: Signer | None = None,
    domain: Domain = DOMAIN,
    endpoint: str = "worker.example:7000",
    **changes: Any,
) -> SignedOffer:
    """A valid offer of the worker `name`, with some members changed before it is signed."""
    key = operator(name)
    values: dict[str, Any] = {
        "operator": key.address,
        "receiver": receiver(name),
        "sequence": Uint64(1),
        "issued_at": Timestamp(now),
        "expires_at": Timestamp(now + 300),
        "endpoints": (Endpoint(Route.DIRECT, endpoint),),
        "tls_certificate": Digest(keccak256(b"certificate")),
        "sealing_key": PublicKey(keccak256(b"sealing")),
        "tokens": (TOKEN,),
        "models": (model(),),
        "slots": Uint32(2),
        "slots_free": Uint32(1),
        "queue_free": Uint32(4),
        **NO_CREDIT_TERMS,
        "min_withdrawal_delay": Seconds(3600),
        "min_deposit": Amount(0),
        "details": "{}",
    }
    built = Offer(**(values | changes))
    return SignedOffer(built, sign(domain, built, signer or key))
