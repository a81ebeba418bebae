"""What a signer signs: kinds of objects and functions of contracts, of one market. Pure.

Everything that is not named here is refused. What is signed costs signatures, wei and base units of
the market's token, which `piecework.signer.book` counts against the limits of a day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.errors import PieceworkError
from piecework.chain.contracts.abi import decode_values, interface
from piecework.chain.contracts.authorizations import Permit
from piecework.chain.deployment import Deployment
from piecework.chain.errors import BadAnswer
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework_protocol.dialling import DialRequest, dial_domain
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.objects import (
    Acceptance,
    CloseChannel,
    Offer,
    Receipt,
    Registration,
    registry_domain,
)
from piecework_protocol.relaying import RelayAdmission, relay_domain
from piecework_protocol.types import Address, address_hex

KIND: Final = "kind"
DOMAIN: Final = "domain"
OPERATOR: Final = "operator"
ADDRESS: Final = "address"
CONTRACT: Final = "contract"
FUNCTION: Final = "function"
VALUE: Final = "value"
CHAIN: Final = "chain"
LEAVING: Final = "leaving"
PAYER: Final = "payer"
MALFORMED: Final = "malformed"
SIGNATURES: Final = "daily-signatures"
GAS: Final = "daily-gas"
TOKENS: Final = "daily-tokens"
CONTRADICTS: Final = "contradicts"
OFFER_OLD: Final = "offer-old"
LIMITS: Final = (SIGNATURES, GAS, TOKENS)
"""Refusals that end with the day."""
SIGNATURE_ROOM: Final = 1 + 33 + 33
"""Bytes that the members of a signature add to a transaction at most."""
KINDS: Final[Mapping[str, type[TypedData]]] = {
    cls.__name__: cls
    for cls in (
        Offer,
        Acceptance,
        Receipt,
        CloseChannel,
        Registration,
        Permit,
        RelayAdmission,
        DialRequest,
    )
}
"""Typed objects that an operator signs."""


class NotSigned(PieceworkError):
    """The signer does not sign this. `refusal` is the stable name of the reason."""

    def __init__(self, refusal: str, why: str) -> None:
        super().__init__(why)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Pins:
    """What a signer is for: one operator of one market.

    payouts: addresses that earnings may go to, and that the stake may belong to.
    coins_to: addresses that native coins may be sent to.
    leaving: whether the stake may be asked back.
    data_wei: that a byte of a transaction costs on top of its gas, on a rollup.
    """

    operator: Address
    deployment: Deployment
    payouts: frozenset[Address]
    coins_to: frozenset[Address] = frozenset()
    leaving: bool = False
    data_wei: int = 0

    def require_address(self, what: str, address: Address) -> None:
        """Refuse an address that the settings do not name."""
        if address not in self.payouts:
            named = address_hex(address)
            raise NotSigned(ADDRESS, f"{what} {named} is not among payouts of signer.toml")

    def require_operator(self, address: Address) -> None:
        """Refuse what speaks of another operator."""
        if address != self.operator:
            raise NotSigned(OPERATOR, f"it is about {address_hex(address)}, not about this key")


@dataclass(frozen=True, slots=True)
class Use:
    """What one signature uses up. wei: of gas and value at most. tokens: base units of stake."""

    what: str
    wei: int = 0
    tokens: int = 0


def judge_typed(pins: Pins, domain: Domain, message: TypedData) -> Use:
    """Decide about a typed object.

    Raises:
        NotSigned: it is of another kind, market, operator or payout address.
    """
    what = type(message).__name__
    if isinstance(message, Permit):
        return _judge_permit(pins, domain, message)
    if domain != _domain_of(pins.deployment, message):
        raise NotSigned(DOMAIN, f"{what} is for another chain or contract than this market's")
    if isinstance(message, Offer):
        pins.require_operator(message.operator)
        pins.require_address("the receiver", message.receiver)
    elif isinstance(message, Registration):
        pins.require_operator(message.operator)
        pins.require_address("the payout", message.payout)
        if message.owner != pins.operator:
            pins.require_address("the owner", message.owner)
    elif isinstance(message, DialRequest):
        pins.require_operator(message.operator)
    return Use(what)


def _domain_of(deployment: Deployment, message: TypedData) -> Domain:
    """The one domain under which an operator signs such an object."""
    if isinstance(message, Registration):
        return registry_domain(deployment.chain_id, deployment.registry)
    if isinstance(message, RelayAdmission):
        return relay_domain(deployment.chain_id, deployment.registry)
    if isinstance(message, DialRequest):
        return dial_domain(deployment.domain)
    if type(message) in KINDS.values():
        return deployment.domain
    raise NotSigned(KIND, f"objects of kind {type(message).__name__} are not signed")


def _judge_permit(pins: Pins, domain: Domain, permit: Permit) -> Use:
    """An allowance for the registry alone. Each token has a name of its own in its domain."""
    deployment = pins.deployment
    if (domain.chain_id, domain.verifying_contract) != (deployment.chain_id, deployment.token):
        raise NotSigned(DOMAIN, "the permit is for another token than this market's")
    pins.require_operator(permit.owner)
    if permit.spender != deployment.registry:
        raise NotSigned(CONTRACT, "the permit is for another spender than the registry")
    return Use("Permit", tokens=permit.value)


def judge_transaction(pins: Pins, tx: UnsignedTransaction) -> Use:
    """Decide about a transaction.

    Raises:
        NotSigned: its chain, contract, function or an argument is not allowed.
    """
    if tx.chain_id != pins.deployment.chain_id:
        raise NotSigned(CHAIN, f"the transaction is for chain {tx.chain_id}")
    if tx.to is None:
        raise NotSigned(CONTRACT, "contracts are not created")
    size = len(tx.payload()) + SIGNATURE_ROOM
    wei = tx.gas_limit * tx.fees.max_fee + tx.value + size * pins.data_wei
    if not tx.data:
        if tx.to not in pins.coins_to and (tx.to != pins.operator or tx.value):
            named = address_hex(tx.to)
            raise NotSigned(ADDRESS, f"{named} is not among coins_to of signer.toml")
        return Use("send", wei)
    if tx.value:
        raise NotSigned(VALUE, "no call of an operator carries native coins")
    name, judge, values = _function(pins, tx)
    return Use(name, wei, 0 if judge is None else judge(pins, *values))


Judge = Callable[..., int]
"""Takes the pins and a call's arguments. Returns base units of stake, or raises `NotSigned`."""


