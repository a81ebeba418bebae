"""The frozen release: its bytes, its addresses, its words. No compiler: contracts/tools/release.py
compares with the sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eth_account.messages import encode_typed_data
from eth_utils.abi import get_abi_input_types

from piecework.chain.addresses import create2_address, escrow_address, registry_address
from piecework.chain.artifacts import load_artifact
from piecework_protocol import objects
from piecework_protocol.eip712 import TypedData, type_dict
from piecework_protocol.types import Address, Amount, Seconds, keccak256

RELEASE = Path(__file__).resolve().parents[3] / "contracts" / "release"
# Explained in that standard.
ERC5267 = ("eip712Domain", "EIP712DomainChanged")
CONTRACTS = ("Escrow", "WorkerRegistry", "EvidenceVerifier", "Disputes")
CASES = json.loads((RELEASE.parents[1] / "tests" / "vectors" / "eip712.json").read_text())["cases"]


def read(name: str) -> Any:
    return json.loads((RELEASE / name).read_text())


def init_code(name: str) -> bytes:
    return bytes.fromhex((RELEASE / f"{name}.initcode.hex").read_text().strip().removeprefix("0x"))


@pytest.mark.parametrize("name", CONTRACTS)
def test_what_clients_compute_with_is_the_frozen_init_code(name: str) -> None:
    assert load_artifact(name).bytecode == init_code(name)
    published = {json.dumps(entry, sort_keys=True) for entry in read(f"{name}.abi.json")}
    assert published == {json.dumps(entry, sort_keys=True) for entry in load_artifact(name).abi}


def test_the_published_addresses_follow_from_the_init_code() -> None:
    published = read("addresses.json")
    escrow, registry = published["escrow"], published["registry"]
    assert escrow["initCodeHash"] == "0x" + keccak256(init_code("Escrow")).hex()
    assert escrow["address"] == "0x" + escrow_address().hex()
    assert escrow["address"] == "0x" + create2_address(init_code("Escrow")).hex()
    terms = registry["example"]["terms"]
    token = Address(bytes.fromhex(terms["token"][2:]))
    computed = registry_address(
        token, Amount(terms["min_stake"]), Seconds(terms["unbonding_seconds"])
    )
    assert registry["example"]["address"] == "0x" + computed.hex()


@pytest.mark.parametrize("name", CONTRACTS)
def test_every_function_and_event_is_explained_with_each_parameter_and_result(name: str) -> None:
    natspec = read(f"{name}.natspec.json")
    missing = []
    entries: list[Any] = list(load_artifact(name).abi)
    for entry in entries:
        if entry["type"] not in {"function", "event"} or entry["name"] in ERC5267:
            continue
        signature = f"{entry['name']}({','.join(get_abi_input_types(entry))})"
        kind = "methods" if entry["type"] == "function" else "events"
        user = natspec["user"][kind].get(signature, {})
        dev = natspec["dev"][kind].get(signature, {})
        state = natspec["dev"].get("stateVariables", {}).get(entry["name"], {})
        if not user.get("notice"):
            missing.append(f"{signature}: notice")
        params = {**dev.get("params", {}), **state.get("params", {})}
        unexplained = {i["name"] for i in entry["inputs"]} - set(params)
        missing += [f"{signature}: {parameter}" for parameter in sorted(unexplained)]
        results = dev.get("returns", {}) or state.get("returns", {})
        if len(entry.get("outputs", ())) > len(results):
            missing.append(f"{signature}: a result")
    assert missing == []


def test_the_typed_data_of_every_struct_is_what_we_sign() -> None:
    published = read("typed-data.json")
    assert {case["type"] for case in CASES} == set(published)
    for name, entry in published.items():
        kind: type[TypedData] = getattr(objects, name)
        without_domain = {k: v for k, v in entry["types"].items() if k != "EIP712Domain"}
        assert without_domain == type_dict(kind), name


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c['type']}" for i, c in enumerate(CASES)])
def test_a_wallet_that_reads_the_typed_data_signs_the_vectors_digest(case: dict[str, Any]) -> None:
    published = read("typed-data.json")[case["type"]]
    types = {k: v for k, v in published["types"].items() if k != "EIP712Domain"}
    signable = encode_typed_data(published["domain"], types, case["message"])
    assert "0x" + signable.body.hex() == case["structHash"]
    assert published["domain"]["name"] == case["domain"]
