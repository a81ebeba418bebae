"""The audit of a signed job: what it finds, and when it stays silent."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.audit_workers import ServedCanvas, claiming, int8, other_seed, serve
from piecework.client.auditing import EngineAuditor, audit_rules
from piecework_model.audit.forced import ForcedPass
from piecework_model.audit.job import CanvasAudit, JobAudit
from piecework_model.audit.judgement import TESTS, Pairing, Tail
from piecework_model.audit.openings import StepOpening, write_openings
from piecework_model.audit.replay import Replayer
from piecework_model.checkpoint.loading import LoadedModel, load
from piecework_model.errors import AuditError
from piecework_model.machine.probe import (
    ProfilePrecision,
    engine_profile,
    probe,
    read_precision,
    short_profile,
)
from piecework_model.requests import GenerationRequest
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import write_evidence
from piecework_protocol.objects import AuditLevel, AuditOutcome
from tests.support.audited import AuditedJob, audited_job

TAIL = Tail(start=-3.4, share=0.1, scale=0.02, shape=0.0, center=-3.5)
TAILS = {
    "logits": TAIL,
    "soft": Tail(-3.0, 0.1, 0.1, 0.0, -4.0),
    "argmax": Tail(0.1, 0.1, 0.05, 0.0, 0.05),
    "sampling": Tail(0.01, 0.1, 0.01, 0.0, 0.0),
}


@pytest.fixture(scope="module")
def worker() -> LoadedModel:
    return load(device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def replayer(worker: LoadedModel) -> Replayer:
    return Replayer(worker)


@pytest.fixture(scope="module")
def profile(worker: LoadedModel, replayer: Replayer) -> str:
    return short_profile(engine_profile(worker, probe(), replayer.kernels))


@pytest.fixture(scope="module")
def honest(worker: LoadedModel, profile: str) -> AuditedJob:
    return audited_job(worker, profile)


def audit(job: AuditedJob, loaded: LoadedModel) -> JobAudit:
    return JobAudit(job.evidence, check_evidence(job.evidence), loaded)


def replayed(job: AuditedJob, loaded: LoadedModel, by: Replayer, canvas: int) -> CanvasAudit:
    return audit(job, loaded).replay(by, canvas)


def test_the_profile_names_the_precision(profile: str) -> None:
    assert read_precision(profile) == ProfilePrecision("bfloat16", "none", torch.get_num_threads())
    assert read_precision("fake gpu") is None


def test_every_canvas_of_an_honest_job_passes_a_replay(
    honest: AuditedJob, worker: LoadedModel, replayer: Replayer
) -> None:
    assert len(honest.canvases) == 2
    for canvas in range(2):
        found = replayed(honest, worker, replayer, canvas)
        assert found.outcome is AuditOutcome.PASS
        assert found.steps == len(honest.canvases[canvas].records)


def test_a_replay_finds_cheats_and_says_what_differs(
    worker: LoadedModel, profile: str, replayer: Replayer
) -> None:
    run = partial(serve, worker)
    for cheat in (
        claiming(run, other_seed),
        partial(serve, int8(load(device="cpu", dtype="bfloat16"))),
    ):
        job = audited_job(worker, profile, served=cheat)
        found = replayed(job, worker, replayer, 0)
        assert found.outcome is AuditOutcome.FAIL
        assert "the trace differs from step 0 on" in found.findings


def test_steps_that_were_not_taken_are_found(
    worker: LoadedModel, profile: str, replayer: Replayer
) -> None:
    def half(requests: list[GenerationRequest]) -> list[ServedCanvas]:
        first, *rest = serve(worker, requests)
        steps = len(first.records) // 2
        return [replace(first, records=first.records[:steps], softs=first.softs[:steps]), *rest]

    found = replayed(audited_job(worker, profile, served=half), worker, replayer, 0)
    assert "the canvas is not finished after 3 steps" in found.findings
    assert found.outcome is AuditOutcome.FAIL


def test_another_model_and_a_missing_text_are_no_audit(
    honest: AuditedJob, worker: LoadedModel
) -> None:
    without = replace(honest.evidence, content=None)
    with pytest.raises(AuditError, match="no text"):
        JobAudit(without, check_evidence(without), worker)
    with pytest.raises(AuditError, match="another model"):
        audit(honest, replace(worker, digest=bytes(32)))


def test_a_forced_audit_judges_with_the_pair_s_thresholds(
    honest: AuditedJob, worker: LoadedModel, profile: str, bundled: LoadedModel
) -> None:
    table = {Pairing(worker.digest.hex(), "text", "bfloat16", "float32"): TAILS}
    by = ForcedPass(bundled)
    opened = honest.canvases[0].opened(bundled.limits)
    found = audit(honest, bundled).forced(by, table, 0, opened)
    assert found.outcome is AuditOutcome.PASS, found.findings
    none = audit(honest, bundled).forced(by, {}, 0, opened)
    assert none.outcome is AuditOutcome.NO_VERDICT
    assert "bfloat16" in none.reason and "float32" in none.reason
    cheat = audited_job(
        worker,
        profile,
        served=partial(serve, load(device="cpu", dtype="bfloat16", quantization="int4")),
    )
    opened = cheat.canvases[0].opened(bundled.limits)
    found = audit(cheat, bundled).forced(by, table, 0, opened)
    assert found.outcome is AuditOutcome.FAIL
    assert set(TAILS) == set(TESTS)


# The process


def told(job: AuditedJob, level: AuditLevel, openings: bytes = b"") -> tuple[AuditOutcome, str]:
    auditor = EngineAuditor(device="cpu")
    report = asyncio.run(auditor.audit(write_evidence(job.evidence), 0, level, openings))
    return report.outcome, " ".join((report.reason, *report.findings))


@pytest.mark.process
def test_the_process_replays_and_never_blames_another_profile(
    honest: AuditedJob, worker: LoadedModel, profile: str
) -> None:
    assert told(honest, AuditLevel.REPLAY) == (AuditOutcome.PASS, "")
    cheat = audited_job(worker, profile, served=claiming(partial(serve, worker), other_seed))
    assert told(cheat, AuditLevel.REPLAY)[0] is AuditOutcome.FAIL
    other = audited_job(worker, f"other-{profile}")
    outcome, why = told(other, AuditLevel.REPLAY)
    assert outcome is AuditOutcome.NO_VERDICT
    assert "forced audit works on any" in why


@pytest.mark.process
def test_the_process_reads_openings_and_refuses_damaged_evidence(honest: AuditedJob) -> None:
    canvas = honest.canvases[0]
    steps = [
        StepOpening(record.fields(), soft.view(torch.uint8).numpy().tobytes())
        for record, soft in zip(canvas.records, canvas.softs, strict=True)
    ]
    openings = json.dumps(write_openings(steps)).encode() + b"\n"
    assert audit_rules(honest.evidence, 0, openings).outcome is AuditOutcome.PASS
    outcome, why = told(honest, AuditLevel.FORCED, openings)
    assert outcome is AuditOutcome.PASS or "no thresholds" in why
    first = honest.evidence.canvases[0]
    damaged = replace(first, receipt=first.receipt.replace(steps=first.receipt.steps + 1))
    canvases = (damaged, *honest.evidence.canvases[1:])
    broken = replace(honest, evidence=replace(honest.evidence, canvases=canvases))
    assert told(broken, AuditLevel.REPLAY)[0] is AuditOutcome.NO_VERDICT
