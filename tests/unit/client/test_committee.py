"""A committee's member: what it signs, when it signs nothing, and which verdicts go together."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from piecework.base.files import FileExists
from piecework.chain.addresses import DisputeTerms
from piecework.chain.contracts.calls import Call
from piecework.chain.contracts.events import Log
from piecework.chain.deployment import Deployment
from piecework.chain.reading.disputes import Challenge, ChallengeOpened, ChallengeState, contract_of
from piecework.client.audits.auditor import CanvasReport
from piecework.client.disputes.committee import (
    CommitteeMember,
    MemberVerdict,
    agreed,
    check_place,
    keep_verdict,
)
from piecework.client.disputes.walk import DisputedStep
from piecework.client.errors import DisputeError
from piecework.client.jobs.spending import AuditPurse
from piecework_protocol.disputes import VERDICT_SECONDS, ChallengeStatus
from piecework_protocol.eip712 import Domain
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.objects import AuditLevel, AuditOutcome, disputes_domain
from piecework_protocol.signing import LocalSigner, signed_by
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    Seconds,
    Timestamp,
    keccak256,
)
from tests.support.chain.fake_chain import DOMAIN, TOKEN
from tests.support.protocol.evidence import NOW, Story, evidence

MEMBERS = sorted(
    (LocalSigner(bytes(keccak256(b"judge %d" % number))) for number in range(3)),
    key=lambda member: member.address,
)
FILE = evidence(Story(steps=(3, 5)))
LEAVES = FILE.canvases[1].leaves or ()
ABOUT = DisputedStep(1, 2)
ID = Bytes32(keccak256(b"a challenge"))


class MarketOfTests(Deployment):
    """A market whose escrow is that of the tests' evidence."""

    @property
    def domain(self) -> Domain:
        return DOMAIN


MARKET = MarketOfTests(
    DOMAIN.chain_id,
    TOKEN,
    "USD",
    6,
    Amount(10**8),
    Seconds(7 * 24 * 3600),
    disputes=DisputeTerms(
        Amount(10**5), 10**15, Amount(10**6), tuple(m.address for m in MEMBERS), threshold=2
    ),
)


@dataclass
class KnownChallenges:
    """One challenge about the step, in a state. Implements `ChallengeReader`."""

    status: ChallengeStatus = ChallengeStatus.ESCALATED
    leaf: int = ABOUT.step + 1

    async def latest_block(self) -> int:
        return 100

    async def state(self, challenge_id: Bytes32) -> ChallengeState:
        assert challenge_id == ID
        return ChallengeState(self.status, Timestamp(NOW), 0)

    async def challenges_to(
        self, operator: Address, from_block: int, to_block: int
    ) -> tuple[ChallengeOpened, ...]:
        if operator != FILE.channel.operator:
            return ()
        receipt = FILE.canvases[1].receipt
        asked = Challenge(
            FILE.job.job.channel,
            FILE.channel.payer,
            operator,
            FILE.channel.payer,
            Digest(DOMAIN.digest(receipt)),
            receipt.trace_root,
            receipt.steps,
            self.leaf,
            127,
            TOKEN,
            receipt.amount,
        )
        log = Log(operator, (), b"", 7, 0, Bytes32(bytes(32)))
        times = Timestamp(NOW), Timestamp(NOW)
        return (ChallengeOpened(log, ID, asked, *times, 10**15),)


@dataclass
class ScriptedAuditor:
    """Says one report after the other, and the last one again."""

    reports: list[CanvasReport]
    asked: list[tuple[int, AuditLevel]] = field(default_factory=list)

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
        self.asked.append((canvas, level))
        return self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        raise AssertionError("a committee replays")


def replayed(leaves: tuple[bytes, ...], outcome: AuditOutcome) -> CanvasReport:
    return CanvasReport(AuditLevel.REPLAY, outcome, 1, steps=5, leaves=leaves)


