"""What a rollup charges for bringing a transaction's bytes to its parent chain.

An OP-stack chain takes the fee beside the gas, and its `GasPriceOracle` says how much. Arbitrum
puts it into the gas, so that an estimate holds it already, and its `ArbGasInfo` says the price of
a byte. Which kind of chain it is shows in the code at these addresses. Sources: the OP-stack
specification (predeploys, Fjord), the Arbitrum documentation (precompiles).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from piecework.chain.contracts.abi import decode_values
from piecework.chain.errors import RpcRefused, TransactionReverted
from piecework.chain.nodes.rpc import JsonRpc, call_object, data_bytes
from piecework_protocol.types import Address, keccak256, to_hex

GAS_PRICE_ORACLE: Final = Address(bytes.fromhex("420000000000000000000000000000000000000f"))
ARB_GAS_INFO: Final = Address(bytes.fromhex("000000000000000000000000000000000000006c"))
TRANSACTION_OVERHEAD_BYTES: Final = 120
"""Of a type-2 transaction around its call data: nonce, fees, recipient and lengths."""
_PRICED_BYTES: Final = 8192
"""The size whose fee gives the price of a byte. The fee has a constant part, so that the price is
an upper bound for smaller transactions and less than a hundredth too low for larger ones."""
_UPPER_BOUND: Final = keccak256(b"getL1FeeUpperBound(uint256)")[:4]
_OF_BYTES: Final = keccak256(b"getL1Fee(bytes)")[:4]
_PRICES: Final = keccak256(b"getPricesInWei()")[:4]


class L1Charge(enum.Enum):
    """How a chain charges for data."""

    NONE = "none"
    BESIDE_GAS = "beside gas"
    """OP stack: taken from the balance on top of gas limit times fee."""
    IN_GAS = "in gas"
    """Arbitrum: a part of the gas that an estimate returns."""


@dataclass(frozen=True, slots=True)
class L1Price:
    """What data costs now, in wei per byte of a transaction."""

    charge: L1Charge = L1Charge.NONE
    wei_per_byte: int = 0

    def beside_gas(self, data: bytes) -> int:
        """Return wei that a transaction with this call data pays on top of its gas."""
        if self.charge is not L1Charge.BESIDE_GAS:
            return 0
        return self.wei_per_byte * (len(data) + TRANSACTION_OVERHEAD_BYTES)


NO_L1: Final = L1Price()


class L1Fees:
    """The data fees of the chain behind a node. What kind of chain it is, is asked once."""

    def __init__(self, rpc: JsonRpc) -> None:
        self._rpc = rpc
        self._charge: L1Charge | None = None

    async def price(self) -> L1Price:
        """Return the price of a byte now.

        Raises:
            ChainError: the node does not answer, or the oracle answers wrongly.
        """
        charge = self._charge or await self._detect()
        price = await self._price(charge)
        # Only now: a node that lies about code must not decide for good what kind of chain it is.
        self._charge = charge
        return price

    async def _price(self, charge: L1Charge) -> L1Price:
        if charge is L1Charge.NONE:
            return NO_L1
        if charge is L1Charge.IN_GAS:
            types = ["uint256"] * 6
            answer = await self._ask(ARB_GAS_INFO, _PRICES)
            return L1Price(charge, decode_values(types, answer, "prices of gas")[1])
        fee = await self._surcharge(_PRICED_BYTES)
        return L1Price(charge, -(-fee // _PRICED_BYTES))

    async def _detect(self) -> L1Charge:
        if await self._has_code(GAS_PRICE_ORACLE):
            return L1Charge.BESIDE_GAS
        return L1Charge.IN_GAS if await self._has_code(ARB_GAS_INFO) else L1Charge.NONE

    async def _has_code(self, address: Address) -> bool:
        code = await self._rpc.call("eth_getCode", to_hex(address), "latest")
        return bool(data_bytes(code, "code"))

    async def _surcharge(self, size: int) -> int:
        """Wei for a transaction of so many bytes, by the oracle's own upper bound if it has one."""
        try:
            answer = await self._ask(GAS_PRICE_ORACLE, _UPPER_BOUND + size.to_bytes(32, "big"))
        except (TransactionReverted, RpcRefused):
            answer = await self._ask(GAS_PRICE_ORACLE, _OF_BYTES + _abi_bytes(b"\xff" * size))
        return int(decode_values(["uint256"], answer, "a data fee")[0])

    async def _ask(self, to: Address, data: bytes) -> bytes:
        answer = await self._rpc.call("eth_call", call_object(to, data), "latest")
        return data_bytes(answer, "a data fee")


def _abi_bytes(data: bytes) -> bytes:
    """Encode one argument of the type `bytes`."""
    padding = b"\0" * (-len(data) % 32)
    return (32).to_bytes(32, "big") + len(data).to_bytes(32, "big") + data + padding
