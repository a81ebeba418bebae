"""Call data against selectors that the Solidity compiler printed, and against web3's own
encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from web3 import Web3

from piecework.chain.artifacts import CONTRACTS, load_artifact
from piecework.chain.contracts import calls
from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.authorizations import Permit, sign_deposit, sign_opening, sign_permit
from piecework.chain.contracts.calls import Call, Claim
from piecework.chain.contracts.evidence_calls import (
    PinEvidence,
    ReceiptEvidence,
    Subject,
    TraceEvidence,
)
from piecework.chain.contracts.packing import settle_packed
from piecework.chain.deployment import Deployment
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework.chain.reading import disputes
from piecework_protocol.disputes import OpenedLeaf
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import InvariantBroken
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.objects import (
    EVERYTHING,
    Channel,
    FundChannel,
    Job,
    Parameters,
    Receipt,
    Registration,
    Voucher,
    WithdrawPooled,
)
from piecework_protocol.signing import sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    PayerSignature,
    Seconds,
    Timestamp,
    Uint64,
    Uint256,
)
from tests.support.chain.chains import signer

PAYER, WORKER = signer("payer"), signer("worker")
TOKEN = Address(bytes([3]) * 20)
MARKET = Deployment(31337, TOKEN, "tUSDC", 6, Amount(10**8), Seconds(7 * 24 * 3600))
ESCROW, REGISTRY = MARKET.escrow, MARKET.registry
CHANNEL = Channel(
    PAYER.address,
    PAYER.address,
    WORKER.address,
    WORKER.address,
    TOKEN,
    Seconds(3600),
    Bytes32(bytes([7]) * 32),
)
VOUCHER = Voucher(CHANNEL.id(MARKET.domain), Amount(5), Uint64(1), Digest(bytes([9]) * 32))
CLAIM = Claim(CHANNEL, VOUCHER, sign(MARKET.domain, VOUCHER, PAYER))
DOMAIN = Domain(31337, TOKEN, "Test USD Coin", "1")
DEPOSIT = sign_deposit(
    DOMAIN, ESCROW, PAYER, Amount(5), valid_before=Timestamp(9), salt=Bytes32(bytes(32))
)
OPENING = sign_opening(
    DOMAIN,
    MARKET.domain,
    CHANNEL,
    PAYER,
    amount=Amount(5),
    fee=Amount(1),
    funded_before=Amount(0),
    valid_before=Timestamp(9),
)
PERMIT = sign_permit(
    DOMAIN, Permit(PAYER.address, ESCROW, Uint256(5), Uint256(0), Uint256(9)), PAYER
)
WHO = WORKER.address
REGISTRATION = Registration(WHO, WHO, WHO, Amount(5), "https://a:1", Uint64(0), Timestamp(9))
ORDER = WithdrawPooled(
    PAYER.address, TOKEN, Amount(5), WORKER.address, Amount(1), Uint64(0), Timestamp(9)
)
CONTRACT_SIGNATURE = PayerSignature(bytes(range(130)))

GOLDEN = [
    ("settle", calls.settle(MARKET, [CLAIM])),
    ("settlePacked", settle_packed(MARKET, [CLAIM])),
    ("fund", calls.fund(MARKET, CHANNEL, Amount(5))),
    ("openWithAuthorization", calls.open_with_authorization(MARKET, CHANNEL, OPENING)),
    ("close", calls.close(MARKET, CLAIM)),
    ("requestWithdrawal", calls.request_withdrawal(MARKET, CHANNEL, EVERYTHING, Uint64(0))),
    ("cancelWithdrawal", calls.cancel_withdrawal(MARKET, CHANNEL, Uint64(0))),
    ("withdraw", calls.withdraw(MARKET, CHANNEL)),
    ("deposit", calls.deposit(MARKET, TOKEN, Amount(5), PAYER.address)),
    ("depositWithAuthorization", calls.deposit_with_authorization(MARKET, DEPOSIT)),
    ("depositWithPermit", calls.deposit_with_permit(MARKET, PERMIT)),
    ("withdrawBalance", calls.withdraw_balance(MARKET, TOKEN, Amount(5), PAYER.address)),
    ("withdrawBalanceFor", calls.withdraw_balance_for(MARKET, ORDER, CONTRACT_SIGNATURE)),
    ("pushPayout", calls.push_payout(MARKET, TOKEN, WORKER.address)),
    ("register", calls.register(MARKET, REGISTRATION)),
    ("registerWithPermit", calls.register_with_permit(MARKET, REGISTRATION, PERMIT)),
    ("addStake", calls.add_stake(MARKET, WORKER.address, Amount(5))),
    ("setPayout", calls.set_payout(MARKET, WORKER.address, PAYER.address)),
    ("offerOwner", calls.offer_owner(MARKET, WORKER.address, PAYER.address)),
    ("acceptOwner", calls.accept_owner(MARKET, WORKER.address)),
    ("setEndpoint", calls.set_endpoint(MARKET, WORKER.address, "https://b:2")),
    ("authorizeSessionKey", calls.authorize_session_key(MARKET, PAYER.address, Timestamp(9))),
    ("revokeSessionKey", calls.revoke_session_key(MARKET, WORKER.address, PAYER.address)),
    ("requestUnbond", calls.request_unbond(MARKET, WORKER.address)),
    ("cancelUnbond", calls.cancel_unbond(MARKET, WORKER.address)),
    ("withdrawStake", calls.withdraw_stake(MARKET, WORKER.address)),
    ("approve", calls.approve(TOKEN, ESCROW, Amount(5))),
    ("transfer", calls.transfer(TOKEN, ESCROW, Amount(5))),
    ("mint", calls.mint(TOKEN, ESCROW, Amount(5))),
]
SELECTORS = {
    "settle": "f1703773",
    "settlePacked": "aa9a3a98",
    "fund": "10c9fb6f",
    "openWithAuthorization": "0d6c48c3",
    "close": "136b6356",
    "requestWithdrawal": "b7fa488c",
    "cancelWithdrawal": "5e16bc26",
    "withdraw": "eac2996d",
    "deposit": "f45346dc",
    "depositWithAuthorization": "438d4835",
    "depositWithPermit": "26a3fb30",
    "withdrawBalance": "22330510",
    "withdrawBalanceFor": "1885a8b3",
    "pushPayout": "27772327",
    "register": "1c64caa4",
    "registerWithPermit": "72000fca",
    "addStake": "018f7e10",
    "setPayout": "c2fb1ceb",
    "offerOwner": "117127cd",
    "acceptOwner": "10df76b8",
    "setEndpoint": "4229217a",
    "authorizeSessionKey": "31f048ce",
    "revokeSessionKey": "1f091782",
    "requestUnbond": "dc9ac796",
    "cancelUnbond": "6920a5a6",
    "withdrawStake": "c23a5cea",
    "approve": "095ea7b3",
    "transfer": "a9059cbb",
    "mint": "40c10f19",
}


@pytest.mark.parametrize(("name", "call"), GOLDEN, ids=[name for name, _ in GOLDEN])
def test_a_call_has_the_selector_that_the_compiler_printed(name: str, call: Call) -> None:
    assert call.data[:4].hex() == SELECTORS[name]
    assert call.what == name
    assert call.to in (ESCROW, REGISTRY, TOKEN)
    assert call.value == 0


@pytest.mark.parametrize(("name", "call"), GOLDEN, ids=[name for name, _ in GOLDEN])
def test_a_call_decodes_to_the_same_arguments_in_web3(name: str, call: Call) -> None:
    contract = {ESCROW: "Escrow", REGISTRY: "WorkerRegistry", TOKEN: "TestToken"}[call.to or TOKEN]
    encoder = Web3().eth.contract(abi=list(load_artifact(contract).abi))
    function, arguments = encoder.decode_function_input(call.data)
    assert function.fn_name == name
    assert bytes.fromhex(encoder.encode_abi(name, kwargs=arguments)[2:]) == call.data


def test_a_settlement_holds_one_claim_to_the_limit() -> None:
    for count in (0, MAX_CLAIMS_PER_SETTLE + 1):
        with pytest.raises(InvariantBroken):
            calls.settle(MARKET, [CLAIM] * count)
    assert calls.settle(MARKET, [CLAIM] * MAX_CLAIMS_PER_SETTLE).gas_hint < 15_000_000


def test_a_creation_is_the_committed_bytecode_with_its_arguments() -> None:
    call = calls.create("WorkerRegistry", TOKEN, 7, 8)
    assert call.to is None
    assert call.data.startswith(load_artifact("WorkerRegistry").bytecode)
    assert len(call.data) == len(load_artifact("WorkerRegistry").bytecode) + 96


def test_the_functions_that_share_a_name_are_told_apart_by_their_arguments() -> None:
    token = interface("TestToken").functions
    assert "permit" not in token
    assert "permit(address,address,uint256,uint256,bytes)" in token
    for contract in ("Escrow", "WorkerRegistry", "TestToken"):
        entries = [e for e in load_artifact(contract).abi if e["type"] == "function"]
        assert len(entries) == len(interface(contract).functions)
        selectors = {f.selector for f in interface(contract).functions.values()}
        assert len(selectors) == len(entries)


@pytest.mark.parametrize("length", [65, 130])
def test_both_kinds_of_funding_become_the_call_that_submits_them(length: int) -> None:
    signature = PayerSignature(bytes(length))
    terms = FundChannel(CHANNEL, Amount(7), Amount(2), Timestamp(9))
    by_pool = calls.submit_funding(MARKET, CHANNEL, FundingAuthorization(terms, signature))
    assert by_pool == calls.fund(
        MARKET, CHANNEL, Amount(7), fee=Amount(2), deadline=Timestamp(9), signature=signature
    )
    opening = replace(OPENING, signature=signature)
    by_token = calls.submit_funding(MARKET, CHANNEL, opening)
    assert by_token == calls.open_with_authorization(MARKET, CHANNEL, opening)


STRUCTS = {
    "Challenge": disputes.Challenge,
    "Channel": Channel,
    "Job": Job,
    "JobOfChannel": Subject,
    "OpenedLeaf": OpenedLeaf,
    "Parameters": Parameters,
    "Pin": PinEvidence,
    "Receipt": Receipt,
    "Registration": Registration,
    "SignedReceipt": ReceiptEvidence,
    "TraceProof": TraceEvidence,
    "WithdrawPooled": WithdrawPooled,
}


def structs_in(entries: Iterable[Any]) -> Iterator[tuple[str, list[str]]]:
    for entry in entries:
        if "components" in entry:
            kind = entry["internalType"].removeprefix("struct ").removesuffix("[]")
            yield kind, [member["name"] for member in entry["components"]]
            yield from structs_in(entry["components"])


def test_a_class_that_is_passed_as_a_struct_has_the_members_of_the_struct_in_their_order() -> None:
    found: dict[str, list[str]] = {}
    for contract in CONTRACTS:
        for entry in load_artifact(contract).abi:
            found |= dict(structs_in(entry.get("inputs", [])))
    named = {
        kind: [
            "".join(part.title() if i else part for i, part in enumerate(f.name.split("_")))
            for f in fields(cls)
        ]
        for kind, cls in STRUCTS.items()
    }
    assert named == {kind: found[kind] for kind in STRUCTS}


def test_a_call_counts_twice_if_nothing_refuses_its_repetition() -> None:
    me, sum_ = WORKER.address, Amount(5)
    again = [
        calls.deposit(MARKET, TOKEN, sum_, me),
        calls.withdraw_balance(MARKET, TOKEN, sum_, me),
        calls.add_stake(MARKET, me, sum_),
        calls.transfer(TOKEN, me, sum_),
        calls.mint(TOKEN, me, sum_),
        calls.send_native(me, 5),
    ]
    once = [
        calls.approve(TOKEN, ESCROW, sum_),
        calls.fund(MARKET, CHANNEL, sum_),
        calls.request_withdrawal(MARKET, CHANNEL, sum_, Uint64(0)),
        calls.withdraw(MARKET, CHANNEL),
        calls.push_payout(MARKET, TOKEN, me),
        calls.set_payout(MARKET, me, me),
    ]
    assert all(call.counts_twice for call in again)
    assert not any(call.counts_twice for call in once)
