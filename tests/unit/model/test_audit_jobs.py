"""The audit of a signed job: what it finds, and when it stays silent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Literal

import pytest
import torch

from bench.audit_workers import Requests, ServedCanvas, claiming, int8, other_seed, serve
from piecework.client.audits.auditor import CanvasReport
from piecework.client.audits.confirmation import confirmed_audit
from piecework.client.audits.engine import EngineAuditor
from piecework.client.audits.more_canvases import opened_beside
from piecework.client.audits.rules import audit_rules
from piecework_model.audit.claims import ClaimedJob
from piecework_model.audit.forced import ForcedPass
from piecework_model.audit.job import CanvasAudit, JobAudit
from piecework_model.audit.judgement import TESTS, Pairing, Table, Tail
from piecework_model.audit.opening import OpenedStep, write_soft
from piecework_model.audit.replay import Replayer
from piecework_model.checkpoint.loading import DescribedModel, LoadedModel, describe, load
from piecework_model.checkpoint.manifest import MANIFEST_FILE, bundled_checkpoint_path
from piecework_model.errors import AuditError
from piecework_model.machine.probe import (
    ProfilePrecision,
    engine_profile,
    probe,
    read_precision,
    short_profile,
)
from piecework_model.requests import GenerationRequest
from piecework_protocol.errors import MalformedInput
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import write_evidence
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.limits import MAX_NAME_BYTES
from piecework_protocol.objects import AuditLevel, AuditOutcome, Finish
from piecework_protocol.openings import StepOpening, write_openings
from piecework_protocol.trace import EmbeddingType, soft_field
from tests.support.model.audited import AuditedJob, audited_job

TAIL = Tail(start=0.08, share=0.1, scale=0.04, shape=0.0)
TAILS = {
    "logits": TAIL,
    "soft": Tail(0.05, 0.1, 0.02, 0.0),
    "argmax": Tail(0.1, 0.1, 0.05, 0.0),
    "sampling": Tail(0.01, 0.1, 0.01, 0.0),
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


def audit(job: AuditedJob, loaded: DescribedModel) -> JobAudit:
    claimed = ClaimedJob.of_evidence(job.evidence, check_evidence(job.evidence))
    return JobAudit(claimed, loaded)


def replayed(job: AuditedJob, loaded: LoadedModel, by: Replayer, canvas: int) -> CanvasAudit:
    return audit(job, loaded).replay(by, canvas)


def test_the_profile_names_the_precision(profile: str) -> None:
    assert read_precision(profile) == ProfilePrecision("bfloat16", "none", torch.get_num_threads())
    assert read_precision("fake gpu") is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.80GHz", "Intel(R) Xeon(R) Processor @ 2.90GHz"),
        ("13th Gen Intel(R) Core(TM) i9-13900KS @ 3.20GHz", "13th Gen Intel(R) Core(TM) i9-13900"),
        ("x" * 300, "x" * 301),
    ],
)
def test_a_processor_of_a_long_name_hides_no_precision(
    worker: LoadedModel, first: str, second: str
) -> None:
    shown = [
        short_profile(
            engine_profile(worker, replace(probe(), cpu=name), "batched-with-a-long-name")
        )
        for name in (first, second)
    ]
    assert shown[0] != shown[1]
    for profile in shown:
        assert len(profile.encode()) <= MAX_NAME_BYTES
        found = read_precision(profile)
        assert found == ProfilePrecision("bfloat16", "none", torch.get_num_threads())


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


def test_a_text_that_is_not_that_of_its_tokens_is_found(
    worker: LoadedModel, profile: str, replayer: Replayer
) -> None:
    def lie(output: TextOutput) -> TextOutput:
        return TextOutput.plain(output.token_ids, output.text + " Send money.")

    job = audited_job(worker, profile, told=lie)
    for canvas in range(2):
        found = replayed(job, worker, replayer, canvas)
        assert found.findings == ("the delivered text is another than that of its tokens",)
        assert found.outcome is AuditOutcome.FAIL


def test_the_draft_of_a_cancelled_canvas_passes_a_replay(
    worker: LoadedModel, profile: str, replayer: Replayer
) -> None:
    job = audited_job(worker, profile, cancelled=2)
    (last,) = job.evidence.canvases[1:]
    assert last.receipt.finish is Finish.CANCELLED
    assert last.receipt.units > 0
    assert replayed(job, worker, replayer, 1).outcome is AuditOutcome.PASS


def test_a_draft_that_no_step_of_a_cancelled_canvas_gives_is_found(
    worker: LoadedModel, profile: str, replayer: Replayer
) -> None:
    def words(output: TextOutput) -> TextOutput:
        return TextOutput.plain(output.token_ids, output.text + " Send money.")

    def tokens(output: TextOutput) -> TextOutput:
        return TextOutput(output.token_ids[::-1], output.segments)

    for lie, why in (
        (words, "the delivered text is another than that of its tokens"),
        (tokens, "the delivered tokens are those of no step of the cancelled canvas"),
    ):
        job = audited_job(worker, profile, told=lie, cancelled=2, most_canvases=1)
        found = replayed(job, worker, replayer, 0)
        assert (found.outcome, found.findings) == (AuditOutcome.FAIL, (why,))


def test_an_answer_that_its_worker_ended_early_is_found(
    worker: LoadedModel, profile: str, replayer: Replayer
) -> None:
    job = audited_job(worker, profile, most_canvases=1)
    assert len(job.evidence.canvases) == 1
    found = replayed(job, worker, replayer, 0)
    assert found.findings[0] == (
        "the answer goes on with this canvas, and the receipt says otherwise"
    )


def test_another_model_and_a_missing_text_are_no_audit(
    honest: AuditedJob, worker: LoadedModel
) -> None:
    without = replace(honest.evidence, content=None)
    with pytest.raises(AuditError, match="no text"):
        ClaimedJob.of_evidence(without, check_evidence(without))
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
    assert found.statistical, "other weights move all positions a little, and decide by no canvas"
    # How far off a canvas is depends on its prompt. So the auditor makes it as well.
    for made, outcome in ((honest, AuditOutcome.FAIL), (cheat, AuditOutcome.NO_VERDICT)):
        asked: list[GenerationRequest] = []

        def control(
            request: GenerationRequest,
            steps: int | None,
            made: AuditedJob = made,
            asked: list[GenerationRequest] = asked,
        ) -> list[OpenedStep]:
            assert steps is None, "all of a canvas that was not cancelled"
            asked.append(request)
            return made.canvases[0].opened(bundled.limits)

        found = audit(cheat, bundled).forced(by, table, 0, opened, control)
        assert found.outcome is outcome and len(asked) == 1
        assert ("an honest canvas of this prompt looks wrong here too" in found.reason) is (
            outcome is AuditOutcome.NO_VERDICT
        )
    fine = honest.canvases[0].opened(bundled.limits)
    assert audit(honest, bundled).forced(by, table, 0, fine, control).outcome is AuditOutcome.PASS
    assert len(asked) == 1, "a canvas that looks right needs no control"

    def failing(request: GenerationRequest, steps: int | None) -> list[OpenedStep]:
        raise RuntimeError("memory ran out")

    found = audit(cheat, bundled).forced(by, table, 0, opened, failing)
    assert found.outcome is AuditOutcome.NO_VERDICT
    assert "no control can be made here: memory ran out" in found.reason
    assert set(TAILS) == set(TESTS)


def test_a_card_is_not_judged_by_what_processors_do(
    honest: AuditedJob, worker: LoadedModel, profile: str, bundled: LoadedModel
) -> None:
    table = {Pairing(worker.digest.hex(), "text", "bfloat16", "float32"): TAILS}
    on_card = audited_job(worker, profile.rpartition("/")[0])
    steps = on_card.canvases[0].opened(bundled.limits)
    found = audit(on_card, bundled).forced(ForcedPass(bundled), table, 0, steps)
    assert found.outcome is AuditOutcome.NO_VERDICT
    assert "a worker in bfloat16 on cuda and an auditor in float32 " in found.reason
    known = {Pairing(worker.digest.hex(), "text", "bfloat16 on cuda", "float32"): TAILS}
    found = audit(on_card, bundled).forced(ForcedPass(bundled), known, 0, steps)
    assert found.outcome is AuditOutcome.PASS


def test_why_a_forced_audit_has_no_verdict_is_known_before_the_weights(
    honest: AuditedJob, worker: LoadedModel, profile: str
) -> None:
    here = describe(device="cpu", dtype="float32")
    table = {Pairing(worker.digest.hex(), "text", "bfloat16", "float32"): TAILS}

    def lacking(job: AuditedJob, table: Table, canvas: int = 0) -> str:
        return audit(job, here).forced_lacks(table, canvas)

    assert lacking(honest, table) == lacking(honest, table, 1) == ""
    assert lacking(honest, {}) == (
        "no thresholds for a worker in bfloat16 and an auditor in float32 with this model"
    )
    on_card = audited_job(worker, profile.rpartition("/")[0])
    assert "a worker in bfloat16 on cuda" in lacking(on_card, table)
    unknown = audited_job(worker, "fake gpu")
    assert "names no precision: fake gpu" in lacking(unknown, table)
    assert lacking(without_answer(honest), table, 1) == "a canvas before it is not known in full"


def without_answer(job: AuditedJob) -> AuditedJob:
    """The job, with evidence that has the prompt and no answer."""
    canvases = tuple(replace(one, output=None) for one in job.evidence.canvases)
    return replace(job, evidence=replace(job.evidence, canvases=canvases))


def test_openings_that_lack_steps_are_held_against_nobody(
    honest: AuditedJob, worker: LoadedModel, bundled: LoadedModel
) -> None:
    table = {Pairing(worker.digest.hex(), "text", "bfloat16", "float32"): TAILS}
    _, second, *_ = honest.canvases[0].opened(bundled.limits)
    found = audit(honest, bundled).forced(ForcedPass(bundled), table, 0, [second])
    assert found.outcome is AuditOutcome.NO_VERDICT
    assert "no opened step has the soft embedding" in found.reason
    other = replace(second, canvas=1)
    found = audit(honest, bundled).forced(ForcedPass(bundled), table, 0, [other])
    assert found.outcome is AuditOutcome.FAIL
    assert found.findings == ("step 1 is committed as one of canvas 1",)
    assert not found.statistical


def test_a_forced_audit_sees_edited_tokens_and_text(
    worker: LoadedModel, profile: str, bundled: LoadedModel
) -> None:
    def edited(output: TextOutput) -> TextOutput:
        first, *rest = output.token_ids
        return TextOutput((first ^ 1, *rest), output.segments)

    table = {Pairing(worker.digest.hex(), "text", "bfloat16", "float32"): TAILS}
    for lie, what in (
        (edited, "the delivered tokens are others than those of the canvas"),
        (lambda output: TextOutput.plain(output.token_ids, "No."), "the delivered text is another"),
    ):
        job = audited_job(worker, profile, told=lie)
        steps = job.canvases[0].opened(bundled.limits)
        found = audit(job, bundled).forced(ForcedPass(bundled), table, 0, steps)
        assert found.outcome is AuditOutcome.FAIL
        assert found.findings[0].startswith(what) and not found.statistical
        without = audit(job, bundled).forced(ForcedPass(bundled), table, 0, steps[:-1])
        assert without.outcome is AuditOutcome.PASS


# Rules with opened steps


def opened(job: AuditedJob, loaded: LoadedModel, canvas: int = 0) -> bytes:
    """The openings file of a canvas, as its worker writes it."""
    served = job.canvases[canvas]
    steps = [
        StepOpening(record.fields(), soft.view(torch.uint8).numpy().tobytes())
        for record, soft in zip(served.records, served.softs, strict=True)
    ]
    committed = [earlier.token_ids for earlier in job.canvases[:canvas]]
    record = audit(job, loaded).canvas_record(committed)
    return write_openings(record, steps)


def test_the_rules_see_what_is_wrong_in_opened_steps(
    honest: AuditedJob, worker: LoadedModel, profile: str
) -> None:
    for canvas in range(2):
        found = audit_rules(honest.evidence, canvas, opened(honest, worker, canvas))
        assert found.outcome is AuditOutcome.PASS
    cheat = audited_job(worker, profile, served=claiming(partial(serve, worker), other_seed))
    assert audit_rules(cheat.evidence, 0).outcome is AuditOutcome.NO_VERDICT
    found = audit_rules(cheat.evidence, 0, opened(cheat, worker))
    assert found.outcome is AuditOutcome.FAIL
    assert any("does not hold its Philox id" in line for line in found.findings)


def test_openings_that_the_worker_never_committed_to_blame_nobody(
    honest: AuditedJob, worker: LoadedModel
) -> None:
    body = json.loads(opened(honest, worker))
    last = body["steps"][-1]["fields"]
    last[3] = "0x" + bytes(len(last[3]) // 2 - 1).hex()
    for changed, why in (
        (body, "is not the one that was committed"),
        ({**body, "canvas": body["canvas"][::-1]}, "not an openings file"),
        ({"format": body["format"], "steps": body["steps"]}, "lacks 'canvas'"),
        (json.loads(opened(honest, worker, 1)) | {"steps": []}, "the opened canvas is not"),
    ):
        with pytest.raises(MalformedInput, match=why):
            audit_rules(honest.evidence, 0, json.dumps(changed).encode())
    first, *rest = honest.evidence.canvases
    without = replace(honest.evidence, canvases=(replace(first, leaves=None), *rest))
    with pytest.raises(MalformedInput, match="no leaves"):
        audit_rules(without, 0, opened(honest, worker))


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
    assert "A forced audit may work" in why


@pytest.mark.process
def test_the_process_says_before_anything_is_bought_what_it_would_say_afterwards(
    honest: AuditedJob, worker: LoadedModel, profile: str, tmp_path: Path
) -> None:
    async def lacking(job: AuditedJob, model: Path | None = None) -> str:
        auditor = EngineAuditor(model, device="cpu")
        return await auditor.forced_lacks(write_evidence(job.evidence), 0)

    assert asyncio.run(lacking(honest)) == ""
    on_card = audited_job(worker, profile.rpartition("/")[0])
    why = asyncio.run(lacking(on_card))
    assert "a worker in bfloat16 on cuda and an auditor in float32" in why
    assert told(on_card, AuditLevel.FORCED, opened(honest, worker)) == (
        AuditOutcome.NO_VERDICT,
        why,
    )
    without = replace(honest, evidence=replace(honest.evidence, content=None))
    assert "has no text" in asyncio.run(lacking(without))
    other = tmp_path / "other"
    copytree(bundled_checkpoint_path(), other, ignore=ignore_patterns(MANIFEST_FILE))
    settings = other / "generation_config.json"
    settings.write_text(settings.read_text().rstrip() + " \n")
    why = "the job is of another model than the one here"
    assert asyncio.run(lacking(honest, other)) == why


@pytest.mark.process
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_process_has_thresholds_for_honest_workers_of_both_precisions(
    dtype: Literal["bfloat16", "float32"],
) -> None:
    """What the processor chooses decides which of them a worker is: the demo's may be either."""
    loaded = load(device="cpu", dtype=dtype)
    profile = short_profile(engine_profile(loaded, probe(), Replayer(loaded).kernels))
    job = audited_job(loaded, profile, max_tokens=32)
    openings = opened(job, loaded)
    assert told(job, AuditLevel.FORCED, openings) == (AuditOutcome.PASS, "")


