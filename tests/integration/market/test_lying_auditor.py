"""An auditor accuses an honest worker. Every role is a process: worker, three auditors, index,
client. The denoising is a stand-in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.processes import ProcessGroup
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.kinds.audit import AuditOutput
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.signing import LocalSigner
from piecework_protocol.types import Address, keccak256, to_hex
from tests.support.market.dispute_market import Customer, deploy
from tests.support.system.worker_process import WorkerProcess

pytestmark = [pytest.mark.process, pytest.mark.slow]

WITHIN_S = 300.0


def secret_of(name: str) -> bytes:
    return bytes(keccak256(name.encode()))


def operator_of(name: str) -> str:
    return to_hex(LocalSigner(secret_of(name)).address)


async def registered(root: Path, name: str, deployment: Deployment, url: str) -> WorkerProcess:
    owner = Address(keccak256(b"owner of " + name.encode())[12:])
    return await WorkerProcess.register(
        root / name,
        deployment,
        pace_s=0.01,
        secret=secret_of(name),
        owner=owner,
        payout=owner,
        indexes=(url,),
    )


async def test_an_auditor_that_accuses_an_honest_worker_is_the_one_that_is_given_up(
    anvil: Anvil, tmp_path: Path
) -> None:
    file = await deploy(anvil, tmp_path, "market")
    deployment = Deployment.load(file)
    running: list[WorkerProcess] = []
    async with ProcessGroup(tmp_path / "logs") as group:
        folders = ("--deployment", str(file), "--home", str(tmp_path / "index"))
        index = await group.start("index", ["market", "start", *folders, "--port", "0"])
        url = str(index.ready["url"])
        customer = await Customer.join(tmp_path / "client", file, url, tokens=20, deposit=15)
        settings = customer.home / "config.toml"
        settings.write_text(f"{settings.read_text()}\nkeep_text = true\n")
        try:
            running.append(await registered(tmp_path, "worker", deployment, url))
            await running[0].start(WITHIN_S)
            asked = ("run", "Tell me a story.", "--max-tokens", "64", "--seed", "3")
            job = (await customer.types(*asked))["job"]
            for name in ("liar", "second", "third"):
                running.append(await registered(tmp_path, name, deployment, url))
            await running[1].start_cheating("accuses", within_s=WITHIN_S)
            for auditor in running[2:]:
                await auditor.start(WITHIN_S)
            await _the_accuser_is_alone(customer, job)
        finally:
            for one in running:
                if one.process is not None and one.process.returncode is None:
                    await one.kill()


async def _the_accuser_is_alone(customer: Customer, job: str) -> None:
    liar, honest = operator_of("liar"), {operator_of("second"), operator_of("third")}
    about = ("audit", job, "--canvas", "0", "--by", liar)
    found: dict[str, Any] = await customer.types(*about)
    assert (found["outcome"], found["findings"]) == ("pass", [])
    assert found["by"][0] == liar and set(found["by"][1:]) == honest
    assert found["remarks"] == [f"{liar}: two others say otherwise of the same canvas"]
    (lie,) = customer.home.glob("auditor-*.json")
    shown = read_evidence(lie.read_bytes())
    assert to_hex(shown.channel.operator) == liar
    (report,) = check_evidence(shown).outputs or ()
    assert isinstance(report, AuditOutput) and report.outcome is AuditOutcome.FAIL
    again = await customer.types(*about)
    assert again["outcome"] == "pass"
    assert set(again["by"]) < honest, "the liar gets no more jobs"
