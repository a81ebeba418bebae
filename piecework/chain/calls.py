"""What to send to the contracts, as data. Pure: nothing here touches the network.

Every function returns a `Call`; `TransactionSender.prepare` signs it. `gas_hint` is a generous
upper estimate (measured with the test token plus what a proxied stablecoin costs more): it lets a
worker weigh a settlement before asking the chain, and it is a floor under the gas limit, because an
estimate taken before an earlier transaction is mined may see a cheaper path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piecework.chain.abi import interface
from piecework.chain.addresses import FACTORY, SALT
from piecework.chain.authorizations import Registration, SignedAuthorization, SignedPermit
from piecework.chain.deployment import Deployment
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework_protocol.errors import invariant
from piecework_protocol.objects import Channel, Voucher
from piecework_protocol.types import Address, Amount, Signature, Timestamp

NO_SIGNATURE = Signature(b"")
NO_DEADLINE = Timestamp(2**64 - 1)
"""For calls by the payer itself, which need no signature and so no deadline."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a contract, or its creation when `to` is None. `what` names it in messages and
    logs."""

    what: str
    to: Address | None
    data: bytes
    gas_hint: int
    value: int = 0


@dataclass(frozen=True, slots=True)
class Claim:
    """A voucher with the channel that it draws on and the authorizer's signature: what a worker
    settles."""

    channel: Channel
    voucher: Voucher
    signature: Signature

    def as_tuple(self) -> tuple[Any, ...]:
        """The Solidity struct Claim."""
        v = self.voucher
        return (channel_tuple(self.channel), v.cumulative, v.count, v.receipts_root, self.signature)


def channel_tuple(channel: Channel) -> tuple[Any, ...]:
    """The Solidity struct Channel."""
    return (
        channel.payer,
        channel.authorizer,
        channel.receiver,
        channel.operator,
        channel.token,
        channel.withdrawal_delay,
        channel.salt,
    )


# --- channels


def settle(deployment: Deployment, claims: Sequence[Claim]) -> Call:
    """Claim 1 to MAX_CLAIMS_PER_SETTLE vouchers in one transaction; those of one receiver side by
    side."""
    invariant(
        0 < len(claims) <= MAX_CLAIMS_PER_SETTLE, f"{len(claims)} claims do not fit one transaction"
    )
    gas = 80_000 + 35_000 * len(claims)
    return _escrow(deployment, "settle", gas, [claim.as_tuple() for claim in claims])


def fund(
    deployment: Deployment,
    channel: Channel,
    deposit: Amount,
    deadline: Timestamp = NO_DEADLINE,
    signature: Signature = NO_SIGNATURE,
) -> Call:
    """Open or top up a channel to the total `deposit`; by the payer or with its FundChannel
    signature."""
    return _escrow(
        deployment, "fund", 120_000, channel_tuple(channel), deposit, deadline, signature
    )


def close(
    deployment: Deployment, claim: Claim, operator_signature: Signature = NO_SIGNATURE
) -> Call:
    """Settle the last voucher and close; by receiver, operator, or with its CloseChannel
    signature."""
    return _escrow(deployment, "close", 180_000, claim.as_tuple(), operator_signature)


def request_withdrawal(
    deployment: Deployment,
    channel: Channel,
    deadline: Timestamp = NO_DEADLINE,
    signature: Signature = NO_SIGNATURE,
) -> Call:
    """Start the withdrawal delay; by the payer, or by anybody with its RequestWithdrawal
    signature."""
    return _escrow(
        deployment, "requestWithdrawal", 90_000, channel_tuple(channel), deadline, signature
    )


def withdraw(deployment: Deployment, channel: Channel) -> Call:
    """After the delay: close the channel, the rest goes to the payer's pooled balance."""
    return _escrow(deployment, "withdraw", 110_000, channel_tuple(channel))


# --- pooled balance


def deposit(deployment: Deployment, token: Address, amount: Amount, beneficiary: Address) -> Call:
    """Move the sender's tokens into a pooled balance; needs `approve` for the escrow before."""
    return _escrow(deployment, "deposit", 160_000, token, amount, beneficiary)


def approve_and_deposit(
    deployment: Deployment, token: Address, amount: Amount, beneficiary: Address
) -> tuple[Call, Call]:
    """The two calls of a plain deposit, to be executed in this order."""
    return approve(token, deployment.escrow, amount), deposit(
        deployment, token, amount, beneficiary
    )


def deposit_with_authorization(deployment: Deployment, signed: SignedAuthorization) -> Call:
    """Deposit for the owner by its EIP-3009 authorization; anybody may send it."""
    a = signed.authorization
    times = (a.valid_after, a.valid_before, a.nonce)
    v, r, s = _vrs(signed.signature)
    what = "depositWithAuthorization"
    return _escrow(deployment, what, 200_000, signed.token, a.from_, a.value, *times, v, r, s)


def deposit_with_permit(deployment: Deployment, signed: SignedPermit) -> Call:
    """Deposit for the owner by its EIP-2612 permit; anybody may send it."""
    p = signed.permit
    v, r, s = _vrs(signed.signature)
    return _escrow(
        deployment,
        "depositWithPermit",
        220_000,
        signed.token,
        p.owner,
        p.value,
        p.deadline,
        v,
        r,
        s,
    )


