"""Audits in the background: which jobs, what a failure takes, and what is never held against a
worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from piecework.client.auditing import CanvasReport, choose_canvas
from piecework.client.config import load_config
from piecework.client.errors import NoWorkerFits
from piecework.client.jobs.events import JobStarted
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.client.client_side import MONEY, PAYER, ask, collect
from tests.support.client.fake_worker import FakeWorker
from tests.support.market.memory_worker import MemoryMarket
from tests.support.market.shipped import InlineExecutor
from tests.support.protocol.evidence import Story, evidence
from tests.support.virtual_time import LoopClock, simulate
from tests.support.waiting import pass_time

Told = list[tuple[CanvasReport, Path | None]]


class ScriptedAuditor:
    """Implements `Auditor` with outcomes that a test chose. The last one stays."""

    def __init__(self, *outcomes: AuditOutcome) -> None:
        self._outcomes = list(outcomes)
        self.asked: list[bytes] = []

    async def audit(
        self, evidence: bytes, canvas: int, level: AuditLevel, openings: bytes = b""
    ) -> CanvasReport:
        self.asked.append(evidence)
        await pass_time(1)
        outcome = self._outcomes[0] if len(self._outcomes) == 1 else self._outcomes.pop(0)
        found = ("the trace differs from step 3 on",) if outcome is AuditOutcome.FAIL else ()
        why = "another profile" if outcome is AuditOutcome.NO_VERDICT else ""
        return CanvasReport(level, outcome, canvas, found, why, steps=4)


class Watched:
    """A client of one worker, with an auditor."""

    def __init__(self, folder: Path, auditor: ScriptedAuditor, rate: float) -> None:
        self.chain, self.clock, self.market = FakeChain(), LoopClock(), MemoryMarket()
        self.chain.deposit(PAYER.address, 100 * MONEY)
        self.market.add(FakeWorker(self.chain, self.clock, name="only"), "only")
        self.folder, self.auditor, self.rate, self.told = folder, auditor, rate, Told()

    def client(self) -> PieceworkClient:
        flags = {"audit_rate": self.rate}
        config = load_config(self.folder / "none", flags, environment={})
        store = Store(
            self.folder / "client.db", self.chain.domain, PAYER.address, committer=InlineExecutor()
        )
        client = PieceworkClient(
            store,
            self.chain,
            Wallet(PAYER, PAYER),
            TOKEN_INFO,
            config,
            clock=self.clock,
            connect=self.market.connect,
        )
        client.audits.auditor = self.auditor
        client.audits.on_report = lambda report, file: self.told.append((report, file))
        return client


def play(folder: Path, auditor: ScriptedAuditor, *, rate: float = 1.0, jobs: int = 1) -> Watched:
    """Run jobs one after the other, and wait for their audits."""
    scene = Watched(folder, auditor, rate)

    async def work() -> None:
        async with scene.client() as client:
            for number in range(jobs):
                await collect(client.run(ask(f"{number}")))
            await client.audits.done()
        await scene.market.close()

    simulate(work())
    return scene


def test_at_rate_one_every_job_is_audited_with_its_text(tmp_path: Path) -> None:
    scene = play(tmp_path, ScriptedAuditor(AuditOutcome.PASS), jobs=3)
    assert [report.outcome for report, _ in scene.told] == [AuditOutcome.PASS] * 3
    for data in scene.auditor.asked:
        proven = check_evidence(read_evidence(data))
        assert proven.content is not None and proven.outputs


def test_at_rate_zero_nothing_is_audited(tmp_path: Path) -> None:
    assert play(tmp_path, ScriptedAuditor(AuditOutcome.PASS), rate=0.0).auditor.asked == []


def test_a_share_of_the_jobs_is_audited(tmp_path: Path) -> None:
    scene = play(tmp_path, ScriptedAuditor(AuditOutcome.PASS), rate=0.5, jobs=24)
    assert 2 < len(scene.auditor.asked) < 22


def test_a_confirmed_failure_ends_the_relation_and_keeps_the_evidence(tmp_path: Path) -> None:
    scene = Watched(tmp_path, ScriptedAuditor(AuditOutcome.FAIL), 1.0)

    async def work() -> None:
        async with scene.client() as client:
            await collect(client.run(ask("first")))
            await client.audits.done()
            with pytest.raises(NoWorkerFits, match="audit"):
                await collect(client.run(ask("second")))
        await scene.market.close()

    simulate(work())
    ((report, file),) = scene.told
    assert report.findings == ("the trace differs from step 3 on",)
    assert len(scene.auditor.asked) == 2
    assert file is not None and file.parent == tmp_path
    assert check_evidence(read_evidence(file.read_bytes())).traced


def test_a_failure_whose_evidence_cannot_be_written_is_told_all_the_same(tmp_path: Path) -> None:
    scene = Watched(tmp_path, ScriptedAuditor(AuditOutcome.FAIL), 1.0)

    async def work() -> None:
        async with scene.client() as client:
            job = (await collect(client.run(ask("first"))))[0]
            assert isinstance(job, JobStarted)
            (tmp_path / f"audit-{job.job.hex()[:16]}.json").mkdir()
            await client.audits.done()
            with pytest.raises(NoWorkerFits, match="audit"):
                await collect(client.run(ask("second")))
        await scene.market.close()

    simulate(work())
    ((report, file),) = scene.told
    assert report.outcome is AuditOutcome.FAIL and file is None
    assert "the evidence was not written" in report.reason


def test_a_failure_that_nobody_confirms_is_held_against_nobody(tmp_path: Path) -> None:
    auditor = ScriptedAuditor(AuditOutcome.FAIL, AuditOutcome.PASS)
    scene = play(tmp_path, auditor, jobs=2)
    first, second = (report for report, _ in scene.told)
    assert (first.outcome, second.outcome) == (AuditOutcome.NO_VERDICT, AuditOutcome.PASS)
    assert "unsure" in first.reason
    assert all(file is None for _, file in scene.told)


def test_another_profile_is_held_against_nobody(tmp_path: Path) -> None:
    scene = play(tmp_path, ScriptedAuditor(AuditOutcome.NO_VERDICT), jobs=2)
    assert [report.reason for report, _ in scene.told] == ["another profile"] * 2


def test_the_canvas_is_drawn_among_those_with_steps() -> None:
    file = evidence(Story(steps=(3, 5), sentences=("Once ", "more.")))
    chances = (bytes, lambda size: bytes(size - 1) + b"\x01")
    assert [choose_canvas(file, chance) for chance in chances] == [0, 1]
    assert choose_canvas(evidence(Story(best_effort=True)), bytes) is None
