"""A market's descriptor: one form, one signer, and what may change."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from piecework.chain.addresses import DisputeTerms
from piecework.chain.deployment import Deployment
from piecework.chain.descriptor import (
    BadDescriptor,
    MarketChanged,
    MarketDescriptor,
    PinnedMarket,
)
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, Amount, Seconds, keccak256

KEY, OTHER = (LocalSigner(keccak256(name)) for name in (b"a market", b"somebody else"))
DEPLOYMENT = Deployment(8453, Address(b"\x33" * 20), "USDC", 6, Amount(10**8), Seconds(604_800))
MARKET = MarketDescriptor(
    DEPLOYMENT, ("https://index.example.org",), ("relay.example.org:7443", "[2001:db8::1]:7443")
)
PINNED = PinnedMarket("https://example.org/market.json", KEY.address, MARKET)


def changed(**members: object) -> bytes:
    """The descriptor with other members, in the canonical form."""
    raw = {**json.loads(MARKET.encode()), **members}
    text = json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def test_a_descriptor_is_read_as_it_was_written_and_names_no_contract() -> None:
    data = MARKET.encode()
    assert MarketDescriptor.decode(data) == MARKET
    for contract in (DEPLOYMENT.escrow, DEPLOYMENT.registry):
        assert contract.hex() not in data.decode().lower()


def test_the_signature_leads_to_the_key_and_to_no_other_descriptor() -> None:
    signature = MARKET.sign(KEY)
    assert MARKET.signer(signature) == KEY.address
    other = replace(MARKET, relays=())
    assert other.signer(signature) != KEY.address


@pytest.mark.parametrize(
    "file",
    [b"", b"[]", b"{}", b'{"signature":5}', b'{"signature":"0x00"}', b"x" * 2000, b"\xff"],
)
def test_a_signature_file_that_is_none_is_refused(file: bytes) -> None:
    with pytest.raises(BadDescriptor, match="signature"):
        MARKET.signer(file)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"[" * 200, "not JSON"),
        (b"5\n", "format"),
        (MARKET.encode() + b" ", "canonical"),
        (json.dumps(json.loads(MARKET.encode())).encode(), "canonical"),
        (changed(format="piecework-market/2"), "format"),
        (changed(escrow="0x" + "11" * 20), "escrow"),
        (changed(deployment={}), "deployment"),
        (changed(indexes="https://a"), "list"),
        (changed(indexes=["https://a.example"] * 2), "twice"),
        (changed(indexes=["ftp://a.example"]), "http"),
        (changed(indexes=["https://user:secret@a.example"]), "http"),
        (changed(indexes=[f"https://a.example/{n}" for n in range(17)]), "at most 16"),
        (changed(relays=["relay.example.org"]), "host:port"),
        (changed(relays=["relay.example.org:0"]), "host:port"),
        (changed(relays=["a b:1"]), "host:port"),
        (changed(faucet="https://faucet.example.org"), "not a test network"),
        (changed(sequence=0), "sequence"),
        (changed(sequence=True), "sequence"),
        (changed(sequence="2"), "sequence"),
        (changed(sequence=2**53), "sequence"),
        (changed(token_usd=2), "token_usd is 1"),
        (changed(token_usd=0), "token_usd is 1"),
        (changed(token_usd=-1), "token_usd is 1"),
        (changed(token_usd=1.0), "token_usd is 1"),
        (changed(token_usd="1"), "token_usd is 1"),
        (changed(token_usd=True), "token_usd is 1"),
        (changed(token_usd=None), "token_usd is 1"),
        (
            changed(
                deployment={**DEPLOYMENT.to_json(), "chain_id": 84532},
                faucet="https://faucet.example.org",
                token_usd=1,
            ),
            "gives away",
        ),
        (MARKET.encode().replace(b'"USDC"', b'"\\ud800"'), "not Unicode"),
        (MARKET.encode().replace(b'"format"', b'"faucet":null,"format"'), "canonical"),
    ],
)
def test_a_descriptor_of_another_form_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadDescriptor, match=why):
        MarketDescriptor.decode(data)


def test_a_market_may_mark_its_token_as_a_dollar_and_others_have_the_bytes_of_before() -> None:
    marked = replace(MARKET, token_is_usd=True)
    assert MarketDescriptor.decode(marked.encode()) == marked
    assert json.loads(marked.encode())["token_usd"] == 1
    assert b"usd" not in MARKET.encode()
    assert marked.signer(MARKET.sign(KEY)) != KEY.address, "the mark is signed"
    pinned = replace(PINNED, descriptor=marked)
    assert PinnedMarket.decode(pinned.encode()) == pinned
    with pytest.raises(MarketChanged, match="two descriptors"):
        PINNED.check_successor(marked, KEY.address)


def test_a_test_network_may_have_a_faucet() -> None:
    made = replace(
        MARKET, deployment=replace(DEPLOYMENT, chain_id=84532), faucet="https://faucet.example.org"
    )
    assert MarketDescriptor.decode(made.encode()) == made


def test_a_pinned_market_is_read_as_it_was_written() -> None:
    assert PinnedMarket.decode(PINNED.encode()) == PINNED
    with pytest.raises(BadDescriptor, match="damaged"):
        PinnedMarket.decode(b'{"url": 5}')


def test_indexes_relays_and_where_the_contracts_began_may_change() -> None:
    newer = MarketDescriptor(
        replace(DEPLOYMENT, from_block=9), (), ("other.example.org:1",), sequence=2
    )
    PINNED.check_successor(newer, KEY.address)
    PINNED.check_successor(replace(newer, sequence=900), KEY.address)


def test_an_older_descriptor_is_refused_though_the_markets_key_signed_it() -> None:
    """A rollback: somebody serves an old file again, with relays that are theirs by now."""
    older, newest = replace(MARKET, sequence=4), replace(MARKET, relays=(), sequence=5)
    pinned = replace(PINNED, descriptor=newest)
    pinned.check_successor(newest, KEY.address)
    with pytest.raises(MarketChanged, match="number 4, and this home has pinned number 5"):
        pinned.check_successor(older, KEY.address)
    with pytest.raises(MarketChanged, match="two descriptors"):
        pinned.check_successor(replace(MARKET, sequence=5), KEY.address)
    assert PinnedMarket.decode(pinned.encode()) == pinned, "the home keeps the number"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"chain_id": 1}, "chain"),
        ({"token": Address(b"\x44" * 20)}, "token"),
        ({"token_decimals": 18}, "token"),
        ({"min_stake": Amount(1)}, "terms"),
        ({"unbonding_delay_s": Seconds(3600)}, "terms"),
    ],
)
def test_chain_token_and_terms_may_not_change(change: dict[str, int], what: str) -> None:
    newer = replace(MARKET, deployment=replace(DEPLOYMENT, **change))  # type: ignore[arg-type]
    with pytest.raises(MarketChanged, match=f"another {what}"):
        PINNED.check_successor(newer, KEY.address)


def test_who_may_take_a_stake_may_not_change() -> None:
    def disputed(committee: bytes) -> Deployment:
        terms = DisputeTerms(Amount(1), 1, Amount(1), (Address(committee * 20),), threshold=1)
        return replace(DEPLOYMENT, disputes=terms)

    ours, theirs = disputed(b"\x01"), disputed(b"\x02")
    for before, after in ((DEPLOYMENT, ours), (ours, DEPLOYMENT), (ours, theirs)):
        pinned = replace(PINNED, descriptor=replace(MARKET, deployment=before))
        with pytest.raises(MarketChanged, match="another registry"):
            pinned.check_successor(replace(MARKET, deployment=after), KEY.address)
        pinned.check_successor(pinned.descriptor, KEY.address)


def test_another_key_is_refused_even_for_the_same_market() -> None:
    with pytest.raises(MarketChanged, match="pinned"):
        PINNED.check_successor(MARKET, OTHER.address)
