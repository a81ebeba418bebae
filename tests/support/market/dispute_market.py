"""A market with disputes in which every role is a process: what its people type, and its books."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.dev.faucet import ANVIL_FAUCET_KEY
from piecework.chain.reading.disputes import ChallengeOpened, DisputeReader
from piecework.chain.reading.reader import ChainReader
from piecework.processes import ProcessGroup
from piecework_protocol.types import Address, parse_address, to_hex
from tests.support.chain.chains import USD
from tests.support.system.commands import COMMAND_TIMEOUT_S, Said, piecework
from tests.support.system.worker_process import WorkerProcess

PROVING_COST = USD // 10
TERMS = {
    "proving_cost": PROVING_COST,
    "min_bond_wei": 10**15,
    "verdict_fee": USD,
    "committee": [],
    "threshold": 0,
}
DEPLOYER = {"PIECEWORK_DEPLOYER_KEY": to_hex(ANVIL_FAUCET_KEY)}
CLIENT = {"PIECEWORK_PASSWORD": "the password of the client"}


async def deploy(
    anvil: Anvil, root: Path, name: str, *, token: Address | None = None, **terms: Any
) -> Path:
    """Make a market with `piecework chain deploy`. Returns its deployment file."""
    of_token = () if token is None else ("--token", to_hex(token))
    wanted, file = root / f"{name}-terms.json", root / f"{name}.json"
    wanted.write_text(json.dumps({**TERMS, **terms}))
    said = await piecework(
        *("chain", "deploy", "--rpc", anvil.url, "--out", str(file)),
        *("--disputes", str(wanted), *of_token, "--json"),
        environment=DEPLOYER,
    )
    assert said.json()["file"] == str(file)
    return file


async def give(file: Path, to: str, *, native: str, tokens: str) -> None:
    """Somebody sends coins and test tokens."""
    gift = ("--to", to, "--native", native, "--tokens", tokens)
    (await piecework("chain", "faucet", "--deployment", str(file), *gift, "--json")).json()


@dataclass
class Customer:
    """A client's home, and what its owner types."""

    home: Path
    payer: Address = field(default_factory=lambda: Address(bytes(20)))

    @classmethod
    async def join(
        cls, home: Path, file: Path, index: str, *, tokens: int, deposit: int
    ) -> Customer:
        """Make a home, get money, and put `deposit` whole tokens into the escrow."""
        customer = cls(home)
        made = await customer.types("init", "--deployment", str(file), "--index", index)
        customer.payer = parse_address(made["payer"])
        await give(file, made["payer"], native="1", tokens=str(tokens))
        await customer.types("deposit", str(deposit))
        return customer

    async def types(self, *arguments: str) -> Any:
        """Run a verb of the client that answers with JSON."""
        return (await self.says(*arguments, "--json")).json()

    async def says(self, *arguments: str, within_s: float = COMMAND_TIMEOUT_S) -> Said:
        """Run a verb of the client."""
        typed = ("client", *arguments, "--home", str(self.home))
        return await piecework(*typed, environment=CLIENT, within_s=within_s)

    async def evidence(self, job: str, file: Path) -> Path:
        """Export the evidence of a job."""
        await self.types("evidence", "export", job, "--output", str(file))
        return file


