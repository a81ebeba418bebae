"""What an audit asks and what it reports: bounds, and what contradicts what."""

from __future__ import annotations

from dataclasses import replace

import pytest

from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.text import Fixed, Hole, TextContent, TextOutput
from piecework_protocol.limits import MAX_AUDIT_FINDINGS, MAX_FINDING_BYTES
from piecework_protocol.objects import AuditLevel, AuditOutcome, Finish, Kind, Service
from piecework_protocol.outlines import Outline
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Digest, Uint32, keccak256
from tests.support.protocol.audits import CLAIM, LEAVES, READ_CLAIM, report_on

SIZE = 4
END = Finish.END_OF_TEXT


def test_a_claim_names_neither_worker_nor_payer_nor_a_leaf_of_the_trace() -> None:
    data = CLAIM.encode()
    assert bytes(CLAIM.trace_root) in data
    assert not [leaf for leaf in LEAVES if bytes(leaf) in data]
    names = set(AuditContent.__dataclass_fields__)
    assert not names & {"operator", "payer", "channel", "job", "leaves"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"level": AuditLevel.FORCED}, "a replay of a text or a read"),
        ({"job_kind": Kind.OPEN}, "a replay of a text or a read"),
        ({"profile": ""}, "a profile has"),
        ({"profile": "x" * 129}, "a profile has"),
        ({"canvas": 8192}, "at most 8192 canvases"),
        ({"canvas": 1}, "every whole canvas before it"),
        ({"committed": ((1, 2, 3, 4), (1, 2))}, "every whole canvas before it"),
        ({"committed": ((), ())}, "1 to 1024 tokens"),
        ({"steps": 0}, "has steps and a prompt"),
        ({"steps": 257}, "has steps and a prompt"),
        ({"prompt_tokens": 0}, "has steps and a prompt"),
        ({"trace_root": Digest(b"short")}, "32 bytes"),
        ({"asked": b"junk"}, "version"),
        ({"output": b"\xff" * 8}, "list of more than"),
    ],
)
def test_a_claim_out_of_bounds_is_malformed(changed: dict[str, object], why: str) -> None:
    with pytest.raises(MalformedInput, match=why):
        replace(CLAIM, **changed)  # type: ignore[arg-type]


def test_a_claim_of_a_model_at_best_effort_is_malformed() -> None:
    with pytest.raises(MalformedInput, match="best effort"):
        replace(CLAIM, parameters=CLAIM.parameters.replace(service=Service.BEST_EFFORT))


def test_only_the_first_canvas_of_a_template_is_audited_by_others() -> None:
    content = CLAIM.content
    assert isinstance(content, TextContent)
    asked = TextContent(content.conversation, (Fixed("a"), Hole(9))).encode()
    with pytest.raises(MalformedInput, match="first canvas of a template"):
        replace(CLAIM, asked=asked)
    assert replace(CLAIM, asked=asked, canvas=0, committed=())


def test_a_read_has_no_canvases_before_it() -> None:
    assert READ_CLAIM.canvas == 3 and READ_CLAIM.context == 0
    with pytest.raises(MalformedInput, match="no canvas of a read"):
        replace(READ_CLAIM, committed=((1, 2, 3, 4),))


def test_the_job_of_an_audit_has_one_canvas_and_the_claimed_steps() -> None:
    good = CLAIM.parameters.replace(max_tokens=Uint32(SIZE), max_steps=Uint32(CLAIM.steps))
    assert CLAIM.parameters_fault(good, SIZE) is None
    for changed, why in (
        ({"max_tokens": Uint32(2 * SIZE)}, "positions"),
        ({"max_steps": Uint32(CLAIM.steps + 1)}, "the audited canvas has"),
        ({"service": Service.BEST_EFFORT}, "best effort"),
    ):
        assert why in (CLAIM.parameters_fault(good.replace(**changed), SIZE) or "")
    other = good.replace(max_tokens=Uint32(8))
    assert CLAIM.parameters_fault(other, 8) == "a canvas has 8 tokens"


