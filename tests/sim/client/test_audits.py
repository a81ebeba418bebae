"""Audits in the background: which jobs, what a failure takes, and what is never held against a
worker."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from piecework.base.errors import PieceworkError
from piecework.client.audits.auditor import CanvasReport, CanvasToAudit, More, NotOpened
from piecework.client.audits.background import AUDIT_CLAUSE, RULES_CLAUSE
from piecework.client.audits.confirmation import confirmed_audit
from piecework.client.audits.drawing import choose_canvas
from piecework.client.audits.rules import audit_rules
from piecework.client.audits.suspicion import MOST_TRIES
from piecework.client.config import load_config
from piecework.client.errors import NoWorkerFits
from piecework.client.jobs.events import JobStarted
from piecework.client.jobs.spending import AuditPurse
from piecework.client.journal.records import Experience
from piecework.client.journal.store import Store
from piecework.client.sdk import PieceworkClient
from piecework.client.wallet import Wallet
from piecework.commands._client.audited import AuditDone, Wish, audit_file, audit_job
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import read_evidence, write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome, Kind
from piecework_protocol.openings import write_openings
from piecework_protocol.trace import CanvasRecord
from piecework_protocol.types import Uint32
from piecework_protocol.worker_session import CanvasResult
from tests.support.chain.fake_chain import TOKEN_INFO, FakeChain
from tests.support.client.client_side import MONEY, PAYER, ask, collect
from tests.support.client.fake_worker import FakeWorker, Job, model_offer
from tests.support.market.memory_worker import MemoryMarket
from tests.support.market.reported import opened_canvas
from tests.support.market.shipped import InlineExecutor
from tests.support.protocol.evidence import Story, evidence
from tests.support.virtual_time import LoopClock, simulate
from tests.support.waiting import pass_time

Told = list[tuple[CanvasReport, Path | None]]


class ScriptedAuditor:
    """Implements `Auditor` with outcomes that a test chose. The last one stays.

    statistical: whether its findings are of the kind that honest canvases show now and then.
    lacking: why it has no verdict, whatever is opened.
    """

    def __init__(
        self, *outcomes: AuditOutcome, statistical: bool = False, lacking: str = ""
    ) -> None:
        self._outcomes, self._statistical = list(outcomes), statistical
        self.lacking = lacking
        self.asked: list[bytes] = []
        self.canvases: list[int] = []
        self.controls: list[bool] = []

    async def audit(
        self,
        evidence: bytes,
        canvas: int,
        level: AuditLevel,
        openings: bytes = b"",
        purse: AuditPurse | None = None,
        *,
        control: bool = True,
    ) -> CanvasReport:
        self.asked.append(evidence)
        self.controls.append(control)
        self.canvases.append(canvas)
        await pass_time(1)
        outcome = self._outcomes[0] if len(self._outcomes) == 1 else self._outcomes.pop(0)
        found = ("the trace differs from step 3 on",) if outcome is AuditOutcome.FAIL else ()
        why = "another profile" if outcome is AuditOutcome.NO_VERDICT else ""
        statistical = self._statistical and outcome is AuditOutcome.FAIL
        return CanvasReport(level, outcome, canvas, found, why, steps=4, statistical=statistical)

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        check_evidence(read_evidence(evidence))
        self.canvases.append(canvas)
        await pass_time(1)
        return self.lacking


class OpeningWorker(FakeWorker):
    """Sells openings too."""

    def __init__(self, chain: FakeChain, clock: LoopClock, *, name: str) -> None:
        sold = model_offer()
        sold = sold.replace(kinds=Uint32(sold.kinds | Kind.OPEN.bit))
        super().__init__(chain, clock, name=name, models=(sold,))


class PinningWorker(FakeWorker):
    """Commits to pinned positions that nobody asked for. `opened`: the openings of a canvas."""

    opened = b""

    def denoise(self, job: Job, canvas: int) -> CanvasResult:
        """Put a canvas leaf before the leaves."""
        made, accepted = super().denoise(job, canvas), job.session.accepted
        record = CanvasRecord(
            canvas=canvas,
            size=accepted.model.canvas_size,
            vocab_size=1000,
            kind=accepted.job.kind,
            seed=accepted.job.parameters.seed,
            parameters=accepted.job.parameters.struct_hash(),
            content=accepted.job.content,
            pinned=bytes(range(32)),
            prompt_tokens=accepted.prompt_tokens,
        )
        self.opened = write_openings(record, ())
        return replace(made, leaves=(record.leaf(), *made.leaves[1:]))


class Watched:
    """A client of one worker, with an auditor."""

    def __init__(
        self,
        folder: Path,
        auditor: ScriptedAuditor,
        rate: float,
        worker: Callable[..., FakeWorker] = FakeWorker,
        **flags: Any,
    ) -> None:
        self.chain, self.clock, self.market = FakeChain(), LoopClock(), MemoryMarket()
        self.chain.deposit(PAYER.address, 100 * MONEY)
        self.worker = worker(self.chain, self.clock, name="only")
        self.market.add(self.worker, "only")
        self.folder, self.auditor, self.told = folder, auditor, Told()
        self.flags = {"audit_rate": rate, **flags}

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


def on_demand(folder: Path, auditor: ScriptedAuditor, wish: Wish) -> tuple[AuditDone, Experience]:
    """Run a job and audit it as `piecework client audit` does. Returns what is known then."""
    scene = Watched(folder, ScriptedAuditor(AuditOutcome.PASS), 0.0)

    async def work() -> tuple[AuditDone, Experience]:
        async with scene.client() as client:
            job = (await collect(client.run(ask("first"))))[0]
            assert isinstance(job, JobStarted)
            found = await audit_job(client, replace(wish, job=job.job.hex()), auditor)
            known = client.store.workers.experience()[job.operator]
        await scene.market.close()
        return found, known

    return simulate(work())


@pytest.mark.parametrize("level", ["replay", "forced"])
def test_an_audit_on_demand_is_confirmed_and_ends_the_relation(tmp_path: Path, level: str) -> None:
    auditor = ScriptedAuditor(AuditOutcome.FAIL)
    found, known = on_demand(tmp_path, auditor, Wish(level, canvas=0, opened={0: b"{}"}))
    assert len(auditor.asked) == 2 and found.report.confirmed and found.ended
    assert known.broken_clause == AUDIT_CLAUSE
    assert found.kept is not None and found.kept.parent == tmp_path
    assert check_evidence(read_evidence(found.kept.read_bytes())).traced


PASS, FAIL, NONE = AuditOutcome.PASS, AuditOutcome.FAIL, AuditOutcome.NO_VERDICT


def beside(
    auditor: ScriptedAuditor, others: int, *, openings: bytes = b"", refused: Sequence[int] = ()
) -> tuple[CanvasReport, list[int]]:
    """Hold canvas 0 of a job beside others of it. Returns the report and what was asked for.

    refused: canvases that their worker does not open.
    """
    file, given = evidence(Story(steps=(2,) * 15, sentences=tuple("abcdefghijklmno"))), list[int]()
    closed = False

    async def more() -> More:
        nonlocal closed
        try:
            for canvas in range(1, others + 1):
                given.append(canvas)
                if canvas in refused:
                    yield NotOpened(f"canvas {canvas} was not opened: no")
                else:
                    yield CanvasToAudit(file, canvas, openings)
        finally:
            closed = True

    async def work() -> CanvasReport:
        found = await confirmed_audit(auditor, file, 0, AuditLevel.FORCED, openings, others=more())
        assert closed or not given, "nothing goes on behind a verdict"
        return found

    return simulate(work()), given


def outcomes(*looks: AuditOutcome) -> list[AuditOutcome]:
    """What an auditor says of canvases, each failure twice."""
    return [said for one in looks for said in ([one] * 2 if one is FAIL else [one])]


@pytest.mark.parametrize(
    ("looks", "asked"),
    [
        ((FAIL, FAIL), 1),
        ((FAIL, NONE, FAIL), 2),
        ((FAIL, PASS, FAIL, FAIL), 3),
        ((FAIL, PASS, PASS, PASS, FAIL, FAIL), 5),
    ],
)
def test_canvases_that_look_wrong_are_a_verdict_together(
    looks: tuple[AuditOutcome, ...], asked: int
) -> None:
    auditor = ScriptedAuditor(*outcomes(*looks), statistical=True)
    report, given = beside(auditor, 8, openings=whole_openings())
    assert (report.outcome, report.confirmed, report.statistical) == (FAIL, True, True)
    assert given == list(range(1, asked + 1)) and set(auditor.canvases) == {0, *given}
    assert [one.canvas for one in report.beside] == [i for i in given if looks[i] is FAIL]
    first, *more = report.findings
    assert first == "the trace differs from step 3 on"
    assert len(more) == len(report.beside)
    assert all(re.fullmatch(r"canvas \d of job [0-9a-f]{16}: .*", line) for line in more)


@pytest.mark.parametrize(
    ("looks", "others", "refused", "why"),
    [
        ((FAIL, PASS), 8, (), "0 of 5 other canvases of this worker do too: too few. the trace"),
        ((FAIL, PASS, FAIL, PASS), 8, (), "1 of 5 other canvases of this worker do too: too few"),
        ((FAIL, PASS, FAIL, PASS), 2, (), "1 of 2 other canvases of this worker do too: too few"),
        ((FAIL,), 0, (), "there is no other canvas of this worker to hold beside it. the trace"),
        ((FAIL,), 2, (1, 2), "2 others were not judged. The last: canvas 2 was not opened: no."),
        (
            (FAIL, PASS),
            2,
            (2,),
            "0 of 1 other canvases of this worker do too: too few. 1 others were not judged.",
        ),
        ((FAIL, NONE), 1, (), "1 others were not judged. The last: canvas 1 of job "),
    ],
)
def test_too_few_canvases_that_look_wrong_blame_nobody(
    looks: tuple[AuditOutcome, ...], others: int, refused: tuple[int, ...], why: str
) -> None:
    auditor = ScriptedAuditor(*outcomes(*looks), statistical=True)
    report, _ = beside(auditor, others, openings=whole_openings(), refused=refused)
    assert (report.outcome, report.findings, report.confirmed) == (NONE, (), False)
    assert report.reason.startswith("it looks wrong, as an honest canvas does now and then. " + why)
    assert "the trace differs from step 3 on" in report.reason


@pytest.mark.parametrize("refused", [(), range(1, 15)])
def test_what_is_bought_has_a_bound_also_if_nothing_has_a_verdict(refused: Sequence[int]) -> None:
    auditor = ScriptedAuditor(*outcomes(FAIL, NONE), statistical=True)
    report, given = beside(auditor, 14, openings=whole_openings(), refused=refused)
    assert report.outcome is NONE
    assert given == list(range(1, MOST_TRIES))


def test_a_canvas_that_looks_wrong_must_be_opened_whole() -> None:
    """Whoever saved the openings could leave out the steps that look right."""
    _, body = opened_canvas(Story())
    auditor = ScriptedAuditor(FAIL, statistical=True)
    report, given = beside(auditor, 8, openings=json.dumps(body).encode())
    assert (report.outcome, given) == (NONE, [])
    assert "of the canvas's 2 steps are not opened" in report.reason


def test_a_certain_finding_in_another_canvas_ends_the_search() -> None:
    class Two(ScriptedAuditor):
        """Canvas 0 looks wrong, and the others have a finding that is certain."""

        async def audit(self, *args: Any, **more: Any) -> CanvasReport:
            found = await super().audit(*args, **more)
            return replace(found, statistical=found.canvas == 0)

    report, given = beside(Two(FAIL), 8, openings=whole_openings())
    assert (report.outcome, given) == (FAIL, [1])
    auditor = Two(*outcomes(FAIL, PASS, FAIL))
    report, given = beside(auditor, 8, openings=whole_openings())
    assert (report.outcome, given) == (FAIL, [1, 2])


def test_a_certain_finding_needs_no_other_canvas() -> None:
    report, given = beside(ScriptedAuditor(FAIL), 8)
    assert (report.outcome, report.confirmed, given) == (FAIL, True, [])


def test_what_only_one_of_two_audits_is_certain_of_is_not_certain() -> None:
    class Unsure(ScriptedAuditor):
        """Certain the first time, and not the second."""

        async def audit(self, *args: Any, **more: Any) -> CanvasReport:
            found = await super().audit(*args, **more)
            return replace(found, statistical=len(self.asked) > 1)

    unsure = Unsure(FAIL, FAIL, PASS)
    report, given = beside(unsure, 8, openings=whole_openings())
    assert (report.outcome, len(given)) == (NONE, 5)
    assert all(unsure.controls), "what was certain had no control"


def test_a_canvas_that_looks_wrong_has_one_control_and_not_one_in_each_audit() -> None:
    auditor = ScriptedAuditor(FAIL, statistical=True)
    report, given = beside(auditor, 8, openings=whole_openings())
    assert (report.outcome, given) == (FAIL, [1])
    assert (auditor.canvases, auditor.controls) == ([0, 0, 1, 1], [True, False] * 2)


def test_why_a_second_audit_says_nothing_is_told() -> None:
    report, _ = beside(ScriptedAuditor(FAIL, NONE), 8, openings=whole_openings())
    assert report.outcome is NONE and "so this machine is unsure. It said: another" in report.reason


def test_trouble_with_the_others_takes_nothing_from_what_was_seen() -> None:
    file = evidence(Story(steps=(2,) * 3, sentences=tuple("abc")))

    async def more() -> More:
        yield CanvasToAudit(file, 1, whole_openings())
        raise PieceworkError("the journal is locked")

    async def work() -> CanvasReport:
        auditor = ScriptedAuditor(*outcomes(FAIL, PASS), statistical=True)
        level = AuditLevel.FORCED
        return await confirmed_audit(auditor, file, 0, level, whole_openings(), others=more())

    found = simulate(work())
    assert found.outcome is NONE
    assert "0 of 1 other canvases of this worker do too" in found.reason
    assert "The last: the journal is locked." in found.reason


def test_a_failure_keeps_the_steps_that_were_opened(tmp_path: Path) -> None:
    found, _ = on_demand(
        tmp_path, ScriptedAuditor(FAIL), Wish("forced", canvas=0, opened={0: whole_openings()})
    )
    assert found.kept is not None
    opened = found.kept.with_name(f"{found.kept.stem}-openings-0.json")
    assert opened.read_bytes() == whole_openings()


def test_a_canvas_that_looks_wrong_only_once_asks_for_no_other() -> None:
    auditor = ScriptedAuditor(FAIL, PASS, statistical=True)
    report, given = beside(auditor, 8, openings=whole_openings())
    assert (report.outcome, given) == (NONE, [])
    assert "unsure" in report.reason


def test_a_canvas_is_drawn_among_those_that_are_opened(tmp_path: Path) -> None:
    place = tmp_path / "evidence.json"
    story = Story(steps=(2,) * 60, sentences=("a",) * 60)
    place.write_bytes(write_evidence(evidence(story)))
    opened = dict.fromkeys((7, 50), whole_openings())
    auditor = ScriptedAuditor(FAIL)
    found = simulate(audit_file(Wish("forced", opened=opened), place, auditor))
    assert found.report.canvas in {7, 50} and set(auditor.canvases) == {found.report.canvas}
    assert found.report.outcome is FAIL and found.kept == place


def test_who_gives_some_openings_only_does_not_choose_what_looks_wrong(tmp_path: Path) -> None:
    place = tmp_path / "evidence.json"
    place.write_bytes(write_evidence(evidence(Story(steps=(2,) * 3, sentences=tuple("abc")))))
    for given, outcome in (((0, 2), NONE), ((0, 1, 2), FAIL)):
        auditor = ScriptedAuditor(FAIL, statistical=True)
        wish = Wish("forced", opened=dict.fromkeys(given, whole_openings()))
        found = simulate(audit_file(wish, place, auditor))
        assert found.report.outcome is outcome
        assert ("the openings of canvas 1 were not given" in found.report.reason) is (
            outcome is NONE
        )


def test_a_verdict_of_several_canvases_keeps_the_evidence_of_all(tmp_path: Path) -> None:
    scene = Watched(tmp_path, ScriptedAuditor(FAIL, statistical=True), 0.0)
    files = [evidence(Story(steps=(2, 2), sentences=("a", "b"), seed=seed)) for seed in (1, 2)]

    async def more() -> More:
        yield CanvasToAudit(files[1], 1, whole_openings())

    async def work() -> Experience:
        async with scene.client() as client:
            audited = (files[0], 0, AuditLevel.FORCED, whole_openings())
            await client.audits.audit(*audited, others=more())
            return client.store.workers.experience()[files[0].channel.operator]

    assert simulate(work()).broken_clause == AUDIT_CLAUSE
    ((_, kept),) = scene.told
    names = [f"audit-{one.job.job.id(one.domain).hex()[:16]}" for one in files]
    assert kept == tmp_path / f"{names[0]}.json"
    for name, file, canvas in zip(names, files, (0, 1), strict=True):
        assert read_evidence((tmp_path / f"{name}.json").read_bytes()) == file
        assert (tmp_path / f"{name}-openings-{canvas}.json").read_bytes() == whole_openings()


def whole_openings() -> bytes:
    """An openings file of two steps, with soft embeddings."""
    _, body = opened_canvas(Story())
    steps = [{**one, "soft": "0x00"} for one in body["steps"]]
    return json.dumps({**body, "steps": steps}).encode()


def test_an_audit_on_demand_that_nobody_confirms_ends_nothing(tmp_path: Path) -> None:
    auditor = ScriptedAuditor(AuditOutcome.FAIL, AuditOutcome.PASS)
    found, known = on_demand(tmp_path, auditor, Wish("replay"))
    assert found.report.outcome is AuditOutcome.NO_VERDICT and "unsure" in found.report.reason
    assert (found.kept, found.ended) == (None, False)
    assert not known.broken_clause


def test_a_worker_that_opens_nothing_passes_nothing(tmp_path: Path) -> None:
    found, known = on_demand(tmp_path, ScriptedAuditor(AuditOutcome.PASS), Wish("rules", buy=True))
    assert found.report.outcome is AuditOutcome.NO_VERDICT
    assert "steps is opened, and the worker opens no steps: " in found.report.reason
    assert not known.broken_clause


def test_a_forced_audit_passes_no_canvas_with_steps_that_are_not_opened() -> None:
    file, openings = opened_canvas(Story())
    whole = {**openings, "steps": [{**one, "soft": "0x00"} for one in openings["steps"]]}

    async def outcome(body: dict[str, Any]) -> tuple[AuditOutcome, str]:
        auditor, level = ScriptedAuditor(AuditOutcome.PASS), AuditLevel.FORCED
        found = await confirmed_audit(auditor, file, 0, level, json.dumps(body).encode())
        return found.outcome, found.reason

    assert simulate(outcome(whole)) == (AuditOutcome.PASS, "")
    for lacking in (openings["steps"], whole["steps"][:1] + openings["steps"][1:]):
        found, why = simulate(outcome({**whole, "steps": lacking}))
        assert found is AuditOutcome.NO_VERDICT and "of the canvas's 2 steps are not opened" in why


def test_a_forced_audit_without_a_verdict_buys_nothing(tmp_path: Path) -> None:
    why = "no thresholds for a worker in bfloat16 on cuda and an auditor in float32"
    auditor = ScriptedAuditor(FAIL, lacking=why)
    scene = Watched(tmp_path, auditor, 0.0, OpeningWorker, keep_text=True)

    async def work() -> AuditDone:
        async with scene.client() as client:
            job = (await collect(client.run(ask("first"))))[0]
            assert isinstance(job, JobStarted)
            wish = Wish("forced", job=job.job.hex(), canvas=1, buy=True)
            found = await audit_job(client, wish, auditor)
            assert len(client.store.jobs()) == 1, "nothing is signed, so nothing is spent"
        await scene.market.close()
        return found

    found = simulate(work())
    assert (found.report.outcome, found.report.reason) == (NONE, why)
    assert (found.report.level, found.report.canvas) == (AuditLevel.FORCED, 1)
    assert found.report.steps == found.file.canvases[1].receipt.steps
    assert not (found.ended or found.kept or found.opened)
    assert len(scene.worker.jobs) == 1, "the worker was asked for nothing"
    assert (auditor.canvases, auditor.asked) == ([1], [])


def test_a_broken_rule_ends_the_relation_by_itself(tmp_path: Path) -> None:
    scene = Watched(tmp_path, ScriptedAuditor(AuditOutcome.PASS), 0.0)
    file, openings = opened_canvas(Story(), noise=1)

    async def work() -> Experience:
        async with scene.client() as client:
            data = json.dumps(openings).encode()
            await client.audits.audit(file, 0, AuditLevel.RULES, data)
            return client.store.workers.experience()[file.channel.operator]

    assert simulate(work()).broken_clause == RULES_CLAUSE
    ((report, kept),) = scene.told
    assert report.outcome is AuditOutcome.FAIL and report.confirmed
    assert kept is not None and read_evidence(kept.read_bytes()) == file


def test_a_client_that_keeps_no_text_knows_that_a_job_had_no_template(tmp_path: Path) -> None:
    scene = Watched(tmp_path, ScriptedAuditor(AuditOutcome.PASS), 0.0, PinningWorker)
    worker = scene.worker
    assert isinstance(worker, PinningWorker)

    async def work() -> AuditDone:
        async with scene.client() as client:
            job = (await collect(client.run(ask("first", max_tokens=1))))[0]
            assert isinstance(job, JobStarted)
            wish = Wish("rules", job=job.job.hex(), opened={0: worker.opened})
            found = await audit_job(client, wish, scene.auditor)
        await scene.market.close()
        return found

    found = simulate(work())
    assert found.file.content is None
    assert found.report.outcome is AuditOutcome.FAIL and found.ended
    assert any(line.startswith("rule 10 (pinned)") for line in found.report.findings)
    bare = audit_rules(found.file, 0, found.opened)
    assert bare.outcome is AuditOutcome.NO_VERDICT


def test_the_canvas_is_drawn_among_those_with_steps() -> None:
    file = evidence(Story(steps=(3, 5), sentences=("Once ", "more.")))
    chances = (bytes, lambda size: bytes(size - 1) + b"\x01")
    assert [choose_canvas(file, chance) for chance in chances] == [0, 1]
    assert choose_canvas(evidence(Story(best_effort=True)), bytes) is None
