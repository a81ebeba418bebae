"""A signer for tests: in this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework.base import settings
from piecework.chain.contracts.authorizations import Permit
from piecework.chain.deployment import Deployment
from piecework.signer.book import DailyLimits, LimitBook
from piecework.signer.config import SignerConfig, SignerHome
from piecework.signer.policy import Pins
from piecework.signer.record import SignatureLog
from piecework.signer.server import SignerServer
from piecework.signer.statements import SignedStatements
from piecework_node import logs
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Acceptance
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import (
    Address,
    Amount,
    JobId,
    Seconds,
    Timestamp,
    Uint32,
    Uint256,
    keccak256,
    to_hex,
)
from tests.support.clock import FakeClock
from tests.support.system.worker_process import PASSWORD, READY_TIMEOUT_S, write_key

KEY = LocalSigner(bytes(keccak256(b"the operator of a signer under test")))
PAYOUT = Address(keccak256(b"a payout of a signer under test")[12:])
MARKET = Deployment(31337, Address(b"\x07" * 20), "USD", 6, Amount(10_000_000), Seconds(604_800))
PINS = Pins(KEY.address, MARKET, frozenset({PAYOUT}))
ACCEPTANCE = Acceptance(JobId(bytes(32)), Uint32(1), Timestamp(2))
TOKEN = Domain(MARKET.chain_id, MARKET.token, "USD Coin", "2")
PERMIT = Permit(KEY.address, MARKET.registry, Uint256(7), Uint256(0), Uint256(9))
LIMITS = DailyLimits(signatures=5000, wei=10**16, tokens=10_000_000, token=MARKET.payment_token)


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    key: LocalSigner = KEY,
    pins: Pins = PINS,
    limits: DailyLimits = LIMITS,
    users: frozenset[int] | None = None,
    clock: FakeClock | None = None,
    group: str = "",
) -> AsyncIterator[Path]:
    """Serve a signer of this folder, and give its socket."""
    book = LimitBook.open(folder / "limits.db", limits)
    record = SignatureLog(folder / "signed.jsonl")
    allowed = frozenset({os.getuid()}) if users is None else users
    statements = SignedStatements.open(folder / "statements.db")
    server = SignerServer(
        key,
        pins,
        book,
        statements,
        record,
        users=allowed,
        clock=clock or FakeClock(),
        log=logs.silent(),
    )
    try:
        await server.start(folder / "socket", group=group)
        yield folder / "socket"
    finally:
        await server.close()
        record.close()
        statements.close()
        book.close()


@dataclass(slots=True)
class SignerProcess:
    """A signer's home, and the process that `piecework signer start` is."""

    home: SignerHome
    process: asyncio.subprocess.Process | None = None

    @classmethod
    def make(
        cls, root: Path, deployment: Deployment, secret: bytes, **values: Any
    ) -> SignerProcess:
        """Make the home of a key. values: settings."""
        home = SignerHome(root)
        home.create()
        write_key(home.key, secret)
        home.deployment.write_text(json.dumps(deployment.to_json()))
        home.config.write_text(settings.to_toml(SignerConfig, values))
        return cls(home)

    @property
    def place(self) -> str:
        """As the worker's setting has it."""
        return f"unix:{self.home.socket}"

    async def start(self) -> dict[str, Any]:
        """Run the process; returns its ready line."""
        command = (sys.executable, "-P", "-m", "piecework", "signer", "start")
        with (self.home.root / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command,
                "--home",
                str(self.home.root),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PIECEWORK_PASSWORD": PASSWORD},
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(READY_TIMEOUT_S):
            line = await self.process.stdout.readline()
        assert line, (self.home.root / "log").read_text()
        ready: dict[str, Any] = json.loads(line)
        return ready

    async def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    def signed(self) -> list[str]:
        """What it has signed, in order."""
        return [json.loads(line)["what"] for line in self.home.record.read_text().splitlines()]

    def change(self, **values: Any) -> None:
        """Replace the settings. They are in force from the next start."""
        self.home.config.write_text(settings.to_toml(SignerConfig, values))


def payouts(*addresses: Address) -> tuple[str, ...]:
    """Addresses as settings have them."""
    return tuple(map(to_hex, addresses))
