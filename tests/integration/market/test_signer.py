"""A worker whose operator key is in a signer: real processes, a real chain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from piecework.base.files import write_private
from piecework.chain.contracts import calls
from piecework.chain.contracts.authorizations import Permit
from piecework.chain.contracts.calls import Call
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.chain.errors import SignerRefuses
from piecework.chain.sending.transactions import TransactionSender
from piecework.client.config import load_config
from piecework.client.jobs.events import CanvasText, JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.demo.market import free_port
from piecework.signer.remote import RemoteSigner
from piecework_node import config
from piecework_node.daemon.admin import ADDRESS_FILE, ask_daemon
from piecework_node.home import Home
from piecework_node.keys.operator import is_record, write_record
from piecework_node.operations.checks import Checker
from piecework_node.operations.owning import OwnerHands, move_payout
from piecework_node.operations.rotation import Passwords, Rotation, is_rotated
from piecework_node.operations.setup import NewStake, set_up_worker
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, Timestamp, Uint256, keccak256, parse_address, to_hex
from tests.support.chain.chains import (
    ETHER,
    MIN_STAKE,
    UNBONDING_DELAY_S,
    TestMarket,
    deployed,
    signer,
)
from tests.support.chain.signers import SignerProcess, payouts
from tests.support.market.joining import describe, published
from tests.support.node.owed import OWNER
from tests.support.system.commands import piecework
from tests.support.system.worker_process import (
    OPERATOR_SECRET,
    PASSWORD,
    POLL_S,
    RECEIVER,
    WorkerProcess,
    write_key,
)
from tests.support.waiting import until

pytestmark = pytest.mark.process

OPERATOR = LocalSigner(OPERATOR_SECRET)
NEXT = LocalSigner(bytes(keccak256(b"the next operator behind a signer")))
SECRET = {"PIECEWORK_PASSWORD": PASSWORD}
THIEF = Address(keccak256(b"a thief of a worker's home")[12:])
SETTINGS: dict[str, Any] = {"payouts": payouts(RECEIVER), "daily_tokens": "100.0"}


@dataclass(frozen=True, slots=True)
class Apart:
    """A worker and its signer. The key is with the signer alone."""

    market: TestMarket
    worker: WorkerProcess
    signer: SignerProcess

    async def codes(self) -> set[str]:
        """The faults of the running worker."""
        status = await ask_daemon(self.worker.home.root, "GET", "/status")
        return {fault["code"] for fault in status["faults"]}

    async def has(self, *codes: str) -> None:
        """Wait until the worker has these faults, and no other."""

        async def same() -> bool:
            return await self.codes() == set(codes)

        await until(same, within_s=60)


@asynccontextmanager
async def apart(tmp_path: Path, **settings: Any) -> AsyncIterator[Apart]:
    """Register a worker, and move its key into a signer that runs."""
    async with EmbeddedChain() as chain, deployed(chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.05, rpc_url=chain.url
        )
        process = SignerProcess.make(
            tmp_path / "signer", market.deployment, OPERATOR_SECRET, **{**SETTINGS, **settings}
        )
        worker.home.operator.unlink()
        write_record(worker.home.operator, OPERATOR.address)
        with worker.home.config.open("a") as file:
            file.write(f'\nsigner = "{process.place}"\n')
        await process.start()
        try:
            yield Apart(market, worker, process)
        finally:
            if process.process is not None and process.process.returncode is None:
                await process.kill()


async def test_a_signer_that_is_killed_in_the_middle_of_work_costs_no_job(tmp_path: Path) -> None:
    payer = signer("payer of the signer test")
    async with apart(tmp_path) as parts:
        market, worker = parts.market, parts.worker
        ready = await worker.start()
        assert ready["ready"], ready
        await market.give(payer.address, wei=ETHER)
        await market.pool(payer, payer, 50_000_000)
        store = Store(tmp_path / "client.db", market.deployment.domain, payer.address)
        flags = {"deposit": "10.0", "stall_timeout_s": 60.0}
        settings = load_config(tmp_path / "no-file", flags)
        wallet, token = Wallet(payer, payer), market.deployment.payment_token
        async with PieceworkClient(store, market.reader, wallet, token, settings) as client:
            canvases = await _read_through_a_kill(client, parts)
            (row,) = client.store.channels()
            _, receipts = await client.receipts(row.id)
            assert not [r.trouble for r in receipts if r.trouble]
            assert len(receipts) == canvases > 2
        assert await worker.drain() == 0
        paid = await market.reader.token_balance(market.token, RECEIVER)
        waiting = await market.reader.waiting_payout(market.token, RECEIVER)
        assert paid + waiting > 0
    signed = parts.signer.signed()
    assert {"Offer", "Acceptance", "Receipt"} <= set(signed)
    assert any(what.startswith("settle") or what == "fund" for what in signed)


async def _read_through_a_kill(client: PieceworkClient, parts: Apart) -> int:
    """Kill the signer after the first canvas, and start it again once the worker says so."""
    request = TextRequest(
        Conversation((Message("user", "a long answer"),)),
        generation=Generation(seed=5, max_tokens=200),
    )
    killed = False
    async with client.run(request) as run:
        async for event in run:
            if isinstance(event, CanvasText) and not killed:
                killed = True
                await parts.signer.kill()
                await parts.has("signer-away")
                await parts.signer.start()
            if isinstance(event, JobFinished):
                assert killed and event.acknowledged
                await parts.has()
                return event.canvases
    raise AssertionError("the job did not end")


async def test_a_signer_that_is_away_at_the_start_is_waited_for(tmp_path: Path) -> None:
    async with apart(tmp_path) as parts:
        await parts.signer.kill()
        for comes in (False, True):
            start = asyncio.create_task(parts.worker.start(within_s=120))
            await until((parts.worker.home.root / ADDRESS_FILE).exists, within_s=60)
            await parts.has("signer-away")
            status = await ask_daemon(parts.worker.home.root, "GET", "/status")
            assert (status["state"], status["can_earn"]) == ("faulted", False)
            assert "waiting for the signer" in parts.worker.log_tail() and not start.done()
            if comes:
                await parts.signer.start()
                assert (await start)["ready"]
                await parts.has()
            assert await parts.worker.drain() == 0
            await asyncio.gather(start, return_exceptions=True)


async def test_a_wrong_key_behind_the_socket_is_named_and_signs_nothing(tmp_path: Path) -> None:
    async with apart(tmp_path) as parts:
        await parts.worker.start()
        await parts.signer.kill()
        right = parts.signer.home.key.read_bytes()
        wrong = SignerProcess.make(tmp_path / "wrong", parts.market.deployment, NEXT.secret)
        parts.signer.home.key.write_bytes(wrong.home.key.read_bytes())
        await parts.signer.start()
        await parts.has("signer-differs")
        assert await parts.worker.drain() == 0
        with pytest.raises(AssertionError, match="has the key of"):
            await parts.worker.start()
        found = await Checker(parts.worker.home, PASSWORD).run()
        assert [f.code for f in found if f.item == "signer"] == ["signer-differs"]
        await parts.signer.kill()
        parts.signer.home.key.write_bytes(right)
        await parts.signer.start()
        assert (await parts.worker.start())["ready"]
        assert await parts.worker.drain() == 0


async def test_a_thief_of_the_home_moves_no_stake_and_spends_no_more_than_a_day(
    tmp_path: Path,
) -> None:
    async with apart(tmp_path, daily_gas="0.01") as parts:
        market, root = parts.market, parts.worker.home.root
        assert is_record(parts.worker.home.operator)
        assert OPERATOR_SECRET not in b"".join(
            file.read_bytes() for file in root.rglob("*") if file.is_file()
        )
        stolen = RemoteSigner(parts.signer.home.socket, OPERATOR.address, market.deployment)
        sender = TransactionSender.of(market.reader, stolen)
        try:
            await _moves_no_money(market, sender, stolen)
            await _spends_the_gas_of_a_day(market, sender)
        finally:
            await stolen.close()
        known = await market.reader.worker(OPERATOR.address)
        assert known is not None and known.active
        assert (known.stake, known.payout) == (MIN_STAKE, RECEIVER)


async def _moves_no_money(
    market: TestMarket, sender: TransactionSender, stolen: RemoteSigner
) -> None:
    deployment, operator = market.deployment, OPERATOR.address
    await market.give(operator, tokens=3 * MIN_STAKE)
    wanted: list[Call] = [
        calls.approve(market.token, THIEF, MIN_STAKE),
        calls.transfer(market.token, THIEF, MIN_STAKE),
        calls.send_native(THIEF, 1),
        calls.authorize_session_key(deployment, THIEF, Timestamp(int(time.time()) + 60)),
    ]
    for call in wanted:
        with pytest.raises(SignerRefuses):
            await sender.execute(call, poll_s=POLL_S)
    domain = await market.reader.token_domain(market.token)
    permit = Permit(operator, THIEF, Uint256(1), Uint256(0), Uint256(2**40))
    for spender, value, refusal in (
        (THIEF, 1, "contract"),
        (deployment.registry, MIN_STAKE + 1, "daily-tokens"),
    ):
        with pytest.raises(SignerRefuses) as caught:
            await stolen.typed(domain, permit.replace(spender=spender, value=Uint256(value)))
        assert caught.value.refusal == refusal


async def _spends_the_gas_of_a_day(market: TestMarket, sender: TransactionSender) -> None:
    """Burn gas with what is allowed, until the limit of the day ends it."""
    before = await market.reader.native_balance(OPERATOR.address)
    with pytest.raises(SignerRefuses) as caught:
        for number in range(1000):
            call = calls.set_endpoint(
                market.deployment, OPERATOR.address, f"thief.example:{number}"
            )
            await sender.execute(call, poll_s=POLL_S)
    assert caught.value.refusal == "daily-gas"
    spent = before - await market.reader.native_balance(OPERATOR.address)
    assert 0 < spent <= ETHER // 100


async def test_every_command_of_a_worker_works_through_a_signer(tmp_path: Path) -> None:
    async with EmbeddedChain() as chain, deployed(chain) as market:
        deployment = market.deployment
        file = tmp_path / "deployment.json"
        deployment.save(file)
        other = Address(keccak256(b"another payout")[12:])
        allowed: dict[str, Any] = {
            "payouts": payouts(RECEIVER, other),
            "daily_tokens": "400.0",
        }
        first = SignerProcess.make(
            tmp_path / "first",
            deployment,
            OPERATOR_SECRET,
            leaving=True,
            coins_to=payouts(NEXT.address),
            daily_gas="1.0",
            **allowed,
        )
        # The new registration belongs to the owner of the old one, which is the old operator.
        allowed["payouts"] = payouts(RECEIVER, other, OPERATOR.address)
        second = SignerProcess.make(tmp_path / "second", deployment, NEXT.secret, **allowed)
        await first.start()
        await second.start()
        try:
            home = Home(tmp_path / "worker")
            await _init(home, file, chain.url, first)
            await _checks_and_pays_out(home, market, first, other)
            await _rotates(home, market, second)
        finally:
            await first.kill()
            await second.kill()
    assert {"Permit", "registerWithPermit", "setPayout", "requestUnbond"} <= set(first.signed())
    assert {"Permit", "registerWithPermit"} <= set(second.signed())


async def _init(home: Home, file: Path, url: str, first: SignerProcess) -> None:
    values = {"payout": to_hex(RECEIVER), "rpc_url": url, "signer": first.place}
    done = await set_up_worker(
        home,
        file,
        values,
        PASSWORD,
        NewStake(owner=OPERATOR.address, faucet=True),
        asked=frozenset(values),
    )
    assert done["operator"].lower() == to_hex(OPERATOR.address).lower()
    assert is_record(home.operator) and home.sealing.is_file()


async def _checks_and_pays_out(
    home: Home, market: TestMarket, first: SignerProcess, other: Address
) -> None:
    found = {f.item: f for f in await Checker(home, PASSWORD).run()}
    assert found["signer"].good, found["signer"].lines
    assert "signatures" in found["signer"].detail
    assert found["stake"].good and found["gas"].good, (found["stake"].lines, found["gas"].lines)
    remote = RemoteSigner(first.home.socket, OPERATOR.address, market.deployment)
    try:
        hands = OwnerHands(market.reader, [remote], poll_s=POLL_S)
        waiting, done = await move_payout(home, OPERATOR.address, other, hands)
        assert waiting is None and len(done) == 2
        with pytest.raises(SignerRefuses, match="payouts"):
            await move_payout(home, OPERATOR.address, THIEF, hands)
    finally:
        await remote.close()
    known = await market.reader.worker(OPERATOR.address)
    assert known is not None and known.payout == other


async def _rotates(home: Home, market: TestMarket, second: SignerProcess) -> None:
    await market.give(NEXT.address, wei=ETHER, tokens=MIN_STAKE)
    settings = config.load(home.root, environment={})
    first = RemoteSigner(_socket(settings.signer), OPERATOR.address, market.deployment)
    try:
        hands = OwnerHands(market.reader, [first], poll_s=POLL_S)
        passwords = Passwords(PASSWORD, PASSWORD)
        rotation = Rotation(home, settings, passwords, hands, poll_s=POLL_S, signer=second.place)
        report = await rotation.run(OPERATOR.address, Timestamp(int(time.time())))
    finally:
        await first.close()
    assert report.operator == NEXT.address and report.call is None
    assert is_rotated(home, OPERATOR.address)
    assert config.load(home.root, environment={}).signer == second.place
    retired = config.load(home.retired(OPERATOR.address).root, environment={})
    assert retired.signer == settings.signer


def _socket(place: str) -> Path:
    return Path(place.removeprefix("unix:"))


async def test_a_worker_joins_and_leaves_by_commands_with_no_key_on_its_machine(
    tmp_path: Path,
) -> None:
    """The operator key is in a signer, and the stake belongs to somebody else altogether."""
    public, home = tmp_path / "public", Home(tmp_path / "worker")
    public.mkdir()
    async with (
        EmbeddedChain() as chain,
        deployed(chain) as market,
        published(public) as url,
    ):
        market.deployment.save(public / "deployment.json")
        fingerprint = await describe(public)
        allowed = payouts(RECEIVER, OWNER.address)
        process = SignerProcess.make(
            tmp_path / "signer",
            market.deployment,
            OPERATOR_SECRET,
            payouts=allowed,
            daily_tokens="100.0",
        )
        write_key(tmp_path / "owner.json", bytes(OWNER.secret))
        await market.give(OWNER.address, wei=ETHER)
        await process.start()
        try:
            where = f"127.0.0.1:{free_port()}"
            joined = await piecework(
                *("worker", "join", url, "--home", str(home.root), "--fingerprint", fingerprint),
                *("--signer", process.place, "--payout", to_hex(RECEIVER), "--bind", where),
                *("--owner", to_hex(OWNER.address), "--faucet", "--no-start"),
                environment=SECRET,
            )
            assert joined.code == 0, joined.err
            assert is_record(home.operator)
            known = await market.reader.worker(OPERATOR.address)
            assert known is not None and (known.owner, known.payout) == (OWNER.address, RECEIVER)
            worker = WorkerProcess(home, where, 0.05)
            assert (await worker.start())["ready"]
            await _leaves(market, worker, tmp_path / "owner.json")
        finally:
            await process.kill()
    assert not {"requestUnbond", "withdrawStake", "send"} & set(process.signed())


async def _leaves(market: TestMarket, worker: WorkerProcess, owner: Path) -> None:
    """Leave, to the stake at its owner. The worker still runs when this begins."""
    leave = ("worker", "leave", "--home", str(worker.home.root), "--yes", "--json")
    keyless = (await piecework(*leave, environment=SECRET)).json()
    assert keyless["next"] == "unbond"
    assert parse_address(keyless["transaction"]["from"]) == OWNER.address
    assert worker.process is not None and await worker.process.wait() == 0

    waiting = (await piecework(*leave, "--owner-key", str(owner), environment=SECRET)).json()
    assert waiting["next"] == "wait" and waiting["transaction"] is None
    await market.pass_time(UNBONDING_DELAY_S)
    gone = (await piecework(*leave, "--owner-key", str(owner), environment=SECRET)).json()
    assert gone["next"] is None, gone
    assert await market.reader.worker(OPERATOR.address) is None
    assert await market.reader.token_balance(market.token, OWNER.address) == MIN_STAKE


async def test_of_two_homes_with_one_signer_the_second_takes_no_job(tmp_path: Path) -> None:
    """It has a journal of its own, and would sign again what the first has signed."""
    async with apart(tmp_path) as parts:
        assert (await parts.worker.start())["ready"]
        second = WorkerProcess(Home(tmp_path / "second"), f"127.0.0.1:{free_port()}", 0.05)
        await _copied(parts.worker.home, second)
        # Another start is another offer. The very last number may come again.
        assert await parts.worker.drain() == 0
        assert (await parts.worker.start())["ready"]
        ready = await second.start()
        assert not ready["ready"] and "journal" in ready["fault"], ready
        status = await ask_daemon(second.home.root, "GET", "/status")
        assert "journal-old" in {fault["code"] for fault in status["faults"]}
        await parts.has()
        assert await second.drain() == 0
        assert await parts.worker.drain() == 0


async def _copied(home: Home, second: WorkerProcess) -> None:
    """Make a second home with the same operator, as somebody does who moves to another machine."""
    second.home.create()
    for file in (home.deployment, home.operator, home.sealing, home.certificate):
        write_private(second.home.root / file.name, file.read_bytes())
    write_private(second.home.certificate_key, home.certificate_key.read_bytes())
    text = home.config.read_text()
    changed = text.replace(config.load(home.root, environment={}).bind, second.endpoint)
    write_private(second.home.config, changed.encode())
