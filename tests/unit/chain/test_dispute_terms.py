"""The terms of a dispute contract: in the deployment file, and in the addresses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.addresses import (
    DisputeTerms,
    StakeTerms,
    create2_address,
    disputed_registry_address,
    disputes_address,
    disputes_init_code,
    registry_init_code,
    verifier_address,
    verifier_init_code,
)
from piecework.chain.artifacts import frozen_init_code, load_artifact
from piecework.chain.contracts.abi import interface
from piecework.chain.deployment import Deployment, dispute_terms_of
from piecework.chain.errors import BadDeployment
from piecework_protocol.types import Address, Amount, Seconds, parse_address

RELEASE = Path(__file__).resolve().parents[3] / "contracts" / "release"
TOKEN = Address(b"\x33" * 20)
WEEK = Seconds(7 * 24 * 3600)
COMMITTEE = (Address(b"\x01" * 20), Address(b"\x02" * 20), Address(b"\x03" * 20))
TERMS = DisputeTerms(Amount(500_000), 10**14, Amount(5_000_000), COMMITTEE, threshold=2)
MARKET = Deployment(31337, TOKEN, "tUSDC", 6, Amount(100_000_000), WEEK, disputes=TERMS)


def terms_json(**changes: Any) -> dict[str, Any]:
    raw = MARKET.to_json()
    return {**raw, "disputes": {**raw["disputes"], **changes}}


def test_a_market_with_disputes_survives_its_json() -> None:
    assert Deployment.from_json(json.loads(json.dumps(MARKET.to_json()))) == MARKET
    alone = replace(MARKET, disputes=None)
    assert "disputes" not in alone.to_json()
    assert alone.disputes_contract is None
    assert alone.registry != MARKET.registry
    assert alone.escrow == MARKET.escrow
    assert not alone.same_market(MARKET)


def test_the_init_code_is_the_constructors_call() -> None:
    struct = (
        verifier_address(),
        TOKEN,
        MARKET.min_stake,
        WEEK,
        TERMS.proving_cost,
        TERMS.min_bond_wei,
        TERMS.verdict_fee,
        list(COMMITTEE),
        TERMS.threshold,
    )
    made = interface("Disputes").encode_constructor((struct,))
    assert disputes_init_code(MARKET.stake_terms, TERMS) == made
    assert verifier_init_code() == interface("EvidenceVerifier").encode_constructor(
        (MARKET.escrow,)
    )


def test_the_frozen_contracts_are_where_the_release_says() -> None:
    release = json.loads((RELEASE / "addresses.json").read_bytes())
    for name in ("EvidenceVerifier", "Disputes"):
        assert frozen_init_code(name) == load_artifact(name).bytecode
    assert verifier_address() == parse_address(release["verifier"]["address"])
    example = release["disputes"]["example"]
    terms = example["terms"]
    stakes = StakeTerms(
        parse_address(terms["token"]),
        Amount(terms["min_stake"]),
        Seconds(terms["unbonding_seconds"]),
    )
    mine = DisputeTerms(
        Amount(terms["proving_cost"]), terms["min_bond_wei"], Amount(terms["verdict_fee"])
    )
    assert disputes_address(stakes, mine) == parse_address(example["address"])
    registry = disputed_registry_address(stakes, mine)
    assert registry == parse_address(example["registry"])
    code = registry_init_code(stakes.token, stakes.min_stake, stakes.unbonding_delay_s)
    assert registry != create2_address(code)


def test_every_term_moves_the_dispute_contract_and_its_registry() -> None:
    others = (
        replace(TERMS, proving_cost=Amount(1)),
        replace(TERMS, min_bond_wei=1),
        replace(TERMS, verdict_fee=Amount(1)),
        replace(TERMS, committee=COMMITTEE[:2]),
        replace(TERMS, threshold=3),
    )
    markets = [MARKET, *(replace(MARKET, disputes=terms) for terms in others)]
    assert len({market.disputes_contract for market in markets}) == 6
    assert len({market.registry for market in markets}) == 6


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"threshold": 1}, "threshold"),
        ({"threshold": 4}, "threshold"),
        ({"committee": ["0x" + "02" * 20, "0x" + "01" * 20]}, "ascend"),
        ({"committee": ["0x" + "01" * 20, "0x" + "01" * 20]}, "ascend"),
        ({"committee": ["0x" + "00" * 20], "threshold": 1}, "zero address"),
        ({"committee": "0x"}, "committee is not a list"),
        ({"committee": [1]}, "an address is not text"),
        ({"proving_cost": 0}, "proving_cost"),
        ({"verdict_fee": -1}, "verdict_fee"),
        ({"min_bond_wei": 2**96}, "min_bond_wei"),
        ({"more": 1}, "unknown more"),
    ],
)
def test_terms_that_the_contract_would_refuse_are_refused(
    changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(BadDeployment, match=text):
        Deployment.from_json(terms_json(**changes))


def test_terms_are_read_from_a_file_of_their_own() -> None:
    assert dispute_terms_of(json.dumps(MARKET.to_json()["disputes"]).encode()) == TERMS
    for found in (b"[]", b"{", b"{}"):
        with pytest.raises(BadDeployment, match="terms of a dispute contract"):
            dispute_terms_of(found)
