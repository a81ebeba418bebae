"""Jobs with signed receipts and honest traces, for dispute contracts on real chains."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from piecework.chain.addresses import DisputeTerms
from piecework.chain.contracts import calls
from piecework.chain.contracts.evidence_calls import ReceiptEvidence, Subject
from piecework.chain.reading import disputes
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.deploy import deploy
from piecework_protocol.content import output_digest
from piecework_protocol.disputes import OpenedLeaf, open_leaf
from piecework_protocol.eip712 import Domain
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.objects import (
    Finish,
    Job,
    Kind,
    Parameters,
    Receipt,
    Registration,
    Service,
)
from piecework_protocol.rules.philox import IdPurpose, RandomIds
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.trace import (
    CanvasRecord,
    EmbeddingType,
    StepRecord,
    pinned_root,
    soft_field,
    trace_root,
    write_bits,
    write_ids,
)
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    JobId,
    Micros,
    PublicKey,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from tests.support.chain.chains import (
    ETHER,
    FAR,
    MIN_STAKE,
    POLL_S,
    UNBONDING_DELAY_S,
    USD,
    Chain,
    TestMarket,
    channel_of,
    signer,
)

PROVING_COST = Amount(USD // 2)
VERDICT_FEE = Amount(2 * USD)
MIN_BOND_WEI = 10**15
STAKE = Amount(1000 * USD)
AMOUNT = Amount(1000)
"""What every receipt charges."""
SIZE, VOCABULARY, STEPS = 12, 997, 3
MEMBERS = sorted((signer(f"member {i}") for i in range(3)), key=lambda m: m.address)
TERMS = DisputeTerms(
    PROVING_COST, MIN_BOND_WEI, VERDICT_FEE, tuple(m.address for m in MEMBERS), threshold=2
)


@asynccontextmanager
async def disputed(chain: Chain, terms: DisputeTerms = TERMS) -> AsyncIterator[TestMarket]:
    """A market with a dispute contract."""
    deployment = await deploy(
        chain.url,
        chain.faucet,
        min_stake=MIN_STAKE,
        unbonding_delay_s=UNBONDING_DELAY_S,
        disputes=terms,
        poll_s=POLL_S,
    )
    async with await ChainReader.connect(deployment) as reader:
        yield TestMarket(chain, deployment, reader)


async def staked(market: TestMarket, operator: LocalSigner, stake: Amount = STAKE) -> None:
    """Register an operator that is its own owner."""
    deployment = market.deployment
    await market.give(operator.address, wei=ETHER, tokens=stake)
    await market.run(operator, calls.approve(market.token, deployment.registry, stake))
    who = operator.address
    registration = Registration(who, who, who, stake, "worker.example:7443", Uint64(0), FAR)
    await market.run(operator, calls.register(deployment, registration))


@dataclass(frozen=True, slots=True)
class ServedCanvas:
    """One canvas of a job: what the worker signed, and what it can open."""

    subject: Subject
    signed: ReceiptEvidence
    record: CanvasRecord
    steps: tuple[StepRecord, ...]
    output: bytes

    @property
    def leaves(self) -> tuple[Digest, ...]:
        """The leaves under the receipt's trace root."""
        return (self.record.leaf(), *(step.leaf() for step in self.steps))

    def open(self, index: int, wanted: int) -> OpenedLeaf:
        """Open fields of a leaf, bit i of `wanted` for field i."""
        fields = self.record.fields() if index == 0 else self.steps[index - 1].fields()
        return open_leaf(self.leaves, index, fields, wanted)


