"""What a challenge asks for, opened from the journal and the engine of a worker that served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from piecework.chain.contracts.events import Log
from piecework.chain.errors import RpcUnavailable
from piecework.chain.reading.disputes import Challenge, ChallengeOpened, ChallengeState, Credits
from piecework.chain.sending.rawtx import SignedTransaction
from piecework_node import logs
from piecework_node.disputes.defence import (
    CHECK,
    CURSOR,
    CURSOR_OVERLAP_BLOCKS,
    REACH,
    RETRY_S,
    Defence,
)
from piecework_node.disputes.leaves import LOOK_AGAIN_S, JournalLeaves
from piecework_node.journal.records import StoredJob, Worth
from piecework_node.runtime.faults import Code
from piecework_node.runtime.opener import CannotOpen
from piecework_node.settlement.transactions import TransactionTracker
from piecework_protocol.disputes import (
    CHALLENGE_SECONDS,
    EVIDENCE_SECONDS,
    ChallengeStatus,
    OpenedLeaf,
)
from piecework_protocol.merkle import InclusionProof, verify
from piecework_protocol.trace import leaf_of
from piecework_protocol.types import Amount, Bytes32, Digest, Timestamp
from tests.support.node.fake_engine import FACTS
from tests.support.node.fake_port import FakePort
from tests.support.node.harness import DOMAIN, Client, WorkerHarness


async def served(
    seed: int = 3, *, profiles: tuple[str, ...] = (FACTS.profile,), entry: int = 0
) -> tuple[WorkerHarness, StoredJob]:
    """A worker that has done a job of several canvases, started again since."""
    harness = WorkerHarness(profiles=profiles)
    await harness.boot()
    client = Client(harness)
    client.open_on_chain()
    line = client.job(seed, 40, entry=entry)
    await client.submit(line)
    await client.finish(line)
    (job,) = harness.journal.jobs.values()
    assert len(job.canvases) > 1
    await harness.boot()
    return harness, job


def leaves_of(harness: WorkerHarness) -> JournalLeaves:
    return JournalLeaves(harness.journal, harness.cards, harness.keyring, DOMAIN)


def challenge(job: StoredJob, canvas: int, leaf: int, fields: int = 0b11) -> Challenge:
    receipt, channel = job.canvases[canvas].receipt, job.submission.channel
    return Challenge(
        channel=channel.id(DOMAIN),
        payer=channel.payer,
        operator=channel.operator,
        challenger=channel.payer,
        receipt=Digest(DOMAIN.digest(receipt)),
        trace_root=receipt.trace_root,
        steps=receipt.steps,
        leaf=leaf,
        fields=fields,
        token=channel.token,
        amount=receipt.amount,
    )


async def test_every_leaf_of_every_canvas_opens_after_a_restart() -> None:
    harness, job = await served()
    leaves = leaves_of(harness)
    for canvas, stored in enumerate(job.canvases):
        for leaf in range(len(stored.leaves)):
            asked = challenge(job, canvas, leaf)
            opened = await leaves.open(asked)
            proof = InclusionProof(leaf, len(stored.leaves), opened.siblings)
            assert verify(proof, stored.leaves[leaf], asked.trace_root)
            assert [bool(data) for data in opened.fields[:3]] == [True, True, False]
            other = await leaves.open(replace(asked, fields=0x7F))
            assert leaf_of(other.fields) == stored.leaves[leaf]
    assert all(len(r.committed) < len(job.canvases) for r in harness.engine.replayed)


async def test_an_engine_with_other_last_bits_opens_no_step_and_says_so() -> None:
    harness, job = await served()
    harness.engine.numerics = b"another kernel"
    with pytest.raises(CannotOpen, match="other numbers"):
        await leaves_of(harness).open(challenge(job, 0, 1))
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    with pytest.raises(CannotOpen, match="ran on fake-cpu, and the engine is fake-gpu"):
        await leaves_of(harness).open(challenge(job, 0, 1))
    assert (await leaves_of(harness).open(challenge(job, 0, 0))).index == 0
    harness.engine.known = replace(FACTS, digest=Digest(bytes(32)))
    with pytest.raises(CannotOpen, match="another model"):
        await leaves_of(harness).open(challenge(job, 0, 0))


async def test_what_the_journal_does_not_have_is_not_opened() -> None:
    harness, job = await served()
    leaves = leaves_of(harness)
    asked = challenge(job, 0, 1)
    for wrong in (
        replace(asked, receipt=Digest(bytes(32))),
        replace(asked, trace_root=Digest(bytes(32))),
        replace(asked, leaf=len(job.canvases[0].leaves)),
    ):
        with pytest.raises(CannotOpen):
            await leaves.open(wrong)
    del harness.journal.contents[job.id]
    with pytest.raises(CannotOpen, match="not kept any more"):
        await leaves.open(asked)


async def test_jobs_of_another_engine_are_told_until_nobody_can_challenge_them() -> None:
    harness, job = await served()
    leaves, time = leaves_of(harness), Timestamp(int(harness.clock.now()))
    assert await leaves.out_of_reach(time) is None
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    told = await leaves.out_of_reach(time)
    last = job.submission.job.deadline + CHALLENGE_SECONDS
    assert told is not None and told.startswith(f"1 jobs that may be challenged until {last} ran")
    assert "fake-cpu" in told and "fake-gpu" in told
    harness.engine.is_ready = False
    assert await leaves.out_of_reach(time) == told, "while it loads the last word stands"
    harness.engine.is_ready = True
    assert await leaves.out_of_reach(Timestamp(last + LOOK_AGAIN_S)) is None


@dataclass
class FakeDisputes:
    """Implements `DefencePort`: open challenges, and what was prepared for each."""

    port: FakePort
    opened: list[ChallengeOpened] = field(default_factory=list)
    prepared: list[OpenedLeaf] = field(default_factory=list)
    refuses: set[Bytes32] = field(default_factory=set)
    status: ChallengeStatus = ChallengeStatus.OPEN
    """What the node says of each challenge."""
    down: bool = False
    signed: dict[bytes, Challenge] = field(default_factory=dict)
    """Which challenge each answer is for, by the transaction's hash."""
    time: int = 1_800_000_000

    def open(self, asked: Challenge) -> None:
        number = len(self.opened)
        log = Log(asked.operator, (), b"", number + 1, 0, Bytes32(bytes(32)))
        by = Timestamp(self.time + 86_400)
        id_ = Bytes32(bytes([number + 1]) * 32)
        start = Timestamp(self.time)
        self.opened.append(ChallengeOpened(log, id_, asked, start, by, 1))

    async def head(self) -> tuple[int, Timestamp]:
        if self.down:
            raise RpcUnavailable("eth_getBlockByNumber", "no node answers")
        return self.port.height, Timestamp(self.time)

    async def challenges(self, from_block: int, to_block: int) -> tuple[ChallengeOpened, ...]:
        return tuple(one for one in self.opened if from_block <= one.log.block <= to_block)

    async def state(self, challenge_id: Bytes32) -> ChallengeState:
        return ChallengeState(self.status, Timestamp(self.time + 86_400), 1)

    async def prepare_answer(
        self, asked: Challenge, leaf: OpenedLeaf, worth: Worth
    ) -> SignedTransaction:
        if any(o.challenge == asked and o.id in self.refuses for o in self.opened):
            raise RpcUnavailable("eth_estimateGas", "not now")
        self.prepared.append(leaf)
        tx = await self.port.prepare_push(asked.token, asked.operator, Worth(Amount(0), None))
        self.signed[tx.hash] = asked
        return tx

    def is_answer_to(self, asked: Challenge, tx: SignedTransaction) -> bool:
        return self.signed[tx.hash] == asked

    async def credits(self) -> Credits:
        return Credits(Amount(0), 0)

    async def prepare_push(self, worth: Worth) -> SignedTransaction:
        raise AssertionError("nothing waits")