def withdraw_balance(deployment: Deployment, token: Address, amount: Amount, to: Address) -> Call:
    """Send the sender's pooled tokens to `to`, at once."""
    return _escrow(deployment, "withdrawBalance", 120_000, token, amount, to)


# --- registry


def register(
    deployment: Deployment, registration: Registration, operator_signature: Signature = NO_SIGNATURE
) -> Call:
    """Register a worker with the sender's stake; needs `approve` for the registry before."""
    return _registry(
        deployment, "register", 500_000, _registration(registration), operator_signature
    )


def register_with_permit(
    deployment: Deployment,
    registration: Registration,
    permit: SignedPermit,
    operator_signature: Signature = NO_SIGNATURE,
) -> Call:
    """Permit, stake and registration in one transaction; the permit is the sender's over the
    stake."""
    v, r, s = _vrs(permit.signature)
    terms = (permit.permit.deadline, v, r, s)
    what = "registerWithPermit"
    return _registry(
        deployment, what, 560_000, _registration(registration), operator_signature, terms
    )


def add_stake(deployment: Deployment, operator: Address, amount: Amount) -> Call:
    """Add the sender's tokens to a worker's stake; needs `approve` for the registry before."""
    return _registry(deployment, "addStake", 120_000, operator, amount)


def set_payout(deployment: Deployment, operator: Address, payout: Address) -> Call:
    """By the owner: where the worker wants its earnings from now on."""
    return _registry(deployment, "setPayout", 60_000, operator, payout)


def set_owner(deployment: Deployment, operator: Address, owner: Address) -> Call:
    """By the owner: who controls the stake from now on."""
    return _registry(deployment, "setOwner", 60_000, operator, owner)


def set_endpoint(deployment: Deployment, operator: Address, endpoint: str) -> Call:
    """By the owner or the operator: where the worker listens."""
    return _registry(deployment, "setEndpoint", 300_000, operator, endpoint)


def authorize_session_key(deployment: Deployment, key: Address, valid_until: Timestamp) -> Call:
    """By the operator: `key` may sign for it up to block time `valid_until`."""
    return _registry(deployment, "authorizeSessionKey", 80_000, key, valid_until)


def revoke_session_key(deployment: Deployment, key: Address) -> Call:
    """By the operator."""
    return _registry(deployment, "revokeSessionKey", 60_000, key)


def request_unbond(deployment: Deployment, operator: Address) -> Call:
    """By the owner: leave; the stake is free after the unbonding delay."""
    return _registry(deployment, "requestUnbond", 80_000, operator)


def cancel_unbond(deployment: Deployment, operator: Address) -> Call:
    """By the owner: stay after all."""
    return _registry(deployment, "cancelUnbond", 60_000, operator)


def withdraw_stake(deployment: Deployment, operator: Address) -> Call:
    """By the owner, after the delay: the stake goes to the owner and the registration ends."""
    return _registry(deployment, "withdrawStake", 200_000, operator)


# --- token and native coin


def approve(token: Address, spender: Address, amount: Amount) -> Call:
    """Let `spender` take up to `amount` of the sender's tokens."""
    return _token(token, "approve", 80_000, spender, amount)


def transfer(token: Address, to: Address, amount: Amount) -> Call:
    """Send tokens."""
    return _token(token, "transfer", 100_000, to, amount)


def mint(token: Address, to: Address, amount: Amount) -> Call:
    """Make test tokens; only the TestToken has this."""
    return _token(token, "mint", 100_000, to, amount)


def send_native(to: Address, wei: int) -> Call:
    """Send the chain's own coin. 21,000 is the protocol's price of a plain transfer."""
    return Call("send", to, b"", 21_000, wei)


# --- creation


def create(contract: str, *arguments: Any) -> Call:
    """Create a committed contract: 200 gas a byte of code, 16 a byte of data, and what it
    stores."""
    data = interface(contract).encode_constructor(arguments)
    return Call(f"create {contract}", None, data, 400_000 + 240 * len(data))


def create_by_factory(contract: str, init_code: bytes) -> Call:
    """Create a contract at the address that its init code gives (`chain.addresses`)."""
    gas = 450_000 + 240 * len(init_code)
    return Call(f"create {contract}", FACTORY, SALT + init_code, gas)


def _escrow(deployment: Deployment, what: str, gas: int, *arguments: Any) -> Call:
    return Call(what, deployment.escrow, interface("Escrow").encode(what, arguments), gas)


def _registry(deployment: Deployment, what: str, gas: int, *arguments: Any) -> Call:
    return Call(what, deployment.registry, interface("WorkerRegistry").encode(what, arguments), gas)


def _token(token: Address, what: str, gas: int, *arguments: Any) -> Call:
    return Call(what, token, interface("TestToken").encode(what, arguments), gas)


def _registration(r: Registration) -> tuple[Any, ...]:
    return (r.operator, r.owner, r.payout, r.stake, r.endpoint, r.deadline)


def _vrs(signature: Signature) -> tuple[int, bytes, bytes]:
    invariant(len(signature) == 65, "a signature is 65 bytes")
    return signature[64], signature[:32], signature[32:64]
