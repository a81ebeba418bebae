"""The way of a dispute from evidence to payout, one step at a time.

The chain holds the state. So a walk that was stopped goes on where it was: it asks the chain, does
what can be done now, and says what it waits for.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from piecework.chain.contracts import calls
from piecework.chain.contracts.calls import Call
from piecework.chain.contracts.evidence_calls import ReceiptEvidence, ask, prove_trace
from piecework.chain.deployment import Deployment
from piecework.chain.reading import disputes
from piecework.chain.reading.disputes import (
    Challenge,
    ChallengeState,
    Credits,
    LeafOpened,
    RewardWaits,
)
from piecework.client.disputes.proofs import FoundProof, can_be_challenged, find_proof, subject_of
from piecework.client.disputes.traces import broken_rule
from piecework.client.errors import DisputeError
from piecework_protocol.disputes import (
    ANSWER_SECONDS,
    CHALLENGE_SECONDS,
    ESCALATE_SECONDS,
    MAX_RUNNING,
    VERDICT_SECONDS,
    ChallengeStatus,
    OpenedLeaf,
    TraceRule,
)
from piecework_protocol.evidence.file import CanvasEvidence, EvidenceFile
from piecework_protocol.trace import CanvasField, StepField
from piecework_protocol.types import Address, Amount, Bytes32, ChannelId, Digest, Timestamp

BOND_MARGIN = 2
"""Times the bond of the latest block: the base fee may rise until the challenge is mined. What is
too much is bond as well, and comes back or goes to the worker with it."""


TIME_TO_ASK_S = 3600
"""Between an answer in the last second and the next question: people run the walk again."""
_BEFORE_ESCALATION = (ChallengeStatus.NONE, ChallengeStatus.OPEN, ChallengeStatus.ANSWERED)
_DECIDED = {
    ChallengeStatus.GUILTY: "the committee judged: guilty",
    ChallengeStatus.NOT_GUILTY: "the committee judged: not guilty",
    ChallengeStatus.NO_VERDICT: "the committee did not judge in time",
}


class DisputeStage(enum.Enum):
    """How far a dispute is."""

    NOTHING = "nothing to dispute"
    PROVABLE = "the evidence proves a fault"
    READY = "ready to challenge"
    WAITING = "the worker has to answer"
    SILENT = "the worker was silent"
    HONEST = "the worker answered, and no exact rule is broken"
    BEFORE_COMMITTEE = "the committee has to judge"
    DECIDED = "decided"


@dataclass(frozen=True, slots=True)
class DisputeReport:
    """What a step did or found. deadline: what happens next is due by it. over: nothing is left."""

    stage: DisputeStage
    text: str
    deadline: Timestamp | None = None
    over: bool = False


@dataclass(frozen=True, slots=True)
class DisputedStep:
    """The step of a canvas that a challenge is about."""

    canvas: int
    step: int


@dataclass(frozen=True, slots=True)
class DisputeCost:
    """What a walk may still pay, at the base fee of the latest block. Gas comes on top.

    Attributes:
        bonds: How many challenges are still to be opened.
        coins: What all their bonds come to, in wei.
        escalation: The bond of the committee, in base units of the stake token. 0 without one.
        before_committee: Whether the committee is asked, so that its members read the prompt.
    """

    bonds: int = 0
    coins: int = 0
    escalation: Amount = Amount(0)
    before_committee: bool = False


class DisputePort(Protocol):
    """What a walk asks of the chain. Every method raises `ChainError`."""

    @property
    def deployment(self) -> Deployment: ...

    @property
    def sender(self) -> Address:
        """Who sends: the channel's payer or authorizer."""
        ...

    async def timestamp(self) -> Timestamp: ...

    async def stake(self, operator: Address) -> Amount:
        """Return the operator's stake, 0 when it is not registered."""
        ...

    async def state(self, challenge_id: Bytes32) -> ChallengeState: ...

    async def challenge_id(self, asked: Challenge) -> Bytes32: ...

    async def open_of(self, channel: ChannelId) -> Bytes32 | None: ...

    async def required_bond(self) -> int: ...

    async def escalation_bond(self) -> Amount: ...

    async def credits_of(self, who: Address) -> Credits: ...

    async def open_count(self, operator: Address) -> int:
        """Return how many challenges against an operator are open."""
        ...

    async def waiting_rewards(
        self, operator: Address, payer: Address
    ) -> tuple[RewardWaits, ...]: ...

    async def answer_to(self, challenge_id: Bytes32) -> LeafOpened | None: ...

    async def execute(self, call: Call) -> None: ...


