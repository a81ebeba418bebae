"""Jobs wait for a signer that is away, and the board says what is wrong with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from piecework.chain.contracts import calls
from piecework.chain.errors import SignerAway, SignerDiffers, SignerRefuses
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework.signer.remote import RemoteSigner
from piecework_node import logs
from piecework_node.metrics import Metrics
from piecework_node.runtime.faults import Code, FaultBoard
from piecework_node.runtime.signing import CHECK, SPENDING, PatientSigner
from piecework_protocol.errors import Reason, Refusal
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256
from tests.support.chain.signers import ACCEPTANCE, KEY, LIMITS, MARKET, PAYOUT, PINS, serving
from tests.support.clock import FakeClock
from tests.support.waiting import until

CALL = calls.push_payout(MARKET, MARKET.token, PAYOUT)
TX = UnsignedTransaction(MARKET.chain_id, 0, Fees(3, 1), 100_000, CALL.to, 0, CALL.data)


class Parts:
    """A patient signer over a socket, and its board."""

    def __init__(self, folder: Path) -> None:
        self.board = FaultBoard(FakeClock(), Metrics(), logs.silent(), patience_s=0)
        self.remote = RemoteSigner(folder / "socket", KEY.address, MARKET, answer_s=1)
        self.signer = PatientSigner(self.remote, self.board, retry_s=0.01)

    def codes(self, *checks: str) -> list[Code]:
        return [fault.code for fault in self.board.failures(*checks or (CHECK, SPENDING))]


async def test_a_signature_waits_for_the_signer_and_the_fault_ends_with_it(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    waiting = asyncio.create_task(parts.signer.typed(MARKET.domain, ACCEPTANCE))
    await until(lambda: parts.codes() == [Code.SIGNER_AWAY])
    assert not waiting.done() and parts.board.stopping is not None
    async with serving(tmp_path):
        signature = await waiting
        await parts.remote.close()
    assert signature == KEY.sign_typed(MARKET.domain, ACCEPTANCE)
    assert parts.codes() == []


async def test_a_start_waits_for_the_signer_and_says_that_it_is_away(tmp_path: Path) -> None:
    parts, stop = Parts(tmp_path), asyncio.Event()
    waiting = asyncio.create_task(parts.signer.arrives(stop, FakeClock(), 60))
    await until(lambda: parts.codes() == [Code.SIGNER_AWAY])
    assert not waiting.done() and parts.board.stopping is not None
    async with serving(tmp_path):
        assert await waiting
        await parts.remote.close()
    assert parts.codes() == []


async def test_a_start_that_is_to_stop_waits_no_longer(tmp_path: Path) -> None:
    parts, stop = Parts(tmp_path), asyncio.Event()
    waiting = asyncio.create_task(parts.signer.arrives(stop, FakeClock(), 60))
    await until(lambda: bool(parts.codes()))
    stop.set()
    assert not await waiting


async def test_a_start_waits_for_no_signer_without_end(tmp_path: Path) -> None:
    parts, clock = Parts(tmp_path), FakeClock()
    waiting = asyncio.create_task(parts.signer.arrives(asyncio.Event(), clock, 60))
    await until(lambda: bool(parts.codes()))
    clock.advance(60)
    with pytest.raises(SignerAway, match=r"does not answer: .* away for 60 s .* piecework signer"):
        await waiting


async def test_a_start_does_not_wait_for_the_signer_of_another_key(tmp_path: Path) -> None:
    other = LocalSigner(bytes(keccak256(b"another operator")))
    parts = Parts(tmp_path)
    async with serving(tmp_path, key=other):
        with pytest.raises(SignerDiffers):
            await parts.signer.arrives(asyncio.Event(), FakeClock(), 60)
        await parts.remote.close()


async def test_a_worker_that_stops_lets_nobody_wait(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    waiting = asyncio.create_task(parts.signer.typed(MARKET.domain, ACCEPTANCE))
    await until(lambda: bool(parts.codes()))
    parts.signer.end()
    with pytest.raises(Refusal) as caught:
        await waiting
    assert caught.value.reason is Reason.DRAINING


async def test_a_transaction_does_not_wait(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    with pytest.raises(SignerAway):
        await parts.signer.transaction(TX)
    assert parts.codes(SPENDING) == [Code.SIGNER_AWAY]
    async with serving(tmp_path):
        assert await parts.signer.transaction(TX) == KEY.sign_transaction(TX)
        await parts.remote.close()
    assert parts.codes() == []


async def test_a_limit_of_the_day_is_a_fault_until_there_is_more(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    async with serving(tmp_path, limits=replace(LIMITS, wei=1)):
        await parts.signer.look()
        with pytest.raises(SignerRefuses):
            await parts.signer.transaction(TX)
        await parts.signer.look()
        assert parts.codes() == [Code.SIGNER_LIMIT]
    async with serving(tmp_path):
        await parts.signer.look()
        assert parts.codes() == []
        await parts.remote.close()


async def test_what_the_policy_refuses_is_a_fault_of_its_own(tmp_path: Path) -> None:
    parts = Parts(tmp_path)
    async with serving(tmp_path, pins=replace(PINS, payouts=frozenset())):
        with pytest.raises(SignerRefuses):
            await parts.signer.transaction(TX)
        await parts.remote.close()
    assert parts.codes() == [Code.SIGNER_REFUSES]
