"""The worker's side of a signer: implements `AsyncSigner` over a unix socket.

One question is under way at a time. Nothing is believed: every signature is held to the operator's
address before anybody sees it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from piecework.base.text import one_line
from piecework.chain.deployment import Deployment
from piecework.chain.errors import SignerAway, SignerDiffers, SignerRefuses
from piecework.signer.limits import ANSWER_S, MAX_FRAME_BYTES
from piecework.signer.wire import frame, read_frame, transaction_question, typed_question
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.members import data
from piecework_protocol.signing import Unsigned, recover
from piecework_protocol.types import (
    SIGNATURE_BYTES,
    Address,
    Bytes32,
    Signature,
    address_hex,
    keccak256,
    parse_address,
)

_MAX_WHY: Final = 300
_MAX_REFUSAL: Final = 40


@dataclass(frozen=True, slots=True)
class SignerState:
    """What a signer says of itself. Amounts are what is left of its day.

    last_offer: the highest number of an offer that it has signed. 0: there was none.
    """

    address: Address
    chain_id: int
    registry: Address
    signatures: int
    wei: int
    tokens: int
    renews_at: int
    last_offer: int


class RemoteSigner:
    """Implements `AsyncSigner`. `address` is the operator that the home has pinned."""

    def __init__(
        self, path: Path, address: Address, deployment: Deployment, *, answer_s: float = ANSWER_S
    ) -> None:
        self.path, self._address, self._deployment = path, address, deployment
        self._answer_s = answer_s
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def address(self) -> Address:
        return self._address

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        """Have a typed object signed.

        Raises:
            SignerError: the signer is away, refuses, or is another one.
        """
        return await self._signature(typed_question(domain, message), domain.digest(message))

    async def transaction(self, transaction: Unsigned) -> Signature:
        """Have a transaction signed. Errors are those of `typed`."""
        payload = transaction.payload()
        return await self._signature(transaction_question(payload), keccak256(payload))

    async def state(self) -> SignerState:
        """Ask who the signer is and what is left of its day.

        Raises:
            SignerError: it does not answer, or is another one.
        """
        async with self._lock:
            return self._checked(await self._ask({"method": "hello"}))

    async def close(self) -> None:
        """Hang up."""
        self._hang_up()

    async def _signature(self, question: Mapping[str, Any], digest: Bytes32) -> Signature:
        async with self._lock:
            answer = await self._ask(question)
        try:
            raw = data(answer.get("signature"), "signature", SIGNATURE_BYTES, least=SIGNATURE_BYTES)
            signer = recover(digest, raw)
        except (MalformedInput, EvidenceRefused) as error:
            raise SignerDiffers(f"the signer at {self.path} answers nonsense: {error}") from None
        if signer != self._address:
            raise self._another(signer)
        return Signature(raw)

    async def _ask(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask once. A connection that broke since the last question is made again, once."""
        reused = self._streams is not None
        try:
            return await self._exchange(question)
        except SignerAway:
            if not reused:
                raise
        return await self._exchange(question)

    async def _exchange(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(self._answer_s):
                answer = await self._over(await self._connected(), question)
        except TimeoutError:
            self._hang_up()
            raise SignerAway(f"the signer at {self.path} does not answer in time") from None
        except (OSError, MalformedInput) as error:
            self._hang_up()
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise SignerAway(f"the signer at {self.path} does not answer: {why}") from None
        except BaseException:
            self._hang_up()  # an answer to a question of before would be taken for the next one
            raise
        _require_no_refusal(answer)
        return answer

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect if that is due, and see at whose socket."""
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(
                str(self.path), limit=MAX_FRAME_BYTES
            )
            hello = await self._over(self._streams, {"method": "hello"})
            _require_no_refusal(hello)
            self._checked(hello)
        return self._streams

    async def _over(
        self,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        question: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        reader, writer = streams
        writer.write(frame(question))
        await writer.drain()
        answer = await read_frame(reader, self._answer_s)
        if answer is None:
            raise ConnectionResetError("it hung up")
        return answer

    def _checked(self, hello: Mapping[str, Any]) -> SignerState:
        try:
            left = hello["left"]
            state = SignerState(
                parse_address(hello["address"]),
                int(hello["chain_id"]),
                parse_address(hello["registry"]),
                int(left["signatures"]),
                int(left["wei"]),
                int(left["tokens"]),
                int(left["renews_at"]),
                int(hello["last_offer"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SignerDiffers(f"what answers at {self.path} is not a signer: {error}") from None
        if state.address != self._address:
            raise self._another(state.address)
        deployment = self._deployment
        if (state.chain_id, state.registry) != (deployment.chain_id, deployment.registry):
            raise SignerDiffers(f"the signer at {self.path} is for another market")
        return state

    def _another(self, address: Address) -> SignerDiffers:
        return SignerDiffers(
            f"the signer at {self.path} has the key of {address_hex(address)}, and this home is "
            f"that of {address_hex(self._address)}"
        )

    def _hang_up(self) -> None:
        if self._streams is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._streams[1].transport.abort()
        self._streams = None


def _require_no_refusal(answer: Mapping[str, Any]) -> None:
    refused = answer.get("refused")
    if refused is not None:
        why = one_line(str(answer.get("why", "")), _MAX_WHY)
        raise SignerRefuses(one_line(str(refused), _MAX_REFUSAL), why)


async def signer_at(path: Path, deployment: Deployment) -> Address:
    """Ask a signer for its address, for a home that has none pinned yet.

    Raises:
        SignerError: it does not answer, or serves another market.
    """
    asking = _Unpinned(path, Address(bytes(20)), deployment)
    try:
        return (await asking.state()).address
    finally:
        await asking.close()


class _Unpinned(RemoteSigner):
    """Takes any signer of the market."""

    def _checked(self, hello: Mapping[str, Any]) -> SignerState:
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            self._address = parse_address(hello["address"])
        return super()._checked(hello)
