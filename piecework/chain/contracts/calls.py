"""What to send to the contracts, as data. Pure: nothing here touches the network.

Every function returns a `Call`; `TransactionSender.prepare` signs it. `gas_hint` is a generous
upper estimate (measured with the test token plus what a proxied stablecoin costs more): it lets a
worker weigh a settlement before asking the chain, and it is a floor under the gas limit, because an
estimate taken before an earlier transaction is mined may see a cheaper path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.addresses import FACTORY, SALT
from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.authorizations import SignedDeposit, SignedPermit
from piecework.chain.deployment import Deployment
from piecework.chain.limits import MAX_CLAIMS_PER_SETTLE
from piecework_protocol.errors import invariant
from piecework_protocol.frames import Funding, OpeningAuthorization
from piecework_protocol.objects import Channel, Registration, Voucher, WithdrawPooled
from piecework_protocol.types import Address, Amount, PayerSignature, Signature, Timestamp, Uint64

NO_SIGNATURE = Signature(b"")
BY_PAYER = PayerSignature(b"")
"""For calls by the payer itself."""
NO_FEE = Amount(0)
NO_DEADLINE = Timestamp(2**64 - 1)
"""For calls by the payer itself, which need no signature and so no deadline."""
_COUNT_TWICE: Final = frozenset(
    {"addStake", "deposit", "mint", "send", "transfer", "withdrawBalance"}
)
"""Calls that move a sum, and have no number or signature that can be used only once."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a contract, or its creation when `to` is None. `what` names it in messages and
    logs."""

    what: str
    to: Address | None
    data: bytes
    gas_hint: int
    value: int = 0

    @property
    def counts_twice(self) -> bool:
        """Whether its effect is twice as much when it is carried out twice.

        Other calls change nothing the second time, or the contract refuses them.
        """
        return self.what in _COUNT_TWICE


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
        return (self.channel, v.cumulative, v.count, v.receipts_root, self.signature)


# --- channels


def settle(deployment: Deployment, claims: Sequence[Claim]) -> Call:
    """Claim 1 to MAX_CLAIMS_PER_SETTLE vouchers in one transaction; those of one receiver side by
    side. `chain.packing` has the cheaper form."""
    invariant(
        0 < len(claims) <= MAX_CLAIMS_PER_SETTLE, f"{len(claims)} claims do not fit one transaction"
    )
    gas = 80_000 + 35_000 * len(claims)
    return _escrow(deployment, "settle", gas, [claim.as_tuple() for claim in claims])


def fund(
    deployment: Deployment,
    channel: Channel,
    funded: Amount,
    *,
    fee: Amount = NO_FEE,
    deadline: Timestamp = NO_DEADLINE,
    signature: PayerSignature = BY_PAYER,
) -> Call:
    """Open or top up a channel to the total `funded` out of the payer's pool; by the payer or with
    its FundChannel signature. `fee` goes from the pool to the receiver."""
    members = (channel, funded, fee, deadline, signature)
    return _escrow(deployment, "fund", 150_000 + _checking(signature), *members)


def open_with_authorization(
    deployment: Deployment, channel: Channel, opening: OpeningAuthorization
) -> Call:
    """Open or top up a channel out of the payer's own tokens, by its EIP-3009 signature; anybody
    may send it."""
    o = opening
    members = (channel, o.amount, o.fee, o.valid_after, o.valid_before, o.signature)
    return _escrow(deployment, "openWithAuthorization", 220_000 + _checking(o.signature), *members)


def submit_funding(deployment: Deployment, channel: Channel, funding: Funding) -> Call:
    """What a worker sends for the funding that came with a job."""
    if isinstance(funding, OpeningAuthorization):
        return open_with_authorization(deployment, channel, funding)
    a = funding.authorization
    signature = funding.signature
    return fund(deployment, channel, a.funded, fee=a.fee, deadline=a.deadline, signature=signature)


def close(
    deployment: Deployment,
    claim: Claim,
    fee: Amount = NO_FEE,
    operator_signature: Signature = NO_SIGNATURE,
) -> Call:
    """Settle the last voucher and close; by receiver, operator, or with the operator's CloseChannel
    signature. With a fee, the claim's signature is the authorizer's over CloseChannel."""
    members = (claim.as_tuple(), fee, operator_signature)
    return _escrow(deployment, "close", 180_000, *members)


def request_withdrawal(
    deployment: Deployment,
    channel: Channel,
    amount: Amount,
    nonce: Uint64,
    *,
    deadline: Timestamp = NO_DEADLINE,
    signature: PayerSignature = BY_PAYER,
) -> Call:
    """Start the withdrawal delay; by the payer, or by anybody with its RequestWithdrawal signature.

    `amount` may be `EVERYTHING`, which closes the channel. `nonce` counts the channel's requests.
    """
    members = (channel, amount, nonce, deadline, signature)
    return _escrow(deployment, "requestWithdrawal", 90_000 + _checking(signature), *members)


def cancel_withdrawal(
    deployment: Deployment,
    channel: Channel,
    nonce: Uint64,
    *,
    deadline: Timestamp = NO_DEADLINE,
    signature: PayerSignature = BY_PAYER,
) -> Call:
    """Call the pending request off; by the payer, or with its CancelWithdrawal signature."""
    members = (channel, nonce, deadline, signature)
    return _escrow(deployment, "cancelWithdrawal", 80_000 + _checking(signature), *members)


def withdraw(deployment: Deployment, channel: Channel) -> Call:
    """After the delay, by anybody: what was asked for goes to the payer's pooled balance."""
    return _escrow(deployment, "withdraw", 110_000, channel)


