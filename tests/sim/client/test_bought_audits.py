"""Audits that a client buys: who is asked, what counts, and which auditor is not asked again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.client.auditors.checks import Check, CheckKind, Entropy, KnownCanvases
from piecework.client.auditors.market import MarketAuditor
from piecework.client.audits.auditor import CanvasReport
from piecework.client.audits.engine import EngineAuditor
from piecework.client.config import load_config
from piecework.client.jobs.events import JobStarted
from piecework.client.journal.store import Store
from piecework.client.limits import MAX_ASKED_AUDITORS
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.commands._client.audited import AuditDone, Wish, audit_job
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.objects import AuditOutcome
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Address, Digest, to_hex
from piecework_protocol.worker_session import CanvasResult
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.client.client_side import MONEY, PAYER, ask, collect
from tests.support.client.fake_worker import STORY, FakeWorker, Job, Script
from tests.support.market.fake_auditor import AuditingStyle, AuditingWorker
from tests.support.market.memory_worker import MemoryMarket
from tests.support.market.shipped import InlineExecutor
from tests.support.protocol.traces import made_up_leaves
from tests.support.virtual_time import LoopClock, simulate
from tests.support.waiting import pass_time

HONEST, BLIND, ACCUSER, FORGER = (
    AuditingStyle.HONEST,
    AuditingStyle.BLIND,
    AuditingStyle.ACCUSER,
    AuditingStyle.FORGER,
)
CHEAT = Script(story=tuple(word.upper() for word in STORY))
"""The worker serves another model than it says."""


class GoodOnes(KnownCanvases):
    """Checks with canvases as they were, and with no changed ones."""

    def check_for(
        self, who: frozenset[Address], model: Digest, profile: str, entropy: Entropy
    ) -> Check | None:
        found = super().check_for(who, model, profile, entropy)
        return found and Check(CheckKind.GOOD, found.known.content, found.known)


class Scene:
    """A client of one worker, in a market with auditors. `flags` are its settings."""

    def __init__(self, folder: Path, script: Script | None = None, **flags: Any) -> None:
        self.chain, self.clock, self.market = FakeChain(), LoopClock(), MemoryMarket()
        self.chain.deposit(PAYER.address, 1000 * MONEY)
        self.worker = FakeWorker(self.chain, self.clock, name="served", script=script)
        self.market.add(self.worker, "served")
        self.folder = folder
        self.flags = {"audit_rate": 1.0, "audit_by": "market", "audit_check_rate": 0.0, **flags}
        self.told: list[tuple[CanvasReport, Path | None]] = []
        self.served = False

    def auditor(self, name: str, style: AuditingStyle = HONEST, **more: Any) -> AuditingWorker:
        """Somebody who sells audits."""
        auditor = AuditingWorker(self.chain, self.clock, name=name, style=style, **more)
        self.market.add(auditor, name)
        return auditor

    def client(self) -> PieceworkClient:
        config = load_config(self.folder / "none", self.flags, environment={})
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
        client.audits.on_report = lambda report, file: self.told.append((report, file))
        return client

    def play(self, jobs: int = 1) -> list[CanvasReport]:
        """Run jobs one after the other, wait for their audits, and return what they found.

        One more job shows in `served` whether the worker is still asked.
        """

        async def work() -> None:
            async with self.client() as client:
                for number in range(jobs):
                    await collect(client.run(ask(f"{number}")))
                    await client.audits.done()
                client.audits.auditor = EngineAuditor()
                first = (await collect(client.run(ask("one more"))))[0]
                assert isinstance(first, JobStarted)
                self.served = first.operator == self.worker.operator.address
                await client.audits.close()
            await self.market.close()

        simulate(work())
        return [report for report, _ in self.told]

    def files(self, name: str) -> list[Path]:
        return sorted(self.folder.glob(f"{name}-*.json"))


def test_an_honest_worker_passes_and_one_auditor_is_paid(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    auditors = [scene.auditor(f"auditor {n}") for n in range(3)]
    (report,) = scene.play()
    assert (report.outcome, report.findings) == (AuditOutcome.PASS, ())
    (asked,) = [auditor for auditor in auditors if auditor.audited]
    assert report.by == (asked.operator.address,)
    assert report.cost == asked.paid() > 0
    assert not scene.files("audit") and not scene.files("auditor")


def test_an_auditor_is_told_neither_whose_canvas_it_is_nor_its_leaves(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    auditor = scene.auditor("auditor")
    scene.play()
    (claim,) = auditor.audited
    data = claim.encode()
    assert bytes(scene.worker.operator.address) not in data
    assert not [job for job in scene.worker.jobs if bytes(job) in data]
    leaves = made_up_leaves(claim.output, claim.steps)
    assert trace_root(leaves) == claim.trace_root
    assert not [leaf for leaf in leaves if bytes(leaf) in data]


def test_a_cheat_is_shut_out_once_two_owners_have_computed_the_same(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CHEAT)
    auditors = [scene.auditor(f"auditor {n}") for n in range(4)]
    (report,) = scene.play()
    assert report.outcome is AuditOutcome.FAIL and report.confirmed
    assert report.findings == ("the canvas is another",) and not scene.served
    assert len(report.by) == 2 == sum(len(auditor.audited) for auditor in auditors)
    ((_, file),) = scene.told
    assert file is not None and check_evidence(read_evidence(file.read_bytes())).traced
    assert not scene.files("auditor")


def test_a_cheat_that_others_find_on_demand_has_its_evidence_named(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CHEAT, keep_text=True, audit_rate=0.0)
    for n in range(4):
        scene.auditor(f"auditor {n}")

    async def work() -> AuditDone:
        async with scene.client() as client:
            job = (await collect(client.run(ask("one"))))[0]
            assert isinstance(job, JobStarted)
            wish = Wish("replay", job.job.hex(), by="market")
            found = await audit_job(client, wish, EngineAuditor())
        await scene.market.close()
        return found

    found = simulate(work())
    assert found.ended and len(found.report.by) == 2
    assert [found.kept] == scene.files("audit")


def test_what_one_auditor_alone_says_is_no_verdict(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CHEAT)
    auditor = scene.auditor("auditor")
    reports = scene.play()
    assert reports[0].outcome is AuditOutcome.NO_VERDICT
    assert "no second auditor agrees" in reports[0].reason
    assert "the canvas is another" in reports[0].reason
    assert len(auditor.audited) == 1 and scene.served


def test_one_who_accuses_an_honest_worker_is_the_one_that_is_shut_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    accuser = scene.auditor("accuser", ACCUSER)
    scene.flags["audit_by"] = to_hex(accuser.operator.address)
    for n in range(3):
        scene.auditor(f"auditor {n}")
    first, second = scene.play(jobs=2)
    assert first.outcome is AuditOutcome.PASS and len(first.by) == 3 and scene.served
    assert first.by[0] == accuser.operator.address
    assert len(accuser.audited) == 1
    assert second.outcome is AuditOutcome.NO_VERDICT or accuser.operator.address not in second.by
    (file,) = scene.files("auditor")
    shown = read_evidence(file.read_bytes())
    proven = check_evidence(shown)
    assert shown.channel.operator == accuser.operator.address
    assert isinstance(proven.content, AuditContent) and proven.outputs is not None
    (said,) = proven.outputs
    assert isinstance(said, AuditOutput) and said.outcome is AuditOutcome.FAIL
    assert said.trace_root == proven.content.trace_root


def test_accusers_who_compute_nothing_do_not_confirm_each_other(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    accusers = [scene.auditor(f"accuser {n}", ACCUSER) for n in range(4)]
    (report,) = scene.play()
    assert report.outcome is AuditOutcome.NO_VERDICT and scene.served
    assert sum(len(accuser.audited) for accuser in accusers) >= 3


def test_a_pass_without_the_trace_is_caught_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CHEAT)
    forger = scene.auditor("forger", FORGER)
    reports = scene.play()
    assert reports[0].outcome is AuditOutcome.NO_VERDICT
    assert "the auditor's own trace is another" in reports[0].remarks[0]
    (file,) = scene.files("auditor")
    assert read_evidence(file.read_bytes()).channel.operator == forger.operator.address


def test_an_audit_that_ends_at_its_deadline_is_paid_and_blames_nobody(tmp_path: Path) -> None:
    scene = Scene(tmp_path, job_lifetime_s=10)
    script = Script(gate=lambda canvas: pass_time(6))
    auditor = scene.auditor("late", AuditingStyle.LATE, script=script)
    (report,) = scene.play()
    assert report.outcome is AuditOutcome.NO_VERDICT
    assert report.remarks[0].endswith("JOB_ENDED")
    assert report.cost == auditor.paid() > 0
    assert not scene.files("auditor")


def test_a_canvas_that_a_friend_of_its_worker_passed_gives_no_honest_auditor_up(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, CHEAT)
    friend = scene.auditor("friend", AuditingStyle.FRIEND)
    honest = scene.auditor("honest")

    async def work() -> tuple[CanvasReport, int]:
        async with scene.client() as client:
            before = MarketAuditor(client, first=friend.operator.address)
            client.audits.auditor = before
            await collect(client.run(ask("one")))
            await client.audits.done()
            (known,) = before.canvases.canvases
            assert known.good
            client.audits.auditor = MarketAuditor(
                client,
                first=honest.operator.address,
                check_rate=1.0,
                canvases=GoodOnes(before.canvases.canvases),
            )
            await collect(client.run(ask("two")))
            await client.audits.done()
            await client.audits.close()
            assert known.doubted and not known.good
            return scene.told[-1][0], len(honest.audited)

    report, asked = simulate(work())
    assert asked > 0 and "missed a check" in report.remarks[0]
    assert not scene.files("auditor"), "who of the two lies is open"


class Turncoat(AuditingWorker):
    """Accuses in its first audit and forges in those behind it."""

    def denoise(self, job: Job, canvas: int) -> CanvasResult:
        if isinstance(job.content, AuditContent):
            self.style = FORGER if self.audited else ACCUSER
        return super().denoise(job, canvas)


class LastOfAll:
    """A market whose client draws the last of everything: the real canvas first, a good check."""

    def __init__(self, client: PieceworkClient) -> None:
        self.context = replace(client.context, entropy=lambda count: b"\xf0" * count)
        self.chain, self.discovery, self.run = client.chain, client.discovery, client.run


def test_what_a_forger_of_a_check_said_before_does_not_count(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    honest = scene.auditor("honest")
    liar = Turncoat(scene.chain, scene.clock, name="liar")
    scene.market.add(liar, "liar")

    async def work() -> CanvasReport:
        async with scene.client() as client:
            first = MarketAuditor(client, first=honest.operator.address)
            client.audits.auditor = first
            await collect(client.run(ask("one")))
            await client.audits.done()
            del scene.market.workers[honest.endpoint]
            client.audits.auditor = MarketAuditor(
                LastOfAll(client),
                first=liar.operator.address,
                check_rate=1.0,
                canvases=first.canvases,
            )
            await collect(client.run(ask("two")))
            await client.audits.done()
            await client.audits.close()
        return scene.told[-1][0]

    report = simulate(work())
    assert len(liar.audited) == 2 and scene.files("auditor")
    assert liar.operator.address not in report.by


def test_those_who_take_money_for_nothing_are_asked_only_so_often(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    forgers = [scene.auditor(f"forger {n}", FORGER) for n in range(MAX_ASKED_AUDITORS + 4)]
    (report,) = scene.play()
    assert report.outcome is AuditOutcome.NO_VERDICT
    assert sum(len(one.audited) for one in forgers) == MAX_ASKED_AUDITORS
    assert report.cost == sum(one.paid() for one in forgers) > 0


@pytest.mark.parametrize("kin", ["operator", "payout"])
def test_nobody_audits_a_worker_of_the_same_owner(tmp_path: Path, kin: str) -> None:
    scene = Scene(tmp_path)
    if kin == "payout":
        auditor = scene.auditor("auditor")
        auditor.receiver = scene.worker.receiver
        operator, place = auditor.operator.address, auditor.endpoint
        scene.chain.register(operator, auditor.receiver, place)
    else:
        # The only worker sells audits too.
        del scene.market.workers[scene.worker.endpoint], scene.chain.registered[_of(scene.worker)]
        scene.auditor("alone")
    (report,) = scene.play()
    assert report.outcome is AuditOutcome.NO_VERDICT
    assert "nobody of another owner audits" in report.reason and report.by == ()


def _of(worker: FakeWorker) -> Address:
    return worker.operator.address


def test_an_auditor_on_another_profile_is_not_asked(tmp_path: Path) -> None:
    scene = Scene(tmp_path, CHEAT)
    other = scene.auditor("other", profile="another")
    (report,) = scene.play()
    assert report.outcome is AuditOutcome.NO_VERDICT and not other.audited


def test_one_who_does_not_look_misses_a_check_and_is_shut_out(tmp_path: Path) -> None:
    scene = Scene(tmp_path, audit_check_rate=1.0)
    blind = scene.auditor("blind", BLIND)
    scene.flags["audit_by"] = to_hex(blind.operator.address)
    # Canvases that somebody else has audited: an auditor is never checked with one that it knows.
    helper = scene.auditor("helper")
    seen = _checked(scene, helper, blind, jobs=16)
    assert "it was given a canvas with another output than its trace, and said" in seen
    (file,) = scene.files("auditor")
    assert read_evidence(file.read_bytes()).channel.operator == blind.operator.address


def test_an_honest_auditor_passes_every_check(tmp_path: Path) -> None:
    scene = Scene(tmp_path, audit_check_rate=1.0)
    honest, helper = scene.auditor("honest"), scene.auditor("helper")
    seen = _checked(scene, helper, honest, jobs=12)
    assert not scene.files("auditor") and seen == ""
    checks = len(honest.audited) - 12
    assert checks > 8
    assert len({claim.encode() for claim in honest.audited}) == len(honest.audited)


def _checked(scene: Scene, helper: AuditingWorker, auditor: AuditingWorker, *, jobs: int) -> str:
    """Let a helper audit some jobs, then the auditor others. Returns why it was given up."""

    async def work() -> None:
        async with scene.client() as client:
            first = MarketAuditor(client, first=helper.operator.address)
            client.audits.auditor = first
            for number in range(jobs):
                await collect(client.run(ask(f"known {number}")))
                await client.audits.done()
            name = auditor.operator.address
            client.audits.auditor = MarketAuditor(
                client, first=name, check_rate=1.0, canvases=first.canvases
            )
            for number in range(jobs):
                await collect(client.run(ask(f"{number}")))
                await client.audits.done()
        await scene.market.close()

    simulate(work())
    return " ".join(remark for report, _ in scene.told for remark in report.remarks)
