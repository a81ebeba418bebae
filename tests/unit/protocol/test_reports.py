"""Signed reports of audits: what bears them out, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import unopened
from piecework_protocol.evidence.reports import (
    AuditFound,
    Bearing,
    ReportFile,
    check_report,
    make_report,
    read_report,
    write_report,
)
from piecework_protocol.kinds.text import Fixed, Hole, TextContent
from piecework_protocol.objects import AuditLevel, AuditOutcome, Kind
from piecework_protocol.openings import openings_of
from piecework_protocol.signing import sign
from piecework_protocol.types import Digest
from tests.support.chain.fake_chain import DOMAIN
from tests.support.market.offers import operator
from tests.support.market.reported import (
    FAILED,
    PASSED,
    SILENT,
    checked_report,
    invented_trace,
    opened_canvas,
    report,
)
from tests.support.protocol.evidence import PAYER, Story, evidence


def test_a_report_file_reads_back_as_it_was_written() -> None:
    for file in (report(), invented_trace()):
        data = write_report(file)
        assert read_report(data) == file
        with pytest.raises(EvidenceRefused, match="one form"):
            read_report(data.replace(b",", b", ", 1))


def test_a_replay_that_failed_is_a_report_and_no_proof() -> None:
    checked = check_report(report(AuditLevel.REPLAY, FAILED))
    assert (checked.bearing, checked.findings) == (Bearing.REPORTED, ())
    assert check_report(report(AuditLevel.FORCED, FAILED)).bearing is Bearing.REPORTED


def test_rules_that_hold_on_every_opened_step_are_checked() -> None:
    checked = check_report(checked_report())
    assert (checked.bearing, checked.findings) == (Bearing.CHECKED, ())


def _without_steps(file: ReportFile, kept: int) -> ReportFile:
    assert file.openings is not None
    return replace(file, openings={**file.openings, "steps": file.openings["steps"][:kept]})


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (report(AuditLevel.RULES), "none of the canvas's 3 steps is opened"),
        (replace(checked_report(), openings=None), "none of the canvas's 2 steps is opened"),
        (_without_steps(checked_report(), 0), "2 of the canvas's 2 steps are not opened"),
        (_without_steps(checked_report(), 1), "1 of the canvas's 2 steps are not opened"),
    ],
)
def test_rules_pass_nothing_that_is_not_open(file: ReportFile, why: str) -> None:
    with pytest.raises(EvidenceRefused, match=rf"^report\.outcome: .*no verdict: {why}"):
        check_report(file)


def test_rules_pass_no_canvas_whose_pinned_positions_they_are_not_told() -> None:
    file, openings = opened_canvas(SILENT, noise=1, pinned=Digest(bytes(range(32))))
    made = make_report(file, AuditFound(0, AuditLevel.RULES, PASSED), PAYER, openings)
    with pytest.raises(EvidenceRefused, match="pinned positions"):
        check_report(made)


def test_a_text_without_a_template_has_no_pinned_position_to_hide_behind() -> None:
    junk = Digest(bytes(range(32)))
    file, openings = opened_canvas(Story(), noise=1, pinned=junk)
    made = make_report(file, AuditFound(0, AuditLevel.RULES, FAILED), PAYER, openings)
    checked = check_report(made)
    assert checked.bearing is Bearing.PROVEN
    assert {text.partition(":")[0] for text in checked.findings} >= {
        "rule 10 (pinned)",
        "rule 12 (initial)",
    }
    form = TextContent(Conversation((Message("user", "Tell me."),)), (Hole(1), Fixed("."), Hole(1)))
    templated, openings = opened_canvas(Story(), asked=form, pinned=junk)
    made = make_report(templated, AuditFound(0, AuditLevel.RULES, PASSED), PAYER, openings)
    with pytest.raises(EvidenceRefused, match="pinned positions"):
        check_report(made)


def test_rules_pass_no_canvas_without_steps_and_no_job_of_another_kind() -> None:
    unsigned = evidence(Story(best_effort=True))
    assert "no denoising steps" in unopened(unsigned, 0, None)
    file, openings = opened_canvas(SILENT)
    sold = replace(file, job=replace(file.job, job=file.job.job.replace(kind=Kind.AUDIT)))
    assert "not for jobs of kind audit" in unopened(sold, 0, openings_of(openings))
    assert unopened(file, 0, openings_of(openings)) == ""


def test_rules_that_hold_cannot_be_reported_as_broken() -> None:
    with pytest.raises(EvidenceRefused, match="the rules say otherwise"):
        check_report(report(AuditLevel.RULES, FAILED))


def test_contradictions_of_the_worker_are_proven() -> None:
    story = replace(SILENT, contradictory=True)
    checked = check_report(report(AuditLevel.REPLAY, PASSED, story=story))
    assert checked.bearing is Bearing.PROVEN
    assert checked.findings == (
        "two receipts for canvas 0",
        "two acceptances with other prompt tokens",
    )


def test_a_contradiction_of_the_client_is_no_failure_of_the_worker() -> None:
    file = evidence(replace(SILENT, contradictory=True))
    own = replace(file, contradictions=file.contradictions[2:])
    made = make_report(own, AuditFound(0, AuditLevel.REPLAY, PASSED), PAYER)
    assert check_report(made).bearing is Bearing.REPORTED


def test_an_invented_trace_is_proven_from_what_is_open() -> None:
    checked = check_report(invented_trace())
    assert checked.bearing is Bearing.PROVEN
    assert any(text.startswith("rule 12 (initial)") for text in checked.findings)
    assert checked.file.report.rule > 0


def test_fields_that_the_worker_did_not_sign_prove_nothing() -> None:
    file = invented_trace()
    assert file.openings is not None
    step = file.openings["steps"][0]["fields"]
    for i, field in enumerate(step):
        other = field[:-2] + ("00" if field[-2:] != "00" else "01")
        changed = [*step[:i], other, *step[i + 1 :]]
        openings = {**file.openings, "steps": [{"fields": changed, "soft": None}]}
        with pytest.raises(EvidenceRefused, match="openings"):
            check_report(replace(file, openings=openings))


def _by_the_worker(file: ReportFile) -> ReportFile:
    return replace(file, signature=sign(DOMAIN, file.report, operator("worker")))


def _resigned(file: ReportFile, **changes: object) -> ReportFile:
    changed = file.report.replace(**changes)
    return replace(file, report=changed, signature=sign(DOMAIN, changed, PAYER))


@pytest.mark.parametrize(
    ("change", "member"),
    [
        (_by_the_worker, "signature"),
        (lambda file: replace(file, report=file.report.replace(outcome=FAILED)), "signature"),
        (lambda file: replace(file, canvas=1), r"report\.receipt"),
        (lambda file: replace(file, canvas=2), "canvas"),
        (lambda file: _resigned(file, receipt=Digest(bytes(32))), r"report\.receipt"),
        (lambda file: _resigned(file, evidence=Digest(bytes(32))), r"report\.evidence"),
        (lambda file: _resigned(file, profile=Digest(bytes(32))), r"report\.profile"),
        (lambda file: _resigned(file, outcome=AuditOutcome.NO_VERDICT), r"report\.outcome"),
        (lambda file: replace(file, evidence=evidence(Story(seed=5, with_text=False))), "report"),
    ],
)
def test_a_report_that_does_not_hold_names_its_member(
    change: Callable[[ReportFile], ReportFile], member: str
) -> None:
    with pytest.raises(EvidenceRefused, match=f"^{member}"):
        check_report(change(report()))


def test_malformed_openings_are_refused_with_their_place() -> None:
    file = invented_trace()
    assert file.openings is not None
    opened = file.openings
    (step, *_) = opened["steps"]
    first, *rest = step["fields"]
    for changes, place in (
        ({"format": "piecework-openings/2"}, "format"),
        ({"canvas": None}, "the canvas is not open"),
        ({"canvas": opened["canvas"][1:]}, "canvas: it does not have 6 fields"),
        ({"steps": {}}, "steps is not a list"),
        ({"steps": [step, 7]}, r"steps\[1\]: "),
        ({"steps": [{"fields": step["fields"]}]}, r"steps\[0\]: .*'soft'"),
        ({"steps": [{"fields": rest, "soft": None}]}, r"steps\[0\]\.fields: .* 7 fields"),
        ({"steps": [{"fields": [first.upper(), *rest], "soft": None}]}, r"steps\[0\]\.fields\[0\]"),
        ({"steps": [{**step, "soft": "0x 00"}]}, r"steps\[0\]\.soft"),
    ):
        with pytest.raises(EvidenceRefused, match=f"^openings: .*{place}"):
            check_report(replace(file, openings={**opened, **changes}))
