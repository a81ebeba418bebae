"""A chain in memory on py-evm: every transaction is mined at once into a block of its own.
Synchronous.

For demos and tests. Rules are Prague's; blocks carry no seal, and a block's time may equal its
parent's, so that a burst of transactions does not run ahead of the clock. Final is what is mined.

py-evm is archived. docs/adr/0007 says why it stays. No other module imports it, and the tests hold
its blocks to anvil's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import rlp  # type: ignore[import-untyped]
from eth.chains.base import MiningChain
from eth.constants import POST_MERGE_DIFFICULTY, POST_MERGE_NONCE, ZERO_ADDRESS
from eth.db.atomic import AtomicDB
from eth.exceptions import Revert, VMError
from eth.vm.forks.prague import PragueVM
from eth.vm.spoof import SpoofTransaction
from eth_typing import Address as EvmAddress
from eth_typing import BlockNumber
from eth_utils.exceptions import ValidationError

from piecework.base.errors import PieceworkError
from piecework.chain.addresses import FACTORY, FACTORY_CODE
from piecework.chain.limits import (
    EMBEDDED_BLOCK_GAS,
    EMBEDDED_CHAIN_ID,
    MAX_EMBEDDED_LOG_RESULTS,
    MAX_EMBEDDED_QUEUE_PER_SENDER,
)
from piecework_protocol.types import Address, Bytes32

FAUCET_WEI = 10**9 * 10**18
_FIRST_BASE_FEE = 10**9
_TIP_WEI = 10**9


# py-evm's own objects; it is typed loosely, so that they are `Any` to us.
Header: TypeAlias = Any
Transaction: TypeAlias = Any


class EvmRefused(PieceworkError):
    """The chain declines a request, in the words that real nodes use."""


class EvmReverted(PieceworkError):
    """An execution reverted with this data."""

    def __init__(self, data: bytes) -> None:
        super().__init__("execution reverted")
        self.data = data


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One log entry of a mined transaction."""

    address: Address
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class MinedRecord:
    """A mined transaction. It is the only one of its block."""

    transaction: Transaction
    block: int
    block_hash: bytes
    gas_used: int
    gas_price: int
    success: bool
    created: Address | None
    logs: tuple[LogRecord, ...]


@dataclass(frozen=True, slots=True)
class CallMessage:
    """What eth_call and eth_estimateGas run. `to` empty creates a contract."""

    sender: bytes
    to: bytes
    data: bytes
    value: int
    gas: int


class _Rules(PragueVM):
    """Prague, but blocks of our own making are not checked: the time of two may be equal."""

    @classmethod
    def validate_header(cls, header: Any, parent_header: Any) -> None:
        """Nothing to check: nobody else makes blocks."""


class _Chain(MiningChain):
    """One fork, no seal, constant gas limit."""

    chain_id = EMBEDDED_CHAIN_ID
    vm_configuration = ((BlockNumber(0), _Rules),)

    def create_header_from_parent(self, parent_header: Any, **header_params: Any) -> Any:
        return super().create_header_from_parent(
            parent_header, **(header_params | {"gas_limit": parent_header.gas_limit})
        )

    def validate_block(self, block: Any) -> None:
        """As in `_Rules`."""


