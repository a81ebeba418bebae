"""The client's walk from evidence to payout, and the worker's defence, on a chain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from piecework.chain.dev.anvil import Anvil
from piecework.chain.reading import disputes
from piecework.client.disputes.port import ChainDisputePort
from piecework.client.disputes.walk import (
    BOND_MARGIN,
    DisputeCost,
    DisputedStep,
    DisputeStage,
    DisputeWalk,
)
from piecework.client.errors import DisputeError
from piecework_protocol.disputes import (
    ANSWER_SECONDS,
    CHALLENGE_SECONDS,
    MAX_RUNNING,
    VERDICT_SECONDS,
)
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    Contradiction,
    EvidenceFile,
    ShownJob,
    ShownOffer,
)
from piecework_protocol.objects import Finish
from piecework_protocol.signing import sign
from piecework_protocol.trace import read_ids, write_ids
from piecework_protocol.types import Amount
from tests.support.chain.chains import ETHER, POLL_S, TestMarket, signer
from tests.support.chain.disputed import (
    AMOUNT,
    PROVING_COST,
    STAKE,
    VERDICT_FEE,
    ServedCanvas,
    dispute_reader,
    disputed,
    resigned,
    serve,
    signed_receipt,
    staked,
)
from tests.support.market.offers import offer

pytestmark = pytest.mark.process

PAYER, OPERATOR, STRANGER = signer("disputing"), signer("operator"), signer("bystander")
REWARD = Amount(20 * PROVING_COST)
ABOUT = DisputedStep(canvas=0, step=0)


@pytest.fixture
async def market(anvil: Anvil) -> AsyncIterator[TestMarket]:
    async with disputed(anvil) as market:
        await staked(market, OPERATOR)
        await market.give(PAYER.address, wei=ETHER)
        await market.give(STRANGER.address, wei=ETHER)
        yield market


def evidence_of(market: TestMarket, canvas: ServedCanvas) -> EvidenceFile:
    domain = market.reader.domain
    job = canvas.subject.job
    offered = offer("operator")
    shown = ShownOffer(offered.offer, offered.signature, OPERATOR.address)
    signed = CanvasEvidence(
        canvas.signed.receipt, canvas.signed.signature, canvas.leaves, canvas.output
    )
    return EvidenceFile(
        domain,
        canvas.subject.channel,
        shown,
        ShownJob(job, sign(domain, job, PAYER)),
        None,
        (signed,),
    )


def contradicted(market: TestMarket, evidence: EvidenceFile) -> EvidenceFile:
    """The worker signed a second receipt for canvas 0."""
    first = evidence.canvases[0]
    changed = first.receipt.replace(finish=Finish.END_OF_TEXT)
    other = signed_receipt(market.reader.domain, OPERATOR, changed)
    pair = Contradiction(first.receipt, first.signature, other.receipt, other.signature)
    return replace(evidence, contradictions=(pair,))


def walk_of(
    market: TestMarket,
    evidence: EvidenceFile,
    about: DisputedStep | None = ABOUT,
    *,
    escalate: bool = False,
) -> DisputeWalk:
    port = ChainDisputePort(market.reader, PAYER, poll_s=POLL_S)
    return DisputeWalk(port, evidence, about, escalate=escalate)


async def answer(market: TestMarket, canvas: ServedCanvas, leaf: int) -> None:
    """What the worker does: open all that the newest challenge asks."""
    reader = dispute_reader(market)
    height = await market.reader.latest_block()
    (*_, opened) = await reader.challenges_to(OPERATOR.address, 0, height)
    assert opened.challenge.leaf == leaf
    opening = canvas.open(leaf, opened.challenge.fields)
    await market.run(OPERATOR, disputes.answer(market.deployment, opened.challenge, opening))


async def stake(market: TestMarket) -> int:
    worker = await market.reader.worker(OPERATOR.address)
    assert worker is not None
    return worker.stake


async def test_a_walk_says_what_it_may_cost_before_it_sends_anything(market: TestMarket) -> None:
    canvas = await serve(market, PAYER, OPERATOR)
    evidence = evidence_of(market, canvas)
    fees = Amount(await dispute_reader(market).escalation_bond())
    assert fees > 0 and fees % VERDICT_FEE == 0
    for escalate, escalation in ((False, Amount(0)), (True, fees)):
        cost = await walk_of(market, evidence, escalate=escalate).cost()
        bond = await dispute_reader(market).required_bond()
        assert (cost.bonds, cost.coins) == (2, 2 * BOND_MARGIN * bond)
        assert (cost.escalation, cost.before_committee) == (escalation, escalate)
    assert await walk_of(market, contradicted(market, evidence)).cost() == DisputeCost()
    for leaf, left in ((0, 1), (1, 0)):
        await walk_of(market, evidence).advance()
        assert (await walk_of(market, evidence).cost()).bonds == left
        await answer(market, canvas, leaf)
    cost = await walk_of(market, evidence, escalate=True).cost()
    assert (cost.bonds, cost.coins, cost.escalation) == (0, 0, fees)


async def test_a_contradiction_pays_the_payer_in_one_step(market: TestMarket) -> None:
    canvas = await serve(market, PAYER, OPERATOR)
    evidence = contradicted(market, evidence_of(market, canvas))
    report = await walk_of(market, evidence, None).advance()
    assert report.stage is DisputeStage.DECIDED and report.over
    assert "two receipts for canvas 0" in report.text
    assert await stake(market) == 0
    assert await market.reader.token_balance(market.token, PAYER.address) == REWARD
    again = await walk_of(market, evidence, None).advance()
    assert again.over and "Nothing waits" in again.text


async def test_evidence_that_proves_nothing_asks_for_a_step(market: TestMarket) -> None:
    evidence = evidence_of(market, await serve(market, PAYER, OPERATOR))
    report = await walk_of(market, evidence, None).advance()
    assert report.stage is DisputeStage.NOTHING and report.over
    with pytest.raises(DisputeError, match="canvas 0 has 3 steps"):
        walk_of(market, evidence, DisputedStep(0, 3))
    with pytest.raises(DisputeError, match="no canvas 1"):
        walk_of(market, evidence, DisputedStep(1, 0))


async def test_an_honest_worker_ends_the_walk_with_both_bonds(market: TestMarket) -> None:
    """Each call is a new process: the chain holds the state."""
    canvas = await serve(market, PAYER, OPERATOR)
    evidence = evidence_of(market, canvas)
    for leaf in (0, 1):
        report = await walk_of(market, evidence).advance()
        assert report.stage is DisputeStage.WAITING and not report.over
        assert report.deadline is not None
        now = await market.reader.timestamp()
        assert 0 < report.deadline - now <= ANSWER_SECONDS
        same = await walk_of(market, evidence).advance()
        assert same.deadline == report.deadline
        await answer(market, canvas, leaf)
    report = await walk_of(market, evidence).advance()
    assert report.stage is DisputeStage.HONEST and report.over
    assert await stake(market) == STAKE
    assert (await dispute_reader(market).credits_of(OPERATOR.address)).coins > 0


async def test_a_silent_worker_loses_a_part_and_the_bond_comes_back(market: TestMarket) -> None:
    evidence = evidence_of(market, await serve(market, PAYER, OPERATOR))
    await walk_of(market, evidence).advance()
    await market.pass_time(ANSWER_SECONDS + 1)
    report = await walk_of(market, evidence).advance()
    assert report.stage is DisputeStage.SILENT and report.over
    assert await stake(market) == STAKE - 1000 * AMOUNT - 20 * PROVING_COST
    found = await dispute_reader(market).credits_of(PAYER.address)
    assert (found.tokens, found.coins) == (0, 0)  # sent


async def test_a_reward_that_waits_is_collected_when_nothing_else_is_open(
    market: TestMarket,
) -> None:
    """Another client's challenge is open when the worker is convicted."""
    other = await serve(market, PAYER, OPERATOR, 1)
    await walk_of(market, evidence_of(market, other)).advance()
    convicting = evidence_of(market, await serve(market, PAYER, OPERATOR))
    convicting = contradicted(market, convicting)
    report = await walk_of(market, convicting, None).advance()
    assert await stake(market) == 0
    assert not report.over
    assert f"A reward of {REWARD} base units waits for 1 other" in report.text
    await answer(market, other, 0)
    report = await walk_of(market, convicting, None).advance()
    assert report.over
    assert f"The payer got {REWARD} base units" in report.text
    assert await market.reader.token_balance(market.token, PAYER.address) == REWARD


