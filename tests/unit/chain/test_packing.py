"""Packed rows read back by other code, and batches that cost the least."""

from __future__ import annotations

from dataclasses import replace

import pytest
from eth_keys.datatypes import Signature as EthSignature
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.contracts import calls
from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.calls import Claim
from piecework.chain.contracts.packing import (
    PACKED_GAS,
    PLAIN_GAS,
    ROW_BYTES,
    estimated_gas,
    pack,
    settle_packed,
    settlement_batches,
    settlement_calldata,
    terms_of,
)
from piecework.chain.deployment import Deployment
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework_protocol.errors import InvariantBroken
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.signing import sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    Seconds,
    Signature,
    Uint64,
)
from tests.support.chain.chains import signer

PAYER, WORKER = signer("payer"), signer("worker")
TOKEN = Address(bytes([3]) * 20)
MARKET = Deployment(31337, TOKEN, "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600))


def claim(salt: int, *, delay: int = 3600, amount: int = 5, count: int = 1) -> Claim:
    channel = Channel(
        signer(f"payer {salt}").address,
        PAYER.address,
        Address(bytes([7]) * 20),
        WORKER.address,
        TOKEN,
        Seconds(delay),
        Bytes32(salt.to_bytes(32, "big")),
    )
    root = Digest(bytes([9]) * 32)
    voucher = Voucher(channel.id(MARKET.domain), Amount(amount), Uint64(count), root)
    return Claim(channel, voucher, sign(MARKET.domain, voucher, PAYER))


@given(
    salt=st.integers(0, 2**256 - 1),
    amount=st.integers(0, 2**128 - 1),
    count=st.integers(0, 2**64 - 1),
)
def test_a_row_holds_the_claim_where_the_contract_reads_it(
    salt: int, amount: int, count: int
) -> None:
    given_claim = claim(salt, amount=amount, count=count)
    row = pack(given_claim)
    assert len(row) == ROW_BYTES
    c, v = given_claim.channel, given_claim.voucher
    assert (row[:20], row[20:40], row[40:72]) == (c.payer, c.authorizer, c.salt)
    assert int.from_bytes(row[72:88], "big") == amount
    assert int.from_bytes(row[88:96], "big") == count
    assert row[96:128] == v.receipts_root
    vs = int.from_bytes(row[160:192], "big")
    parts = (vs >> 255, int.from_bytes(row[128:160], "big"), vs & (2**255 - 1))
    key = EthSignature(vrs=parts).recover_public_key_from_msg_hash(MARKET.domain.digest(v))
    assert key.to_canonical_address() == PAYER.address


def test_a_packed_call_sends_the_terms_once() -> None:
    claims = [claim(n) for n in range(3)]
    call = settle_packed(MARKET, claims)
    assert call.to == MARKET.escrow
    terms = tuple(terms_of(claims[0]))
    rows = b"".join(pack(c) for c in claims)
    assert call.data == interface("Escrow").encode("settlePacked", (terms, rows))
    assert call.gas_hint > PACKED_GAS.of(3)


def test_rows_of_other_terms_or_with_odd_signatures_are_not_packed() -> None:
    with pytest.raises(InvariantBroken):
        settle_packed(MARKET, [claim(1), claim(2, delay=7200)])
    for signature in (b"", bytes(64), bytes(65), bytes(32) + b"\xff" * 32 + b"\x1b"):
        odd = replace(claim(1), signature=Signature(signature))
        with pytest.raises(InvariantBroken):
            pack(odd)
        assert settlement_calldata(MARKET, [claim(2), odd]).what == "settle"


def test_the_cheaper_form_is_chosen() -> None:
    assert settlement_calldata(MARKET, [claim(1)]).what == "settlePacked"
    mixed = [claim(1, delay=7200), claim(2), claim(3, delay=7200)]
    call = settlement_calldata(MARKET, mixed)
    assert call == calls.settle(MARKET, [mixed[1], mixed[0], mixed[2]])
    for batch in ([claim(1)], mixed):
        assert estimated_gas(batch) <= PLAIN_GAS.of(len(batch))
    assert estimated_gas([claim(1)]) == PACKED_GAS.of(1)


def test_a_settlement_holds_one_claim_to_the_limit() -> None:
    for count in (0, MAX_CLAIMS_PER_SETTLE + 1):
        for form in (settlement_calldata, settle_packed):
            with pytest.raises(InvariantBroken):
                form(MARKET, [claim(1)] * count)


def cost(batches: list[list[Claim]]) -> int:
    return sum(estimated_gas(batch) for batch in batches)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), max_size=40))
def test_batches_hold_every_claim_once_and_cost_no_more_than_the_simple_ways(
    wanted: list[tuple[int, int]],
) -> None:
    claims = [replace(claim(0, delay=3600 + term), signature=CANONICAL) for term, _ in wanted]
    batches = [list(batch) for batch in settlement_batches(claims)]
    assert all(0 < len(batch) <= MAX_CLAIMS_PER_SETTLE for batch in batches)
    assert sorted(id(c) for batch in batches for c in batch) == sorted(id(c) for c in claims)
    together = [claims] if claims else []
    apart = [[c for c in claims if terms_of(c) == t] for t in {terms_of(c) for c in claims}]
    assert cost(batches) <= min(cost(together), cost(apart)) + PLAIN_GAS.fixed
    assert cost(batches) <= cost(together)


CANONICAL = claim(1).signature


def test_a_large_group_is_cut_at_the_limit_in_its_order() -> None:
    claims = [replace(claim(0), signature=CANONICAL) for _ in range(450)]
    batches = settlement_batches(claims)
    assert [len(batch) for batch in batches] == [200, 200, 50]
    assert [id(c) for batch in batches for c in batch] == [id(c) for c in claims]
    assert settlement_batches([]) == ()
