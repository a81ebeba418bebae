"""Evidence files of jobs that never ran, signed by real keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from piecework_protocol import merkle
from piecework_protocol.content import content_digest, output_digest
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    Contradiction,
    EvidenceFile,
    PaidCanvas,
    ShownAcceptance,
    ShownJob,
    ShownOffer,
    ShownPayment,
)
from piecework_protocol.kinds import Content, Output
from piecework_protocol.kinds.read import Label, Question, ReadContent, ReadOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import (
    Acceptance,
    Channel,
    Finish,
    Job,
    Kind,
    Parameters,
    Receipt,
    Service,
    Voucher,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import (
    Amount,
    Bytes32,
    Digest,
    JobId,
    Micros,
    PublicKey,
    Seconds,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from tests.support.chain.fake_chain import DOMAIN, TOKEN
from tests.support.market.offers import model, offer, operator, receiver
from tests.support.protocol.charging import charge_receipt

PAYER = LocalSigner(bytes(keccak256(b"payer of evidence")))
PROMPT_TOKENS = 7
SIZE = 4
"""Tokens of a canvas."""
NOW = 1_800_000_000


@dataclass(frozen=True, slots=True)
class Story:
    """A job to make evidence of.

    steps: of each canvas. sentences: the text of each canvas. cancelled: whether the last canvas
    was. ended: whether the last canvas ends the job. others: receipts of other jobs before and
    between these in the channel.
    """

    steps: tuple[int, ...] = (3, 5)
    sentences: tuple[str, ...] = ("Once ", "more.")
    prompt: str = "Tell me."
    seed: int = 2**63 + 1
    cancelled: bool = False
    ended: bool = True
    best_effort: bool = False
    with_text: bool = True
    with_leaves: bool = True
    others: int = 2
    contradictory: bool = False


DEFAULT = Story()


def evidence(story: Story = DEFAULT, asked: TextContent | None = None) -> EvidenceFile:
    """Make the evidence of a text job that ran as the story says. `asked` is its content."""
    content = asked or TextContent(Conversation((Message("user", story.prompt),)))
    outputs = [
        TextOutput.plain(_tokens(story, i), sentence) for i, sentence in enumerate(story.sentences)
    ]
    limit = SIZE * len(outputs) + (0 if story.cancelled else 1)
    limit = 4096 if content.template else limit
    end = Finish.END_OF_TEXT if story.ended else Finish.MORE
    return _whole(story, content, list(outputs), limit, end)


def read_evidence_file() -> EvidenceFile:
    """Make the evidence of a read with one question and two draws."""
    labels = (Label("yes"), Label("no"))
    asked = ReadContent(Conversation((Message("user", "Is it?"),)), (Question("Well?", labels),), 2)
    return read_evidence_of(asked, [(65536 - n, n) for n in (1, 30_000)])


def read_evidence_of(
    asked: ReadContent, answers: Sequence[tuple[int, ...]], *, cancelled: bool = False
) -> EvidenceFile:
    """Make the evidence of a read. A canvas has room for one question.

    answers: of each canvas: all draws of the first question, then those of the next.
    """
    outputs: list[Output] = [ReadOutput((answer,)) for answer in answers]
    story = Story(steps=(1,) * len(outputs), cancelled=cancelled)
    limit = asked.canvases(SIZE) * SIZE
    return _whole(story, asked, outputs, limit, Finish.END_OF_TEXT)


def _tokens(story: Story, canvas: int) -> tuple[int, ...]:
    last = story.ended and canvas + 1 == len(story.sentences)
    return tuple(range(100 * canvas, 100 * canvas + (2 if last else SIZE)))


def _whole(
    story: Story, content: Content, outputs: list[Output], limit: int, end: Finish
) -> EvidenceFile:
    key = operator("worker")
    kinds = Uint32(Kind.TEXT.bit | Kind.READ.bit)
    kind = model(canvas_size=Uint32(SIZE), kinds=kinds)
    if story.best_effort:
        kind = kind.replace(
            service=Service.BEST_EFFORT,
            max_steps=Uint32(0),
            price_per_thousand_steps=Amount(0),
        )
    signed = offer("worker", NOW, models=(model("another"), kind))
    channel = _channel()
    job = _job(story, content, channel, Digest(DOMAIN.digest(signed.offer)), limit)
    job = job.replace(model=kind.digest)
    accepted = Acceptance(job.id(DOMAIN), Uint32(PROMPT_TOKENS), Timestamp(NOW + 5))
    canvases = _canvases(story, job, outputs, key, end)
    file = EvidenceFile(
        domain=DOMAIN,
        channel=channel,
        offer=ShownOffer(signed.offer, signed.signature, key.address),
        job=ShownJob(job, sign(DOMAIN, job, PAYER)),
        acceptance=ShownAcceptance(accepted, sign(DOMAIN, accepted, key)),
        canvases=canvases,
        payments=(_payment(story, channel, canvases),),
        content=content.encode() if story.with_text else None,
    )
    return replace(file, contradictions=_contradictions(file, key)) if story.contradictory else file


def _channel() -> Channel:
    return Channel(
        payer=PAYER.address,
        authorizer=PAYER.address,
        receiver=receiver("worker"),
        operator=operator("worker").address,
        token=TOKEN,
        withdrawal_delay=Seconds(3600),
        salt=Bytes32(bytes(32)),
    )


def _job(story: Story, content: Content, channel: Channel, offered: Digest, limit: int) -> Job:
    reading = content.kind is Kind.READ
    own = Parameters(
        seed=Uint64(story.seed),
        max_tokens=Uint32(limit),
        max_steps=Uint32(1 if reading else 48),
        temperature_start=Micros(800_000),
        temperature_end=Micros(400_000),
        entropy_bound=Micros(100_000),
        confidence_threshold=Micros(5_000),
        stability_steps=Uint32(1),
        service=Service.REPLAYABLE,
    )
    if story.best_effort:
        none = dict.fromkeys(
            ("seed", "max_steps", "temperature_start", "temperature_end", "entropy_bound"), 0
        )
        own = own.replace(
            **none, confidence_threshold=0, stability_steps=0, service=Service.BEST_EFFORT
        )
    salt = keccak256(b"salt")
    return Job(
        channel=channel.id(DOMAIN),
        salt=salt,
        offer=offered,
        entry=Uint32(1),
        model=Digest(bytes(32)),
        kind=content.kind,
        content=content_digest(salt, content.encode()),
        parameters=own,
        max_amount=Amount(10**12),
        deadline=Timestamp(NOW + 3600),
        reply_key=PublicKey(bytes(32)),
    )


def _canvases(
    story: Story, job: Job, outputs: list[Output], key: LocalSigner, end: Finish
) -> tuple[CanvasEvidence, ...]:
    key_of_job, found, last = job.id(DOMAIN), [], None
    kind = model(canvas_size=Uint32(SIZE))
    if story.best_effort:
        kind = kind.replace(price_per_thousand_steps=Amount(0))
    for i, output in enumerate(outputs):
        steps = 0 if story.best_effort else story.steps[i]
        leaves = tuple(Digest(keccak256(bytes([i, j]))) for j in range(steps + 1 if steps else 0))
        final = Finish.CANCELLED if story.cancelled else end
        receipt = _receipt(key_of_job, i, output, leaves, steps)
        receipt = receipt.replace(
            finish=final if i + 1 == len(outputs) else Finish.MORE,
            previous=Digest(key_of_job if last is None else DOMAIN.digest(last)),
        )
        receipt = charge_receipt(receipt, last, kind, PROMPT_TOKENS)
        shown = output.encode() if story.with_text else None
        kept = leaves if story.with_leaves else None
        found.append(CanvasEvidence(receipt, sign(DOMAIN, receipt, key), kept, shown))
        last = receipt
    return tuple(found)


def _receipt(
    job: JobId, canvas: int, output: Output, leaves: tuple[Digest, ...], steps: int
) -> Receipt:
    """A receipt whose totals are still to be set."""
    return Receipt(
        job=job,
        canvas=Uint32(canvas),
        output_digest=output_digest(job, canvas, output.encode()),
        trace_root=merkle.root(leaves),
        steps=Uint32(steps),
        units=Uint32(output.units),
        amount=Amount(0),
        finish=Finish.MORE,
        total_prompt_tokens=Uint32(PROMPT_TOKENS),
        total_units=Uint32(0),
        total_steps=Uint32(0),
        total_amount=Amount(0),
        previous=Digest(bytes(32)),
    )


def _payment(story: Story, channel: Channel, canvases: tuple[CanvasEvidence, ...]) -> ShownPayment:
    other = [Bytes32(keccak256(bytes([n]))) for n in range(story.others)]
    mine = [Bytes32(DOMAIN.digest(canvas.receipt)) for canvas in canvases]
    tree, proofs = merkle.prove_all([*other, *mine])
    owed = Amount(1000 + sum(canvas.receipt.amount for canvas in canvases))
    voucher = Voucher(channel.id(DOMAIN), owed, Uint64(len(proofs)), tree)
    paid = tuple(PaidCanvas(i, proof) for i, proof in enumerate(proofs[story.others :]))
    return ShownPayment(voucher, sign(DOMAIN, voucher, PAYER), paid)


def _contradictions(file: EvidenceFile, key: LocalSigner) -> tuple[Contradiction, ...]:
    """Another first receipt, another acceptance, another voucher of the same count."""
    first, accepted = file.canvases[0], file.acceptance
    assert accepted is not None
    payment = file.payments[0]
    receipt = first.receipt.replace(units=Uint32(1))
    promise = accepted.acceptance.replace(prompt_tokens=Uint32(PROMPT_TOKENS + 1))
    voucher = payment.voucher.replace(cumulative=Amount(1))
    pairs = (
        (first.receipt, first.signature, receipt, sign(DOMAIN, receipt, key)),
        (accepted.acceptance, accepted.signature, promise, sign(DOMAIN, promise, key)),
        (payment.voucher, payment.signature, voucher, sign(DOMAIN, voucher, PAYER)),
    )
    return tuple(Contradiction(*pair) for pair in pairs)