class Evm:
    """The chain's state and what can be asked of it. Not thread-safe: one thread at a time."""

    def __init__(self, faucet: Address, now: Callable[[], int]) -> None:
        self._now = now
        self._offset_s = 0
        genesis: Any = {
            "coinbase": ZERO_ADDRESS,
            "difficulty": POST_MERGE_DIFFICULTY,
            "extra_data": b"",
            "gas_limit": EMBEDDED_BLOCK_GAS,
            "mix_hash": os.urandom(32),
            "nonce": POST_MERGE_NONCE,
            "timestamp": now(),
            "base_fee_per_gas": _FIRST_BASE_FEE,
        }
        rich: Any = {"balance": FAUCET_WEI, "nonce": 0, "code": b"", "storage": {}}
        # As on public chains: the transaction that creates it leaves it with nonce 1.
        factory: Any = {"balance": 0, "nonce": 1, "code": FACTORY_CODE, "storage": {}}
        accounts = {EvmAddress(faucet): rich, EvmAddress(FACTORY): factory}
        self._chain: Any = _Chain.from_genesis(AtomicDB(), genesis, accounts)
        self._mined: dict[bytes, MinedRecord] = {}
        self._by_block: dict[int, MinedRecord] = {}
        self._queue: dict[bytes, dict[int, Transaction]] = {}

    # --- the chain

    @property
    def head(self) -> int:
        """Height of the last mined block."""
        return int(self._chain.header.block_number) - 1

    def header(self, number: int) -> Header | None:
        """The header of a mined block."""
        if not 0 <= number <= self.head:
            return None
        return self._chain.get_canonical_block_header_by_number(number)

    def header_by_hash(self, block_hash: bytes) -> Header | None:
        """The header of a mined block."""
        for number in range(self.head, -1, -1):
            header = self._chain.get_canonical_block_header_by_number(number)
            if header.hash == block_hash:
                return header
        return None

    def transaction_of(self, number: int) -> MinedRecord | None:
        """The transaction of a block; a block made by `mine` has none."""
        return self._by_block.get(number)

    def mined(self, tx_hash: bytes) -> MinedRecord | None:
        return self._mined.get(tx_hash)

    def queued(self, tx_hash: bytes) -> Transaction | None:
        """A transaction that waits for an earlier nonce."""
        waiting = (tx for queue in self._queue.values() for tx in queue.values())
        return next((tx for tx in waiting if tx.hash == tx_hash), None)

    def next_base_fee(self) -> int:
        """Wei per gas of the block that would be mined next."""
        return int(self._chain.header.base_fee_per_gas)

    @staticmethod
    def tip() -> int:
        """Wei per gas to suggest."""
        return _TIP_WEI

    # --- state

    def balance(self, address: bytes, number: int) -> int:
        return int(self._at(number).state.get_balance(address))

    def nonce(self, address: bytes, number: int) -> int:
        return int(self._at(number).state.get_nonce(address))

    def pending_nonce(self, address: bytes) -> int:
        """The nonce after those mined and those queued without a gap."""
        nonce = self.nonce(address, self.head)
        while nonce in self._queue.get(address, {}):
            nonce += 1
        return nonce

    def code(self, address: bytes, number: int) -> bytes:
        return bytes(self._at(number).state.get_code(address))

    def storage(self, address: bytes, slot: int, number: int) -> int:
        return int(self._at(number).state.get_storage(address, slot))

    # --- executing

    def send_raw(self, raw: bytes) -> bytes:
        """Mine a signed transaction at once, and then those that waited for it. Returns its
        hash."""
        vm = self._chain.get_vm(self._pending_header())
        try:
            tx = vm.get_transaction_builder().decode(raw)
            sender = bytes(tx.sender)
        except (ValidationError, rlp.exceptions.RLPException, ValueError, TypeError) as error:
            raise EvmRefused(f"failed to decode signed transaction: {error}") from error
        if tx.hash in self._mined or self.queued(tx.hash) is not None:
            raise EvmRefused("already known")
        if getattr(tx, "chain_id", EMBEDDED_CHAIN_ID) not in (None, EMBEDDED_CHAIN_ID):
            raise EvmRefused("invalid chain id for signer")
        expected = self.nonce(sender, self.head)
        if tx.nonce < expected:
            raise EvmRefused(f"nonce too low: next nonce {expected}, tx nonce {tx.nonce}")
        if tx.nonce > expected:
            self._enqueue(sender, tx)
            return bytes(tx.hash)
        self._mine_transaction(tx)
        self._mine_queued(sender)
        return bytes(tx.hash)

    def call(self, message: CallMessage, number: int | None) -> bytes:
        """Run a message without keeping anything; `EvmReverted` with the revert's data."""
        computation, _ = self._run(message, number)
        if computation.is_error:
            raise _failure(computation.error)
        return bytes(computation.output)

    def estimate(self, message: CallMessage, number: int | None) -> int:
        """Gas that suffices: what one run uses with refunds added back, confirmed by a second run
        with it."""
        highest = message.gas
        computation, used = self._run(message, number)
        if computation.is_error:
            raise _failure(computation.error)
        candidate = min(highest, used + int(computation.get_gas_refund()))
        while candidate < highest:
            # A sub-call may spend 63/64 of what is left (EIP-150), so the sum can be a little
            # short.
            trial = CallMessage(message.sender, message.to, message.data, message.value, candidate)
            if not self._run(trial, number)[0].is_error:
                return candidate
            candidate += max(1_000, candidate // 32)
        return highest

    def mine(self) -> int:
        """An empty block; returns its height."""
        self._chain.header = self._pending_header()
        self._seal()
        return self.head

    def increase_time(self, seconds: int) -> int:
        """Move the clock forward for the blocks to come; returns the total offset."""
        self._offset_s += seconds
        return self._offset_s

    def logs(
        self,
        first: int,
        last: int,
        addresses: Sequence[bytes] | None,
        topics: Sequence[Sequence[bytes] | None],
    ) -> list[tuple[MinedRecord, int, LogRecord]]:
        """Matching logs with their transaction and index. `topics` by position: any of, or None for
        all."""
        found: list[tuple[MinedRecord, int, LogRecord]] = []
        for number in range(max(0, first), min(last, self.head) + 1):
            record = self._by_block.get(number)
            if record is None:
                continue
            for index, log in enumerate(record.logs):
                if _matches(log, addresses, topics):
                    found.append((record, index, log))
            if len(found) > MAX_EMBEDDED_LOG_RESULTS:
                raise EvmRefused(f"query returned more than {MAX_EMBEDDED_LOG_RESULTS} results")
        return found

    # --- inside

    def _at(self, number: int) -> Any:
        header = self.header(number)
        if header is None:
            raise EvmRefused(f"header not found: block {number}")
        return self._chain.get_vm(header)

    def _pending_header(self) -> Header:
        """The block to come, at the time of now but never before its parent."""
        header = self._chain.header
        parent = self._chain.get_canonical_block_header_by_number(header.block_number - 1)
        return header.copy(timestamp=max(parent.timestamp, self._now() + self._offset_s))

    def _run(self, message: CallMessage, number: int | None) -> tuple[Any, int]:
        """Run at the pending block, or on the state after block `number`: computation and gas
        used."""
        header = self._pending_header() if number is None else self.header(number)
        if header is None:
            raise EvmRefused(f"header not found: block {number}")
        vm = self._chain.get_vm(header.copy(base_fee_per_gas=0))
        state = vm.state
        builder = vm.get_transaction_builder()
        unsigned = builder.new_unsigned_dynamic_fee_transaction(
            chain_id=EMBEDDED_CHAIN_ID,
            nonce=state.get_nonce(message.sender),
            max_priority_fee_per_gas=0,
            max_fee_per_gas=0,
            gas=message.gas,
            to=message.to,
            value=message.value,
            data=message.data,
            access_list=(),
        )
        snapshot = state.snapshot()
        try:
            computation = state.apply_transaction(SpoofTransaction(unsigned, from_=message.sender))
        except ValidationError as error:
            raise EvmRefused(_wording(error)) from error
        finally:
            state.revert(snapshot)
        return computation, message.gas - int(computation.get_gas_remaining())

    def _enqueue(self, sender: bytes, tx: Transaction) -> None:
        queue = self._queue.setdefault(sender, {})
        if len(queue) >= MAX_EMBEDDED_QUEUE_PER_SENDER:
            raise EvmRefused("txpool is full")
        queue[tx.nonce] = tx

    def _mine_queued(self, sender: bytes) -> None:
        queue = self._queue.get(sender, {})
        while (tx := queue.pop(self.nonce(sender, self.head), None)) is not None:
            try:
                self._mine_transaction(tx)
            except EvmRefused:
                # As in a real pool: a queued transaction that has become invalid is dropped without
                # a word.
                return

    def _mine_transaction(self, tx: Transaction) -> None:
        before = self._chain.header
        self._chain.header = self._pending_header()
        base_fee = self.next_base_fee()
        try:
            _, receipt, computation = self._chain.apply_transaction(tx)
        except ValidationError as error:
            self._chain.header = before
            raise EvmRefused(_wording(error)) from error
        header = self._seal()
        tip = getattr(
            tx, "max_priority_fee_per_gas", tx.gas_price if hasattr(tx, "gas_price") else 0
        )
        ceiling = getattr(tx, "max_fee_per_gas", tip)
        logs = tuple(
            LogRecord(
                Address(bytes(log.address)),
                tuple(t.to_bytes(32, "big") for t in log.topics),
                log.data,
            )
            for log in receipt.logs
        )
        record = MinedRecord(
            transaction=tx,
            block=int(header.block_number),
            block_hash=bytes(header.hash),
            gas_used=int(receipt.gas_used),
            gas_price=min(ceiling, base_fee + tip),
            success=not computation.is_error,
            created=None if tx.to else Address(bytes(computation.msg.storage_address)),
            logs=logs,
        )
        self._mined[bytes(tx.hash)] = record
        self._by_block[record.block] = record

    def _seal(self) -> Header:
        block = self._chain.mine_block(
            coinbase=ZERO_ADDRESS, mix_hash=Bytes32(os.urandom(32)), blob_gas_used=0
        )
        return block.header


def _failure(error: VMError) -> EvmReverted | EvmRefused:
    if isinstance(error, Revert):
        return EvmReverted(bytes(error.args[0]) if error.args else b"")
    return EvmRefused(f"{type(error).__name__}: {error}"[:200])


def _wording(error: ValidationError) -> str:
    """py-evm's refusals in the words of real nodes, which callers sort by."""
    text = str(error)
    if "lower than block's base fee" in text:
        return f"max fee per gas less than block base fee: {text}"
    if "cannot afford" in text or "balance" in text.lower():
        return f"insufficient funds for gas * price + value: {text}"
    return text[:300]


def _matches(
    log: LogRecord, addresses: Sequence[bytes] | None, topics: Sequence[Sequence[bytes] | None]
) -> bool:
    if addresses is not None and log.address not in addresses:
        return False
    if len(topics) > len(log.topics):
        return False
    return all(any_of is None or t in any_of for t, any_of in zip(log.topics, topics, strict=False))