HONEST = replayed(LEAVES[1:], AuditOutcome.PASS)
OTHERS = tuple(bytes(keccak256(leaf)) for leaf in LEAVES[1:])
OTHER = replayed(OTHERS, AuditOutcome.FAIL)


def member(*reports: CanvasReport, number: int = 0, **state: Any) -> CommitteeMember:
    reader, auditor = KnownChallenges(**state), ScriptedAuditor(list(reports))
    return CommitteeMember(MARKET, reader, auditor, MEMBERS[number])


async def judged(by: CommitteeMember, evidence: EvidenceFile, about: DisputedStep) -> MemberVerdict:
    """Judge as the command does."""
    return await by.judge(await by.challenge(evidence, about), evidence, about)


async def test_a_step_that_is_the_same_again_is_not_guilty() -> None:
    given = await judged(member(HONEST), FILE, ABOUT)
    assert (given.verdict.guilty, given.verdict.leaf_root) == (False, LEAVES[3])
    assert given.verdict.deadline == NOW + VERDICT_SECONDS
    domain = disputes_domain(MARKET.chain_id, contract_of(MARKET))
    assert signed_by(domain, given.verdict, given.signature, MEMBERS[0].address)
    assert MemberVerdict.read(given.write()) == given


async def test_a_step_that_differs_twice_alike_is_guilty_and_names_what_it_should_be() -> None:
    given = await judged(member(OTHER, OTHER), FILE, ABOUT)
    assert (given.verdict.guilty, given.verdict.leaf_root) == (True, OTHERS[2])


async def test_a_canvas_that_differs_elsewhere_is_not_guilty_in_this_step() -> None:
    elsewhere = replayed((*LEAVES[1:5], OTHERS[4]), AuditOutcome.FAIL)
    given = await judged(member(elsewhere), FILE, ABOUT)
    assert not given.verdict.guilty


async def test_a_step_that_the_model_does_not_make_is_guilty() -> None:
    short = replayed(LEAVES[1:3], AuditOutcome.FAIL)
    given = await judged(member(short), FILE, ABOUT)
    assert (given.verdict.guilty, given.verdict.leaf_root) == (True, bytes(32))


async def test_a_machine_that_is_unsure_or_another_profile_signs_nothing() -> None:
    with pytest.raises(DisputeError, match="this machine is unsure"):
        await judged(member(OTHER, HONEST), FILE, ABOUT)
    elsewhere = CanvasReport(AuditLevel.REPLAY, AuditOutcome.NO_VERDICT, 1, reason="other profile")
    with pytest.raises(DisputeError, match="cannot be judged here: other profile"):
        await judged(member(elsewhere), FILE, ABOUT)


@pytest.mark.parametrize(
    "state",
    [
        {"status": ChallengeStatus.ANSWERED},
        {"status": ChallengeStatus.GUILTY},
        {"leaf": 1},
    ],
)
async def test_what_is_not_before_the_committee_is_not_judged(state: dict[str, Any]) -> None:
    with pytest.raises(DisputeError, match="is not before the committee"):
        await judged(member(HONEST, **state), FILE, ABOUT)


async def test_evidence_of_another_market_or_without_the_step_is_not_judged() -> None:
    other = replace(FILE, domain=Domain(1, DOMAIN.verifying_contract))
    with pytest.raises(DisputeError, match="another market"):
        await judged(member(HONEST), other, ABOUT)
    for about in (DisputedStep(1, 5), DisputedStep(2, 0)):
        with pytest.raises(DisputeError, match="has no step"):
            await judged(member(HONEST), FILE, about)


async def test_a_step_behind_canvases_whose_text_was_left_out_is_not_judged() -> None:
    first, second = FILE.canvases
    about_second = replace(FILE, canvases=(replace(first, output=None), second))
    with pytest.raises(DisputeError, match="lacks the text of canvases before"):
        await judged(member(OTHER), about_second, ABOUT)