async def test_the_bond_of_an_authorizer_comes_back_to_it(market: TestMarket) -> None:
    canvas = await serve(market, PAYER, OPERATOR, authorizer=STRANGER.address)
    port = ChainDisputePort(market.reader, STRANGER, poll_s=POLL_S)
    walk = DisputeWalk(port, evidence_of(market, canvas), ABOUT)
    await walk.advance()
    await market.pass_time(ANSWER_SECONDS + 1)
    report = await walk.advance()
    assert report.stage is DisputeStage.SILENT and report.over
    assert "The challenger got 0 base units" in report.text
    found = await dispute_reader(market).credits_of(STRANGER.address)
    assert found.coins == 0  # sent


@pytest.mark.parametrize("field", ["before", "after"])
async def test_an_invented_trace_is_proved_from_the_answers(market: TestMarket, field: str) -> None:
    canvas = await serve(market, PAYER, OPERATOR)
    first = canvas.steps[0]
    invented = write_ids([t ^ 1 for t in read_ids(getattr(first, field))])
    changed = (
        replace(first, before=invented) if field == "before" else replace(first, after=invented)
    )
    canvas = resigned(
        market.reader.domain, OPERATOR, replace(canvas, steps=(changed, *canvas.steps[1:]))
    )
    evidence = evidence_of(market, canvas)
    for leaf in (0, 1):
        await walk_of(market, evidence).advance()
        await answer(market, canvas, leaf)
    report = await walk_of(market, evidence).advance()
    assert report.stage is DisputeStage.DECIDED and report.over
    assert "breaks a rule" in report.text
    assert await stake(market) == 0
    assert await market.reader.token_balance(market.token, PAYER.address) == REWARD


