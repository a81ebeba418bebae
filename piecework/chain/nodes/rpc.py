"""JSON-RPC over HTTP: bounded, timed, with errors sorted by what can be done about them.

This is the wire under web3 (`web3_over`). It is not web3's own HTTP provider because that one reads
answers of any size, drops the body of an HTTP error, and writes the node's address, API key and
all, to its log.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self
from urllib.parse import urlsplit

from piecework.base.http import HttpError, HttpLimits, HttpReader, HttpStatus, HttpTooLarge
from piecework.base.jsons import loads
from piecework.chain.errors import AnswerTooLarge, BadAnswer, RpcLimited, RpcUnavailable
from piecework.chain.limits import (
    DEFAULT_RPC_TIMEOUT_S,
    MAX_RPC_RESPONSE_BYTES,
    RPC_ATTEMPTS,
    RPC_BACKOFF_S,
)
from piecework.chain.nodes.refusals import refusal
from piecework_protocol.types import Address, Bytes32, to_hex

if TYPE_CHECKING:
    from web3 import AsyncWeb3

_JSON = {"Content-Type": "application/json"}
# Sending or moving a development chain is not repeated here: the caller decides with its journal.
_NOT_REPEATED = frozenset({"eth_sendRawTransaction", "evm_mine", "evm_increaseTime"})


class JsonRpc(Protocol):
    """One node, or several that must agree (`quorum.QuorumRpc`).

    Raises `RpcUnavailable`, `RpcRefused`, `TransactionReverted`, `BadAnswer` or `NodesDisagree`,
    nothing else. `RpcUnavailable` and its kind `RpcLimited` may pass by themselves.
    """

    async def call(self, method: str, *params: Any) -> Any:
        """The `result` member of the answer."""
        ...

    async def close(self) -> None: ...


class HttpRpc:
    """A node behind an http(s) address. One connection pool, made on first use in the running
    loop."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = DEFAULT_RPC_TIMEOUT_S,
        attempts: int = RPC_ATTEMPTS,
        backoff_s: float = RPC_BACKOFF_S,
    ) -> None:
        self.url = url
        self.host = host_of(url)
        self._http = HttpReader(HttpLimits(timeout_s, timeout_s, MAX_RPC_RESPONSE_BYTES))
        self._attempts, self._backoff_s = attempts, backoff_s
        self._ids = itertools.count(1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def call(self, method: str, *params: Any) -> Any:
        """Ask once, or up to `attempts` times with a growing pause when a repeat can do no harm."""
        attempts = 1 if method in _NOT_REPEATED else self._attempts
        attempt, number = 0, next(self._ids)
        while True:
            attempt += 1
            try:
                return self._result(method, number, await self._post(method, number, params))
            except RpcUnavailable:
                if attempt >= attempts:
                    raise
                await asyncio.sleep(self._backoff_s * 2 ** (attempt - 1))

    async def close(self) -> None:
        """Close the connections; the object may be used again afterwards."""
        await self._http.close()

    async def _post(self, method: str, number: int, params: Sequence[Any]) -> Any:
        body = {"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)}
        data, status = await self._exchange(method, json.dumps(body).encode())
        try:
            answer = loads(data)
        except ValueError as error:
            if status == 200:
                raise BadAnswer(
                    f"the node at {self.host} answered {method} with no JSON"
                ) from error
            raise self._overloaded(method, status) from error
        if status in (408, 429) or (status >= 500 and not _has_error(answer)):
            raise self._overloaded(method, status)
        return answer

    async def _exchange(self, method: str, body: bytes) -> tuple[bytes, int]:
        """Send a request; return the answer and its HTTP status."""
        try:
            return await self._http.post(self.url, body, headers=_JSON), 200
        except HttpStatus as error:  # many nodes give a JSON-RPC error with such a status
            return error.body, error.status
        except HttpTooLarge as error:
            raise AnswerTooLarge(
                f"the node's answer is larger than {MAX_RPC_RESPONSE_BYTES} bytes"
            ) from error
        except HttpError as error:
            raise RpcUnavailable(
                f"the chain's node at {self.host} did not answer {method}: {error}. "
                "Is the address right and the node running?"
            ) from error

    def _overloaded(self, method: str, status: int) -> RpcUnavailable:
        kind = RpcLimited if status == 429 else RpcUnavailable
        return kind(f"the chain's node at {self.host} answered HTTP {status} to {method}")

    def _result(self, method: str, number: int, answer: Any) -> Any:
        if not isinstance(answer, dict):
            raise BadAnswer(f"the node at {self.host} answered {method} with no JSON-RPC object")
        if _has_error(answer):
            raise refusal(method, answer["error"])
        if "result" not in answer:
            raise BadAnswer(
                f"the node at {self.host} answered {method} with neither result nor error"
            )
        if answer.get("id") != number:
            # A proxy that mixes up answers would show us another question's money.
            raise BadAnswer(f"the node at {self.host} answered another question than {method}")
        return answer["result"]


def web3_over(rpc: JsonRpc) -> AsyncWeb3[Any]:
    """web3 on top of a node, with the errors of `JsonRpc`. The first use imports web3 (most of a
    second)."""
    from piecework.chain.nodes.provider import over

    return over(rpc)


def host_of(url: str) -> str:
    """Scheme, host and port: what may be shown. The path and the user part often hold an API
    key. An address without a host has nothing that is safe to show."""
    parts = urlsplit(url)
    if not parts.hostname:
        return "an address without a host"
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def quantity(value: Any, what: str) -> int:
    """A JSON-RPC quantity ("0x1f") as an int; `BadAnswer` names `what`."""
    if isinstance(value, str) and value.startswith("0x") and len(value) <= 66:
        try:
            return int(value, 16)
        except ValueError:
            pass
    raise BadAnswer(f"the node returned no number for {what}")


def data_bytes(value: Any, what: str, length: int | None = None) -> bytes:
    """JSON-RPC data ("0x00ff") as bytes, of the given length if any; `BadAnswer` names `what`."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            data = bytes.fromhex(value[2:])
        except ValueError:
            data = None
        if data is not None and length in (None, len(data)):
            return data
    raise BadAnswer(f"the node returned no bytes for {what}")


def hash_of(value: Any, what: str) -> Bytes32:
    """A 32-byte hash."""
    return Bytes32(data_bytes(value, what, 32))


def address_from(value: Any, what: str) -> Address:
    """A 20-byte address."""
    return Address(data_bytes(value, what, 20))


def member(value: Any, name: str, what: str) -> Any:
    """A member of a JSON object that must be there."""
    if not isinstance(value, dict) or name not in value:
        raise BadAnswer(f"the node returned {what} without {name}")
    return value[name]


def call_object(
    to: Address | None, data: bytes, *, sender: Address | None = None, value: int = 0
) -> dict[str, str]:
    """The transaction object of eth_call and eth_estimateGas."""
    fields = {"data": "0x" + data.hex(), "value": hex(value)}
    if to is not None:
        fields["to"] = to_hex(to)
    if sender is not None:
        fields["from"] = to_hex(sender)
    return fields


def _has_error(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("error"), dict)
