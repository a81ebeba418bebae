"""A signer over its socket: typed questions, bounded frames, users, and whose key answers."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.chain.contracts import calls
from piecework.chain.errors import SignerAway, SignerDiffers, SignerRefuses
from piecework.chain.sending.fees import Fees
from piecework.chain.sending.rawtx import UnsignedTransaction
from piecework.signer import policy
from piecework.signer.limits import MAX_CLIENTS, MAX_FRAME_BYTES
from piecework.signer.place import socket_path
from piecework.signer.record import SignatureLog
from piecework.signer.remote import RemoteSigner, signer_at
from piecework.signer.server import BUSY, METHOD, USER, CannotServe, require_linux
from piecework.signer.wire import frame, read_frame, transaction_question, typed_question
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import keccak256
from tests.support.chain.signers import (
    ACCEPTANCE,
    KEY,
    LIMITS,
    MARKET,
    PAYOUT,
    PERMIT,
    PINS,
    TOKEN,
    serving,
)

OTHER = LocalSigner(bytes(keccak256(b"another key")))
CALL = calls.push_payout(MARKET, MARKET.token, PAYOUT)
TX = UnsignedTransaction(MARKET.chain_id, 0, Fees(3, 1), 100_000, CALL.to, 0, CALL.data)


def remote(path: Path, **changes: Any) -> RemoteSigner:
    return RemoteSigner(path, KEY.address, MARKET, **changes)


async def once(
    path: Path, question: Callable[[RemoteSigner], Awaitable[object]] = RemoteSigner.state
) -> None:
    """Ask one question on a connection of its own."""
    signer = remote(path)
    try:
        await question(signer)
    finally:
        await signer.close()


async def acceptance(signer: RemoteSigner) -> None:
    await signer.typed(MARKET.domain, ACCEPTANCE)


async def ask(path: Path, *questions: bytes) -> list[dict[str, Any] | None]:
    """Send bytes as they are, and read one answer for each."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=MAX_FRAME_BYTES)
    try:
        answers = []
        for question in questions:
            writer.write(question)
            answers.append(await read_frame(reader, 5))
        return answers
    finally:
        writer.transport.abort()


