"""What became of a signed transaction, as far as the chain says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from piecework.chain.events import Log
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
