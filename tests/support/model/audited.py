"""Evidence of jobs that the bundled engine really ran, signed by keys of the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bench.audit_workers import ServedCanvas, serve
from piecework_model import kinds
from piecework_model.charging import charge_of
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.jobs import generation_request
from piecework_model.requests import CanvasFinish, GenerationRequest
from piecework_model.text.segments import SegmentStream
from piecework_protocol.content import content_digest, output_digest
from piecework_protocol.evidence.file import (
    CanvasEvidence,
    EvidenceFile,
    ShownAcceptance,
    ShownJob,
    ShownOffer,
)
from piecework_protocol.kinds.audit import AuditContent, AuditOutput
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.objects import (
    Acceptance,
    Channel,
    Finish,
    Job,
    Kind,
    ModelOffer,
    Parameters,
    Receipt,
    Service,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.trace import CanvasRecord, pinned_root, read_ids, trace_root
from piecework_protocol.types import (
    Amount,
    Bytes32,
    Digest,
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
from tests.support.protocol.conversations import said

NOW = 1_800_000_000
PAYER = LocalSigner(bytes(keccak256(b"payer of an audit")))
WORKER = operator("worker")
Served = Callable[[list[GenerationRequest]], list[ServedCanvas]]
Told = Callable[[TextOutput], TextOutput]


@dataclass(frozen=True, slots=True)
class AuditedJob:
    """A job that ran: its evidence, and what its worker could open."""

    evidence: EvidenceFile
    canvases: tuple[ServedCanvas, ...]


def audited_job(
    loaded: LoadedModel,
    profile: str,
    *,
    max_tokens: int = 64,
    served: Served | None = None,
    told: Told = lambda output: output,
    most_canvases: int = 99,
    cancelled: int = 0,
) -> AuditedJob:
    """Run a job of the bundled model and sign what its worker would.

    served: who runs it, an honest worker on `loaded` if not given. told: what it says of an output.
    most_canvases: after so many it says that the text has ended.
    cancelled: steps after which the client left the last canvas. Its draft was shown. 0: it stayed.
    """
    content = TextContent(said("Write a story about a fox, a lantern and a river."))
    entry = _entry(loaded, profile)
    signed = offer("worker", NOW, models=(entry,))
    channel = _channel()
    job = _job(content, channel, Digest(DOMAIN.digest(signed.offer)), entry, max_tokens)
    encoded = kinds.encode(loaded, content, loaded.limits.canvas_size, loaded.limits.max_context)
    request = generation_request(
        "job", encoded, job.parameters, canvas_limit=99, committed=(), drafts=False
    )
    run = served or (lambda requests: serve(loaded, requests))
    canvases = tuple(run([request]))[:most_canvases]
    if cancelled:
        last = canvases[-1]
        records, softs = last.records[:cancelled], last.softs[:cancelled]
        canvases = (*canvases[:-1], replace(last, records=records, softs=softs))
    count = len(encoded.prompt_ids)
    accepted = Acceptance(job.id(DOMAIN), Uint32(count), Timestamp(NOW + 5))
    evidence = EvidenceFile(
        domain=DOMAIN,
        channel=channel,
        offer=ShownOffer(signed.offer, signed.signature, WORKER.address),
        job=ShownJob(job, sign(DOMAIN, job, PAYER)),
        acceptance=ShownAcceptance(accepted, sign(DOMAIN, accepted, WORKER)),
        canvases=_receipts(loaded, job, entry, request, canvases, told, left=bool(cancelled)),
        content=content.encode(),
    )
    return AuditedJob(evidence, canvases)


def _entry(loaded: LoadedModel, profile: str) -> ModelOffer:
    limits = loaded.limits
    return model(
        digest=Digest(loaded.digest),
        profile=profile,
        canvas_size=Uint32(limits.canvas_size),
        max_steps=Uint32(limits.max_steps),
        max_context=Uint32(limits.max_context),
        max_output=Uint32(limits.max_context),
    )


def _channel() -> Channel:
    return Channel(
        payer=PAYER.address,
        authorizer=PAYER.address,
        receiver=receiver("worker"),
        operator=WORKER.address,
        token=TOKEN,
        withdrawal_delay=Seconds(3600),
        salt=Bytes32(bytes(32)),
    )


def _job(
    content: TextContent | AuditContent,
    channel: Channel,
    offered: Digest,
    entry: ModelOffer,
    limit: int,
) -> Job:
    salt = keccak256(b"salt")
    return Job(
        channel=channel.id(DOMAIN),
        salt=salt,
        offer=offered,
        entry=Uint32(0),
        model=entry.digest,
        kind=Kind.TEXT,
        content=content_digest(salt, content.encode()),
        parameters=Parameters(
            seed=Uint64(2**63 + 5),
            max_tokens=Uint32(limit),
            max_steps=Uint32(6),
            temperature_start=Micros(800_000),
            temperature_end=Micros(400_000),
            entropy_bound=Micros(100_000),
            confidence_threshold=Micros(5_000),
            stability_steps=Uint32(1),
            service=Service.REPLAYABLE,
        ),
        max_amount=Amount(10**12),
        deadline=Timestamp(NOW + 3600),
        reply_key=PublicKey(bytes(32)),
    )


def _receipts(  # noqa: PLR0917  all of one job
    loaded: LoadedModel,
    job: Job,
    entry: ModelOffer,
    request: GenerationRequest,
    canvases: tuple[ServedCanvas, ...],
    told: Told,
    *,
    left: bool,
) -> tuple[CanvasEvidence, ...]:
    key, prompt = job.id(DOMAIN), len(request.prompt_ids)
    codec = loaded.tokenizer
    charge = charge_of(request, loaded.limits.canvas_size, loaded.eos_ids, codec.control_ids)
    stream = SegmentStream(codec)
    shown: list[CanvasEvidence] = []
    for index, canvas in enumerate(canvases):
        if left and index + 1 == len(canvases):
            charged = charge.preview(read_ids(canvas.records[-1].argmax))
            finish, segments = Finish.CANCELLED, stream.preview(charged)
        else:
            charged, ends = charge.append(canvas.token_ids)
            if index + 1 == len(canvases) and ends is CanvasFinish.MORE:
                ends = CanvasFinish.END_OF_TEXT
            finish, segments = Finish(int(ends)), stream.append(charged, final=bool(ends))
        output = told(TextOutput(charged, segments)).encode()
        leaves = (_canvas_leaf(loaded, job, index, prompt), *map(Digest, canvas.leaves))
        last = shown[-1].receipt if shown else None
        receipt = Receipt(
            job=key,
            canvas=Uint32(index),
            output_digest=output_digest(key, Uint32(index), output),
            trace_root=trace_root(leaves),
            steps=Uint32(len(canvas.records)),
            units=Uint32(len(charged)),
            amount=Amount(0),
            finish=finish,
            total_prompt_tokens=Uint32(prompt),
            total_units=Uint32(0),
            total_steps=Uint32(0),
            total_amount=Amount(0),
            previous=Digest(key if last is None else DOMAIN.digest(last)),
        )
        receipt = charge_receipt(receipt, last, entry, prompt)
        shown.append(CanvasEvidence(receipt, sign(DOMAIN, receipt, WORKER), leaves, output))
    return tuple(shown)


def _canvas_leaf(loaded: LoadedModel, job: Job, canvas: int, prompt_tokens: int) -> Digest:
    limits = loaded.limits
    return CanvasRecord(
        canvas=canvas,
        size=limits.canvas_size,
        vocab_size=limits.vocab_size,
        kind=job.kind,
        seed=job.parameters.seed,
        parameters=job.parameters.struct_hash(),
        content=job.content,
        pinned=pinned_root(()),
        prompt_tokens=prompt_tokens,
    ).leaf()


def sold_audit(
    loaded: LoadedModel,
    profile: str,
    content: AuditContent,
    report: AuditOutput,
    step_leaves: Sequence[Digest],
) -> EvidenceFile:
    """The evidence of an audit job that a worker has signed, whatever it says."""
    entry = _entry(loaded, profile).replace(kinds=Uint32(Kind.TEXT.bit | Kind.AUDIT.bit))
    signed = offer("worker", NOW, models=(entry,))
    channel = _channel()
    job = _job(content, channel, Digest(DOMAIN.digest(signed.offer)), entry, 32)
    limits = loaded.limits
    job = job.replace(
        kind=Kind.AUDIT,
        parameters=job.parameters.replace(
            max_tokens=Uint32(limits.canvas_size), max_steps=Uint32(content.steps)
        ),
    )
    key, output = job.id(DOMAIN), report.encode()
    leaves = (_canvas_leaf(loaded, job, 0, content.prompt_tokens), *step_leaves)
    receipt = Receipt(
        job=key,
        canvas=Uint32(0),
        output_digest=output_digest(key, Uint32(0), output),
        trace_root=trace_root(leaves),
        steps=Uint32(len(step_leaves)),
        units=Uint32(0),
        amount=Amount(0),
        finish=Finish.END_OF_TEXT,
        total_prompt_tokens=Uint32(content.prompt_tokens),
        total_units=Uint32(0),
        total_steps=Uint32(0),
        total_amount=Amount(0),
        previous=Digest(key),
    )
    receipt = charge_receipt(receipt, None, entry, content.prompt_tokens + content.context)
    accepted = Acceptance(key, Uint32(receipt.total_prompt_tokens), Timestamp(NOW + 5))
    return EvidenceFile(
        domain=DOMAIN,
        channel=channel,
        offer=ShownOffer(signed.offer, signed.signature, WORKER.address),
        job=ShownJob(job, sign(DOMAIN, job, PAYER)),
        acceptance=ShownAcceptance(accepted, sign(DOMAIN, accepted, WORKER)),
        canvases=(CanvasEvidence(receipt, sign(DOMAIN, receipt, WORKER), leaves, output),),
        content=content.encode(),
    )
