"""Disputes on a chain, to the unit: equivocation, honest, silent, frivolous, invented, judged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from piecework.chain.contracts import calls, evidence_calls
from piecework.chain.contracts.abi import interface
from piecework.chain.contracts.evidence_calls import TraceEvidence
from piecework.chain.deployment import Deployment
from piecework.chain.dev.anvil import Anvil
from piecework.chain.errors import BadDeployment, TransactionReverted
from piecework.chain.reading import disputes
from piecework.chain.reading.disputes import ChallengeOpened, DisputeReader
from piecework.chain.reading.presence import Presence, places
from piecework_protocol.disputes import (
    ANSWER_SECONDS,
    CHALLENGE_SECONDS,
    ESCALATE_SECONDS,
    JOB_SECONDS,
    MAX_RUNNING,
    VERDICT_SECONDS,
    ChallengeStatus,
    TraceRule,
    field_bits,
)
from piecework_protocol.objects import Finish, Verdict, disputes_domain
from piecework_protocol.signing import sign
from piecework_protocol.trace import CanvasField, StepField, read_ids, write_ids
from piecework_protocol.types import Amount, Digest, keccak256, to_hex
from tests.support.chain.chains import ETHER, FAR, Chain, TestMarket, deployed, signer
from tests.support.chain.disputed import (
    AMOUNT,
    MEMBERS,
    PROVING_COST,
    STAKE,
    TERMS,
    VERDICT_FEE,
    ServedCanvas,
    dispute_reader,
    disputed,
    resigned,
    serve,
    signed_receipt,
    staked,
)

pytestmark = pytest.mark.process

PAYER, OPERATOR, STRANGER = signer("disputing"), signer("operator"), signer("bystander")
REWARD = Amount(20 * PROVING_COST)
ALL = field_bits(list(StepField))


@dataclass(frozen=True, slots=True)
class Disputed:
    """A market with disputes, a staked operator, a payer and a bystander with coins."""

    market: TestMarket
    reader: DisputeReader

    @property
    def deployment(self) -> Deployment:
        return self.market.deployment

    async def stake(self) -> Amount:
        worker = await self.market.reader.worker(OPERATOR.address)
        assert worker is not None
        return worker.stake

    async def ask(self, canvas: ServedCanvas, leaf: int, fields: int) -> ChallengeOpened:
        """The payer challenges. Returns what a watching worker finds."""
        question = evidence_calls.ask(PAYER.address, canvas.subject, canvas.signed, leaf, fields)
        bond = await self.reader.required_bond() * 2
        mined = await self.market.run(PAYER, disputes.challenge(self.deployment, question, bond))
        found = await self.reader.challenges_to(OPERATOR.address, mined.block, mined.block)
        (opened,) = found
        assert opened.bond == bond
        return opened

    async def status(self, opened: ChallengeOpened) -> ChallengeStatus:
        return (await self.reader.state(opened.id)).status


@pytest.fixture
async def court(anvil: Anvil) -> AsyncIterator[Disputed]:
    async with disputed(anvil) as market:
        await staked(market, OPERATOR)
        await market.give(PAYER.address, wei=ETHER)
        await market.give(STRANGER.address, wei=ETHER)
        yield Disputed(market, dispute_reader(market))


# --- where things are


async def test_the_file_of_a_market_gives_its_dispute_contract(court: Disputed) -> None:
    market = court.market
    found = await places(market.rpc, market.deployment)
    assert [place.name for place in found] == [
        "factory",
        "escrow",
        "registry",
        "verifier",
        "disputes",
    ]
    assert all(place.presence is Presence.OURS for place in found)
    assert Deployment.from_json(market.deployment.to_json()) == market.deployment


async def test_a_market_without_disputes_says_so(anvil: Anvil) -> None:
    async with deployed(anvil) as market:
        with pytest.raises(BadDeployment, match="no dispute contract"):
            dispute_reader(market)


async def test_the_windows_of_the_contract_are_pythons(court: Disputed) -> None:
    for name, seconds in {
        "JOB_SECONDS": JOB_SECONDS,
        "CHALLENGE_SECONDS": CHALLENGE_SECONDS,
        "ANSWER_SECONDS": ANSWER_SECONDS,
        "ESCALATE_SECONDS": ESCALATE_SECONDS,
        "VERDICT_SECONDS": VERDICT_SECONDS,
        "MAX_RUNNING": MAX_RUNNING,
    }.items():
        assert await court.reader.constant(name) == seconds


async def test_a_bond_is_enough_though_nodes_run_calls_at_no_base_fee(any_chain: Chain) -> None:
    """So does the embedded chain, as geth does. The contract's own view says 0 there."""
    async with disputed(any_chain, replace(TERMS, min_bond_wei=0)) as market:
        await staked(market, OPERATOR)
        await market.give(PAYER.address, wei=ETHER)
        court = Disputed(market, dispute_reader(market))
        block = await market.rpc.call("eth_getBlockByNumber", "latest", False)
        bond = disputes.BOND_GAS * int(block["baseFeePerGas"], 16)
        assert await court.reader.required_bond() == bond > 0
        opened = await court.ask(await serve(market, PAYER, OPERATOR), 1, ALL)
        assert await court.status(opened) is ChallengeStatus.OPEN