def _function(pins: Pins, tx: UnsignedTransaction) -> tuple[str, Judge | None, tuple[Any, ...]]:
    """Find the function that a transaction calls, and its arguments if they matter."""
    contract = _contract(pins.deployment, tx.to)
    for name, judge in _FUNCTIONS.get(contract, {}).items():
        function = interface(contract).functions[name]
        if function.selector == tx.data[:4]:
            if judge is None:
                return name, None, ()
            try:
                return name, judge, decode_values(function.inputs, tx.data[4:], name)
            except BadAnswer as error:
                raise NotSigned(MALFORMED, f"the call of {name} does not decode") from error
    where = contract or "an unknown contract"
    raise NotSigned(FUNCTION if contract else CONTRACT, f"that call of {where} is not signed")


def _contract(deployment: Deployment, to: Address | None) -> str:
    named = {
        deployment.escrow: "Escrow",
        deployment.registry: "WorkerRegistry",
        deployment.disputes_contract: "Disputes",
    }
    return "" if to is None else named.get(to, "")


def _judge_registration(pins: Pins, terms: tuple[Any, ...], *_: Any) -> int:
    operator, owner, payout, *_rest = terms
    pins.require_operator(operator)
    pins.require_address("the payout", payout)
    if owner != pins.operator:
        pins.require_address("the owner", owner)
    return 0  # the permit is counted, which is what moves the stake


def _judge_operator(pins: Pins, operator: Address, *_: Any) -> int:
    pins.require_operator(operator)
    return 0


def _judge_payout(pins: Pins, operator: Address, payout: Address) -> int:
    pins.require_operator(operator)
    pins.require_address("the payout", payout)
    return 0


def _judge_funding(pins: Pins, channel: tuple[Any, ...], *_: Any) -> int:
    payer, *_rest = channel
    if payer == pins.operator:  # by its transaction alone, to whomever the channel names
        raise NotSigned(PAYER, "an operator funds no channel out of its own pool")
    return 0


def _judge_push(pins: Pins, token: Address, receiver: Address) -> int:
    pins.require_address("the receiver", receiver)
    return 0


def _judge_leaving(pins: Pins, operator: Address) -> int:
    pins.require_operator(operator)
    if not pins.leaving:
        raise NotSigned(LEAVING, "leaving is false in signer.toml, so the stake stays")
    return int(pins.deployment.min_stake)


_FUNCTIONS: Final[Mapping[str, Mapping[str, Judge | None]]] = {
    # Whom these pay is in what the payer has signed. A payer that sends its own transaction to fund
    # signs nothing.
    "Escrow": {
        "settle": None,
        "settlePacked": None,
        "fund": _judge_funding,
        "openWithAuthorization": _judge_funding,
        "close": None,
        "pushPayout": _judge_push,
    },
    "WorkerRegistry": {
        "registerWithPermit": _judge_registration,
        "setEndpoint": _judge_operator,
        "setPayout": _judge_payout,
        "requestUnbond": _judge_leaving,
        "withdrawStake": _judge_leaving,
        "cancelUnbond": _judge_operator,
    },
    "Disputes": {"answer": None, "pushCredits": _judge_operator},
}
"""Functions that an operator calls. A session key is not among them: it would sign offers without
this signer."""