def test_the_outline_bounds_the_prompt_by_its_text_and_the_canvases_before() -> None:
    outline = CLAIM.outline
    assert outline.prompt_tokens == CLAIM.content.outline.prompt_tokens + 2 * SIZE
    assert Outline.decode(outline.encode()) == outline


def test_a_report_that_fits_its_claim_has_no_fault() -> None:
    for outcome in (AuditOutcome.PASS, AuditOutcome.FAIL):
        assert report_on(CLAIM, outcome).fault(CLAIM.outline, 0, SIZE, END) is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"trace_root": Digest(keccak256(b"other"))}, "another canvas"),
        ({"profile": "another"}, "another canvas"),
        ({"steps": 0}, "was claimed to have"),
        ({"steps": CLAIM.steps + 1}, "was claimed to have"),
    ],
)
def test_a_report_about_something_else_is_a_fault(changed: dict[str, object], why: str) -> None:
    report = replace(report_on(CLAIM, AuditOutcome.FAIL), **changed)  # type: ignore[arg-type]
    assert why in (report.fault(CLAIM.outline, 0, SIZE, END) or "")


def test_an_audit_is_one_canvas_with_a_report() -> None:
    report = report_on(CLAIM, AuditOutcome.PASS)
    assert report.fault(CLAIM.outline, 1, SIZE, END)
    assert report.fault(CLAIM.outline, 0, SIZE, Finish.MORE)
    assert report.fault(Outline(9), 0, SIZE, END)
    assert AuditOutput().fault(CLAIM.outline, 0, SIZE, END)


def test_a_pass_needs_the_leaves_of_the_trace_that_the_worker_signed() -> None:
    passed = report_on(CLAIM, AuditOutcome.PASS)
    own = Digest(keccak256(b"the canvas leaf of the audit job"))
    assert passed.leaves_fault((own, *LEAVES[1:])) is None
    made_up = Digest(keccak256(b"made up"))
    assert "another" in (passed.leaves_fault((own, made_up, *LEAVES[2:])) or "")
    assert "other steps" in (passed.leaves_fault((own, *LEAVES[2:])) or "")
    failed = report_on(CLAIM, AuditOutcome.FAIL)
    assert failed.leaves_fault((own, made_up, *LEAVES[2:])) is None
    assert passed.replayed_root((own, *LEAVES[1:])) == trace_root(LEAVES) == CLAIM.trace_root


@pytest.mark.parametrize(
    "changed",
    [
        {"findings": ("something",)},
        {"outcome": AuditOutcome.FAIL},
        {"outcome": AuditOutcome.NO_VERDICT},
        {"outcome": AuditOutcome.FAIL, "findings": ("x",) * (MAX_AUDIT_FINDINGS + 1)},
        {"outcome": AuditOutcome.FAIL, "findings": ("x" * (MAX_FINDING_BYTES + 1),)},
        {"outcome": AuditOutcome.FAIL, "findings": ("",)},
        {"canvas_leaf": Digest(b"")},
        {"profile": "x" * 129},
    ],
)
def test_a_report_that_contradicts_itself_or_is_too_long_is_malformed(
    changed: dict[str, object],
) -> None:
    with pytest.raises(MalformedInput):
        replace(report_on(CLAIM, AuditOutcome.PASS), **changed)  # type: ignore[arg-type]


def test_the_bytes_of_another_level_kind_or_finish_are_malformed() -> None:
    data = CLAIM.encode()
    with pytest.raises(MalformedInput):
        AuditContent.decode(data[:1] + b"\x09" + data[2:])
    report = report_on(CLAIM, AuditOutcome.PASS).encode()
    with pytest.raises(MalformedInput):
        AuditOutput.decode(b"\x09" + report[1:])


def test_the_delivered_text_of_a_claim_is_that_of_the_worker() -> None:
    assert isinstance(CLAIM.told, TextOutput)
    assert CLAIM.told.text == "the end"
