"""A client buys audits, and every role is a process: two workers with the bundled model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.processes import ProcessGroup
from piecework_model.checkpoint.manifest import MANIFEST_FILE, bundled_checkpoint_path
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, keccak256, to_hex
from tests.support.market.dispute_market import Customer, deploy
from tests.support.system.commands import piecework
from tests.support.system.worker_process import PASSWORD, WorkerProcess

pytestmark = [pytest.mark.process, pytest.mark.slow]

ENGINE = {
    "PIECEWORK_PASSWORD": PASSWORD,
    "PIECEWORK_WORKER_PRECISION": "float32",
    "PIECEWORK_WORKER_BENCHMARK_S": "0.2",
    "PIECEWORK_WORKER_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Open:
    """A market with two workers of different owners, and a client that keeps its texts."""

    customer: Customer
    operators: tuple[str, str]

    def other(self, operator: str) -> str:
        (found,) = [one for one in self.operators if one != operator]
        return found


@asynccontextmanager
async def opened(anvil: Anvil, root: Path) -> AsyncIterator[Open]:
    """Start all of it."""
    file = await deploy(anvil, root, "market")
    deployment = Deployment.load(file)
    async with ProcessGroup(root / "logs") as group:
        folders = ("--deployment", str(file), "--home", str(root / "index"))
        index = await group.start("index", ["market", "start", *folders, "--port", "0"])
        url = str(index.ready["url"])
        operators = []
        for name in ("first", "second"):
            secret = bytes(keccak256(name.encode()))
            owner = Address(keccak256(b"owner of " + name.encode())[12:])
            home = await WorkerProcess.register(
                root / name,
                deployment,
                pace_s=0,
                secret=secret,
                owner=owner,
                payout=owner,
                rpc_url=anvil.url,
                indexes=(url,),
            )
            start = ["worker", "start", "--home", str(home.home.root)]
            await group.start(name, start, environment=ENGINE)
            operators.append(to_hex(LocalSigner(secret).address))
        customer = await Customer.join(root / "client", file, url, tokens=20, deposit=15)
        settings = root / "client" / "config.toml"
        settings.write_text(f"{settings.read_text()}\nkeep_text = true\n")
        yield Open(customer, (operators[0], operators[1]))


async def test_another_worker_audits_and_its_report_is_audited_in_turn(
    anvil: Anvil, tmp_path: Path
) -> None:
    async with opened(anvil, tmp_path) as market:
        customer = market.customer
        asked = ("run", "Write a story about a fox.", "--max-tokens", "64", "--seed", "11")
        done: dict[str, Any] = await customer.types(*asked)
        job = done["job"]
        served = read_evidence(_bytes(await customer.evidence(job, tmp_path / "job.json")))
        worker = to_hex(served.channel.operator)
        found = await customer.types("audit", job, "--canvas", "1", "--by", "market")
        assert (found["outcome"], found["canvas"], found["findings"]) == ("pass", 1, [])
        assert found["by"] == [market.other(worker)] and found["cost"] > 0
        await _itself_is_not_asked(customer, job, worker)
        await _steps_are_bought_if_they_can_be_judged(customer, job, tmp_path / "model")
        (audit,) = found["jobs"]
        await _the_report_holds(customer, audit, market.other(worker), tmp_path / "audit.json")


async def _itself_is_not_asked(customer: Customer, job: str, worker: str) -> None:
    said = await customer.says("audit", job, "--by", worker, "--json")
    assert said.code == 3
    assert "nobody of another owner audits" in said.out


async def _steps_are_bought_if_they_can_be_judged(
    customer: Customer, job: str, model: Path
) -> None:
    """By the engine here, which says so before anything is paid."""
    forced = ("audit", job, "--canvas", "1", "--level", "forced", "--device", "cpu", "--json")
    copytree(bundled_checkpoint_path(), model, ignore=ignore_patterns(MANIFEST_FILE))
    settings = model / "generation_config.json"
    settings.write_text(f"{settings.read_text()} ")
    said = await customer.says(*forced, "--model", str(model))
    told = json.loads(said.out)
    assert (said.code, told["outcome"], told["cost"]) == (3, "no_verdict", 0)
    assert told["reason"] == "the job is of another model than the one here"
    assert "the worker opened" not in said.err
    said = await customer.says(*forced)
    assert (said.code, said.json()["outcome"]) == (0, "pass"), said.err
    assert "steps of canvas 1 for " in said.err


async def _the_report_holds(customer: Customer, audit: str, auditor: str, file: Path) -> None:
    """What the auditor signed proves itself, and a replay here agrees with it."""
    shown = read_evidence(_bytes(await customer.evidence(audit, file)))
    proven = check_evidence(shown)
    assert to_hex(shown.channel.operator) == auditor
    assert isinstance(proven.content, AuditContent) and proven.outputs is not None
    (report,) = proven.outputs
    assert isinstance(report, AuditOutput) and report.outcome is AuditOutcome.PASS
    assert report.leaves_fault(shown.canvases[0].leaves or ()) is None
    judged = await piecework(
        *("client", "audit", "--evidence", str(file), "--device", "cpu", "--json")
    )
    assert judged.json()["outcome"] == "pass"


def _bytes(file: Path) -> bytes:
    return file.read_bytes()
