"""The demo's market: every role a process of its own on loopback, with a home of its own."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from piecework.chain.contracts import calls
from piecework.chain.deployment import Deployment
from piecework.chain.dev.faucet import faucet_signer, mint_tokens
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import TransactionSender
from piecework.client.config import ClientHome, load_config
from piecework.client.sdk import PieceworkClient
from piecework.client.setup import set_up
from piecework.processes import ProcessGroup, Role
from piecework_node.home import Home
from piecework_node.operations.setup import NewStake, set_up_worker
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, Amount, Bytes32, keccak256, to_hex

CLIENT_TOKENS = Amount(10_000_000)
CLIENT_DEPOSIT = Amount(5_000_000)
CHANNEL_DEPOSIT = "2.5"
"""Tokens: half of the deposit."""
AUTHORIZATION_LIFETIME_S = 3600
POLL_S = 0.05
# A demo measures briefly, leaves a core to the others, and looks at its own chain often.
WORKER_ENVIRONMENT = {
    "PIECEWORK_WORKER_BENCHMARK_S": "0.3",
    "PIECEWORK_WORKER_THREADS": "1",
    "PIECEWORK_WORKER_CHAIN_POLL_S": "0.2",
    "PIECEWORK_WORKER_CHANNEL_REFRESH_S": "1",
}


@dataclass(slots=True)
class Stopwatch:
    """How long each phase took, in milliseconds."""

    timings_ms: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._start

    def lap(self, name: str) -> None:
        """The time since the last lap belongs to `name`."""
        now = time.monotonic()
        self.timings_ms[name] = self.timings_ms.get(name, 0.0) + (now - self._last) * 1000
        self._last = now


@dataclass(frozen=True, slots=True)
class Balances:
    """Token balances in base units, as the chain says."""

    payer: Amount
    receiver: Amount
    escrow: Amount

    @property
    def total(self) -> int:
        return self.payer + self.receiver + self.escrow


@dataclass(frozen=True, slots=True)
class Customer:
    """A client with a deposit, the balances before it, and the gas that the relayer paid for it."""

    client: PieceworkClient
    before: Balances
    deposit_gas: int


@dataclass(slots=True)
class DemoMarket:
    """A market that runs, and what is needed to use it."""

    root: Path
    deployment: Deployment
    password: str
    receiver: Address
    worker: Role
    index: Role
    gateway: Role
    customer: Customer

    @property
    def client_home(self) -> Path:
        return self.root / "client"

    @property
    def worker_home(self) -> Path:
        return self.root / "worker"


def environment(password: str) -> dict[str, str]:
    """What every role of the demo gets from its surroundings."""
    return {"PIECEWORK_PASSWORD": password, **WORKER_ENVIRONMENT}


async def open_market(
    group: ProcessGroup, root: Path, *, slots: int, watch: Stopwatch
) -> DemoMarket:
    """Start chain, index, worker and gateway; fund the client, who needs no gas."""
    password = secrets.token_urlsafe(16)
    file = root / "deployment.json"
    await group.start("chain", ["chain", "dev", "--port", "0", "--deployment", str(file)])
    watch.lap("chain")
    port = free_port()
    place = _Address(group, root, file, f"http://127.0.0.1:{port}", environment(password))
    receiver = Address(keccak256(secrets.token_bytes(32))[12:])
    async with asyncio.TaskGroup() as tasks:
        index = tasks.create_task(place.start_index(port), name="index")
        worker = tasks.create_task(place.start_worker(receiver, slots, index), name="worker")
        home = tasks.create_task(place.make_client(), name="client")
        gateway = tasks.create_task(place.start_gateway(home), name="gateway")
        customer = tasks.create_task(place.deposit(home, receiver), name="deposit")
    watch.lap("market")
    return DemoMarket(
        root=root,
        deployment=Deployment.load(file),
        password=password,
        receiver=receiver,
        worker=worker.result(),
        index=index.result(),
        gateway=gateway.result(),
        customer=customer.result(),
    )


@dataclass(frozen=True, slots=True)
class _Address:
    """Where the roles of this demo live."""

    group: ProcessGroup
    root: Path
    file: Path
    index: str
    surroundings: Mapping[str, str]

    async def start_index(self, port: int) -> Role:
        home = ["--deployment", str(self.file), "--home", str(self.root / "index")]
        return await self.group.start("index", ["market", "start", *home, "--port", str(port)])

    async def start_worker(self, receiver: Address, slots: int, index: asyncio.Task[Role]) -> Role:
        """What `worker init` does (keys, settings, one registration), then `worker start`."""
        home = self.root / "worker"
        values = {
            "payout": to_hex(receiver),
            "bind": f"127.0.0.1:{free_port()}",
            "slots": slots,
            "indexes": (self.index,),
        }
        secret = self.surroundings["PIECEWORK_PASSWORD"]
        await set_up_worker(Home(home), self.file, values, secret, NewStake(faucet=True))
        await index
        start = ["worker", "start", "--home", str(home), "--admin-port", "0"]
        return await self.group.start("worker", start, environment=self.surroundings)

    async def make_client(self) -> Path:
        """A client's home, and tokens for its payer. No gas."""
        home, deployment = self.root / "client", Deployment.load(self.file)
        secret = self.surroundings["PIECEWORK_PASSWORD"]
        made = await set_up(
            home, self.file, (self.index,), second_key=False, password=lambda: secret
        )
        async with await ChainReader.connect(deployment) as reader:
            faucet, token = await faucet_signer(reader.rpc), deployment.token
            await mint_tokens(reader.rpc, faucet, token, made.payer, CLIENT_TOKENS, poll_s=POLL_S)
        return home

    async def start_gateway(self, home: asyncio.Task[Path]) -> Role:
        """The gateway, which spends from the client's home."""
        arguments = ["gateway", "--home", str(await home), "--port", "0"]
        return await self.group.start("gateway", arguments, environment=self.surroundings)

    async def deposit(self, home: asyncio.Task[Path], receiver: Address) -> Customer:
        """The demo's own client, from the home that the gateway uses too."""
        files = ClientHome(await home)
        config = load_config(files.config, {"deposit": CHANNEL_DEPOSIT, "keep_text": True})
        secret = self.surroundings["PIECEWORK_PASSWORD"]
        opening = await PieceworkClient.open(files, config, password=secret)
        client = await self.group.resources.enter_async_context(opening)
        before = await balances(client, receiver)
        return Customer(client, before, await deposit_without_gas(client))


async def balances(client: PieceworkClient, receiver: Address) -> Balances:
    """The three token balances that the money moves between."""
    reader, token = client.reader, client.token
    return Balances(
        payer=await reader.token_balance(token, client.wallet.payer.address),
        receiver=await reader.token_balance(token, receiver),
        escrow=await reader.token_balance(token, reader.deployment.escrow),
    )


async def deposit_without_gas(client: PieceworkClient) -> int:
    """The client signs (EIP-3009), the faucet submits: the gas of a deposit that its owner did not
    pay."""
    deposit = client.payment_token.amount(CLIENT_DEPOSIT)
    signed = await client.funds.authorize_deposit(
        deposit, AUTHORIZATION_LIFETIME_S, Bytes32(secrets.token_bytes(32))
    )
    relayer: LocalSigner = await faucet_signer(client.reader.rpc)
    call = calls.deposit_with_authorization(client.reader.deployment, signed)
    mined = await TransactionSender.of(client.reader, relayer).execute(call, poll_s=POLL_S)
    return mined.gas_used


def free_port() -> int:
    """A TCP port on loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