async def test_the_bond_is_the_contracts(court: Disputed) -> None:
    """At a base fee at which it is more than the least one. A price makes the view see that fee."""
    market = court.market
    await market.rpc.call("anvil_setNextBlockBaseFeePerGas", hex(50 * 10**9))
    await market.rpc.call("evm_mine")
    call = {
        "from": to_hex(PAYER.address),
        "to": to_hex(disputes.contract_of(market.deployment)),
        "data": to_hex(interface("Disputes").encode("requiredBond", ())),
        "gasPrice": hex(100 * 10**9),
        "gas": hex(100_000),
    }
    said = int(await market.rpc.call("eth_call", call, "latest"), 16)
    assert await court.reader.required_bond() == said == 420_000 * 50 * 10**9


# --- equivocation


async def test_two_receipts_for_one_canvas_pay_the_payer_and_nobody_else(court: Disputed) -> None:
    market, domain = court.market, court.market.reader.domain
    canvas = await serve(market, PAYER, OPERATOR)
    other = signed_receipt(
        domain, OPERATOR, canvas.signed.receipt.replace(finish=Finish.END_OF_TEXT)
    )
    proof = evidence_calls.prove_equivocation(canvas.subject, canvas.signed, other)
    await market.run(STRANGER, disputes.prove(court.deployment, proof))
    assert await court.stake() == 0
    assert (await court.reader.credits_of(PAYER.address)).tokens == REWARD
    assert (await court.reader.credits_of(STRANGER.address)).tokens == 0
    await market.run(STRANGER, disputes.push_credits(court.deployment, PAYER.address))
    assert await market.reader.token_balance(market.token, PAYER.address) == REWARD
    registry = await market.reader.token_balance(market.token, court.deployment.registry)
    assert registry == STAKE - REWARD


async def test_one_receipt_proves_nothing(court: Disputed) -> None:
    canvas = await serve(court.market, PAYER, OPERATOR)
    proof = evidence_calls.prove_equivocation(canvas.subject, canvas.signed, canvas.signed)
    with pytest.raises(TransactionReverted, match="NotContradictory"):
        await court.market.run(STRANGER, disputes.prove(court.deployment, proof))
    assert await court.stake() == STAKE


# --- challenges


async def test_an_honest_worker_answers_and_gets_the_bond(court: Disputed) -> None:
    market = court.market
    canvas = await serve(market, PAYER, OPERATOR)
    opened = await court.ask(canvas, 2, ALL)
    assert opened.challenge.leaf == 2
    leaf = canvas.open(2, ALL)
    await market.run(OPERATOR, disputes.answer(court.deployment, opened.challenge, leaf))
    assert await court.status(opened) is ChallengeStatus.ANSWERED
    answered = await court.reader.answer_to(opened.id, opened.log.block)
    assert answered is not None and answered.leaf == leaf and answered.in_time
    assert (await court.reader.credits_of(OPERATOR.address)).coins == opened.bond
    before = await market.reader.native_balance(OPERATOR.address)
    await market.run(STRANGER, disputes.push_credits(court.deployment, OPERATOR.address))
    assert await market.reader.native_balance(OPERATOR.address) == before + opened.bond
    assert await court.stake() == STAKE


async def test_silence_costs_the_worker_and_gives_the_bond_back(court: Disputed) -> None:
    market = court.market
    opened = await court.ask(await serve(market, PAYER, OPERATOR), 1, ALL)
    with pytest.raises(TransactionReverted, match="NotDue"):
        await market.run(STRANGER, disputes.conclude(court.deployment, opened.challenge))
    await market.pass_time(ANSWER_SECONDS + 1)
    await market.run(STRANGER, disputes.conclude(court.deployment, opened.challenge))
    assert await court.status(opened) is ChallengeStatus.SILENT
    assert await court.stake() == STAKE - 1000 * AMOUNT - 20 * PROVING_COST
    found = await court.reader.credits_of(PAYER.address)
    assert (found.tokens, found.coins) == (0, opened.bond)


