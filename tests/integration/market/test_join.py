"""`piecework worker join URL` with real commands, a real chain, and a descriptor over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from piecework.base.http import HttpLimits, HttpReader
from piecework.chain.dev.embedded import EmbeddedChain
from piecework.demo.market import free_port
from piecework_node import config
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.types import address_hex, parse_address
from tests.support.chain.chains import TestMarket, signer
from tests.support.market.joining import ENVIRONMENT, describe, published_market
from tests.support.system.commands import Said, piecework
from tests.support.system.on_terminal import on_terminal

pytestmark = pytest.mark.process

PAYOUT = "0x" + signer("a cold address").address.hex()
OWNER = address_hex(signer("a cold owner of a stake").address)
READY_S = 180.0
LIMITS = HttpLimits(total_s=60, connect_s=10, max_bytes=2**20)


async def join(url: str, home: Path, *more: str) -> Said:
    return await piecework(
        *("worker", "join", url, "--home", str(home), "--no-start", "--faucet", *more),
        environment=ENVIRONMENT,
    )


async def test_one_line_joins_a_market_and_follows_what_may_change(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    home, index = tmp_path / "worker", ("--index", "http://127.0.0.1:9")
    relay = ("--relay", "127.0.0.1:7443")
    async with published_market(tmp_path, embedded_chain, *relay, *index) as found:
        public, url, key = found.folder, found.url, found.key
        unasked = await join(url, home, "--payout", PAYOUT)
        assert unasked.code == 2 and key in unasked.err and "--fingerprint" in unasked.err
        assert not home.exists()

        joined = await join(url, home, "--payout", PAYOUT, "--fingerprint", key)
        assert joined.code == 0, joined.err
        assert "no index of this market shows a bonded worker" in joined.out
        made = config.load(home, environment={})
        assert (made.bind, made.relays) == ("", ("127.0.0.1:7443",))
        assert made.usd_per_token == 0, "a market that marks nothing shows no dollars"
        await _is_registered(found.market, joined)

        differs = await join(url, home, "--price-output", "9")
        assert differs.line().startswith("--price-output: ")
        assert "set price_per_million_output_tokens '9.00 tUSDC'" in differs.line()

        await describe(public, "--relay", "127.0.0.1:7444", *index, "--token-is-usd")
        followed = await join(url, home)
        assert "the market now says that its token is 1 USD" in followed.out
        assert config.load(home, environment={}).usd_per_token == 0
        assert "relays follow the market: 127.0.0.1:7444" in followed.out
        assert config.load(home, environment={}).relays == ("127.0.0.1:7444",)

        await describe(public, key="other.json")
        assert "This home pinned" in (await join(url, home)).line()


async def test_on_a_terminal_each_thing_is_asked_once_and_before_it_is_done(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    home = tmp_path / "worker"
    async with published_market(tmp_path, embedded_chain) as found:
        market = found.market
        line = (
            "worker",
            "join",
            found.url,
            "--home",
            str(home),
            "--bind",
            f"127.0.0.1:{free_port()}",
        )
        told = [
            ("Is it the same", "y"),
            ("Cold address", PAYOUT),
            ("Key password", "secret"),
            ("Again", "secret"),
            ("Register all the same", "n"),
        ]
        code, shown = await on_terminal(*line, "--faucet", answers=told)
        assert code == 1 and "has never sent a transaction" in shown, shown
        assert [worker async for worker in market.reader.every_worker()] == []

        code, shown = await on_terminal(
            *line, answers=[("Key password", "secret"), ("Register all the same", "y")]
        )
        assert code == 1, shown
        assert "lacks 100.00 tUSDC for the stake" in shown and " coin for gas" in shown
        assert "Or add --faucet" in shown

        code, shown = await on_terminal(
            *(*line, "--owner", OWNER, "--faucet", "--no-start"),
            answers=[("Key password", "secret"), ("Register all the same", "y")],
        )
        assert code == 0 and "next: piecework worker check" in shown, shown
        assert f"the stake will belong to {OWNER}" in shown
        (worker,) = [worker async for worker in market.reader.every_worker()]
        assert (worker.owner, worker.payout) == (parse_address(OWNER), parse_address(PAYOUT))


async def test_the_last_step_checks_first_and_starts_only_what_can_earn(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    home = tmp_path / "worker"
    async with published_market(tmp_path, embedded_chain) as found:
        where = ("--home", str(home), "--fingerprint", found.key)
        command = ("worker", "join", found.url, *where, "--faucet")
        own = f"127.0.0.1:{free_port()}"
        away = await piecework(
            *(*command, "--payout", PAYOUT, "--bind", own, "--index", "http://127.0.0.1:9"),
            environment=ENVIRONMENT,
        )
        assert away.code == 1, away.err
        assert "FAIL  indexes" in away.out and "ok    stake" in away.out
        assert not (home / "admin.json").exists() and not (home / "journal.db").exists()

        put_right = await piecework("worker", "set", "indexes", "", "--home", str(home))
        assert put_right.code == 0, put_right.err
        async with started(*command) as process:
            said = await lines_until_ready(process)
            ready = json.loads(said[-1])
            assert ready["ready"] is True and ready["endpoint"] == own
            assert any(line.startswith("ok    stake") for line in said)
            assert not any(line.startswith("FAIL") for line in said)
            assert (await ask_daemon(home, "GET", "/status"))["state"] == "ready"
            process.terminate()
            assert await process.wait() == 0


async def test_an_index_shows_dollars_by_the_descriptor_that_it_serves(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    async with published_market(tmp_path, embedded_chain) as found, HttpReader(LIMITS) as http:
        for name, more, marked in (("plain", (), False), ("marked", ("--token-is-usd",), True)):
            await describe(found.folder, *more)
            command = ("market", "start", "--home", str(tmp_path / name), "--port", "0")
            files = [found.folder / file for file in ("deployment.json", "market.json")]
            where = ("--deployment", str(files[0]), "--descriptor", str(files[1]))
            async with started(*command, *where, "--rpc", embedded_chain.url) as process:
                url = json.loads((await lines_until_ready(process))[-1])["url"]
                page = (await http.get(f"{url}/")).decode()
                process.terminate()
                assert await process.wait() == 0
            assert ("the market's descriptor says (1 token is $1)" in page) is marked
            assert bool(re.search(r"\$\d", page)) is marked


@asynccontextmanager
async def started(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command that runs until it is told to stop."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "piecework", *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def lines_until_ready(process: asyncio.subprocess.Process) -> list[str]:
    """What it prints, up to the line of JSON that a start ends with."""
    assert process.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(READY_S):
        while not (said and said[-1].startswith("{")):
            line = await process.stdout.readline()
            assert line, f"it ended: {said}"
            said.append(line.decode().rstrip())
    return said


async def _is_registered(market: TestMarket, joined: Said) -> None:
    """With the first relay as its address."""
    (worker,) = [worker async for worker in market.reader.every_worker()]
    assert worker.active and worker.endpoint == "127.0.0.1:7443"
    assert "0x" + worker.operator.hex() in joined.out.lower()