class SlowLeaves:
    """Implements `LeafSource`: opens nothing before it is told to."""

    def __init__(self, leaves: JournalLeaves) -> None:
        self.leaves, self.go_on, self.begun = leaves, asyncio.Event(), 0

    async def open(self, asked: Challenge) -> OpenedLeaf:
        self.begun += 1
        await self.go_on.wait()
        return await self.leaves.open(asked)

    async def out_of_reach(self, time: Timestamp) -> str | None:
        return await self.leaves.out_of_reach(time)


async def defence_of(
    harness: WorkerHarness, disputes: FakeDisputes, leaves: JournalLeaves | SlowLeaves
) -> Defence:
    tracker = await TransactionTracker.load(
        harness.journal,
        disputes.port,
        clock=harness.clock,
        stuck_s=90,
        metrics=harness.metrics,
        log=logs.silent(),
    )
    return Defence(
        disputes,
        leaves,
        tracker,
        harness.journal,
        harness.faults,
        first_block=0,
        log=logs.silent(),
    )


async def test_a_replay_holds_no_round_up_and_is_done_once() -> None:
    harness, job = await served()
    disputes, leaves = FakeDisputes(FakePort()), SlowLeaves(leaves_of(harness))
    defence = await defence_of(harness, disputes, leaves)
    disputes.open(challenge(job, 0, 1))
    async with asyncio.timeout(20):
        await defence.look()
        await defence.look()
    assert leaves.begun == 1 and not disputes.prepared
    leaves.go_on.set()
    await defence.look()
    await defence.look()
    assert leaves.begun == 1 and len(disputes.prepared) == 1


async def test_what_cannot_be_opened_is_told_and_not_replayed_every_round() -> None:
    harness, job = await served()
    disputes = FakeDisputes(FakePort())
    defence = await defence_of(harness, disputes, leaves_of(harness))
    harness.engine.numerics = b"another kernel"
    disputes.open(challenge(job, 0, 1))
    for _ in range(3):
        await defence.look()
    assert len(harness.engine.replayed) == 1
    (fault,) = harness.faults.failures(CHECK)
    assert fault.code is Code.CHALLENGE_OPEN and "other numbers" in fault.detail
    harness.engine.numerics = b""
    disputes.time += RETRY_S
    await defence.look()
    assert len(disputes.prepared) == 1 and not harness.faults.is_failing(CHECK)


