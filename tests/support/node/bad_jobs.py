"""Submissions that must be turned away, each named by its defect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from piecework_protocol.content import content_digest
from piecework_protocol.conversation import Message
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import Reason
from piecework_protocol.frames import FundingAuthorization, PayVoucher, SubmitJob
from piecework_protocol.ledger import empty_voucher
from piecework_protocol.limits import MAX_FRAME_BYTES
from piecework_protocol.objects import Channel, FundChannel, Job
from piecework_protocol.sealing import content_context, seal
from piecework_protocol.signing import LocalSigner, sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    PayerSignature,
    Seconds,
    Timestamp,
    Uint32,
    keccak256,
)
from piecework_protocol.wire import SignedOffer, encode_client_frame
from tests.support.node.harness import parameters
from tests.support.protocol.conversations import encode_messages

FOX = encode_messages((Message("user", "a fox"),))
NO_STEPS = parameters(1, 1).replace(max_steps=Uint32(0))
STRANGER = LocalSigner(bytes(keccak256(b"somebody else")))


@dataclass(frozen=True)
class Scene:
    """What a bad job is made from: a payer with a funded channel on which `paid` was run and paid
    for."""

    domain: Domain
    payer: LocalSigner
    channel: Channel
    offer: SignedOffer
    paid: SubmitJob
    pooled: Amount
    now: int

    def submission(self, text: bytes = FOX, **changes: object) -> SubmitJob:
        """A good job that was never submitted, but for `changes`."""
        salt = Bytes32(keccak256(repr(sorted(changes)).encode() + text[:100]))
        job = replace(
            self.paid.job,
            salt=salt,
            content=content_digest(salt, text),
            parameters=parameters(11, 40),
        ).replace(**changes)
        return self.signed(job, self.channel, text)

    def signed(
        self, job: Job, channel: Channel, text: bytes, domain: Domain | None = None
    ) -> SubmitJob:
        domain = domain or self.domain
        sealed = seal(text, self.offer.offer.sealing_key, content_context(domain, job.id(domain)))
        return SubmitJob(job, sign(domain, job, self.payer), channel, sealed)

    def on_channel(self, channel: Channel, domain: Domain | None = None) -> SubmitJob:
        """A good job on another channel."""
        job = self.submission().job.replace(channel=channel.id(domain or self.domain))
        return self.signed(job, channel, FOX, domain)

    def new_channel(self, name: str, **changes: object) -> Channel:
        return self.channel.replace(salt=Bytes32(keccak256(name.encode())), **changes)

    def funding(
        self,
        channel: Channel,
        deposit: int,
        signer: LocalSigner,
        deadline: int,
        *,
        fee: int = 0,
    ) -> FundingAuthorization:
        authorization = FundChannel(channel, Amount(deposit), Amount(fee), Timestamp(deadline))
        signature = PayerSignature(sign(self.domain, authorization, signer))
        return FundingAuthorization(authorization, signature)


@dataclass(frozen=True)
class BadJob:
    """The bytes of a first frame, and the reason that they get."""

    reason: Reason
    data: Callable[[Scene], bytes]


def _job(reason: Reason, make: Callable[[Scene], SubmitJob]) -> BadJob:
    return BadJob(reason, lambda scene: encode_client_frame(make(scene)))


def _wrong_chain(s: Scene) -> SubmitJob:
    elsewhere = replace(s.domain, chain_id=s.domain.chain_id + 1)
    return s.on_channel(s.channel, elsewhere)


def _funded(
    s: Scene, name: str, deposit: int, signer: LocalSigner, lifetime_s: int = 3600
) -> SubmitJob:
    channel = s.new_channel(name)
    return replace(
        s.on_channel(channel), funding=s.funding(channel, deposit, signer, s.now + lifetime_s)
    )


def _voucher_first(s: Scene) -> bytes:
    voucher = empty_voucher(s.paid.job.channel)
    return encode_client_frame(PayVoucher(voucher, sign(s.domain, voucher, s.payer), 0, ()))


def _another_prompt(s: Scene) -> SubmitJob:
    job = s.submission().job.replace(content=Digest(bytes(32)))
    return s.signed(job, s.channel, FOX)


def _salt_again(s: Scene) -> SubmitJob:
    salt = s.paid.job.salt
    return s.submission(salt=salt, content=content_digest(salt, FOX))


def _long(s: Scene) -> SubmitJob:
    return s.submission(encode_messages((Message("user", "fox " * 70_000),)))


def _dear(s: Scene) -> SubmitJob:
    return s.submission(encode_messages((Message("user", "fox " * 20_000),)))


BAD_JOBS: Mapping[str, BadJob] = {
    "malformed: noise": BadJob(Reason.MALFORMED, lambda _: b"\xff\xfe" * 50),
    "malformed: nothing": BadJob(Reason.MALFORMED, lambda _: b""),
    "malformed: cut off": BadJob(
        Reason.MALFORMED, lambda s: encode_client_frame(s.submission())[:-9]
    ),
    "malformed: not a submission": BadJob(Reason.BROKEN_CLAUSE, _voucher_first),
    "malformed: prompt": _job(Reason.MALFORMED, lambda s: s.submission(b"\1\0\0\0\1noise")),
    "malformed: parameters": _job(
        Reason.BAD_PARAMETERS,
        lambda s: s.submission(parameters=NO_STEPS),
    ),
    "malformed: seal": _job(
        Reason.CANNOT_OPEN_PROMPT, lambda s: replace(s.submission(), sealed_content=bytes(100))
    ),
    "malformed: another prompt": _job(Reason.PROMPT_MISMATCH, _another_prompt),
    "oversized: frame": BadJob(Reason.OVERSIZED, lambda _: bytes(MAX_FRAME_BYTES + 1)),
    "oversized: prompt": _job(Reason.PROMPT_TOO_LONG, _long),
    "oversized: prompt beyond the credit": _job(Reason.CREDIT_EXHAUSTED, _dear),
    "oversized: output": _job(
        Reason.BAD_PARAMETERS, lambda s: s.submission(parameters=parameters(1, 2**31 - 1))
    ),
    "malformed: a number out of its range": _job(
        Reason.MALFORMED, lambda s: s.submission(parameters=parameters(1, 2**31))
    ),
    "expired": _job(Reason.EXPIRED, lambda s: s.submission(deadline=Timestamp(s.now - 1))),
    "expired: authorization": _job(
        Reason.EXPIRED, lambda s: _funded(s, "late", 200_000, s.payer, lifetime_s=30)
    ),
    "replayed: salt": _job(Reason.JOB_CONFLICT, _salt_again),
    "replayed: of a job that never was": _job(
        Reason.JOB_ENDED, lambda s: replace(s.submission(), received=3)
    ),
    "replayed: on another channel": _job(
        Reason.WRONG_CHAIN, lambda s: replace(s.paid, channel=s.new_channel("other"))
    ),
    "underfunded: no channel": _job(
        Reason.CHANNEL_UNKNOWN, lambda s: s.on_channel(s.new_channel("never opened"))
    ),
    "underfunded: small deposit": _job(
        Reason.UNDERFUNDED, lambda s: _funded(s, "small", 5, s.payer)
    ),
    "underfunded: empty pool": _job(
        Reason.UNDERFUNDED, lambda s: _funded(s, "greedy", s.pooled + 1, s.payer)
    ),
    "underfunded: short delay": _job(
        Reason.WITHDRAWAL_DELAY_TOO_SHORT,
        lambda s: s.on_channel(s.new_channel("hasty", withdrawal_delay=Seconds(60))),
    ),
    "wrongly priced": _job(Reason.PRICE_TOO_LOW, lambda s: s.submission(max_amount=Amount(1))),
    "wrongly priced: in another token": _job(
        Reason.TOKEN_NOT_ACCEPTED,
        lambda s: s.on_channel(s.new_channel("token", token=Address(b"\x77" * 20))),
    ),
    "wrongly priced: no such offer": _job(
        Reason.UNKNOWN_OFFER, lambda s: s.submission(offer=Digest(b"\x55" * 32))
    ),
    "wrongly signed": _job(
        Reason.BAD_SIGNATURE,
        lambda s: replace(s.submission(), signature=sign(s.domain, s.submission().job, STRANGER)),
    ),
    "wrongly signed: authorization": _job(
        Reason.BAD_SIGNATURE, lambda s: _funded(s, "forged", 200_000, STRANGER)
    ),
    "wrong chain": _job(Reason.WRONG_CHAIN, _wrong_chain),
    "wrong worker": _job(
        Reason.WRONG_WORKER,
        lambda s: s.on_channel(s.new_channel("wrong", receiver=Address(b"\x66" * 20))),
    ),
    "unknown model": _job(Reason.UNKNOWN_MODEL, lambda s: s.submission(model=Digest(b"\x44" * 32))),
}
