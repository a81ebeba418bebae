"""Where the contracts are on every chain, computed from their frozen init code. Pure.

The contracts are created by CREATE2 through the canonical factory with salt 0, so an address
follows from the init code alone. Code that is equal after the creation says nothing about storage
that another creation code wrote. An equal address does: only the frozen init code can be there.

Sources: EIP-1014 (CREATE2). The factory is the deterministic deployment proxy at
https://github.com/Arachnid/deterministic-deployment-proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from piecework.chain.artifacts import frozen_init_code
from piecework.chain.errors import WrongChain
from piecework_protocol.types import Address, Amount, Bytes32, Seconds, keccak256, parse_address

FACTORY: Final = parse_address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
FACTORY_CODE: Final = bytes.fromhex(
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
    "e03601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)
"""It takes a salt of 32 bytes and init code as call data, and returns the new address."""
FACTORY_TRANSACTION: Final = bytes.fromhex(
    "f8a58085174876e800830186a08080b853604580600e600039806000f350fe"
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
    "e03601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
    "1ba02222222222222222222222222222222222222222222222222222222222222222"
    "a02222222222222222222222222222222222222222222222222222222222222222"
)
"""The transaction that creates the factory on any chain. It names no chain, and nobody has the key
of its sender: the signature was chosen and the sender follows from it."""
FACTORY_CREATOR: Final = parse_address("0x3fAB184622Dc19b6109349B94811493BF2a45362")
"""The sender of `FACTORY_TRANSACTION`."""
FACTORY_GAS_WEI: Final = 100_000 * 100 * 10**9
"""What its sender must hold: 100,000 gas at 100 gwei."""

SALT: Final = Bytes32(bytes(32))

OTHER_CREATE2: Final[Mapping[int, str]] = MappingProxyType(
    {
        232: "Lens",
        240: "Cronos zkEVM Testnet",
        280: "zkSync Era Goerli",
        300: "zkSync Era Sepolia",
        324: "zkSync Era",
        325: "GRVT",
        388: "Cronos zkEVM",
        2741: "Abstract",
        11124: "Abstract Testnet",
        37111: "Lens Testnet",
        50104: "Sophon",
        61166: "Treasure",
        543210: "ZERO Network",
        978658: "Treasure Topaz",
        4457845: "ZERO Network Sepolia",
        531050104: "Sophon Testnet",
        728126428: "Tron",
        2494104990: "Tron Shasta",
        3448148188: "Tron Nile",
    }
)
"""Chains on which CREATE2 gives other addresses than on Ethereum, so that ours mean nothing."""


def require_create2(chain_id: int) -> None:
    """Refuse a chain whose CREATE2 is not Ethereum's.

    Raises:
        WrongChain: the chain is one of those. The text names it.
    """
    name = OTHER_CREATE2.get(chain_id)
    if name is not None:
        raise WrongChain(
            f"{name} (chain {chain_id}) computes CREATE2 addresses in its own way, so nobody could "
            "check where the contracts are. Piecework does not run there"
        )


def create2_address(init_code: bytes, salt: Bytes32 = SALT, deployer: Address = FACTORY) -> Address:
    """Where a deployer, by default the factory, puts what this init code creates: EIP-1014."""
    return Address(keccak256(b"\xff" + deployer + salt + keccak256(init_code))[12:])


def escrow_init_code() -> bytes:
    """The escrow has no constructor argument: its init code and address are constants."""
    return frozen_init_code("Escrow")


@cache
def registry_init_code(token: Address, min_stake: Amount, unbonding_delay_s: Seconds) -> bytes:
    """A registry's init code ends with its terms, one word each, so that its address has them too.

    `min_stake` is in base units of the token.
    """
    terms = (_word(token), min_stake, unbonding_delay_s)
    return frozen_init_code("WorkerRegistry") + _words(*terms)


@cache
def escrow_address() -> Address:
    """The one escrow of every chain."""
    return create2_address(escrow_init_code())


@cache
def registry_address(token: Address, min_stake: Amount, unbonding_delay_s: Seconds) -> Address:
    """The registry of these terms. `min_stake` is in base units of the token."""
    return create2_address(registry_init_code(token, min_stake, unbonding_delay_s))


@dataclass(frozen=True, slots=True)
class DisputeTerms:
    """What a market's dispute contract was created with, beside the terms of its registry.

    `proving_cost` and `verdict_fee` are in base units of the stake token: what one transaction of a
    proof costs, and what a member gets for a verdict. `min_bond_wei` is the least bond of a
    challenge. `threshold` members of the `committee`, in ascending order, make a verdict.
    """

    proving_cost: Amount
    min_bond_wei: int
    verdict_fee: Amount
    committee: tuple[Address, ...] = ()
    threshold: int = 0


@dataclass(frozen=True, slots=True)
class StakeTerms:
    """What a registry was created with. `min_stake` is in base units of the token."""

    token: Address
    min_stake: Amount
    unbonding_delay_s: Seconds


@cache
def verifier_init_code() -> bytes:
    """The verifier of evidence knows the escrow."""
    return frozen_init_code("EvidenceVerifier") + _words(_word(escrow_address()))


@cache
def verifier_address() -> Address:
    """The one verifier of every chain."""
    return create2_address(verifier_init_code())


@cache
def disputes_init_code(stakes: StakeTerms, terms: DisputeTerms) -> bytes:
    """The init code of a dispute contract ends with its terms, as the ABI encodes that struct."""
    head = (
        _word(verifier_address()),
        _word(stakes.token),
        stakes.min_stake,
        stakes.unbonding_delay_s,
        terms.proving_cost,
        terms.min_bond_wei,
        terms.verdict_fee,
    )
    members = (len(terms.committee), *map(_word, terms.committee))
    offset = 32 * (len(head) + 2)
    words = _words(32, *head, offset, terms.threshold, *members)
    return frozen_init_code("Disputes") + words


@cache
def disputes_address(stakes: StakeTerms, terms: DisputeTerms) -> Address:
    """The dispute contract of these terms."""
    return create2_address(disputes_init_code(stakes, terms))


@cache
def disputed_registry_address(stakes: StakeTerms, terms: DisputeTerms) -> Address:
    """The registry that the dispute contract of these terms deploys, and whose slasher it is."""
    code = registry_init_code(stakes.token, stakes.min_stake, stakes.unbonding_delay_s)
    return create2_address(code, deployer=disputes_address(stakes, terms))


def _word(address: Address) -> int:
    return int.from_bytes(address, "big")


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(32, "big") for value in values)
