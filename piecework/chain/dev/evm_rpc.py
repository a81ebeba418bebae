"""The JSON-RPC methods of the embedded chain: JSON in, JSON out, over a synchronous `Evm`.

What web3, cast and our own reader use. What is not understood is refused, never ignored.
Source: the execution API, https://github.com/ethereum/execution-apis.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from piecework.base.errors import PieceworkError
from piecework.chain.dev.evm import (
    CallMessage,
    Evm,
    EvmRefused,
    EvmReverted,
    LogRecord,
    MinedRecord,
)
from piecework.chain.limits import EMBEDDED_BLOCK_GAS, EMBEDDED_CHAIN_ID, MAX_FEE_HISTORY_BLOCKS
from piecework_protocol.types import address_hex

VERSION = "piecework-embedded/py-evm"
_PARSE, _INVALID, _NO_METHOD, _PARAMS, _SERVER, _REVERT = -32700, -32600, -32601, -32602, -32000, 3
_FINAL_TAGS = frozenset({"latest", "safe", "finalized"})


class Rejected(PieceworkError):
    """A JSON-RPC error object to answer with."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.rpc_code = code
        self.message = message
        self.data = data

    def to_json(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.rpc_code, "message": self.message}
        return error if self.data is None else error | {"data": self.data}


class Methods:
    """The method table. Runs in whatever thread calls `answer`; one at a time."""

    def __init__(self, evm: Evm) -> None:
        self._evm = evm
        self._table: Mapping[str, Callable[..., Any]] = {
            "web3_clientVersion": lambda: VERSION,
            "net_version": lambda: str(EMBEDDED_CHAIN_ID),
            "net_listening": lambda: True,
            "eth_syncing": lambda: False,
            "eth_accounts": list,
            "eth_chainId": lambda: hex(EMBEDDED_CHAIN_ID),
            "eth_blockNumber": lambda: hex(evm.head),
            "eth_gasPrice": lambda: hex(evm.next_base_fee() + evm.tip()),
            "eth_maxPriorityFeePerGas": lambda: hex(evm.tip()),
            "eth_feeHistory": self._fee_history,
            "eth_getBlockByNumber": self._block_by_number,
            "eth_getBlockByHash": self._block_by_hash,
            "eth_getBalance": lambda a, tag="latest": hex(
                evm.balance(_address(a), self._height(tag))
            ),
            "eth_getCode": lambda a, tag="latest": _hex(evm.code(_address(a), self._height(tag))),
            "eth_getStorageAt": self._storage,
            "eth_getTransactionCount": self._transaction_count,
            "eth_getTransactionByHash": self._transaction,
            "eth_getTransactionReceipt": self._receipt,
            "eth_sendRawTransaction": lambda raw: _hex(evm.send_raw(_bytes(raw))),
            "eth_call": lambda tx, tag="latest": _hex(evm.call(_message(tx), self._state(tag))),
            "eth_estimateGas": lambda tx, tag="latest": hex(
                evm.estimate(_message(tx), self._state(tag))
            ),
            "eth_getLogs": self._logs,
            "evm_mine": lambda: hex(evm.mine()),
            "evm_increaseTime": lambda seconds: evm.increase_time(_number(seconds)),
        }

    def answer(self, request: Any) -> dict[str, Any]:
        """One JSON-RPC request to its response. Never raises for anything that a peer may send."""
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _response(None, error=Rejected(_INVALID, "invalid request"))
        number = request.get("id")
        params = request.get("params", [])
        try:
            method = self._table.get(request["method"])
            if method is None:
                raise Rejected(_NO_METHOD, f"the method {request['method'][:80]} does not exist")
            if not isinstance(params, list):
                raise Rejected(_PARAMS, "params is a list")
            return _response(number, self._run(method, params))
        except Rejected as error:
            return _response(number, error=error)

    @staticmethod
    def _run(method: Callable[..., Any], params: Sequence[Any]) -> Any:
        try:
            bound = _bind(method, params)
            return bound()
        except EvmReverted as error:
            raise Rejected(_REVERT, "execution reverted", _hex(error.data)) from error
        except EvmRefused as error:
            raise Rejected(_SERVER, str(error)) from error

    # --- blocks and transactions

    def _height(self, tag: Any) -> int:
        """A block tag or number to a height; "pending" is the head, since nothing waits."""
        if tag in _FINAL_TAGS or tag == "pending":
            return self._evm.head
        return 0 if tag == "earliest" else _number(tag)

    def _state(self, tag: Any) -> int | None:
        """None for the block to come, which sees the clock; a height for the state after that
        block."""
        return None if tag in _FINAL_TAGS or tag == "pending" else self._height(tag)

    def _block_by_number(self, tag: Any, full: bool = False) -> Any:
        return self._block(self._evm.header(self._height(tag)), full)

    def _block_by_hash(self, block_hash: Any, full: bool = False) -> Any:
        return self._block(self._evm.header_by_hash(_bytes(block_hash, 32)), full)

    def _block(self, header: Any, full: bool) -> dict[str, Any] | None:
        if header is None:
            return None
        record = self._evm.transaction_of(int(header.block_number))
        listed: list[Any] = []
        if record is not None:
            listed = [
                _transaction_json(record.transaction, record)
                if full
                else _hex(record.transaction.hash)
            ]
        return {
            "number": hex(header.block_number),
            "hash": _hex(header.hash),
            "parentHash": _hex(header.parent_hash),
            "nonce": _hex(header.nonce),
            "sha3Uncles": _hex(header.uncles_hash),
            "logsBloom": _hex(header.bloom.to_bytes(256, "big")),
            "transactionsRoot": _hex(header.transaction_root),
            "receiptsRoot": _hex(header.receipt_root),
            "stateRoot": _hex(header.state_root),
            "miner": address_hex(header.coinbase),
            "difficulty": "0x0",
            "totalDifficulty": "0x0",
            "mixHash": _hex(header.mix_hash),
            "extraData": _hex(header.extra_data),
            "size": hex(1024 + (len(record.transaction.data) if record else 0)),
            "gasLimit": hex(header.gas_limit),
            "gasUsed": hex(header.gas_used),
            "timestamp": hex(header.timestamp),
            "baseFeePerGas": hex(header.base_fee_per_gas),
            "withdrawalsRoot": _hex(header.withdrawals_root),
            "blobGasUsed": hex(header.blob_gas_used),
            "excessBlobGas": hex(header.excess_blob_gas),
            "parentBeaconBlockRoot": _hex(header.parent_beacon_block_root),
            "requestsHash": _hex(header.requests_hash),
            "transactions": listed,
            "uncles": [],
            "withdrawals": [],
        }

    def _transaction_count(self, address: Any, tag: Any = "latest") -> str:
        if tag == "pending":
            return hex(self._evm.pending_nonce(_address(address)))
        return hex(self._evm.nonce(_address(address), self._height(tag)))

    def _transaction(self, tx_hash: Any) -> dict[str, Any] | None:
        wanted = _bytes(tx_hash, 32)
        record = self._evm.mined(wanted)
        if record is not None:
            return _transaction_json(record.transaction, record)
        waiting = self._evm.queued(wanted)
        return None if waiting is None else _transaction_json(waiting, None)

    def _receipt(self, tx_hash: Any) -> dict[str, Any] | None:
        record = self._evm.mined(_bytes(tx_hash, 32))
        if record is None:
            return None
        tx = record.transaction
        bloom = self._evm.header(record.block)
        return {
            "type": hex(_type_of(tx)),
            "status": hex(record.success),
            "transactionHash": _hex(tx.hash),
            "transactionIndex": "0x0",
            "blockHash": _hex(record.block_hash),
            "blockNumber": hex(record.block),
            "from": address_hex(tx.sender),
            "to": address_hex(tx.to) if tx.to else None,
            "contractAddress": None if record.created is None else address_hex(record.created),
            "gasUsed": hex(record.gas_used),
            "cumulativeGasUsed": hex(record.gas_used),
            "effectiveGasPrice": hex(record.gas_price),
            "logsBloom": "0x" + "00" * 256
            if bloom is None
            else _hex(bloom.bloom.to_bytes(256, "big")),
            "logs": [_log_json(record, index, log) for index, log in enumerate(record.logs)],
        }

    # --- the rest

    def _storage(self, address: Any, slot: Any, tag: Any = "latest") -> str:
        value = self._evm.storage(_address(address), _number(slot), self._height(tag))
        return _hex(value.to_bytes(32, "big"))

    def _logs(self, query: Any) -> list[dict[str, Any]]:
        if not isinstance(query, dict):
            raise Rejected(_PARAMS, "a filter is an object")
        unknown = set(query) - {"fromBlock", "toBlock", "blockHash", "address", "topics"}
        if unknown:
            raise Rejected(_PARAMS, f"unknown members of a filter: {sorted(unknown)[:5]}")
        if "blockHash" in query:
            header = self._evm.header_by_hash(_bytes(query["blockHash"], 32))
            if header is None:
                raise Rejected(_SERVER, "unknown block")
            first = last = int(header.block_number)
        else:
            first = self._height(query.get("fromBlock", "latest"))
            last = self._height(query.get("toBlock", "latest"))
        addresses = _any_of(query.get("address"), 20)
        topics = [_any_of(t, 32) for t in query.get("topics") or []]
        return [_log_json(*found) for found in self._evm.logs(first, last, addresses, topics)]

    def _fee_history(
        self, count: Any, newest: Any = "latest", percentiles: Any = ()
    ) -> dict[str, Any]:
        wanted = _number(count)
        if not 1 <= wanted <= MAX_FEE_HISTORY_BLOCKS:
            raise Rejected(_PARAMS, f"blockCount is 1 to {MAX_FEE_HISTORY_BLOCKS}")
        last = self._height(newest)
        first = max(0, last - wanted + 1)
        found = (self._evm.header(number) for number in range(first, last + 1))
        headers = [header for header in found if header is not None]
        after = self._evm.header(last + 1)
        following = self._evm.next_base_fee() if after is None else int(after.base_fee_per_gas)
        return {
            "oldestBlock": hex(first),
            "baseFeePerGas": [hex(h.base_fee_per_gas) for h in headers] + [hex(following)],
            "gasUsedRatio": [h.gas_used / h.gas_limit for h in headers],
            "reward": [[hex(self._evm.tip())] * len(percentiles or ()) for _ in headers],
        }