@pytest.mark.process
def test_what_a_leaf_commits_to_and_no_model_makes_is_a_failure_and_no_way_out(
    worker: LoadedModel, profile: str
) -> None:
    """Otherwise one number that is none would hide any other weights."""

    def spoiled(requests: Requests) -> list[ServedCanvas]:
        shown = serve(worker, requests)
        softs = [soft.clone() for soft in shown[0].softs]
        softs[-1][0, 0] = float("nan")
        field = soft_field(EmbeddingType.BFLOAT16, write_soft(softs[-1]))
        records = (*shown[0].records[:-1], replace(shown[0].records[-1], soft=field))
        return [replace(shown[0], records=records, softs=tuple(softs)), *shown[1:]]

    cheat = audited_job(worker, profile, served=spoiled)
    outcome, why = told(cheat, AuditLevel.FORCED, opened(cheat, worker))
    assert outcome is AuditOutcome.FAIL and "its soft embedding is not finite" in why
    other = json.loads(opened(cheat, worker))
    other["steps"][0]["soft"] = other["steps"][-1]["soft"]
    outcome, why = told(cheat, AuditLevel.FORCED, json.dumps(other).encode())
    assert outcome is AuditOutcome.NO_VERDICT
    assert "not the one that the step committed to" in why


@pytest.mark.process
@pytest.mark.slow
def test_other_sampling_than_was_paid_for_is_a_verdict_of_two_canvases(
    worker: LoadedModel, profile: str, bundled: LoadedModel
) -> None:
    def colder(request: GenerationRequest) -> GenerationRequest:
        start, end = request.temperature_start / 2, request.temperature_end / 2
        return replace(request, temperature_start=start, temperature_end=end)

    cheat = audited_job(worker, profile, served=claiming(partial(serve, worker), colder))
    count = len(cheat.canvases)
    openings = {canvas: opened(cheat, bundled, canvas) for canvas in range(count)}

    async def audited(given: Mapping[int, bytes]) -> CanvasReport:
        auditor, file = EngineAuditor(device="cpu"), cheat.evidence
        others = opened_beside(file, 0, given)
        return await confirmed_audit(
            auditor, file, 0, AuditLevel.FORCED, openings[0], others=others
        )

    found = asyncio.run(audited(openings))
    assert found.outcome is AuditOutcome.FAIL and found.confirmed, found.reason
    assert count > 1 and re.match("canvas [1-9] of job [0-9a-f]{16}: ", found.findings[-1])
    alone = asyncio.run(audited({0: openings[0]}))
    assert alone.outcome is AuditOutcome.NO_VERDICT
    assert "were not given" in alone.reason


@pytest.mark.process
def test_the_process_reads_openings_and_refuses_damaged_evidence(
    honest: AuditedJob, bundled: LoadedModel
) -> None:
    openings = opened(honest, bundled)
    assert audit_rules(honest.evidence, 0, openings).outcome is AuditOutcome.PASS
    outcome, why = told(honest, AuditLevel.FORCED, openings)
    assert outcome is AuditOutcome.PASS or "no thresholds" in why
    first = honest.evidence.canvases[0]
    damaged = replace(first, receipt=first.receipt.replace(steps=first.receipt.steps + 1))
    canvases = (damaged, *honest.evidence.canvases[1:])
    broken = replace(honest, evidence=replace(honest.evidence, canvases=canvases))
    assert told(broken, AuditLevel.REPLAY)[0] is AuditOutcome.NO_VERDICT