def test_the_key_of_a_stranger_judges_nothing() -> None:
    stranger = LocalSigner(bytes(keccak256(b"a stranger")))
    with pytest.raises(DisputeError, match="is not in the committee"):
        CommitteeMember(MARKET, KnownChallenges(), ScriptedAuditor([HONEST]), stranger)


async def given_by(number: int, report: CanvasReport = OTHER) -> MemberVerdict:
    return await judged(member(report, report, number=number), FILE, ABOUT)


async def test_as_many_verdicts_as_the_threshold_make_a_call() -> None:
    three = [await given_by(number) for number in (2, 0, 1)]
    call = await agreed(MARKET, KnownChallenges(), three)
    assert isinstance(call, Call) and call.to == contract_of(MARKET)
    assert call == await agreed(MARKET, KnownChallenges(), [three[2], three[1]])


async def test_verdicts_that_do_not_make_one_are_refused_with_the_reason() -> None:
    first, second = await given_by(0), await given_by(1)
    innocent = await given_by(1, HONEST)
    stranger = replace(first, signature=second.signature, verdict=innocent.verdict)
    cases = (
        ([first, first], "1 members agree, and 2 are needed"),
        ([first, innocent], "the verdicts differ"),
        ([stranger], "is not in the committee"),
        ([replace(first, operator=MEMBERS[0].address)] * 2, "1 members agree"),
    )
    for given, why in cases:
        with pytest.raises(DisputeError, match=why):
            await agreed(MARKET, KnownChallenges(), given)
    elsewhere = [replace(one, operator=MEMBERS[0].address) for one in (first, second)]
    with pytest.raises(DisputeError, match="knows no such challenge"):
        await agreed(MARKET, KnownChallenges(), elsewhere)
    alone = replace(MARKET, disputes=None)
    with pytest.raises(DisputeError, match="no committee"):
        await agreed(alone, KnownChallenges(), [first, second])


@pytest.mark.parametrize(
    "change",
    [
        {"format": "piecework-verdict/2"},
        {"guilty": 1},
        {"deadline": True},
        {"deadline": -1},
        {"challenge": "0x12"},
        {"signature": 5},
        {"operator": None},
    ],
)
async def test_a_file_that_is_no_verdict_is_refused(change: dict[str, Any]) -> None:
    body = {**json.loads((await given_by(0)).write()), **change}
    with pytest.raises(DisputeError, match="this is not a verdict"):
        MemberVerdict.read(json.dumps(body).encode())
    for data in (b"", b"[]", b"{}", b"nonsense"):
        with pytest.raises(DisputeError, match="this is not a verdict"):
            MemberVerdict.read(data)


async def test_a_verdict_replaces_no_other_file(tmp_path: Path) -> None:
    """The same verdict may be written again."""
    file, given = tmp_path / "verdict.json", await given_by(0)
    keep_verdict(file, given)
    keep_verdict(file, given)
    for other in (await given_by(1), await given_by(0, HONEST)):
        with pytest.raises(FileExists, match=r"verdict.json has another verdict .* --out"):
            keep_verdict(file, other)
    assert MemberVerdict.read(file.read_bytes()) == given


async def test_a_file_that_a_verdict_cannot_go_to_is_named_before_the_work(tmp_path: Path) -> None:
    file, given = tmp_path / "verdict.json", await given_by(0)
    check_place(file, ID)
    keep_verdict(file, given)
    check_place(file, ID)
    other = replace(given, verdict=replace(given.verdict, challenge=Bytes32(bytes(32))))
    for content, why in (
        (other.write(), "is about another challenge"),
        (b"{}", "is not a verdict"),
    ):
        file.write_bytes(content)
        with pytest.raises(FileExists, match=rf"verdict.json exists already and {why}.* --out"):
            check_place(file, ID)
        assert file.read_bytes() == content


async def test_a_member_finds_its_challenge_without_computing() -> None:
    assert (await member().challenge(FILE, ABOUT)).id == ID