@dataclass(frozen=True, slots=True)
class Books:
    """What the chain says of the money of a market with disputes, to the unit."""

    reader: ChainReader
    deployment: Deployment

    @property
    def disputes(self) -> DisputeReader:
        return DisputeReader(self.reader.rpc, self.deployment)

    async def challenges(self, operator: Address) -> tuple[ChallengeOpened, ...]:
        """Every challenge to an operator."""
        return await self.disputes.challenges_to(operator, 0, await self.reader.latest_block())

    async def coins(self, who: Address) -> int:
        """What an address has, and what waits for it in the dispute contract, in wei."""
        waiting = (await self.disputes.credits_of(who)).coins
        return await self.reader.native_balance(who) + waiting

    async def paid(self, who: Address) -> int:
        """What an address got in transactions, less what it sent in them and paid for gas, in wei.

        What a contract sent it is not in it.
        """
        rpc, total = self.reader.rpc, 0
        for number in range(1, await self.reader.latest_block() + 1):
            block = await rpc.call("eth_getBlockByNumber", hex(number), True)
            for tx in block["transactions"]:
                value = int(tx["value"], 16)
                if tx["to"] == to_hex(who).lower():
                    total += value
                if tx["from"] != to_hex(who).lower():
                    continue
                receipt = await rpc.call("eth_getTransactionReceipt", tx["hash"])
                gas = int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16)
                total -= gas + (value if int(receipt["status"], 16) else 0)
        return total

    async def hold_the_trade(
        self, customer: Customer, receiver: Address, deposit: int, *, settled: bool = False
    ) -> None:
        """Hold receiver, escrow and payer to what was bought, to the unit.

        The worker must have stopped. No bond may have come back to the payer. A voucher that is
        worth less than the gas is not settled.

        receiver: that of the customer's one worker. deposit: of the customer, in base units.
        settled: whether the last voucher must be settled, and not only may.
        """
        reader, token, payer = self.reader, self.deployment.token, customer.payer
        balance = await customer.types("balance")
        fee = deposit - balance["pooled"] - balance["in_channels"]
        earned = await reader.token_balance(token, receiver)
        claimed = (fee + balance["paid"],) if settled else (fee, fee + balance["paid"])
        assert earned in claimed and fee > 0 and balance["paid"] > 0, (earned, balance)
        assert await reader.token_balance(token, self.deployment.escrow) == deposit - earned
        assert await reader.waiting_payout(token, receiver) == 0
        assert await self.coins(payer) == await self.paid(payer)

    async def hold_the_bonds(self, operator: Address, payer: Address) -> None:
        """Hold the dispute contract to the answered bonds, which are all the operator's."""
        bonds = sum(one.bond for one in await self.challenges(operator))
        assert await self.coins(operator) == await self.paid(operator) + bonds
        assert (await self.disputes.credits_of(payer)).coins == 0
        assert await self.in_disputes() == (await self.disputes.credits_of(operator)).coins

    async def in_disputes(self) -> int:
        """What the dispute contract holds, in wei."""
        contract = self.deployment.disputes_contract
        assert contract is not None
        return await self.reader.native_balance(contract)


@dataclass(frozen=True, slots=True)
class OpenMarket:
    """A market with one worker that has not started, and one customer.

    file: its deployment file.
    """

    file: Path
    books: Books
    worker: WorkerProcess
    customer: Customer


@asynccontextmanager
async def opened(
    anvil: Anvil,
    root: Path,
    *,
    tokens: int,
    deposit: int,
    pace_s: float,
    terms: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[OpenMarket]:
    """Deploy a market, run its index, and let a worker and a customer join. The worker ends here.

    terms: of its disputes, where they differ from `TERMS`. settings: of the worker.
    """
    file = await deploy(anvil, root, "market", **(terms or {}))
    deployment = Deployment.load(file)
    async with (
        ProcessGroup(root / "logs") as group,
        await ChainReader.connect(deployment) as reader,
    ):
        folders = ("--deployment", str(file), "--home", str(root / "index"))
        index = await group.start("index", ["market", "start", *folders, "--port", "0"])
        url = str(index.ready["url"])
        worker = await WorkerProcess.register(
            root / "worker", deployment, pace_s=pace_s, indexes=(url,), **settings
        )
        customer = await Customer.join(root / "client", file, url, tokens=tokens, deposit=deposit)
        try:
            yield OpenMarket(file, Books(reader, deployment), worker, customer)
        finally:
            if worker.process is not None and worker.process.returncode is None:
                await worker.kill()