async def test_a_frivolous_challenge_costs_its_bond_and_is_asked_once(court: Disputed) -> None:
    market = court.market
    canvas = await serve(market, PAYER, OPERATOR)
    before = await market.reader.native_balance(PAYER.address)
    opened = await court.ask(canvas, 0, 1)
    await market.run(
        OPERATOR, disputes.answer(court.deployment, opened.challenge, canvas.open(0, 1))
    )
    with pytest.raises(TransactionReverted, match="AlreadyAsked"):
        await court.ask(canvas, 0, 1)
    assert before - await market.reader.native_balance(PAYER.address) >= opened.bond
    assert await court.stake() == STAKE


# --- an invented trace


async def test_an_invented_trace_is_caught_by_an_exact_rule(court: Disputed) -> None:
    """Root and count hold. The first canvas is not Philox's."""
    market, domain = court.market, court.market.reader.domain
    canvas = await serve(market, PAYER, OPERATOR)
    ids = list(read_ids(canvas.steps[0].before))
    ids[5] ^= 1
    first = replace(canvas.steps[0], before=write_ids(ids))
    invented = resigned(domain, OPERATOR, replace(canvas, steps=(first, *canvas.steps[1:])))
    opened = await court.ask(invented, 1, field_bits([StepField.BEFORE]))
    await market.run(
        OPERATOR,
        disputes.answer(court.deployment, opened.challenge, invented.open(1, 2)),
    )
    answered = await court.reader.answer_to(opened.id, opened.log.block)
    assert answered is not None
    canvas_leaf = invented.open(0, field_bits([CanvasField.HEADER, CanvasField.PINNED]))
    shown = TraceEvidence(
        rule=TraceRule.INITIAL_CANVAS, leaves=(canvas_leaf, answered.leaf), position=5
    )
    proof = evidence_calls.prove_trace(invented.subject, invented.signed, shown)
    await market.run(STRANGER, disputes.prove(court.deployment, proof))
    assert await court.stake() == 0
    assert (await court.reader.credits_of(PAYER.address)).tokens == REWARD
    honest = await serve(market, PAYER, OPERATOR, 1)
    leaves = (honest.open(0, 17), honest.open(1, 2))
    shown = TraceEvidence(rule=TraceRule.INITIAL_CANVAS, leaves=leaves, position=5)
    proof = evidence_calls.prove_trace(honest.subject, honest.signed, shown)
    with pytest.raises(TransactionReverted, match="NotBroken"):
        await market.run(STRANGER, disputes.prove(court.deployment, proof))


# --- the committee


@pytest.mark.parametrize("guilty", [True, False])
async def test_the_committee_judges_what_an_exact_rule_cannot(
    court: Disputed, guilty: bool
) -> None:
    market = court.market
    canvas = await serve(market, PAYER, OPERATOR)
    opened = await court.ask(canvas, 2, 1)
    await market.run(
        OPERATOR, disputes.answer(court.deployment, opened.challenge, canvas.open(2, 1))
    )
    bond = await court.reader.escalation_bond()
    assert bond == 3 * VERDICT_FEE
    await market.give(PAYER.address, tokens=bond)
    contract = disputes.contract_of(court.deployment)
    await market.run(PAYER, calls.approve(market.token, contract, bond))
    await market.run(PAYER, disputes.escalate(court.deployment, opened.challenge))
    assert await court.status(opened) is ChallengeStatus.ESCALATED
    await market.run(STRANGER, _verdict(court, opened, guilty=guilty))
    reader = court.reader
    slashed = STAKE // 10 if guilty else 0
    assert await court.stake() == STAKE - slashed
    for member in MEMBERS[:2]:
        assert (await reader.credits_of(member.address)).tokens == VERDICT_FEE
    payers = bond + REWARD if guilty else 0
    assert (await reader.credits_of(PAYER.address)).tokens == payers
    operators = 0 if guilty else VERDICT_FEE
    assert (await reader.credits_of(OPERATOR.address)).tokens == operators
    for who in (PAYER, OPERATOR, *MEMBERS[:2]):
        if (await reader.credits_of(who.address)).tokens:
            await market.run(STRANGER, disputes.push_credits(court.deployment, who.address))
    assert await market.reader.token_balance(market.token, contract) == 0


def _verdict(court: Disputed, opened: ChallengeOpened, *, guilty: bool) -> calls.Call:
    contract = disputes.contract_of(court.deployment)
    domain = disputes_domain(court.deployment.chain_id, contract)
    root = Digest(keccak256(b"replayed"))
    verdict = Verdict(opened.id, guilty, root, FAR)
    votes = {member.address: sign(domain, verdict, member) for member in MEMBERS[:2]}
    asked = opened.challenge
    return disputes.judge(
        court.deployment, asked, guilty=guilty, leaf_root=root, deadline=FAR, votes=votes
    )