async def serve(
    market: TestMarket,
    payer: LocalSigner,
    operator: LocalSigner,
    number: int = 0,
    *,
    authorizer: Address | None = None,
) -> ServedCanvas:
    """Make the honest canvas of a job on a channel of its own."""
    domain = market.reader.domain
    channel = channel_of(market, payer, operator, salt=number)
    if authorizer is not None:
        channel = channel.replace(authorizer=authorizer)
    parameters = Parameters(
        seed=Uint64(2**63 + number),
        max_tokens=Uint32(SIZE),
        max_steps=Uint32(STEPS),
        temperature_start=Micros(800_000),
        temperature_end=Micros(400_000),
        entropy_bound=Micros(100_000),
        confidence_threshold=Micros(5_000),
        stability_steps=Uint32(1),
        service=Service.REPLAYABLE,
    )
    job = Job(
        channel=channel.id(domain),
        salt=Bytes32(keccak256(b"salt %d" % number)),
        offer=Digest(keccak256(b"offer")),
        entry=Uint32(0),
        model=Digest(keccak256(b"model")),
        kind=Kind.TEXT,
        content=Digest(keccak256(b"content %d" % number)),
        parameters=parameters,
        max_amount=Amount(10 * AMOUNT),
        deadline=Timestamp(await market.reader.timestamp() + 3600),
        reply_key=PublicKey(keccak256(b"reply")),
    )
    return resigned(domain, operator, honest(Subject(channel, job)))


def honest(subject: Subject, pins: Mapping[int, int] | None = None) -> ServedCanvas:
    """Denoise a canvas with a model that is a hash. The receipt is not signed yet."""
    job, pins = subject.job, pins or {}
    record = CanvasRecord(
        canvas=0,
        size=SIZE,
        vocab_size=VOCABULARY,
        kind=job.kind,
        seed=job.parameters.seed,
        parameters=job.parameters.struct_hash(),
        content=job.content,
        pinned=pinned_root(sorted(pins.items())),
        prompt_tokens=7,
    )
    noise = RandomIds(record.seed, 0, 0, IdPurpose.INITIAL, VOCABULARY)
    before = [pins.get(place, noise.at(place)) for place in range(SIZE)]
    steps: list[StepRecord] = []
    argmax: list[int] = []
    for index in range(STEPS):
        noise = RandomIds(record.seed, 0, index, IdPurpose.RENOISE, VOCABULARY)
        said = [keccak256(b"%d %d %d" % (record.seed, index, place)) for place in range(SIZE)]
        argmax = [
            pins.get(place, int.from_bytes(word[:4], "big") % VOCABULARY)
            for place, word in enumerate(said)
        ]
        accepted = [place in pins or bool(word[5] & 1) for place, word in enumerate(said)]
        after = [argmax[place] if accepted[place] else noise.at(place) for place in range(SIZE)]
        soft = soft_field(EmbeddingType.FLOAT32, bytes([index]) * 8)
        ids = (write_ids(before), write_ids(after), write_ids(argmax))
        steps.append(StepRecord(0, index, *ids, write_bits(accepted), soft, bytes(6 * SIZE)))
        before = after
    output = TextOutput.plain(tuple(argmax), "a text").encode()
    nothing = ReceiptEvidence(
        _receipt(JobId(bytes(32)), Digest(bytes(32)), b""), calls.NO_SIGNATURE
    )
    return ServedCanvas(subject, nothing, record, tuple(steps), output)


def resigned(domain: Domain, operator: LocalSigner, canvas: ServedCanvas) -> ServedCanvas:
    """Sign the receipt of what the canvas holds now."""
    job_id = canvas.subject.job.id(domain)
    receipt = _receipt(job_id, trace_root(canvas.leaves), canvas.output)
    return replace(canvas, signed=signed_receipt(domain, operator, receipt))


def signed_receipt(domain: Domain, operator: LocalSigner, receipt: Receipt) -> ReceiptEvidence:
    """Sign a receipt, whatever it says."""
    return ReceiptEvidence(receipt, sign(domain, receipt, operator))


def _receipt(job_id: JobId, root: Digest, output: bytes) -> Receipt:
    return Receipt(
        job=job_id,
        canvas=Uint32(0),
        output_digest=output_digest(job_id, 0, output),
        trace_root=root,
        steps=Uint32(STEPS),
        units=Uint32(SIZE),
        amount=AMOUNT,
        finish=Finish.TOKEN_LIMIT,
        total_prompt_tokens=Uint32(7),
        total_units=Uint32(SIZE),
        total_steps=Uint32(STEPS),
        total_amount=AMOUNT,
        previous=Digest(job_id),
    )


def dispute_reader(market: TestMarket) -> disputes.DisputeReader:
    """Read the market's dispute contract."""
    return disputes.DisputeReader(market.rpc, market.deployment)