async def answered(market: TestMarket) -> EvidenceFile:
    """A dispute whose two leaves are open, of a payer that can pay for a verdict."""
    canvas = await serve(market, PAYER, OPERATOR)
    evidence = evidence_of(market, canvas)
    await market.give(PAYER.address, tokens=3 * VERDICT_FEE)
    for leaf in (0, 1):
        await walk_of(market, evidence).advance()
        await answer(market, canvas, leaf)
    return evidence


async def test_an_escalated_step_without_a_verdict_gives_the_bond_back(market: TestMarket) -> None:
    evidence = await answered(market)
    report = await walk_of(market, evidence, escalate=True).advance()
    assert report.stage is DisputeStage.BEFORE_COMMITTEE and not report.over
    await market.pass_time(ANSWER_SECONDS + VERDICT_SECONDS + 1)
    report = await walk_of(market, evidence, escalate=True).advance()
    assert report.over and "did not judge in time" in report.text
    assert await market.reader.token_balance(market.token, PAYER.address) == 3 * VERDICT_FEE
    assert await stake(market) == STAKE


async def test_no_verdict_is_told_whoever_concluded(market: TestMarket) -> None:
    evidence = await answered(market)
    await walk_of(market, evidence, escalate=True).advance()
    await market.pass_time(ANSWER_SECONDS + VERDICT_SECONDS + 1)
    (*_, opened) = await dispute_reader(market).challenges_to(
        OPERATOR.address, 0, await market.reader.latest_block()
    )
    await market.run(STRANGER, disputes.conclude(market.deployment, opened.challenge))
    report = await walk_of(market, evidence, escalate=True).advance()
    assert report.over and "did not judge in time" in report.text
    assert await market.reader.token_balance(market.token, PAYER.address) == 3 * VERDICT_FEE


async def test_a_late_dispute_asks_for_the_step_first_and_reaches_the_committee(
    market: TestMarket,
) -> None:
    """The worker answers in the last second. Then it is too late for another question."""
    canvas = await serve(market, PAYER, OPERATOR)
    evidence = evidence_of(market, canvas)
    await market.give(PAYER.address, tokens=3 * VERDICT_FEE)
    latest = canvas.subject.job.deadline + CHALLENGE_SECONDS
    await market.pass_time(latest - ANSWER_SECONDS // 2 - await market.reader.timestamp())
    report = await walk_of(market, evidence).advance()
    assert report.stage is DisputeStage.WAITING and report.deadline is not None
    await market.pass_time(report.deadline - 60 - await market.reader.timestamp())
    await answer(market, canvas, 1)
    assert await market.reader.timestamp() > latest
    report = await walk_of(market, evidence).advance()
    assert report.stage is DisputeStage.HONEST and report.over
    assert "the canvas leaf is over" in report.text
    report = await walk_of(market, evidence, escalate=True).advance()
    assert report.stage is DisputeStage.BEFORE_COMMITTEE


async def test_a_late_dispute_of_the_last_step_still_holds_the_output_to_it(
    market: TestMarket,
) -> None:
    canvas = await serve(market, PAYER, OPERATOR)
    last = canvas.steps[-1]
    told = write_ids([token ^ 1 for token in read_ids(last.argmax)])
    changed = replace(canvas, steps=(*canvas.steps[:-1], replace(last, argmax=told)))
    canvas = resigned(market.reader.domain, OPERATOR, changed)
    evidence, about = evidence_of(market, canvas), DisputedStep(0, len(canvas.steps) - 1)
    latest = canvas.subject.job.deadline + CHALLENGE_SECONDS
    await market.pass_time(latest - 60 - await market.reader.timestamp())
    await walk_of(market, evidence, about).advance()
    await market.pass_time(120)
    await answer(market, canvas, len(canvas.steps))
    report = await walk_of(market, evidence, about).advance()
    assert report.stage is DisputeStage.DECIDED and "breaks a rule: output" in report.text
    assert await stake(market) == 0


async def test_behind_a_full_line_the_step_is_asked_for_first(market: TestMarket) -> None:
    """A worker that challenges itself fills its line, so that every answer takes a week more."""
    for number in range(1, 1 + MAX_RUNNING):
        other = await serve(market, PAYER, OPERATOR, number)
        await walk_of(market, evidence_of(market, other)).advance()
    canvas = await serve(market, PAYER, OPERATOR)
    report = await walk_of(market, evidence_of(market, canvas)).advance()
    assert report.deadline is not None
    assert report.deadline > await market.reader.timestamp() + ANSWER_SECONDS
    await answer(market, canvas, 1)


async def test_evidence_of_another_market_is_refused(market: TestMarket) -> None:
    evidence = evidence_of(market, await serve(market, PAYER, OPERATOR))
    other = replace(evidence, domain=replace(evidence.domain, chain_id=1))
    with pytest.raises(DisputeError, match="another market"):
        walk_of(market, other)
