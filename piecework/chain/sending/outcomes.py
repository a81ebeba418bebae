"""What became of a signed transaction, as far as the chain says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from piecework.chain.contracts.events import Log
from piecework.chain.nodes.logs import parse_logs
from piecework.chain.nodes.rpc import hash_of, member, quantity
from piecework_protocol.types import Bytes32


@dataclass(frozen=True, slots=True)
class Pending:
    """The node holds it and no block does yet."""


@dataclass(frozen=True, slots=True)
class Mined:
    """In a block that may still be reorganized away. `success` False: it reverted and its gas is
    spent."""

    block: int
    block_hash: Bytes32
    gas_used: int
    gas_price: int
    success: bool
    logs: tuple[Log, ...]

    @classmethod
    def of(cls, receipt: Any) -> Mined:
        """Read a node's receipt.

        Raises:
            BadAnswer: it is not one.
        """

        def field(name: str) -> Any:
            return member(receipt, name, "a receipt")

        return cls(
            block=quantity(field("blockNumber"), "a receipt's block"),
            block_hash=hash_of(field("blockHash"), "a receipt's block hash"),
            gas_used=quantity(field("gasUsed"), "the gas used"),
            gas_price=quantity(field("effectiveGasPrice"), "the gas price"),
            success=quantity(field("status"), "a receipt's status") == 1,
            logs=tuple(parse_logs(field("logs"))),
        )


@dataclass(frozen=True, slots=True)
class Finalized:
    """Mined in a final block: the answer will not change."""

    mined: Mined


@dataclass(frozen=True, slots=True)
class Superseded:
    """At a final block its nonce belongs to another transaction: it will never be mined."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The node does not know it: never sent, dropped, or reorganized away. Broadcast the same bytes
    again."""


Outcome: TypeAlias = Pending | Mined | Finalized | Superseded | Unknown
