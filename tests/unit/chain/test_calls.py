"""Call data against selectors that the Solidity compiler printed, and against web3's own
encoder."""

from __future__ import annotations

import pytest
from web3 import Web3

from piecework.chain import calls
from piecework.chain.abi import interface
from piecework.chain.artifacts import load_artifact
from piecework.chain.authorizations import (
    Permit,
    ReceiveWithAuthorization,
    Registration,
    sign_authorization,
    sign_permit,
)
from piecework.chain.calls import Call, Claim
from piecework.chain.deployment import Deployment
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import InvariantBroken
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.signing import sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    Seconds,
    Timestamp,
    Uint64,
    Uint256,
)
from tests.support.chains import signer

PAYER, WORKER = signer("payer"), signer("worker")
TOKEN = Address(bytes([3]) * 20)
HASH = Bytes32(bytes(32))
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
AUTHORIZATION = sign_authorization(
    DOMAIN,
    ReceiveWithAuthorization(PAYER.address, ESCROW, Uint256(5), Uint256(0), Uint256(9), HASH),
    PAYER,
)
PERMIT = sign_permit(
    DOMAIN, Permit(PAYER.address, ESCROW, Uint256(5), Uint256(0), Uint256(9)), PAYER
)
REGISTRATION = Registration(
    WORKER.address, WORKER.address, WORKER.address, Amount(5), "https://a:1", Timestamp(9)
)

GOLDEN = [
    ("settle", calls.settle(MARKET, [CLAIM])),
    ("fund", calls.fund(MARKET, CHANNEL, Amount(5))),
    ("close", calls.close(MARKET, CLAIM)),
    ("requestWithdrawal", calls.request_withdrawal(MARKET, CHANNEL)),
    ("withdraw", calls.withdraw(MARKET, CHANNEL)),
    ("deposit", calls.deposit(MARKET, TOKEN, Amount(5), PAYER.address)),
    ("depositWithAuthorization", calls.deposit_with_authorization(MARKET, AUTHORIZATION)),
    ("depositWithPermit", calls.deposit_with_permit(MARKET, PERMIT)),
    ("withdrawBalance", calls.withdraw_balance(MARKET, TOKEN, Amount(5), PAYER.address)),
    ("register", calls.register(MARKET, REGISTRATION)),
    ("registerWithPermit", calls.register_with_permit(MARKET, REGISTRATION, PERMIT)),
    ("addStake", calls.add_stake(MARKET, WORKER.address, Amount(5))),
    ("setPayout", calls.set_payout(MARKET, WORKER.address, PAYER.address)),
    ("setOwner", calls.set_owner(MARKET, WORKER.address, PAYER.address)),
    ("setEndpoint", calls.set_endpoint(MARKET, WORKER.address, "https://b:2")),
    ("authorizeSessionKey", calls.authorize_session_key(MARKET, PAYER.address, Timestamp(9))),
    ("revokeSessionKey", calls.revoke_session_key(MARKET, PAYER.address)),
    ("requestUnbond", calls.request_unbond(MARKET, WORKER.address)),
    ("cancelUnbond", calls.cancel_unbond(MARKET, WORKER.address)),
    ("withdrawStake", calls.withdraw_stake(MARKET, WORKER.address)),
    ("approve", calls.approve(TOKEN, ESCROW, Amount(5))),
    ("transfer", calls.transfer(TOKEN, ESCROW, Amount(5))),
    ("mint", calls.mint(TOKEN, ESCROW, Amount(5))),
]
SELECTORS = {
    "settle": "f1703773",
    "fund": "352dfec9",
    "close": "6d0db334",
    "requestWithdrawal": "20e0b3eb",
    "withdraw": "eac2996d",
    "deposit": "f45346dc",
    "depositWithAuthorization": "8a94d4fc",
    "depositWithPermit": "8ef59739",
    "withdrawBalance": "22330510",
    "register": "f062748e",
    "registerWithPermit": "a4d3ea23",
    "addStake": "018f7e10",
    "setPayout": "c2fb1ceb",
    "setOwner": "299a7bcc",
    "setEndpoint": "4229217a",
    "authorizeSessionKey": "31f048ce",
    "revokeSessionKey": "84f4fc6a",
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


def test_every_function_of_the_interfaces_is_found_by_one_name() -> None:
    """Overloads would overwrite each other in the table."""
    for contract in ("Escrow", "WorkerRegistry", "TestToken"):
        names = [e["name"] for e in load_artifact(contract).abi if e["type"] == "function"]
        assert len(names) == len(set(names)) == len(interface(contract).functions)
