"""What only the owner of a stake can do: sent where its key is at hand, written down where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piecework.base import settings as loader
from piecework.base.files import read, write_private
from piecework.base.settings import MAX_FILE_BYTES
from piecework.base.settings_file import rewritten
from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call
from piecework.chain.limits import DEFAULT_POLL_S
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import TransactionSender
from piecework_node import config as settings
from piecework_node.config import WorkerConfig
from piecework_node.errors import ConfigError
from piecework_node.home import Home
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address, address_hex, to_hex


@dataclass(frozen=True, slots=True)
class OwnerCall:
    """A transaction that waits for its sender, whose key is elsewhere."""

    what: str
    sender: Address
    to: Address
    data: bytes
    chain_id: int

    def to_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "from": address_hex(self.sender),
            "to": address_hex(self.to),
            "data": to_hex(self.data),
            "value": 0,
            "chain_id": self.chain_id,
        }


class OwnerHands:
    """Acts for owners of stakes with the keys that are at hand."""

    def __init__(
        self,
        reader: ChainReader,
        keys: Sequence[AsyncSigner] = (),
        *,
        poll_s: float = DEFAULT_POLL_S,
    ) -> None:
        self.reader, self._poll_s = reader, poll_s
        self._keys = {key.address: key for key in keys}

    def key_of(self, owner: Address) -> AsyncSigner | None:
        """Return the key of an owner, where it is at hand."""
        return self._keys.get(owner)

    async def act(self, owner: Address, call: Call) -> OwnerCall | None:
        """Send a call of an owner and wait for its block. Its key is elsewhere: return the call.

        Raises:
            ChainError: the chain does not answer, or refuses.
        """
        key = self._keys.get(owner)
        if key is None:
            if call.to is None:
                raise ConfigError(f"{call.what} has no address")
            chain_id = self.reader.deployment.chain_id
            return OwnerCall(call.what, owner, call.to, call.data, chain_id)
        sender = TransactionSender.of(self.reader, key)
        await sender.execute(call, poll_s=self._poll_s)
        return None


async def payout_doubt(reader: ChainReader, operator: Address, payout: Address) -> str | None:
    """Say why earnings may be out of reach at an address, or None.

    Raises:
        ConfigError: the escrow pays nothing there.
        ChainError: the chain does not answer.
    """
    deployment = reader.deployment
    named = {
        deployment.escrow: "the escrow",
        deployment.token: "the token",
        deployment.registry: "the registry",
    }
    if payout in named:
        raise ConfigError(f"{address_hex(payout)} is {named[payout]}: earnings would be lost there")
    if payout == operator:
        return "this is the operator itself. Who steals the machine and its password has the money"
    if await reader.code(payout) or await reader.sent_transactions(payout):
        return None
    return (
        f"{address_hex(payout)} has no code and has never sent a transaction. Somebody must hold "
        "its key. An exchange's address may not be able to act here"
    )


async def move_payout(
    home: Home, operator: Address, payout: Address, hands: OwnerHands
) -> tuple[OwnerCall | None, tuple[str, ...]]:
    """Bring registry and home to another payout address, the registry first.

    It may be repeated. What is done is seen on the chain and in the file.

    Returns:
        The call that the owner has to send before anything else. None: both are changed.
        A line for each step that was done now.

    Raises:
        PieceworkError: the chain or the file is in the way.
    """
    home.create()
    done: list[str] = []
    written = {"payout": address_hex(payout)}
    loader.change(WorkerConfig, home.config, written)
    reader = hands.reader
    known = await reader.worker(operator)
    if known is not None and known.payout != payout:
        call = calls.set_payout(reader.deployment, operator, payout)
        waiting = await hands.act(known.owner, call)
        if waiting is not None:
            return waiting, ()
        done.append("the registry has the new payout address")
    if settings.load(home.root, environment={}).receiver != payout:
        text = read(home.config, MAX_FILE_BYTES).decode("utf-8-sig")
        changed = rewritten(WorkerConfig, text, written)
        write_private(home.config, changed.encode(), replace=True)
        done.append(f"{home.config} has it too")
    return None, tuple(done)
