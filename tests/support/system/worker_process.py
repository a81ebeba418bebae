"""A registered worker home whose keystore opens fast, and the daemon process that runs it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account

from piecework.chain.deployment import Deployment
from piecework.chain.dev.faucet import faucet_signer, fund_native, mint_tokens
from piecework.chain.reading.reader import ChainReader
from piecework.demo.market import free_port
from piecework_node.home import Home
from piecework_node.operations import registration as enrolment
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, Timestamp, keccak256, to_hex

PASSWORD = "a test password"
RECEIVER = Address(keccak256(b"a cold receiver")[12:])
OPERATOR_SECRET = bytes(keccak256(b"the operator of a worker under test"))
ETHER = 10**18
POLL_S = 0.02
READY_TIMEOUT_S = 60.0
POLL_STATUS_S = 0.5
"""The admin port bounds how often it is dialled."""


def write_key(file: Path, secret: bytes, password: str = PASSWORD) -> None:
    """A keystore that opens fast."""
    light = Account.encrypt(secret, password, kdf="pbkdf2", iterations=1)
    file.write_text(json.dumps(light))
    file.chmod(0o600)


def limited(descriptors: int) -> tuple[str, ...]:
    """The start of a command line that gives its process a hard limit of open files. 0: none."""
    return ("sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh") if descriptors else ()


@dataclass(slots=True)
class WorkerProcess:
    """One worker's home; `start` runs the daemon with the stand-in engine."""

    home: Home
    endpoint: str
    pace_s: float
    descriptors: int = 0
    """The hard limit of open files of the daemon. 0: as here."""
    process: asyncio.subprocess.Process | None = None
    within: tuple[str, ...] = ()
    """How the daemon's command line begins, if it is to run in another place."""

    @classmethod
    async def register(
        cls,
        root: Path,
        deployment: Deployment,
        *,
        pace_s: float,
        secret: bytes = OPERATOR_SECRET,
        owner: Address = RECEIVER,
        payout: Address = RECEIVER,
        registered: str = "",
        **settings: Any,
    ) -> WorkerProcess:
        """Make the home and register with the chain's own money.

        registered: the address in the registry, if that is neither where it listens nor a relay.
        """
        home, bind = Home(root), f"127.0.0.1:{free_port()}"
        reached = settings["relays"][0] if settings.get("bind") == "" else bind
        endpoint = registered or reached
        home.create()
        write_key(home.operator, secret)
        write_key(home.sealing, bytes(keccak256(b"what wraps the sealing keys")))
        values = {"payout": to_hex(payout), "bind": bind, "chain_poll_s": 0.2, **settings}
        now = Timestamp(int(time.time()))
        enrolment.prepare_home(home, deployment, values, PASSWORD, now)
        operator = LocalSigner(secret)
        async with await ChainReader.connect(deployment) as reader:
            faucet, needs = await faucet_signer(reader.rpc), await reader.stake_requirements()
            await fund_native(reader.rpc, faucet, operator.address, ETHER, poll_s=POLL_S)
            await mint_tokens(
                reader.rpc, faucet, needs.token, operator.address, needs.min_stake, poll_s=POLL_S
            )
            await enrolment.register(
                reader,
                operator,
                payout=payout,
                owner=owner,
                endpoint=endpoint,
                stake=None,
                now=now,
                poll_s=POLL_S,
            )
        return cls(home, endpoint, pace_s)

    async def start(self, within_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Run the daemon on a stand-in engine; returns its ready line."""
        module = "tests.support.node.daemon_process"
        words = (module, str(self.home.root), str(self.pace_s))
        return await self._start(*words, within_s=within_s)

    async def start_cheating(self, way: str, within_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Run a daemon that cheats (`tests.support.node.cheating_daemon`); returns its ready
        line."""
        module = "tests.support.node.cheating_daemon"
        return await self._start(module, str(self.home.root), way, within_s=within_s)

    async def start_as_shipped(self, within_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        """Run the daemon as an operator starts it; returns its ready line."""
        command = ("piecework", "worker", "start", "--home", str(self.home.root))
        return await self._start(*command, within_s=within_s)

    async def _start(self, *words: str, within_s: float = READY_TIMEOUT_S) -> dict[str, Any]:
        with (self.home.root / "daemon.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.within,
                *limited(self.descriptors),
                *(sys.executable, "-P", "-m"),
                *words,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PIECEWORK_PASSWORD": PASSWORD},
            )
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within_s):
                line = await self.process.stdout.readline()
        except TimeoutError:
            await self.kill()
            raise
        assert line, f"the daemon ended: {self.log_tail()}"
        ready: dict[str, Any] = json.loads(line)
        return ready

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    async def drain(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(READY_TIMEOUT_S):
            return await self.process.wait()

    def log_tail(self) -> str:
        return (self.home.root / "daemon.log").read_text()[-3000:]