def push_payout(deployment: Deployment, token: Address, receiver: Address) -> Call:
    """Send what waits for a receiver to it, and to nobody else; by anybody."""
    return _escrow(deployment, "pushPayout", 120_000, token, receiver)


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


def deposit_with_authorization(deployment: Deployment, signed: SignedDeposit) -> Call:
    """Deposit for the owner by its EIP-3009 authorization; anybody may send it."""
    d = signed
    times = (d.valid_after, d.valid_before, d.salt)
    gas = 200_000 + _checking(d.signature)
    what = "depositWithAuthorization"
    return _escrow(deployment, what, gas, d.token, d.owner, d.amount, *times, d.signature)


def deposit_with_permit(deployment: Deployment, signed: SignedPermit) -> Call:
    """Deposit for the owner by its EIP-2612 permit; anybody may send it."""
    p = signed.permit
    members = (signed.token, p.owner, p.value, p.deadline, signed.signature)
    gas = 260_000 + _checking(signed.signature)
    return _escrow(deployment, "depositWithPermit", gas, *members)


def withdraw_balance(deployment: Deployment, token: Address, amount: Amount, to: Address) -> Call:
    """Send the sender's pooled tokens to `to`, at once."""
    return _escrow(deployment, "withdrawBalance", 120_000, token, amount, to)


def withdraw_balance_for(
    deployment: Deployment, order: WithdrawPooled, signature: PayerSignature
) -> Call:
    """Carry out an owner's signed order over its pooled balance; the sender gets the fee."""
    gas = 200_000 + _checking(signature)
    return _escrow(deployment, "withdrawBalanceFor", gas, order, signature)


# --- registry


def register(
    deployment: Deployment, registration: Registration, operator_signature: Signature = NO_SIGNATURE
) -> Call:
    """Register a worker with the sender's stake; needs `approve` for the registry before."""
    return _registry(deployment, "register", 550_000, registration, operator_signature)


def register_with_permit(
    deployment: Deployment,
    registration: Registration,
    permit: SignedPermit,
    operator_signature: Signature = NO_SIGNATURE,
) -> Call:
    """Permit, stake and registration in one transaction; the permit is the sender's over the
    stake."""
    signed = (operator_signature, permit.permit.deadline, permit.signature)
    what = "registerWithPermit"
    return _registry(deployment, what, 600_000, registration, *signed)


def add_stake(deployment: Deployment, operator: Address, amount: Amount) -> Call:
    """Add the sender's tokens to a worker's stake; needs `approve` for the registry before."""
    return _registry(deployment, "addStake", 120_000, operator, amount)


def set_payout(deployment: Deployment, operator: Address, payout: Address) -> Call:
    """By the owner: where the worker wants its earnings from now on."""
    return _registry(deployment, "setPayout", 60_000, operator, payout)


def offer_owner(deployment: Deployment, operator: Address, owner: Address) -> Call:
    """By the owner: who may take the stake over by `accept_owner`. The zero address takes the offer
    back."""
    return _registry(deployment, "offerOwner", 80_000, operator, owner)


def accept_owner(deployment: Deployment, operator: Address) -> Call:
    """By the offered owner: it controls the stake from now on."""
    return _registry(deployment, "acceptOwner", 60_000, operator)


def set_endpoint(deployment: Deployment, operator: Address, endpoint: str) -> Call:
    """By the owner or the operator: where the worker listens."""
    return _registry(deployment, "setEndpoint", 300_000, operator, endpoint)


def authorize_session_key(deployment: Deployment, key: Address, valid_until: Timestamp) -> Call:
    """By the operator: `key` may sign for it up to block time `valid_until`."""
    return _registry(deployment, "authorizeSessionKey", 80_000, key, valid_until)


def revoke_session_key(deployment: Deployment, operator: Address, key: Address) -> Call:
    """By the operator or the owner."""
    return _registry(deployment, "revokeSessionKey", 60_000, operator, key)


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


def _checking(signature: PayerSignature) -> int:
    """Gas of a smart account that checks a signature itself: a Safe of a few owners."""
    return 0 if len(signature) in (0, 65) else 120_000
