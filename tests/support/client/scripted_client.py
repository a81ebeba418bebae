"""A client whose every step is in the test's hand, over whatever carries its frames.

The shipped client of `tests.support.market.shipped` pays, resumes and closes by itself. This one
does nothing on its own: a test hands it the worker's bytes and takes its answers from `upward`. So
a test can withhold, repeat, reorder or forge them. What it verifies and how it pays is production
code: `ClientSession` and `PayerLedger`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Self

from piecework_protocol.client_session import (
    CanvasVerified,
    ClientEvent,
    ClientSession,
    Openers,
    paid_amount,
)
from piecework_protocol.content import content_digest
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.eip712 import Domain
from piecework_protocol.frames import (
    Accepted,
    CancelJob,
    ClientFrame,
    Funding,
    JobEnded,
    LeafRef,
    SubmitJob,
    VoucherAccepted,
)
from piecework_protocol.kinds import Content, Output
from piecework_protocol.kinds.text import TextContent, TextOutput
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.objects import Channel, Job, ModelOffer, Parameters, Receipt
from piecework_protocol.outlines import Outline
from piecework_protocol.sealing import (
    canvas_context,
    content_context,
    draft_context,
    public_key,
    seal,
    unseal,
)
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import Amount, Digest, JobId, Timestamp, Uint32, keccak256
from piecework_protocol.wire import SignedOffer, decode_worker_frame, encode_client_frame

CEILING = Amount(10**12)


@dataclass
class ScriptedJob:
    """One job at the client. `upward` holds the bytes that the worker has not been given yet."""

    submission: SubmitJob
    domain: Domain
    model: ModelOffer
    openers: Openers
    outline: Outline
    receipts: list[Receipt] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    acknowledged: int = 0
    streams: int = 0
    """How often a stream was begun."""
    ended: JobEnded | None = None
    upward: deque[bytes] = field(default_factory=deque)
    session: ClientSession = field(init=False)

    def __post_init__(self) -> None:
        self._renew_session()

    @property
    def text(self) -> list[str]:
        """The final text of each canvas."""
        return [output.text for output in self.outputs if isinstance(output, TextOutput)]

    @classmethod
    def sealed(
        cls,
        client: ScriptedClient,
        offer: SignedOffer,
        prompt: str | Content,
        parameters: Parameters,
        deadline: int,
        *,
        entry: int = 0,
    ) -> Self:
        """A signed job with its sealed prompt, not submitted yet."""
        models = offer.offer.models
        domain, model = client.domain, models[min(entry, len(models) - 1)]
        content = prompt
        if isinstance(content, str):
            content = TextContent(Conversation((Message("user", content),)))
        data = content.encode()
        salt = keccak256(client.id + data + parameters.seed.to_bytes(8, "big"))
        secret = bytes(keccak256(b"reply" + salt))
        job = Job(
            channel=client.id,
            salt=salt,
            offer=Digest(domain.digest(offer.offer)),
            entry=Uint32(entry),
            model=model.digest,
            kind=content.kind,
            content=content_digest(salt, data),
            parameters=parameters,
            max_amount=CEILING,
            deadline=Timestamp(deadline),
            reply_key=public_key(secret),
        )
        key = job.id(domain)
        sealed = seal(data, offer.offer.sealing_key, content_context(domain, key))
        submission = SubmitJob(job, sign(domain, job, client.signer), client.channel, sealed)
        openers = Openers(
            canvas=lambda sealed, canvas: unseal(
                sealed, secret, canvas_context(domain, key, canvas)
            ),
            draft=lambda sealed, canvas, step: unseal(
                sealed, secret, draft_context(domain, key, canvas, step)
            ),
        )
        return cls(submission, domain, model, openers, content.outline)

    @property
    def job(self) -> Job:
        return self.submission.job

    @property
    def id(self) -> JobId:
        return self.session.id

    @property
    def amount(self) -> int:
        """What the receipts charge, in base units."""
        return paid_amount(tuple(self.receipts))

    @property
    def finished(self) -> bool:
        """Whether the last receipt says that the text is complete."""
        return self.session.complete

    def open(self, *, funding: Funding | None = None, drafts: bool = False) -> None:
        """Begin a stream for the job, or come back to it: what lay in `upward` is lost."""
        self._renew_session()
        self.streams += 1
        self.upward.clear()
        self.ended = None
        last = Digest(self.domain.digest(self.receipts[-1])) if self.receipts else None
        self.say(
            replace(
                self.submission,
                received=self.session.received,
                last_receipt=last,
                funding=funding,
                drafts=drafts,
            )
        )

    def without_text(self) -> Self:
        """The same job at a client that has lost its text and its receipts."""
        return type(self)(self.submission, self.domain, self.model, self.openers, self.outline)

    def say(self, frame: ClientFrame) -> None:
        """Put a frame on the way to the worker."""
        self.upward.append(encode_client_frame(frame))

    def cancel(self) -> None:
        """Ask the worker to stop."""
        self.session.leave()
        self.say(CancelJob())

    def _renew_session(self) -> None:
        self.session = ClientSession(
            self.job,
            self.submission.channel,
            self.model,
            self.domain,
            self.openers,
            outline=self.outline,
            receipts=tuple(self.receipts),
            resumed=self.streams > 0,
        )


class ScriptedClient:
    """A payer with one channel. `paid_log` names what was paid, in the order of the book."""

    def __init__(self, domain: Domain, signer: LocalSigner, channel: Channel, deposit: int) -> None:
        self.domain, self.signer, self.channel = domain, signer, channel
        self.id = channel.id(domain)
        self.deposit = Amount(deposit)
        self.book = PayerLedger(self.id)
        self.paid_log: list[LeafRef] = []
        self.acknowledged = 0

    def take(self, job: ScriptedJob, data: bytes) -> ClientEvent:
        """Verify one frame of the worker. Pay what it delivers, once."""
        event = job.session.receive(decode_worker_frame(data))
        if isinstance(event, Accepted):
            self._reconcile(job, event)
        elif isinstance(event, CanvasVerified):
            job.receipts.append(event.receipt)
            job.outputs.append(event.output)
            self._pay(job, event)
        elif isinstance(event, VoucherAccepted):
            job.acknowledged = event.count
            self.acknowledged = max(self.acknowledged, event.count)
            self.book = self.book.acknowledge(event.count)
        elif isinstance(event, JobEnded):
            job.ended = event
        return event

    def send_voucher(self, job: ScriptedJob) -> None:
        """State the book on this job's stream."""
        voucher = self.book.voucher()
        job.say(self.book.payment(voucher, sign(self.domain, voucher, self.signer)))

    def _pay(self, job: ScriptedJob, event: CanvasVerified) -> None:
        ref = LeafRef(event.receipt.job, event.receipt.canvas)
        if ref in self.paid_log:
            return  # a client that lost its text reads what it has paid for
        self.book = self.book.pay(ref, event.digest, event.receipt.amount, self.deposit)
        self.paid_log.append(ref)
        self.send_voucher(job)

    def _reconcile(self, job: ScriptedJob, event: Accepted) -> None:
        """After a resume the worker may not have our latest vouchers: state the book again."""
        count = event.account.voucher.count if event.account else 0
        since = tuple(self.paid_log[count:])
        self.book = self.book.rewind(count, since)
        if since:
            self.send_voucher(job)