def _bind(method: Callable[..., Any], params: Sequence[Any]) -> Callable[[], Any]:
    """Check the number of parameters before running anything, so that a TypeError inside stays a
    bug."""
    try:
        inspect.signature(method).bind(*params)
    except TypeError as error:
        raise Rejected(_PARAMS, f"wrong parameters: {error}") from error
    return lambda: method(*params)


def _response(number: Any, result: Any = None, *, error: Rejected | None = None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": number if isinstance(number, int | str) else None,
    }
    return answer | ({"result": result} if error is None else {"error": error.to_json()})


def _message(raw: Any) -> CallMessage:
    if not isinstance(raw, dict):
        raise Rejected(_PARAMS, "a transaction is an object")
    data = raw.get("input", raw.get("data", "0x"))
    gas = _number(raw["gas"]) if raw.get("gas") is not None else EMBEDDED_BLOCK_GAS
    return CallMessage(
        sender=_address(raw["from"]) if raw.get("from") else bytes(20),
        to=_address(raw["to"]) if raw.get("to") else b"",
        data=_bytes(data or "0x"),
        value=_number(raw.get("value") or "0x0"),
        gas=min(gas, EMBEDDED_BLOCK_GAS),
    )


def _transaction_json(tx: Any, record: MinedRecord | None) -> dict[str, Any]:
    kind = _type_of(tx)
    parity = tx.v if kind == 0 else tx.y_parity
    fields: dict[str, Any] = {
        "type": hex(kind),
        "hash": _hex(tx.hash),
        "nonce": hex(tx.nonce),
        "blockHash": None if record is None else _hex(record.block_hash),
        "blockNumber": None if record is None else hex(record.block),
        "transactionIndex": None if record is None else "0x0",
        "from": address_hex(tx.sender),
        "to": address_hex(tx.to) if tx.to else None,
        "value": hex(tx.value),
        "gas": hex(tx.gas),
        "input": _hex(tx.data),
        "chainId": hex(EMBEDDED_CHAIN_ID),
        "v": hex(parity),
        "r": hex(tx.r),
        "s": hex(tx.s),
    }
    if kind == 0:
        return fields | {"gasPrice": hex(tx.gas_price)}
    fields |= {"yParity": hex(parity), "accessList": []}
    if kind == 1:
        return fields | {"gasPrice": hex(tx.gas_price)}
    return fields | {
        "maxFeePerGas": hex(tx.max_fee_per_gas),
        "maxPriorityFeePerGas": hex(tx.max_priority_fee_per_gas),
        "gasPrice": hex(tx.max_fee_per_gas if record is None else record.gas_price),
    }


