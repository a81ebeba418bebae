"""The deployment file, and the addresses that everybody computes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rlp  # type: ignore[import-untyped]
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st

from piecework.chain.addresses import (
    FACTORY,
    FACTORY_CODE,
    FACTORY_CREATOR,
    FACTORY_TRANSACTION,
    OTHER_CREATE2,
    create2_address,
    escrow_address,
    escrow_init_code,
    registry_address,
    registry_init_code,
    require_create2,
)
from piecework.chain.artifacts import frozen_init_code, load_artifact
from piecework.chain.contracts.abi import interface
from piecework.chain.deployment import Deployment, require_file_of_a_development_chain
from piecework.chain.errors import BadDeployment, WrongChain
from piecework.chain.limits import EMBEDDED_CHAIN_ID, MAX_MIN_STAKE
from piecework_protocol.types import Address, Amount, Bytes32, Seconds, keccak256, parse_address

RELEASE = Path(__file__).resolve().parents[3] / "contracts" / "release"
TOKEN = Address(b"\x33" * 20)
WEEK = Seconds(7 * 24 * 3600)
MARKET = Deployment(31337, TOKEN, "tUSDC", 6, Amount(100_000_000), WEEK)
FULL = replace(MARKET, from_block=7, rpc_url="http://127.0.0.1:8545")


# --- addresses


@pytest.mark.parametrize(
    ("deployer", "salt", "init_code", "address"),
    [
        ("00" * 20, "00" * 32, "00", "0x4D1A2e2bB4F88F0250f26Ffff098B0b30B26BF38"),
        ("deadbeef" + "00" * 16, "00" * 32, "00", "0xB928f69Bb1D91Cd65274e3c79d8986362984fDA3"),
    ],
)
def test_the_formula_is_that_of_the_standard(
    deployer: str, salt: str, init_code: str, address: str
) -> None:
    """Examples of EIP-1014, with the deployer in place of our factory."""
    code_hash = keccak256(bytes.fromhex(init_code))
    by_hand = keccak256(b"\xff" + bytes.fromhex(deployer) + bytes.fromhex(salt) + code_hash)[12:]
    assert by_hand == parse_address(address)
    ours = create2_address(bytes.fromhex(init_code), Bytes32(bytes.fromhex(salt)))
    assert ours == keccak256(b"\xff" + FACTORY + bytes.fromhex(salt) + code_hash)[12:]


def test_the_factorys_transaction_creates_the_factory() -> None:
    sender = parse_address(Account.recover_transaction(FACTORY_TRANSACTION))
    assert sender == FACTORY_CREATOR
    assert keccak256(rlp.encode([sender, b""]))[12:] == FACTORY
    nonce, price, gas, to, value, data, *_ = rlp.decode(FACTORY_TRANSACTION)
    assert (nonce, to, value) == (b"", b"", b"")
    assert int.from_bytes(price, "big") * int.from_bytes(gas, "big") == 10**16
    assert data.endswith(FACTORY_CODE)


def test_the_init_code_of_a_registry_is_its_constructor_call() -> None:
    terms = (TOKEN, Amount(5), WEEK)
    assert registry_init_code(*terms) == interface("WorkerRegistry").encode_constructor(terms)
    assert escrow_init_code() == interface("Escrow").encode_constructor(())
    assert MARKET.escrow == escrow_address() == create2_address(escrow_init_code())


def test_the_frozen_init_code_is_what_the_sources_give_and_where_the_release_says() -> None:
    release = json.loads((RELEASE / "addresses.json").read_bytes())
    for name in ("Escrow", "WorkerRegistry"):
        assert frozen_init_code(name) == load_artifact(name).bytecode
    assert parse_address(release["factory"]) == FACTORY
    assert escrow_address() == parse_address(release["escrow"]["address"])
    example = release["registry"]["example"]
    terms = example["terms"]
    stake, delay = Amount(terms["min_stake"]), Seconds(terms["unbonding_seconds"])
    address = registry_address(parse_address(terms["token"]), stake, delay)
    assert address == parse_address(example["address"])
    with pytest.raises(ValueError, match="no released contract"):
        frozen_init_code("TestToken")


def test_every_term_moves_the_registry_and_none_moves_the_escrow() -> None:
    others = (
        replace(MARKET, token=Address(b"\x34" * 20)),
        replace(MARKET, min_stake=Amount(1)),
        replace(MARKET, unbonding_delay_s=Seconds(WEEK + 1)),
    )
    assert len({m.registry for m in (MARKET, *others)}) == 4
    assert {m.escrow for m in others} == {MARKET.escrow}
    assert not any(MARKET.same_market(other) for other in others)
    assert not MARKET.same_market(replace(MARKET, chain_id=1))
    assert MARKET.same_market(FULL)
    assert FULL.registry == registry_address(TOKEN, Amount(100_000_000), WEEK)


def test_a_chain_with_its_own_create2_is_refused_by_name() -> None:
    for chain_id in (324, 300):
        with pytest.raises(WrongChain, match="zkSync Era"):
            require_create2(chain_id)
    for chain_id, name in OTHER_CREATE2.items():
        with pytest.raises(WrongChain, match=f"^{name} "):
            require_create2(chain_id)
    for chain_id in (1, 10, 8453, 42161, 31337, EMBEDDED_CHAIN_ID):
        require_create2(chain_id)


# --- the file


@pytest.mark.parametrize("market", [MARKET, FULL])
def test_a_deployment_survives_its_json(market: Deployment) -> None:
    raw = json.loads(json.dumps(market.to_json()))
    assert Deployment.from_json(raw) == market
    assert market.domain.verifying_contract == market.escrow


def test_the_file_holds_chain_token_and_terms_and_nothing_about_code() -> None:
    assert MARKET.to_json() == {
        "version": 2,
        "chain_id": 31337,
        "token": {
            "address": "0x3333333333333333333333333333333333333333",
            "decimals": 6,
            "symbol": "tUSDC",
        },
        "terms": {"min_stake": 100_000_000, "unbonding_seconds": WEEK},
    }


def test_a_file_of_version_1_is_refused_in_one_clear_line(tmp_path: Path) -> None:
    old = {
        "chain_id": 31337,
        "rpc_url": "http://127.0.0.1:8545",
        "escrow": "0x" + "11" * 20,
        "registry": "0x" + "22" * 20,
        "token": "0x" + "33" * 20,
        "token_symbol": "tUSDC",
        "token_decimals": 6,
        "escrow_code_hash": "0x" + "44" * 32,
        "registry_code_hash": "0x" + "55" * 32,
        "block": 1,
    }
    file = tmp_path / "deployment.json"
    file.write_text(json.dumps(old))
    with pytest.raises(BadDeployment, match="of version 1, which named contracts") as refused:
        Deployment.load(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("version", [1, 3, "2", 2.0, True, None, "x" * 1000, {"a": "\n"}])
def test_another_version_is_refused_in_one_clear_line(version: Any) -> None:
    with pytest.raises(BadDeployment, match="This program reads version 2") as refused:
        Deployment.from_json(MARKET.to_json() | {"version": version})
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200


def changed(path: str, value: Any) -> dict[str, Any]:
    """The file with one member replaced; a dot goes into an object."""
    raw: dict[str, Any] = json.loads(json.dumps(FULL.to_json()))
    *outer, name = path.split(".")
    place = raw
    for part in outer:
        place = place[part]
    place[name] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("chain_id", "1", "chain_id"),
        ("chain_id", True, "chain_id"),
        ("chain_id", 0, "chain_id"),
        ("chain_id", 2**63, "chain_id"),
        ("from_block", -1, "from_block"),
        ("from_block", 1.5, "from_block"),
        ("token", "0x" + "33" * 20, "token is not a JSON object"),
        ("token.address", "0x12", "address"),
        ("token.address", 7, "address"),
        ("token.decimals", 256, "decimals"),
        ("token.symbol", 7, "symbol"),
        ("token.symbol", "x" * 1000, "symbol"),
        ("token.extra", 1, "token: missing nothing, unknown extra"),
        ("terms", [], "terms is not a JSON object"),
        ("terms.min_stake", 0, "min_stake"),
        ("terms.min_stake", MAX_MIN_STAKE + 1, "min_stake"),
        ("terms.unbonding_seconds", WEEK - 1, "unbonding_seconds"),
        ("terms.unbonding_seconds", 181 * 24 * 3600, "unbonding_seconds"),
        ("escrow", "0x" + "11" * 20, "unknown escrow"),
        ("registry", "0x" + "11" * 20, "unknown registry"),
        ("escrow_code_hash", "0x" + "11" * 32, "unknown escrow_code_hash"),
        ("rpc_url", "ftp://127.0.0.1", "rpc_url"),
        ("rpc_url", 7, "rpc_url"),
        ("rpc_url", "http://[", "deployment"),
    ],
)
def test_a_malformed_deployment_names_the_member(path: str, value: Any, words: str) -> None:
    with pytest.raises(BadDeployment, match=words):
        Deployment.from_json(changed(path, value))


@pytest.mark.parametrize(
    "url",
    ["https://node.example", "http://10.0.0.1:8545", "http://127.0.0.1@evil.example", "http:///x"],
)
def test_a_file_cannot_choose_a_strangers_node(url: str) -> None:
    with pytest.raises(BadDeployment, match="node on this machine"):
        Deployment.from_json(changed("rpc_url", url))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists))
def test_a_file_of_any_json_is_read_or_refused_in_one_line(value: Any) -> None:
    for path in ("version", "chain_id", "token", "terms", "token.address", "terms.min_stake", "x"):
        try:
            Deployment.from_json(changed(path, value))
        except BadDeployment as error:
            assert "\n" not in str(error)


def test_a_missing_deployment_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BadDeployment, match="no such file"):
        Deployment.load(tmp_path / "none.json")
    with pytest.raises(BadDeployment, match="directory"):
        Deployment.load(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadDeployment, match="not JSON"):
        Deployment.load(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(BadDeployment, match="JSON object"):
        Deployment.load(tmp_path / "list.json")


def test_everybody_may_read_the_file_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        MARKET.save(tmp_path / "deployment.json")
    finally:
        os.umask(before)
    assert (tmp_path / "deployment.json").stat().st_mode & 0o777 == 0o644


def test_a_development_chain_overwrites_its_own_file_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "deployment.json"
    require_file_of_a_development_chain(file)
    MARKET.save(file)
    require_file_of_a_development_chain(file)
    replace(MARKET, chain_id=1).save(file)
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    for path, words in (
        (file, "not a development chain's deployment"),
        (precious, "not a development chain's deployment"),
        (tmp_path, f"is a directory. Name the file: {tmp_path}/deployment.json"),
        (tmp_path / "nowhere" / "d.json", "there is no directory"),
    ):
        with pytest.raises(BadDeployment, match=words):
            require_file_of_a_development_chain(path)
    assert precious.read_text() == "precious"
