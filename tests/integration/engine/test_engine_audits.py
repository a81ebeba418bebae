"""Audits on the real engine, and the audit of those who audit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from piecework_model.audit.auditors import judge_report
from piecework_model.audit.claims import ClaimedJob
from piecework_model.audit.job import CanvasAudit, JobAudit
from piecework_model.audit.replay import Replayer
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.engine import Engine
from piecework_model.machine.probe import engine_profile, probe, short_profile
from piecework_node.engine.replays import ReplayRunner, prepare
from piecework_node.engine.wire import (
    Audit,
    Audited,
    Prefilled,
    Replayed,
    ShownStep,
    decode_command,
    decode_report,
    encode_command,
    encode_report,
)
from piecework_protocol.evidence.audits import audit_content
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import AuditOutcome, Finish
from piecework_protocol.trace import StepRecord
from piecework_protocol.types import Digest, keccak256
from tests.support.model.audited import AuditedJob, audited_job, sold_audit


@dataclass
class Bench:
    """One engine with its runner. Everything goes over the pipe's own bytes."""

    loaded: LoadedModel
    reports: list[Audited] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        executor = BatchedExecutor(self.loaded.model, self.loaded.limits)
        engine = Engine(self.loaded, max_sequences=1, memory_bytes=1 << 28, executor=executor)
        self.replayer = Replayer(self.loaded, executor)
        self.runner = ReplayRunner(
            self.replayer, executor, engine, self.hear, monotonic=lambda: 0.0
        )
        self.profile = short_profile(engine_profile(self.loaded, probe(), executor.kernels))

    def hear(self, report: Prefilled | ShownStep | Replayed | Audited) -> None:
        read = decode_report(encode_report(report))
        if isinstance(read, Prefilled):
            assert read.number == 7
        elif isinstance(read, ShownStep):
            self.records.append(StepRecord.parse(read.opening.fields))
        else:
            assert isinstance(read, Audited)
            self.reports.append(read)

    def audit(self, content: AuditContent) -> tuple[Audited, tuple[Digest, ...]]:
        """Let the runner go on until it says what it found. Returns the step leaves too."""
        self.records.clear()
        command = decode_command(encode_command(Audit(7, content)))
        assert isinstance(command, Audit)
        self.runner.take(prepare(command, self.loaded))
        while not self.reports:
            assert self.runner.is_due
            self.runner.step()
        return self.reports.pop(), tuple(record.leaf() for record in self.records)


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.set_num_threads(1)
    return Bench(load(device="cpu", dtype="float32"))


@pytest.fixture(scope="module")
def honest(bench: Bench) -> AuditedJob:
    return audited_job(bench.loaded, bench.profile)


def claim(job: AuditedJob, canvas: int) -> AuditContent:
    return audit_content(job.evidence, check_evidence(job.evidence), canvas)


@pytest.mark.parametrize("canvas", [0, 1])
def test_an_honest_canvas_passes_with_the_leaves_that_its_worker_signed(
    bench: Bench, honest: AuditedJob, canvas: int
) -> None:
    found, step_leaves = bench.audit(claim(honest, canvas))
    report, leaves = found.report, honest.evidence.canvases[canvas].leaves
    assert (report.outcome, found.refused, found.number) == (AuditOutcome.PASS, "", 7)
    assert leaves == (report.canvas_leaf, *step_leaves)
    assert report.replayed_root((leaves[0], *step_leaves)) == report.trace_root


def test_another_token_another_text_and_another_trace_fail(
    bench: Bench, honest: AuditedJob
) -> None:
    good = claim(honest, 0)
    assert isinstance(good.told, TextOutput)
    ids, segments = good.told.token_ids, good.told.segments
    edited = TextOutput((ids[1], *ids[1:]), segments).encode()
    reworded = TextOutput.plain(ids, good.told.text + " Send money.").encode()
    for changed, why in (
        ({"output": edited}, "the delivered tokens are others than those of the canvas"),
        ({"output": reworded}, "the delivered text is another than that of its tokens"),
        ({"trace_root": Digest(keccak256(b"other"))}, "the trace is another one"),
        ({"prompt_tokens": 3}, "3 prompt tokens are charged, and the prompt has"),
        ({"steps": good.steps - 1}, f"the canvas is not finished after {good.steps - 1} steps"),
    ):
        found, step_leaves = bench.audit(replace(good, **changed))
        assert found.report.outcome is AuditOutcome.FAIL
        assert any(line.startswith(why) for line in found.report.findings)
        signed = honest.evidence.canvases[0].leaves
        assert signed is not None and step_leaves == signed[1 : len(step_leaves) + 1]