async def test_a_remote_signer_signs_as_the_key_itself(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        signer = remote(path)
        assert await signer.typed(MARKET.domain, ACCEPTANCE) == KEY.sign_typed(
            MARKET.domain, ACCEPTANCE
        )
        assert await TX.signed_by(signer) == TX.sign(KEY)
        assert await signer_at(path, MARKET) == KEY.address
        await signer.close()
    lines = [json.loads(line) for line in (tmp_path / "signed.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["Acceptance", "pushPayout"]
    assert lines[1]["wei"] == "300000" and lines[1]["process"] == os.getpid()


async def test_the_socket_is_its_owners_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


async def test_a_group_by_its_number_may_open_the_socket_and_an_unknown_one_leaves_none(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, group=str(os.getgid())) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getgid()
    odd = {str(2**32 - 1): "above", str(2**32): "above", "9" * 5000: "above", "³": "no such group"}
    for group, why in {"no-such-group": "no such group", **odd}.items():
        with pytest.raises(CannotServe, match=why):
            async with serving(tmp_path, group=group):
                pass
    assert not (tmp_path / "socket").exists()


def test_a_system_that_does_not_say_who_asks_is_refused() -> None:
    with pytest.raises(CannotServe, match="only Linux"):
        require_linux("darwin")


async def test_another_user_is_refused_by_name(tmp_path: Path) -> None:
    async with serving(tmp_path, users=frozenset({os.getuid() + 1})) as path:
        with pytest.raises(SignerRefuses) as caught:
            await once(path, acceptance)
    assert caught.value.refusal == USER


@pytest.mark.parametrize(
    "question",
    [
        {"method": "sign", "digest": "0x" + "11" * 32},
        {"method": "eth_sign", "data": "0x" + "11" * 32},
        {"method": None},
        {},
    ],
)
async def test_a_bare_digest_is_never_signed(tmp_path: Path, question: dict[str, Any]) -> None:
    async with serving(tmp_path) as path:
        (answer,) = await ask(path, frame(question))
    assert answer is not None and answer["refused"] == METHOD


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Voucher"},
        {"kind": 7},
        {"message": {}},
        {"message": "0x" + "11" * 32},
        {"domain": None},
        {"domain": {"name": "x" * 1000, "version": "2", "chainId": 1, "verifyingContract": "0x"}},
        {"digest": "0x" + "11" * 32},
    ],
)
async def test_a_question_of_another_shape_is_refused_and_the_next_one_answered(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    question = typed_question(MARKET.domain, ACCEPTANCE)
    async with serving(tmp_path) as path:
        bad, good = await ask(path, frame({**question, **changes}), frame(question))
    assert bad is not None and bad["refused"] in (policy.KIND, policy.MALFORMED)
    assert good is not None and "signature" in good


@pytest.mark.parametrize(
    "sent",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        bytes(4),
        b"\0\0\0\2[]",
        b"\0\0\0\2{}x"[:6].replace(b"{}", b"{x"),
    ],
    ids=["too long", "empty", "no object", "no JSON"],
)
async def test_a_frame_that_is_none_ends_the_connection_alone(tmp_path: Path, sent: bytes) -> None:
    async with serving(tmp_path) as path:
        (answer,) = await ask(path, sent)
        assert answer is None
        await once(path, acceptance)


async def test_connections_are_bounded(tmp_path: Path) -> None:
    async with serving(tmp_path) as path:
        held = [remote(path) for _ in range(MAX_CLIENTS)]
        for one in held:
            await one.state()
        with pytest.raises(SignerRefuses) as caught:
            await once(path)
        assert caught.value.refusal == BUSY
        await held[0].typed(MARKET.domain, ACCEPTANCE)
        for one in held:
            await one.close()


async def test_what_is_over_a_limit_is_refused_by_name_and_the_rest_signed(tmp_path: Path) -> None:
    limits = replace(LIMITS, tokens=6, wei=0)
    async with serving(tmp_path, limits=limits) as path:
        signer = remote(path)
        for work, refusal in (
            (signer.typed(TOKEN, PERMIT), policy.TOKENS),
            (signer.transaction(TX), policy.GAS),
        ):
            with pytest.raises(SignerRefuses, match="are used on this day") as caught:
                await work
            assert caught.value.refusal == refusal
        await signer.typed(MARKET.domain, ACCEPTANCE)
        assert (await signer.state()).tokens == 6
        await signer.close()


async def test_a_wrong_key_behind_the_socket_signs_nothing_for_this_home(tmp_path: Path) -> None:
    pins = replace(PINS, operator=OTHER.address)
    async with serving(tmp_path, key=OTHER, pins=pins) as path:
        with pytest.raises(SignerDiffers, match="has the key of"):
            await once(path, acceptance)


async def test_a_signer_of_another_market_is_told_apart(tmp_path: Path) -> None:
    other = replace(MARKET, chain_id=1)
    async with serving(tmp_path) as path:
        with pytest.raises(SignerDiffers, match="another market"):
            await RemoteSigner(path, KEY.address, other).state()


async def test_a_key_that_changes_under_an_open_connection_is_noticed(tmp_path: Path) -> None:
    """The greeting was the right one. The signature is not."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = {"signatures": 1, "wei": "1", "tokens": "1", "renews_at": 1}
        hello = {"address": "0x" + KEY.address.hex(), "chain_id": MARKET.chain_id, "left": left}
        hello |= {"registry": "0x" + MARKET.registry.hex(), "last_offer": 0}
        await read_frame(reader, 5)
        writer.write(frame(hello))
        await read_frame(reader, 5)
        signature = OTHER.sign_typed(MARKET.domain, ACCEPTANCE)
        writer.write(frame({"signature": "0x" + signature.hex()}))
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, str(tmp_path / "socket"))
    async with server:
        with pytest.raises(SignerDiffers, match="has the key of"):
            await once(tmp_path / "socket", acceptance)


async def test_a_signer_that_is_away_or_silent_says_so_and_comes_back(tmp_path: Path) -> None:
    signer = remote(tmp_path / "socket", answer_s=1.0)
    with pytest.raises(SignerAway, match="does not answer"):
        await signer.typed(MARKET.domain, ACCEPTANCE)
    async with serving(tmp_path):
        await signer.typed(MARKET.domain, ACCEPTANCE)
    with pytest.raises(SignerAway):
        await signer.typed(MARKET.domain, ACCEPTANCE)
    async with serving(tmp_path):
        await signer.typed(MARKET.domain, ACCEPTANCE)
        await signer.close()


async def test_a_socket_of_a_killed_signer_is_taken_over_and_a_live_one_is_not(
    tmp_path: Path,
) -> None:
    import socket

    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "socket"))
    dead.close()
    async with serving(tmp_path) as path:
        (tmp_path / "second").mkdir()
        (tmp_path / "second" / "socket").symlink_to(path)
        with pytest.raises(CannotServe):
            async with serving(tmp_path / "second"):
                pass
        await once(path)


@pytest.mark.parametrize(
    "place", ["/run/x", "unix:", "unix:relative", "tcp:/x", "unix:/" + "a" * 200]
)
def test_a_place_that_is_no_socket_is_refused(place: str) -> None:
    with pytest.raises(ValueError, match="socket"):
        socket_path(place)


def test_the_log_of_signatures_is_bounded(tmp_path: Path) -> None:
    log = SignatureLog(tmp_path / "signed.jsonl", max_bytes=100)
    for number in range(200):
        log.add({"at": number})
    log.close()
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 9 and all(file.stat().st_size <= 100 for file in kept)
    assert json.loads((tmp_path / "signed.jsonl").read_text().splitlines()[-1]) == {"at": 199}


def nested(levels: int) -> bytes:
    """A list in a list, so many times over, as RLP."""
    heads, length = list[bytes](), 1
    for _ in range(levels):
        size = length.to_bytes(-(-length.bit_length() // 8), "big")
        head = bytes([0xC0 + length]) if length < 56 else bytes([0xF7 + len(size)]) + size
        heads.append(head)
        length += len(head)
    return b"".join(reversed(heads)) + b"\xc0"


@pytest.mark.parametrize(
    "payload",
    [
        replace(TX, fees=Fees(1 << 20_000, 1)).payload(),
        replace(TX, chain_id=1 << 20_000).payload(),
        replace(TX, value=1 << 256).payload(),
        b"\x02" + nested(60_000),
        b"\x02",
        b"\x02\xf9\xff",
        TX.payload()[:-1],
        TX.payload() + b"\0",
        TX.payload()[:-1] + b"\xc1\xc0",
    ],
    ids=["fee", "chain", "value", "nested", "nothing", "cut", "short", "long", "access list"],
)
async def test_a_transaction_out_of_every_range_is_refused_and_the_next_question_answered(
    tmp_path: Path, payload: bytes
) -> None:
    good = frame(transaction_question(TX.payload()))
    async with serving(tmp_path) as path:
        refused, signed = await ask(path, frame(transaction_question(payload)), good)
    assert refused is not None and refused["refused"] == policy.MALFORMED
    assert signed is not None and "signature" in signed


async def test_half_a_character_in_a_domain_is_refused_and_the_next_question_answered(
    tmp_path: Path,
) -> None:
    good = frame(typed_question(TOKEN, PERMIT))
    question = typed_question(replace(TOKEN, name="\ud800"), PERMIT)
    async with serving(tmp_path) as path:
        refused, signed = await ask(path, frame(question), good)
    assert refused is not None and refused["refused"] == policy.MALFORMED
    assert signed is not None and "signature" in signed


def test_a_log_that_cannot_turn_keeps_its_file_and_goes_on_later(tmp_path: Path) -> None:
    """Were its file closed first, the next line would go to whatever has that number by then."""
    log = SignatureLog(tmp_path / "signed.jsonl", max_bytes=20)
    log.add({"at": 1000000})
    (tmp_path / "signed.jsonl.7").touch()
    (tmp_path / "signed.jsonl.8").mkdir()  # no file can be moved there
    with pytest.raises(OSError, match="directory"):
        log.add({"at": 1000001})
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    with pytest.raises(OSError, match="directory"):
        log.add({"at": 1000002})
    os.close(other)  # it raises if the log has closed it
    (tmp_path / "signed.jsonl.8").rmdir()
    log.add({"at": 1000003})
    log.close()
    assert json.loads((tmp_path / "signed.jsonl").read_text()) == {"at": 1000003}
    assert json.loads((tmp_path / "signed.jsonl.1").read_text()) == {"at": 1000000}