def _log_json(record: MinedRecord, index: int, log: LogRecord) -> dict[str, Any]:
    return {
        "address": address_hex(log.address),
        "topics": [_hex(topic) for topic in log.topics],
        "data": _hex(log.data),
        "blockNumber": hex(record.block),
        "blockHash": _hex(record.block_hash),
        "transactionHash": _hex(record.transaction.hash),
        "transactionIndex": "0x0",
        "logIndex": hex(index),
        "removed": False,
    }


def _type_of(tx: Any) -> int:
    return int(getattr(tx, "type_id", None) or 0)


def _hex(data: bytes) -> str:
    return "0x" + bytes(data).hex()


def _bytes(value: Any, length: int | None = None) -> bytes:
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError:
            data = None
        if data is not None and length in (None, len(data)):
            return data
    raise Rejected(_PARAMS, "expected 0x-prefixed bytes" + (f" ({length})" if length else ""))


def _address(value: Any) -> bytes:
    return _bytes(value, 20)


def _number(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 66:
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise Rejected(_PARAMS, "expected a hex quantity")


def _any_of(value: Any, length: int) -> list[bytes] | None:
    """An address or topic filter: null for all, one value, or a list of which any matches."""
    if value is None:
        return None
    return [_bytes(v, length) for v in (value if isinstance(value, list) else [value])]
