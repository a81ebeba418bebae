"""An evidence file is refused with the member that does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from piecework_protocol.errors import EvidenceRefused
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    Contradiction,
    EvidenceFile,
    ShownAcceptance,
    ShownJob,
    canonical,
    evidence_json,
    read_evidence,
    write_evidence,
)
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.limits import MAX_EVIDENCE_BYTES
from piecework_protocol.objects import Finish
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Amount, Digest, Signature, Uint32, keccak256
from tests.support.chain.fake_chain import DOMAIN
from tests.support.market.offers import operator
from tests.support.protocol.evidence import NOW, Story, evidence, read_evidence_file

STRANGER = LocalSigner(bytes(keccak256(b"stranger to evidence")))
OPERATOR = operator("worker")
GOOD = evidence(Story(contradictory=True))


def resigned(canvas: CanvasEvidence, /, **changes: Any) -> CanvasEvidence:
    """A receipt that its operator signed with some members changed."""
    receipt = canvas.receipt.replace(**changes)
    return replace(canvas, receipt=receipt, signature=sign(DOMAIN, receipt, OPERATOR))


def last(**changes: Any) -> Callable[[EvidenceFile], EvidenceFile]:
    """A file whose last receipt its operator signed otherwise."""
    return lambda f: replace(f, canvases=(*f.canvases[:-1], resigned(f.canvases[-1], **changes)))


def first(**changes: Any) -> Callable[[EvidenceFile], EvidenceFile]:
    """A file with other evidence beside its first receipt."""
    return lambda f: replace(f, canvases=(replace(f.canvases[0], **changes), *f.canvases[1:]))


def accepted_by(signer: LocalSigner, tokens: int) -> Callable[[EvidenceFile], EvidenceFile]:
    def change(file: EvidenceFile) -> EvidenceFile:
        assert file.acceptance is not None
        promise = file.acceptance.acceptance.replace(prompt_tokens=Uint32(tokens))
        return replace(file, acceptance=ShownAcceptance(promise, sign(DOMAIN, promise, signer)))

    return change


def paid_by(signer: LocalSigner) -> Callable[[EvidenceFile], EvidenceFile]:
    def change(file: EvidenceFile) -> EvidenceFile:
        payment = file.payments[0]
        signature = sign(DOMAIN, payment.voucher, signer)
        return replace(file, payments=(replace(payment, signature=signature),))

    return change


def stolen(file: EvidenceFile) -> EvidenceFile:
    job = file.job.job
    return replace(file, job=ShownJob(job, sign(DOMAIN, job, STRANGER)))


def same_twice(file: EvidenceFile) -> EvidenceFile:
    one = file.contradictions[0]
    return replace(
        file,
        contradictions=(replace(one, second=one.first, second_signature=one.first_signature),),
    )


LEAF = Digest(keccak256(b"leaf"))
LIES: dict[str, tuple[str, Callable[[EvidenceFile], EvidenceFile]]] = {
    "another channel": ("channel", lambda f: replace(f, channel=f.channel.replace(salt=LEAF))),
    "a job that somebody else signed": ("job.signature", stolen),
    "another offer": (
        "offer",
        lambda f: replace(
            f, offer=replace(f.offer, offer=f.offer.offer.replace(close_fee=Amount(1)))
        ),
    ),
    "an offer that somebody else signed": (
        "offer.signature",
        lambda f: replace(
            f, offer=replace(f.offer, signature=sign(DOMAIN, f.offer.offer, STRANGER))
        ),
    ),
    "a signature that no key made": (
        "offer.signature",
        lambda f: replace(f, offer=replace(f.offer, signature=Signature(bytes(65)))),
    ),
    "an acceptance by somebody else": ("acceptance.signature", accepted_by(STRANGER, 7)),
    "another prompt length than accepted": ("receipts[0]", accepted_by(OPERATOR, 8)),
    "a receipt by somebody else": (
        "receipts[0].signature",
        lambda f: first(signature=sign(DOMAIN, f.canvases[0].receipt, STRANGER))(f),
    ),
    "a missing canvas": ("receipts[0].canvas", lambda f: replace(f, canvases=f.canvases[1:])),
    "a receipt too dear": ("receipts[1]", last(amount=Amount(99))),
    "wrong totals": ("receipts[1]", last(total_units=Uint32(9))),
    "too many steps": ("receipts[1]", last(steps=Uint32(49))),
    "a broken chain": ("receipts[1].previous", last(previous=LEAF)),
    "one receipt twice": (
        "receipts[2]",
        lambda f: replace(f, canvases=(*f.canvases, resigned(f.canvases[1], canvas=Uint32(2)))),
    ),
    "a leaf too few": (
        "receipts[0].leaves",
        lambda f: first(leaves=(f.canvases[0].leaves or ())[:-1])(f),
    ),
    "another leaf": (
        "receipts[0].leaves",
        lambda f: first(leaves=(LEAF, *(f.canvases[0].leaves or ())[1:]))(f),
    ),
    "another text": ("receipts[0].output", first(output=TextOutput.plain((1,), "x").encode())),
    "another prompt": ("content", lambda f: replace(f, content=b"\2")),
    "a voucher by somebody else": ("vouchers[0].signature", paid_by(STRANGER)),
    "a proof of another canvas": (
        "vouchers[0].paid[0]",
        lambda f: replace(
            f,
            payments=(replace(f.payments[0], paid=(replace(f.payments[0].paid[0], canvas=1),)),),
        ),
    ),
    "a contradiction of one statement": ("contradictions[0]", same_twice),
    "a contradiction that one side did not sign": (
        "contradictions[0].second.signature",
        lambda f: replace(
            f,
            contradictions=(
                replace(f.contradictions[0], second_signature=f.contradictions[0].first_signature),
            ),
        ),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_a_file_is_named_by_its_member(lie: str) -> None:
    member, tell = LIES[lie]
    with pytest.raises(EvidenceRefused) as caught:
        check_evidence(tell(GOOD))
    assert caught.value.member == member
    assert str(caught.value).startswith(member + ": ")


def test_a_good_file_proves_what_was_charged_asked_and_answered() -> None:
    proven = check_evidence(read_evidence(write_evidence(GOOD)))
    assert (proven.paid, proven.traced, proven.contradictions) == (2, 2, 3)
    one = GOOD.contradictions[0]
    swapped = Contradiction(one.second, one.second_signature, one.first, one.first_signature)
    twice = replace(GOOD, contradictions=(*GOOD.contradictions, one, swapped))
    assert check_evidence(twice).contradictions == 3
    assert (proven.used.output_tokens, proven.used.denoising_steps, proven.amount) == (6, 8, 20)
    assert (proven.finish, proven.accepted_at) == (Finish.END_OF_TEXT, NOW + 5)
    assert isinstance(proven.content, TextContent)
    assert proven.content.conversation.messages[0].text == "Tell me."
    assert proven.outputs is not None
    assert "".join(o.text for o in proven.outputs if isinstance(o, TextOutput)) == "Once more."


def test_a_file_without_text_proves_the_charge_alone() -> None:
    proven = check_evidence(evidence(Story(with_text=False)))
    assert (proven.content, proven.outputs, proven.amount) == (None, None, 20)


def test_a_read_has_evidence_too() -> None:
    proven = check_evidence(read_evidence_file())
    assert (proven.used.output_tokens, proven.used.denoising_steps) == (0, 2)


def test_a_job_whose_end_is_not_in_the_file_says_so() -> None:
    assert check_evidence(replace(GOOD, canvases=GOOD.canvases[:1], payments=())).finish is (
        Finish.MORE
    )


def member_of(raw: Any) -> str:
    with pytest.raises(EvidenceRefused) as caught:
        read_evidence(raw if isinstance(raw, bytes) else canonical(raw))
    return caught.value.member


def changed(**members: Any) -> dict[str, Any]:
    return {**evidence_json(GOOD), **members}


def test_the_form_of_a_file_is_strict_and_names_the_member() -> None:
    good = write_evidence(GOOD)
    job = evidence_json(GOOD)["job"]
    assert member_of(b"{") == "file"
    assert member_of(b" " + good) == "file"
    assert member_of(good + b"\n") == "file"
    assert member_of([]) == "file"
    assert member_of(b" " * (MAX_EVIDENCE_BYTES + 1)) == "file"
    assert member_of(changed(format="piecework-evidence/2")) == "format"
    assert member_of(changed(more=1)) == "file"
    assert member_of(changed(chain=True)) == "chain"
    assert member_of(changed(chain="31337")) == "chain"
    assert member_of(changed(escrow="0x" + "ab" * 20)) == "escrow"
    assert member_of(changed(content="0xABCD")) == "content"
    assert member_of(changed(content="0x a")) == "content"
    assert member_of(changed(receipts={})) == "receipts"
    assert member_of(changed(contradictions=[{}] * 65)) == "contradictions"
    assert member_of(changed(job={**job, "signature": "0x00"})) == "job.signature"
    lacking = {k: v for k, v in job["object"].items() if k != "salt"}
    assert member_of(changed(job={**job, "object": lacking})) == "job.salt"
    odd = {**job["object"], "kind": 77}
    assert member_of(changed(job={**job, "object": odd})) == "job.kind"
    late = {**job["object"], "deadline": 2**50}
    assert member_of(changed(job={**job, "object": late})) == "job"
