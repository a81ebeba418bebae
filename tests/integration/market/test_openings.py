"""Steps over real sockets: kept by the real daemon over a kill, sold to its client, exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.chain.dev.embedded import EmbeddedChain
from piecework.client.audits.openings import buy_steps
from piecework.client.config import load_config
from piecework.client.jobs.events import JobFinished
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import EvidenceFile, read_evidence
from piecework_protocol.openings import read_openings
from piecework_protocol.trace import leaf_of
from piecework_protocol.types import JobId
from tests.support.chain.chains import deployed, signer
from tests.support.system.commands import Said, piecework
from tests.support.system.worker_process import PASSWORD, WorkerProcess
from tests.support.waiting import until

pytestmark = [pytest.mark.process, pytest.mark.slow]

DEPOSIT = 50_000_000


async def test_a_client_buys_steps_and_the_worker_exports_what_it_holds(
    tmp_path: Path, embedded_chain: EmbeddedChain
) -> None:
    payer = signer("payer of the openings test")
    async with deployed(embedded_chain) as market:
        worker = await WorkerProcess.register(
            tmp_path / "worker", market.deployment, pace_s=0.01, rpc_url=embedded_chain.url
        )
        await market.pool(payer, embedded_chain.faucet, DEPOSIT)
        store = Store(tmp_path / "client.db", market.deployment.domain, payer.address)
        config = load_config(tmp_path / "no-file", {"deposit": "10.0"})
        wallet, token = Wallet(payer, payer), market.deployment.payment_token
        await worker.start()
        async with PieceworkClient(store, market.reader, wallet, token, config) as client:
            job = await told(client)
            # They are written beside the job. What is not written yet is lost with the process.
            await until(lambda: kept(worker, len(store.receipts(job=job))))
            await worker.kill()
            await worker.start()
            receipts = sorted(store.receipts(job=job), key=lambda r: r.receipt.canvas)
            assert len(receipts) > 1
            for row in receipts:
                bought = await buy_steps(client, job, row.receipt.canvas, soft=True)
                assert bought.canvas.leaf() == row.leaves[0] and bought.cost > 0
                assert [leaf_of(step.fields) for step in bought.steps] == [*row.leaves[1:]]
                assert all(step.soft for step in bought.steps)
            mine, _ = await client.evidence(job, with_text=False)
        running = await exported(worker, job, tmp_path / "running.json")
        file = tmp_path / "openings.json"
        asked = ("--job", job.hex(), "--canvas", "1", "--output", str(file), "--json")
        assert (await evidence(worker, *asked)).json()["lacking"]
        steps = read_openings(bytes_of(file)).steps
        assert [leaf_of(step.fields) for step in steps] == [*receipts[1].leaves[1:]]
        assert await worker.drain() == 0
        stopped = await exported(worker, job, tmp_path / "stopped.json")
        assert stopped == running and stopped.content is not None
        assert stopped.canvases == tuple(mine.canvases)
        assert (await evidence(worker, "--json")).json()["canvases"] >= len(receipts)
        said = await evidence(worker, "--job", "00" * 32)
        assert said.code == 1 and "does not have such a job" in said.err


async def told(client: PieceworkClient) -> JobId:
    """A job of several canvases, paid."""
    asked = TextRequest(
        Conversation((Message("user", "a fox"),)), generation=Generation(seed=3, max_tokens=40)
    )
    async with client.run(asked) as run:
        events = [event async for event in run]
    assert isinstance(events[-1], JobFinished)
    return events[-1].job


async def kept(worker: WorkerProcess, canvases: int) -> bool:
    said = await evidence(worker, "--json")
    return bool(said.json()["canvases"] >= canvases)


def bytes_of(file: Path) -> bytes:
    return file.read_bytes()


async def evidence(worker: WorkerProcess, *more: str) -> Said:
    home = ("--home", str(worker.home.root))
    return await piecework(
        *("worker", "evidence", *more, *home), environment={"PIECEWORK_PASSWORD": PASSWORD}
    )


async def exported(worker: WorkerProcess, job: JobId, file: Path) -> EvidenceFile:
    said = await evidence(worker, "--job", job.hex()[:12], "--output", str(file))
    assert said.code == 0 and "lacks the outputs" in said.err, said.err
    made = read_evidence(bytes_of(file))
    assert check_evidence(made).job == job
    with pytest.raises(EvidenceRefused):
        read_evidence(bytes_of(file)[:-2])
    return made
