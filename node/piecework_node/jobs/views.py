"""What admission is told of a submission, out of the running worker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from piecework_node.engine.link import EngineFacts
from piecework_node.jobs import admission, prompts
from piecework_node.jobs.admission import AdmissionView, ChannelView, Served
from piecework_node.jobs.prompts import TokenLimit
from piecework_node.jobs.terms import OperatorTerms
from piecework_node.runtime.cards import EngineEntry, entry_of
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.credit import CreditAccounts
from piecework_node.runtime.funding import authorization_in, better_funding, usable_funding
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import LiveChannel
from piecework_node.times import now
from piecework_protocol.credit import PayerCredit
from piecework_protocol.frames import SubmitJob
from piecework_protocol.kinds import Content
from piecework_protocol.objects import ModelOffer, Offer
from piecework_protocol.types import Address, Amount, Digest, JobId
from piecework_protocol.wire import SignedOffer

KEPT_OFFER_S: Final = 60
"""How long a job may still name an offer after it expired. Admission refuses it with a reason."""


@dataclass(frozen=True, slots=True)
class Admitting:
    """A submission that is being looked at.

    Attributes:
        payer: Who says that it pays.
        entry: What the job is bound to, if that is known.
        unvetted: Bytes of a prompt whose channel this worker does not know. 0: it knows it.
    """

    payer: Address
    entry: EngineEntry | None
    unvetted: int = 0


class AdmissionViews:
    """Makes the values that `admission` decides by."""

    def __init__(
        self, runtime: JobRuntime, channels: Channels, credit: CreditAccounts, terms: OperatorTerms
    ) -> None:
        self._runtime, self._channels = runtime, channels
        self._credit, self.terms = credit, terms
        self.draining = False
        self.admitting: dict[JobId, Admitting] = {}
        """What is being looked at."""
        self.vetted: dict[JobId, Admitting] = {}
        """Those of them for whose channels the chain has vouched, oldest first. They have places.

        The others have none: anybody can submit jobs of channels that do not exist.
        """
        self._offers: dict[Digest, Offer] = {}

    def remember_offer(self, signed: SignedOffer) -> None:
        """Let jobs name this offer from now on. Call it when the offer is journaled."""
        oldest = now(self._runtime.clock) - KEPT_OFFER_S
        kept = {d: offer for d, offer in self._offers.items() if offer.expires_at > oldest}
        self._offers = {**kept, Digest(self._runtime.domain.digest(signed.offer)): signed.offer}

    @property
    def active(self) -> int:
        """Jobs that run, wait for a slot, or are being admitted and have a place."""
        return len(self._runtime.sequences) + len(self.vetted)

    @property
    def taking_steps(self) -> int:
        """Jobs for which an engine has something to do. What waits for its client does not count.

        So a client that reads or pays slowly makes no machine look busy.
        """
        return sum(
            job.waiting_since is None
            and not (job.short_of_credit and job.session.canvases >= job.granted)
            and job.card is not None
            and job.card.serves
            for job in self._runtime.sequences.values()
        )

    def look_at(self, job: JobId, submission: SubmitJob) -> None:
        """Note a submission that is being looked at."""
        known = self._channels.get(submission.job.channel) is not None
        size = 0 if known else len(submission.sealed_content)
        payer = submission.channel.payer
        self.admitting[job] = Admitting(payer, self.entry(submission), size)

    def vet(self, job: JobId, entry: EngineEntry | None = None) -> None:
        """Give a submission its place.

        entry: what a job that was admitted before is bound to.
        """
        known = self.admitting[job]
        self.vetted[job] = self.admitting[job] = Admitting(known.payer, entry or known.entry)

    def looked_at(self, job: JobId) -> None:
        """A submission was admitted or refused."""
        self.admitting.pop(job, None)
        self.vetted.pop(job, None)

    def active_on(self, entry: EngineEntry | None, *, but: JobId | None = None) -> int:
        """Count the jobs that take a place among those of an entry. None: of any.

        A job that waits on a paused card takes none on the others.
        """
        able = self._runtime.cards.able(entry)
        resting = [card for card in self._runtime.cards if card.ready and card not in able]
        running = sum(
            1
            for job in self._runtime.sequences.values()
            if (entry is None or job.entry == entry) and job.card not in resting
        )
        return running + sum(
            job != but and entry in (None, one.entry) for job, one in self.vetted.items()
        )

    def _unvetted_bytes(self, job: JobId, submission: SubmitJob) -> int:
        if job in self.vetted or self._channels.get(submission.job.channel) is not None:
            return 0
        return sum(one.unvetted for other, one in self.admitting.items() if other != job)

    def entry(self, submission: SubmitJob) -> EngineEntry | None:
        """What a submission is bound to. None: its offer is not known, or has no such entry."""
        offer = self._offers.get(submission.job.offer)
        model: ModelOffer | None = None if offer is None else offer.entry(submission.job)
        return None if model is None else entry_of(model)

    def worker(
        self, submission: SubmitJob, bound: EngineEntry | None = None, *, running: int = 0
    ) -> AdmissionView:
        """What is known for a submission. It does not count against itself.

        bound: the entry of a job that was admitted before. running: 1 if it has a sequence already.
        """
        entry, mine = bound or self.entry(submission), submission.job.id(self._runtime.domain)
        facts = self._runtime.cards.served(entry)
        return AdmissionView(
            now=now(self._runtime.clock),
            domain=self._runtime.domain,
            operator=self._runtime.signer.address,
            terms=self.terms,
            offer=self._offers.get(submission.job.offer),
            served=Served(facts.service, facts.kinds) if facts else None,
            active=max(0, self.active_on(entry, but=mine) - running),
            capacity=sum(card.capacity for card in self._runtime.cards.able(entry)),
            engine_ready=self._runtime.cards.is_ready_for(entry),
            draining=self.draining,
            fault=self._channels.faults.stopping,
            pause=self._runtime.cards.pause_of(entry),
            unvetted_bytes=self._unvetted_bytes(mine, submission),
        )

    def _stranger_jobs(self, account: PayerCredit, submission: SubmitJob) -> int:
        """Jobs of strangers that run, wait, or had a place before this one, on its entry."""
        if not account.is_stranger:
            return 0
        mine, entry = submission.job.id(self._runtime.domain), self.entry(submission)
        running = {
            job.id: job.channel.stored.channel.payer
            for job in self._runtime.sequences.values()
            if job.entry == entry
        }
        earlier = takewhile(lambda coming: coming[0] != mine, self.vetted.items())
        coming = {job: one.payer for job, one in earlier if one.entry == entry}
        payers = Counter((running | coming).values())
        return sum(count for p, count in payers.items() if self._credit.is_stranger(p))

    def token_limit(
        self, channel: LiveChannel, submission: SubmitJob, content: Content, facts: EngineFacts
    ) -> TokenLimit:
        """Say how many tokens of a new job's prompt are worth counting.

        A long prompt is tokenized no further than its ceiling, its channel and its credit reach.

        Raises:
            Refusal: They do not reach for the shortest prompt that the content can become.
        """
        if prompts.is_short(content, facts.max_context):
            return TokenLimit(facts.max_context, lambda _: None)
        view, known = self.worker(submission), self.channel(channel, submission)
        least = prompts.least_prompt(content)
        most = admission.most_prompt(submission, view, known, least, facts.max_context)
        return TokenLimit(
            most, lambda tokens: admission.check_price(submission, view, known, tokens)
        )

    def channel(self, channel: LiveChannel, submission: SubmitJob) -> ChannelView:
        time, stored = now(self._runtime.clock), channel.stored
        jobs = channel.jobs.values()
        attached = {job.id for job in jobs if job.sink is not None}
        known, offered = usable_funding(stored.funding, time), authorization_in(submission)
        funding = better_funding(known, offered)
        account = self._credit.payer(stored.channel.payer, channel)
        return ChannelView(
            ledger=stored.ledger,
            state=channel.state_for_jobs,
            deposit=channel.available,
            withdrawn=Amount(stored.deposit - channel.available),
            account_signed=funding is not None and funding == channel.account_signed,
            fresh=self._channels.is_reliable(channel, funding),
            funding=funding,
            pooled=self._channels.pooled_for(channel),
            reserved=channel.reserved,
            attached=len(attached),
            payer=account,
            strangers_owe=self._credit.pool_of(account),
            stranger_jobs=self._stranger_jobs(account, submission),
            stray_unpaid=any(ref.job not in attached for ref in stored.ledger.unpaid),
            closing=stored.close_signature is not None,
        )
