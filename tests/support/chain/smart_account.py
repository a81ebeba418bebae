"""A payer that is a contract: it checks signatures itself (ERC-1271).

It takes 96 bytes for a signature: keccak256(digest || secret) and 64 bytes of padding. The secret
stands in its code for everybody to read, which does for a test.
"""

from __future__ import annotations

from dataclasses import dataclass

from piecework.chain.contracts.calls import Call
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.types import Address, Bytes32, PayerSignature, keccak256
from tests.support.chain.chains import POLL_S, TestMarket

SECRET = keccak256(b"the secret of a test's smart account")
_MAGIC = bytes.fromhex("1626ba7e") + bytes(28)
# isValidSignature(bytes32 digest at 4, bytes signature whose content begins at 0x64)
_CHECK = (
    bytes.fromhex("6004355f52")  # memory[0] = digest
    + b"\x7f"
    + SECRET
    + bytes.fromhex("602052")  # memory[32] = secret
    + bytes.fromhex("60405f20")  # keccak256 of both
    + bytes.fromhex("60643514")  # equal to the first word of the signature?
)
_REFUSE = bytes.fromhex("5f5f5260205ff3")
_ACCEPT = b"\x5b\x7f" + _MAGIC + bytes.fromhex("5f5260205ff3")
RUNTIME = _CHECK + b"\x60" + bytes([len(_CHECK) + 3 + len(_REFUSE)]) + b"\x57" + _REFUSE + _ACCEPT


@dataclass(frozen=True, slots=True)
class SmartAccount:
    """A deployed one."""

    address: Address

    @classmethod
    async def create(cls, market: TestMarket, runtime: bytes = RUNTIME) -> SmartAccount:
        """Deploy it from the faucet's account."""
        sender = market.sender(market.chain.faucet)
        call = Call("create account", None, creation_of(runtime), 500_000)
        tx = await sender.prepare(call, value_at_stake=None)
        await sender.broadcast(tx)
        assert (await sender.wait_mined(tx.hash, poll_s=POLL_S)).success
        return cls(tx.created)

    def sign_digest(self, digest: Bytes32) -> PayerSignature:
        """What the account takes for a signature of this digest."""
        return PayerSignature(keccak256(digest + SECRET) + bytes(64))

    def sign(self, domain: Domain, message: TypedData) -> PayerSignature:
        """As `signing.sign`."""
        return self.sign_digest(domain.digest(message))


def creation_of(runtime: bytes) -> bytes:
    """Creation code that returns `runtime`, which is shorter than 65,536 bytes."""
    size = len(runtime).to_bytes(2, "big")
    head = b"\x61" + size + b"\x80" + b"\x60\x0a" + b"\x5f\x39" + b"\x5f\xf3"
    assert len(head) == 10
    return head + runtime