async def test_a_changed_profile_is_a_fault_before_any_challenge() -> None:
    harness, _ = await served()
    disputes = FakeDisputes(FakePort(), time=int(harness.clock.now()))
    defence = await defence_of(harness, disputes, leaves_of(harness))
    await defence.look()
    assert not harness.faults.is_failing(REACH)
    harness.engine.known = replace(FACTS, profile="fake-gpu")
    await defence.look()
    (fault,) = harness.faults.failures(REACH)
    assert fault.code is Code.ENGINE_CHANGED and "fake-cpu" in fault.line


async def test_an_answer_that_the_chain_refuses_keeps_no_other_waiting() -> None:
    harness, job = await served()
    disputes = FakeDisputes(FakePort())
    defence = await defence_of(harness, disputes, leaves_of(harness))
    disputes.open(challenge(job, 0, 1))
    disputes.open(challenge(job, 1, 1))
    disputes.refuses.add(disputes.opened[0].id)
    with pytest.raises(RpcUnavailable):
        await defence.look()
    assert len(disputes.prepared) == 1


async def test_an_open_leaf_waits_for_the_chain_and_is_not_replayed_again() -> None:
    harness, job = await served()
    disputes = FakeDisputes(FakePort())
    defence = await defence_of(harness, disputes, leaves_of(harness))
    disputes.open(challenge(job, 0, 1))
    disputes.refuses.add(disputes.opened[0].id)
    for _ in range(2):
        with pytest.raises(RpcUnavailable):
            await defence.look()
    disputes.refuses.clear()
    await defence.look()
    assert len(harness.engine.replayed) == len(disputes.prepared) == 1


async def test_a_challenge_that_one_node_does_not_know_yet_is_looked_for_again() -> None:
    """One address may have several nodes behind it. One tells the event, another has no state."""
    harness, job = await served()
    disputes = FakeDisputes(FakePort(), status=ChallengeStatus.NONE)
    defence = await defence_of(harness, disputes, leaves_of(harness))
    disputes.open(challenge(job, 0, 1))
    await defence.look()
    assert not disputes.prepared and not defence.quiet
    disputes.status = ChallengeStatus.OPEN
    disputes.port.height += 10 * CURSOR_OVERLAP_BLOCKS
    await defence.look()
    assert len(disputes.prepared) == 1


async def test_a_challenge_that_nobody_concludes_is_given_up_with_its_evidence() -> None:
    """Each round would search from its block on, at last more blocks than a node takes."""
    harness, job = await served()
    disputes = FakeDisputes(FakePort())
    defence = await defence_of(harness, disputes, leaves_of(harness))
    harness.engine.numerics = b"another kernel"
    disputes.open(challenge(job, 0, 1))
    (opened,) = disputes.opened
    disputes.time = opened.answer_by + EVIDENCE_SECONDS
    await defence.look()
    assert harness.faults.is_failing(CHECK)
    assert int(harness.journal.notes[CURSOR]) < opened.log.block
    disputes.time += 1
    await defence.look()
    assert int(harness.journal.notes[CURSOR]) == disputes.port.height


async def test_nothing_is_quiet_before_the_chain_has_said_so() -> None:
    harness, job = await served()
    disputes = FakeDisputes(FakePort())
    defence = await defence_of(harness, disputes, leaves_of(harness))
    assert not defence.quiet
    await defence.look()
    assert defence.quiet
    disputes.open(challenge(job, 0, 1))
    await defence.look()
    assert not defence.quiet
    disputes.status = ChallengeStatus.ANSWERED
    await defence.look()
    assert defence.quiet
    disputes.down = True
    with pytest.raises(RpcUnavailable):
        await defence.look()
    assert not defence.quiet


async def test_a_leaf_is_opened_by_a_card_with_the_profile_of_its_job() -> None:
    harness, job = await served(profiles=(FACTS.profile, "fake-gpu"), entry=1)
    await leaves_of(harness).open(challenge(job, 0, 1))
    assert [len(engine.replayed) for engine in harness.engines] == [0, 1]
    harness.engines[1].known = replace(FACTS, profile="fake-tpu")
    with pytest.raises(CannotOpen, match="the job ran on fake-gpu, and the engine is fake-cpu and"):
        await leaves_of(harness).open(challenge(job, 0, 1))


async def test_a_card_that_is_replaced_is_a_fault_though_its_offer_has_others() -> None:
    harness, _ = await served(profiles=(FACTS.profile, "fake-gpu"), entry=1)
    disputes = FakeDisputes(FakePort(), time=int(harness.clock.now()))
    defence = await defence_of(harness, disputes, leaves_of(harness))
    await defence.look()
    assert not harness.faults.is_failing(REACH)
    harness.engines[1].known = replace(FACTS, profile="fake-tpu")
    await defence.look()
    (fault,) = harness.faults.failures(REACH)
    assert "1 jobs" in fault.line and "ran on fake-gpu," in fault.line