class DisputeWalk:
    """A dispute about one job.

    about: the step to challenge when the evidence proves nothing alone. escalate: bring a step that
    breaks no exact rule to the committee.

    Raises:
        DisputeError: The evidence is of another market, or has no such canvas or step.
    """

    def __init__(
        self,
        port: DisputePort,
        evidence: EvidenceFile,
        about: DisputedStep | None,
        *,
        escalate: bool = False,
    ) -> None:
        self._port, self._evidence, self._about = port, evidence, about
        self._escalate = escalate
        self._proof = find_proof(evidence)
        if evidence.domain != port.deployment.domain:
            raise DisputeError("the evidence is of another market than the deployment file")
        if about is not None:
            self._shown = self._canvas(about)

    @property
    def proof(self) -> FoundProof | None:
        """The fault that the evidence proves alone."""
        return self._proof

    async def cost(self) -> DisputeCost:
        """Ask the chain what the rest of this walk may cost. Nothing is sent."""
        if self._proof is not None or self._about is None:
            return DisputeCost()
        port, step = self._port, self._about.step + 1
        states = {}
        for leaf in (0, step):
            states[leaf] = await port.state(await port.challenge_id(self._challenge(leaf)))
        bonds = sum(state.status is ChallengeStatus.NONE for state in states.values())
        coins = bonds * BOND_MARGIN * await port.required_bond() if bonds else 0
        begins = states[step].status in _BEFORE_ESCALATION
        if not self._escalate or not begins:
            return DisputeCost(bonds, coins)
        return DisputeCost(bonds, coins, await port.escalation_bond(), before_committee=True)

    async def advance(self) -> DisputeReport:
        """Do what can be done now. Call it again after the deadline that it gives."""
        if self._proof is not None:
            return await self._prove(self._proof)
        if self._about is None:
            text = "the evidence proves no fault alone. Name a canvas and a step to challenge"
            return DisputeReport(DisputeStage.NOTHING, text, over=True)
        step = self._about.step + 1
        step_first = await self._asks_step_first(step)
        answers: dict[int, OpenedLeaf] = {}
        for leaf in (step, 0) if step_first else (0, step):
            if step_first and not leaf and await self._goes_without_canvas_leaf():
                break
            report, answer = await self._ask(leaf)
            if answer is None:
                return report
            answers[leaf] = answer
        return await self._judge(answers.get(0), answers[step])

    async def _asks_step_first(self, step: int) -> bool:
        """Say whether the step's leaf is asked for before the canvas leaf. `step` is its index.

        A channel has one open challenge at a time, and the worker decides when in its window it
        answers. If the second question may come too late, it has to be that for the canvas leaf:
        the committee needs the step alone. What was begun goes on.
        """
        port = self._port
        for leaf in (0, step):
            state = await port.state(await port.challenge_id(self._challenge(leaf)))
            if state.status is not ChallengeStatus.NONE:
                return leaf == step
        if await port.open_count(self._evidence.channel.operator) >= MAX_RUNNING:
            return True
        return await port.timestamp() + ANSWER_SECONDS + TIME_TO_ASK_S > self._latest

    async def _goes_without_canvas_leaf(self) -> bool:
        """Say whether the step is judged without it: there is no time to ask for it any more.

        Nor is there before the committee. An answer may take longer than that can be asked.
        """
        return self._escalate or await self._port.timestamp() > self._latest

    @property
    def _latest(self) -> int:
        """The last block time of a challenge."""
        return self._evidence.job.job.deadline + CHALLENGE_SECONDS

    # --- a proof

    async def _prove(self, found: FoundProof) -> DisputeReport:
        operator = self._evidence.channel.operator
        if await self._port.stake(operator):
            await self._port.execute(disputes.prove(self._port.deployment, found.proof))
        return await self._collect(found.fault)

    async def _collect(self, what: str) -> DisputeReport:
        """Send what the payer and the challenger are credited.

        A reward may wait for other challenges. It is ended as soon as none is open.
        """
        port, channel = self._port, self._evidence.channel
        waiting = await port.waiting_rewards(channel.operator, channel.payer)
        others = await port.open_count(channel.operator) if waiting else 0
        if not others:
            for reward in waiting:
                await port.execute(disputes.end_reward(port.deployment, reward.number))
            waiting = ()
        texts = [what]
        for name, who in self._creditors():
            found = await port.credits_of(who)
            if found.tokens or found.coins:
                await port.execute(disputes.push_credits(port.deployment, who))
                texts.append(f"The {name} got {found.tokens} base units and {found.coins} wei")
        if waiting:
            amount = sum(reward.amount for reward in waiting)
            texts.append(
                f"A reward of {amount} base units waits for {others} other challenges against the "
                "worker. It is lost if one is upheld. Run this again when they are over"
            )
        elif len(texts) == 1:
            texts.append("Nothing waits for the payer now")
        return DisputeReport(DisputeStage.DECIDED, ". ".join(texts), over=not waiting)

    def _creditors(self) -> tuple[tuple[str, Address], ...]:
        """Whose credits a dispute gives: rewards are the payer's, bonds are the challenger's."""
        payer, sender = self._evidence.channel.payer, self._port.sender
        return (("payer", payer), ("challenger", sender))[: 1 if payer == sender else 2]

    # --- a challenge

    async def _ask(self, leaf: int) -> tuple[DisputeReport, OpenedLeaf | None]:
        """Go on with the challenge of one leaf. Returns the leaf once it is open."""
        asked = self._challenge(leaf)
        challenge_id = await self._port.challenge_id(asked)
        state = await self._port.state(challenge_id)
        if state.status is ChallengeStatus.NONE:
            await self._open(leaf)
            state = await self._port.state(challenge_id)
        now = await self._port.timestamp()
        if state.status is ChallengeStatus.OPEN:
            if now <= state.answer_by:
                text = f"leaf {leaf} of canvas {self._shown.receipt.canvas} has to be opened"
                return DisputeReport(DisputeStage.WAITING, text, state.answer_by), None
            await self._port.execute(disputes.conclude(self._port.deployment, asked))
            state = await self._port.state(challenge_id)
        if state.status in (ChallengeStatus.SILENT, ChallengeStatus.LATE):
            report = await self._collect("the worker was silent and lost a part of its stake")
            return DisputeReport(DisputeStage.SILENT, report.text, over=report.over), None
        if state.status is not ChallengeStatus.ANSWERED:
            return await self._committee(asked, state), None
        answered = await self._port.answer_to(challenge_id)
        if answered is None:
            raise DisputeError("the chain's node has no event of the answer. Use another node")
        return DisputeReport(DisputeStage.HONEST, "answered"), answered.leaf

    async def _open(self, leaf: int) -> None:
        port, job = self._port, self._evidence.job.job
        busy = await port.open_of(job.channel)
        if busy is not None:
            raise DisputeError(f"the channel has another open challenge: 0x{busy.hex()}")
        if await port.timestamp() > self._latest:
            raise DisputeError("the time to challenge this job is over")
        bond = BOND_MARGIN * await port.required_bond()
        question = ask(port.sender, subject_of(self._evidence), self._signed, leaf, _all(leaf))
        await port.execute(disputes.challenge(port.deployment, question, bond))

    async def _judge(self, canvas_leaf: OpenedLeaf | None, step_leaf: OpenedLeaf) -> DisputeReport:
        """Hold the opened leaves to the exact rules, and prove what is broken."""
        job = self._evidence.job.job
        shown = broken_rule(job, self._shown, canvas_leaf, step_leaf)
        if shown is not None:
            if await self._port.stake(self._evidence.channel.operator):
                proof = prove_trace(subject_of(self._evidence), self._signed, shown)
                await self._port.execute(disputes.prove(self._port.deployment, proof))
            return await self._collect(f"the trace breaks a rule: {_words(shown.rule)}")
        if not self._escalate:
            text = "the leaves are open and break no exact rule. The bonds are the worker's"
            if canvas_leaf is None:
                text = (
                    "the step is open. The time to ask for the canvas leaf is over, and most exact "
                    "rules need it. The bond is the worker's"
                )
            return DisputeReport(DisputeStage.HONEST, text, over=True)
        return await self._bring_to_committee(step_leaf.index)

    # --- the committee

    async def _bring_to_committee(self, leaf: int) -> DisputeReport:
        asked, port = self._challenge(leaf), self._port
        state = await port.state(await port.challenge_id(asked))
        if await port.timestamp() > state.answer_by + ESCALATE_SECONDS:
            raise DisputeError("the time to go to the committee is over")
        contract = disputes.contract_of(port.deployment)
        bond = await port.escalation_bond()
        await port.execute(calls.approve(port.deployment.token, contract, bond))
        await port.execute(disputes.escalate(port.deployment, asked))
        state = await port.state(await port.challenge_id(asked))
        return await self._committee(asked, state)

    async def _committee(self, asked: Challenge, state: ChallengeState) -> DisputeReport:
        verdict_by = Timestamp(state.answer_by + VERDICT_SECONDS)
        if state.status is ChallengeStatus.ESCALATED:
            if await self._port.timestamp() <= verdict_by:
                text = "give the committee the prompt, so that it can replay the step"
                return DisputeReport(DisputeStage.BEFORE_COMMITTEE, text, verdict_by)
            await self._port.execute(disputes.conclude(self._port.deployment, asked))
            return await self._collect(_DECIDED[ChallengeStatus.NO_VERDICT])
        return await self._collect(_DECIDED[state.status])

    # --- what is asked

    def _canvas(self, about: DisputedStep) -> CanvasEvidence:
        shown = next((c for c in self._evidence.canvases if c.receipt.canvas == about.canvas), None)
        if shown is None or not can_be_challenged(self._evidence, about.canvas):
            raise DisputeError(f"the evidence has no canvas {about.canvas} with steps")
        if not 0 <= about.step < shown.receipt.steps:
            raise DisputeError(f"canvas {about.canvas} has {shown.receipt.steps} steps")
        return shown

    @property
    def _signed(self) -> ReceiptEvidence:
        return ReceiptEvidence(self._shown.receipt, self._shown.signature)

    def _challenge(self, leaf: int) -> Challenge:
        receipt, channel = self._shown.receipt, self._evidence.channel
        return Challenge(
            self._evidence.job.job.channel,
            channel.payer,
            channel.operator,
            self._port.sender,
            Digest(self._evidence.domain.digest(receipt)),
            receipt.trace_root,
            receipt.steps,
            leaf,
            _all(leaf),
            channel.token,
            receipt.amount,
        )


def _all(leaf: int) -> int:
    """Every field of a leaf, as bits."""
    return (1 << len(CanvasField if leaf == 0 else StepField)) - 1


def _words(rule: TraceRule) -> str:
    return rule.name.lower().replace("_", " ")
