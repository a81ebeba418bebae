"""What is at the addresses where the contracts belong."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from piecework.chain.addresses import FACTORY, FACTORY_CODE
from piecework.chain.artifacts import load_artifact
from piecework.chain.deployment import Deployment
from piecework.chain.nodes.rpc import JsonRpc, data_bytes
from piecework_protocol.types import Address, to_hex


class Presence(enum.Enum):
    """What a chain holds at a contract's address."""

    OURS = "ours"
    NOTHING = "nothing"
    OTHER = "other code"


@dataclass(frozen=True, slots=True)
class Place:
    """A contract, by the name that people read, its address and what is there."""

    name: str
    address: Address
    presence: Presence


async def code_at(rpc: JsonRpc, address: Address, block: str = "latest") -> bytes:
    """The code at an address, empty when there is none."""
    return data_bytes(await rpc.call("eth_getCode", to_hex(address), block), "code")


async def presence_of(rpc: JsonRpc, contract: str, address: Address) -> Presence:
    """Compare the code at an address with one of the committed contracts."""
    code = await code_at(rpc, address)
    return _judge(code, load_artifact(contract).matches(code))


async def presence_of_factory(rpc: JsonRpc) -> Presence:
    """Compare the code at the CREATE2 factory's address with the factory's."""
    code = await code_at(rpc, FACTORY)
    return _judge(code, code == FACTORY_CODE)


async def places(rpc: JsonRpc, deployment: Deployment) -> tuple[Place, ...]:
    """The factory and the contracts of a market, and what is there."""
    found = [Place("factory", FACTORY, await presence_of_factory(rpc))]
    for contract, address in contracts_of(deployment).items():
        found.append(Place(_NAMES[contract], address, await presence_of(rpc, contract, address)))
    return tuple(found)


_NAMES = {
    "Escrow": "escrow",
    "WorkerRegistry": "registry",
    "EvidenceVerifier": "verifier",
    "Disputes": "disputes",
}


def contracts_of(deployment: Deployment) -> dict[str, Address]:
    """The contracts of a market by their Solidity names."""
    contracts = {"Escrow": deployment.escrow, "WorkerRegistry": deployment.registry}
    disputes = deployment.disputes_contract
    if disputes is not None:
        contracts |= {"EvidenceVerifier": deployment.verifier, "Disputes": disputes}
    return contracts


def _judge(code: bytes, ours: bool) -> Presence:
    if not code:
        return Presence.NOTHING
    return Presence.OURS if ours else Presence.OTHER