MOST = 2**32 - 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": MOST},
        {"max_tokens": 0},
        {"max_steps": MOST},
        {"temperature_start": MOST, "temperature_end": MOST},
        {"temperature_start": 0, "temperature_end": 0},
        {"confidence_threshold": MOST},
        {"stability_steps": MOST},
    ],
)
def test_a_claim_with_parameters_out_of_range_harms_nothing(
    bench: Bench, honest: AuditedJob, parameters: dict[str, Any]
) -> None:
    good = claim(honest, 0)
    hostile = replace(good, parameters=replace(good.parameters, **parameters))
    found, records = bench.audit(hostile)
    assert found.refused and not records and not bench.runner.is_due
    found, _ = bench.audit(good)
    assert found.report.outcome is AuditOutcome.PASS


def test_a_claim_with_ids_and_canvases_that_cannot_be_harms_nothing(
    bench: Bench, honest: AuditedJob
) -> None:
    good, size = claim(honest, 1), bench.loaded.limits.canvas_size
    for changed in (
        {"committed": ((MOST,) * size,)},
        {"canvas": 200, "committed": ((7,) * size,) * 200},
    ):
        found, records = bench.audit(replace(good, **changed))
        assert found.refused and not records and not bench.runner.is_due
    strange = TextOutput((MOST,) * size, ()).encode()
    for finish in (good.finish, Finish.CANCELLED):
        found, _ = bench.audit(
            replace(good, output=strange, finish=finish, prompt_tokens=2**31 - 1)
        )
        assert found.report.outcome is AuditOutcome.FAIL
    found, _ = bench.audit(good)
    assert found.report.outcome is AuditOutcome.PASS


def test_what_the_engine_cannot_run_is_no_report(bench: Bench, honest: AuditedJob) -> None:
    content = claim(honest, 1)
    short = replace(content, committed=((1, 2, 3),))
    found, _ = bench.audit(short)
    assert found.refused == "a canvas before it is not known in full"
    assert found.report.outcome is AuditOutcome.NO_VERDICT
    assert not bench.runner.is_due


def judged(
    bench: Bench, content: AuditContent, report: AuditOutput, leaves: tuple[Digest, ...]
) -> CanvasAudit:
    """Audit the auditor who signed this."""
    evidence = sold_audit(bench.loaded, bench.profile, content, report, leaves)
    proven = check_evidence(evidence)
    job = JobAudit(ClaimedJob.of_evidence(evidence, proven), bench.loaded)
    return judge_report(job, Replayer(bench.loaded), content, evidence, proven)


def test_an_honest_report_holds_and_a_lie_is_shown_by_what_the_auditor_signed(
    bench: Bench, honest: AuditedJob
) -> None:
    content = claim(honest, 0)
    assert isinstance(content.told, TextOutput)
    found, leaves = bench.audit(content)
    held = judged(bench, content, found.report, leaves)
    assert (held.outcome, held.leaves) == (AuditOutcome.PASS, leaves)
    accused = replace(found.report, outcome=AuditOutcome.FAIL, findings=("the trace is another",))
    shown = judged(bench, content, accused, leaves)
    assert shown.outcome is AuditOutcome.FAIL
    assert shown.findings == (
        "the auditor says that the canvas fails, and it passes: nothing is wrong with it",
    )
    junk = (Digest(keccak256(b"junk")), *leaves[1:])
    assert judged(bench, content, accused, junk).findings[-1] == (
        "the auditor's trace differs from step 0 on"
    )


def test_one_who_overlooks_an_edited_token_is_shown_to_have_lied(
    bench: Bench, honest: AuditedJob
) -> None:
    content = claim(honest, 0)
    assert isinstance(content.told, TextOutput)
    ids = content.told.token_ids
    edited = TextOutput((ids[1], *ids[1:]), content.told.segments).encode()
    bad = replace(content, output=edited)
    passed, leaves = bench.audit(content)
    (line,) = judged(bench, bad, passed.report, leaves).findings
    assert line.startswith("the auditor says that the canvas passes, and it fails: the delivered")


def test_an_audit_that_is_given_up_while_its_prompt_is_encoded_is_not_begun(
    bench: Bench, honest: AuditedJob
) -> None:
    prepared, other = prepare(Audit(9, claim(honest, 0)), bench.loaded), Bench(bench.loaded)
    assert prepared.job is not None
    for number in range(9, 99):  # as many are given up while the images of one are decoded
        other.runner.drop(number)
    other.runner.take(prepared)
    assert not other.runner.is_due
    assert other.reports == []


def test_an_audit_that_cannot_be_prepared_is_answered_without_a_step(
    bench: Bench, honest: AuditedJob
) -> None:
    prepared = prepare(Audit(10, claim(honest, 0)), bench.loaded)
    bench.runner.take(replace(prepared, job=None, refused="this model cannot be asked that"))
    assert not bench.runner.is_due
    (found,) = bench.reports
    bench.reports.clear()
    assert found.refused == "this model cannot be asked that"
