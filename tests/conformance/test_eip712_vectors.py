"""Our EIP-712 encoder, eth-account's and the golden vectors (which Solidity reads too) agree to the
bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak

from piecework.chain import descriptor
from piecework_protocol import dialling, objects, relaying
from piecework_protocol.eip712 import Domain, TypedData, type_dict, type_hash, type_string
from piecework_protocol.signing import recover
from piecework_protocol.types import Bytes32
from tests.vectors import generate

VECTORS = json.loads((Path(generate.__file__).parent / "eip712.json").read_text())
CASES = [*VECTORS["cases"], *VECTORS["offChain"]]


def _class(case: dict[str, Any]) -> type[TypedData]:
    (kind,) = [kind for kind in _signed() if kind.__name__ == case["type"]]
    return kind


def _signed() -> set[type[TypedData]]:
    """Every object with a signature or a hash, wherever it is defined."""
    found = {
        kind
        for room in (dialling, objects, relaying, descriptor)
        for kind in vars(room).values()
        if isinstance(kind, type) and issubclass(kind, TypedData)
    }
    return found - {TypedData}


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c['type']}" for i, c in enumerate(CASES)])
def test_eth_account_gives_the_digest_of_the_vector(case: dict[str, Any]) -> None:
    names = VECTORS["domains"][case["domain"]]
    domain = {k: v for k, v in names.items() if k != "separator"}
    domain["chainId"] = int(domain["chainId"])
    signable = encode_typed_data(domain, type_dict(_class(case)), case["message"])
    assert "0x" + signable.header.hex() == names["separator"]
    assert "0x" + signable.body.hex() == case["structHash"]
    assert "0x" + keccak(b"\x19\x01" + signable.header + signable.body).hex() == case["digest"]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c['type']}" for i, c in enumerate(CASES)])
def test_the_vector_is_signed_by_its_signer(case: dict[str, Any]) -> None:
    digest = Bytes32(bytes.fromhex(case["digest"][2:]))
    assert "0x" + recover(digest, bytes.fromhex(case["signature"][2:])).hex() == case["signer"]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c['type']}" for i, c in enumerate(CASES)])
def test_the_type_string_is_the_one_that_solidity_hashes(case: dict[str, Any]) -> None:
    assert type_string(_class(case)) == case["typeString"]
    assert "0x" + type_hash(_class(case)).hex() == case["typeHash"]


def test_every_signed_object_has_a_vector() -> None:
    signed = {kind.__name__ for kind in _signed()}
    nested_only = {"Parameters", "ModelOffer", "Endpoint"}
    assert signed - nested_only == {case["type"] for case in CASES}


def test_the_committed_vectors_are_what_the_code_gives() -> None:
    assert generate.main(["--check"]) == 0


def test_the_domain_separator_depends_on_chain_and_contract() -> None:
    base = generate.DOMAIN
    assert base.separator() != Domain(1, base.verifying_contract).separator()
    assert base.separator() != Domain(base.chain_id, base.verifying_contract[::-1]).separator()  # type: ignore[arg-type]
