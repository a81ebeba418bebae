"""A signer in another process: jobs wait for it, and the board says what is wrong with it.

A receipt whose record is durable must be signed, so nothing is given up while the signer is away.
The channel's lock is held meanwhile: what needs the signature waits, and no job is lost.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from piecework.base.clock import Clock
from piecework.chain.errors import SignerAway, SignerDiffers, SignerError, SignerRefuses
from piecework.signer.policy import CONTRADICTS, LIMITS, OFFER_OLD
from piecework.signer.remote import RemoteSigner, SignerState
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.signing import Unsigned
from piecework_protocol.types import Address, Signature

CHECK: Final = "signer"
"""The name under which the signer is reported to the board."""
SPENDING: Final = "signer's transactions"
"""The name under which transactions that it refused are reported."""
JOURNAL: Final = "journal"
"""The name under which a journal is reported that lacks what the worker has signed."""
RETRY_S: Final = 0.5
LOOK_S: Final = 5.0
ARRIVES_S: Final = 600.0
"""For a signer that is away when the worker starts. It may start later, as after a boot."""


class PatientSigner:
    """Implements `AsyncSigner`. `typed` waits for a signer, and `transaction` does not.

    A transaction that is not signed now is prepared again by a later round of settlement.
    """

    def __init__(
        self, signer: RemoteSigner, board: FaultBoard, *, retry_s: float = RETRY_S
    ) -> None:
        self._signer, self._board, self._retry_s = signer, board, retry_s
        self._ended = asyncio.Event()
        self._seen: SignerState | None = None

    @property
    def address(self) -> Address:
        return self._signer.address

    async def typed(self, domain: Domain, message: TypedData) -> Signature:
        """Have a typed object signed, as soon as the signer does so.

        Raises:
            Refusal: the worker stops first.
            SignerRefuses: the signer has signed something else about the same work.
        """
        while True:
            try:
                signature = await self._signer.typed(domain, message)
            except SignerError as error:
                if isinstance(error, SignerRefuses) and error.refusal == CONTRADICTS:
                    raise  # it will never be signed, so nobody waits for it
                report(self._board, CHECK, error)
                if self._ended.is_set():
                    raise Refusal(Reason.DRAINING, "the worker is shutting down") from None
                await self._pause(self._ended)
            else:
                if self._board.is_failing(CHECK):
                    self._board.passed(CHECK)
                return signature

    async def transaction(self, transaction: Unsigned) -> Signature:
        """Have a transaction signed now.

        Raises:
            SignerError: the signer is away, refuses, or is another one.
        """
        try:
            signature = await self._signer.transaction(transaction)
        except SignerError as error:
            report(self._board, SPENDING, error)
            raise
        if self._board.is_failing(SPENDING):
            self._board.passed(SPENDING)
        return signature

    def end(self) -> None:
        """Let nobody wait any more: the worker stops."""
        self._ended.set()

    async def watch(self) -> None:
        """Look at the signer again and again until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def arrives(self, stop: asyncio.Event, clock: Clock, within_s: float) -> bool:
        """Wait for a signer that is away, and report that it is.

        Returns:
            Whether it is there. False: `stop` was set first.

        Raises:
            SignerError: it is away for `within_s` seconds, has another key, or refuses.
        """
        until = clock.monotonic() + within_s
        while not stop.is_set():
            error = await self.look()
            if error is None:
                return True
            if not isinstance(error, SignerAway):
                raise error
            if clock.monotonic() >= until:
                raise SignerAway(
                    f"{error}. It was away for {within_s:.0f} s at the start. Start piecework "
                    "signer, or correct signer in the settings"
                )
            await self._pause(stop)
        return False

    async def _pause(self, stop: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._retry_s):
                await stop.wait()

    async def look(self) -> SignerError | None:
        """Look once, and report what is found. Return why the signer gives no answer."""
        try:
            state = await self._signer.state()
        except SignerError as error:
            report(self._board, CHECK, error)
            return error
        judge(self._board, state)
        if self._seen is None or _has_more(state, self._seen):
            # What was refused before may be signed now. The next round tries.
            self._board.passed(SPENDING)
        self._seen = state
        return None


def judge(board: FaultBoard, state: SignerState) -> None:
    """Report whether a signer that answers has limits left."""
    if not state.signatures:
        board.failed(CHECK, Code.SIGNER_LIMIT, "the signatures of this day are used up")
    elif not state.wei:
        board.failed(CHECK, Code.SIGNER_LIMIT, "the gas of this day is used up")
    else:
        board.passed(CHECK)


def report(board: FaultBoard, check: str, error: SignerError) -> None:
    """Report why a signer did not sign. A journal that lags does so until `worker recover`."""
    if isinstance(error, SignerRefuses) and error.refusal == OFFER_OLD:
        board.failed(JOURNAL, Code.JOURNAL_OLD, str(error))
        return
    if isinstance(error, SignerDiffers):
        code = Code.SIGNER_DIFFERS
    elif not isinstance(error, SignerRefuses):
        code = Code.SIGNER_AWAY
    else:
        code = Code.SIGNER_LIMIT if error.refusal in LIMITS else Code.SIGNER_REFUSES
    board.failed(check, code, str(error))


def _has_more(state: SignerState, before: SignerState) -> bool:
    """Whether a day or other limits have begun."""
    renewed = state.renews_at != before.renews_at
    return renewed or state.wei > before.wei or state.tokens > before.tokens
