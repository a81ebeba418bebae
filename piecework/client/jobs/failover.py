"""One request at the best worker, or at the next one if that declines or says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from piecework.base.errors import PieceworkError
from piecework.client.errors import (
    BudgetExceeded,
    InsufficientFunds,
    JobFailed,
    NoWorkerFits,
    RequestRefused,
    WorkerUnreachable,
)
from piecework.client.jobs.audit_ceilings import audit_ceilings
from piecework.client.jobs.choosing import Chooser
from piecework.client.jobs.driver import JobContext, JobDriver
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.jobs.preparing import NOT_SENT, prepare
from piecework.client.jobs.requests import Generation, JobRequest
from piecework.client.jobs.run import Caller
from piecework.client.jobs.selection import (
    AFTER_REFUSAL,
    BUSY_REASONS,
    CALLERS_FAULT,
    Choice,
    Next,
    Ranking,
    affordable,
    ceiling_of,
)
from piecework.client.jobs.spending import Allowance
from piecework.client.journal.learning import learn
from piecework.client.journal.records import ChannelRow, JobRow, JobStatus, Part
from piecework.client.journal.store import NO_PART
from piecework.client.limits import MAX_CANDIDATES
from piecework.client.network.discovery import Discovery
from piecework_protocol.errors import ProtocolViolation, Refusal
from piecework_protocol.objects import Kind
from piecework_protocol.offers import OfferRejected
from piecework_protocol.types import Address, Amount, ChannelId, Digest, Uint32, address_hex

DEFAULT_RETRY_AFTER_S = 2.0


Fund = Callable[[ChannelId, Amount], Awaitable[None]]


Watch = Callable[[Caller, bytes, Callable[[], Part]], Caller]
"""Takes a caller, the content of a job and what tells its part with what is held. Returns a caller
that passes all events on."""


class FailOver:
    """Runs requests of one client."""

    def __init__(
        self, context: JobContext, chooser: Chooser, discovery: Discovery, fund: Fund
    ) -> None:
        """`fund` brings a channel to a total by a transaction of the client's own."""
        self._context, self._chooser, self._discovery = context, chooser, discovery
        self._fund = fund
        self.watch: Watch = lambda caller, content, part: caller
        """Stands between a request's jobs and its caller."""
        self._settling: dict[ChannelId, asyncio.Lock] = {}

    async def run(self, request: JobRequest, caller: Caller, part: Part = NO_PART) -> None:
        """Offer the request to one worker after the other until one runs it to its end.

        What is held for `part` and no job has taken over is free again at the end.

        Raises:
            ClientError: as `PieceworkClient.ask`.
        """
        attempts = _Attempts(part)
        try:
            # An opening is a part of an audit, and is audited by its leaves alone. An auditor is
            # checked by canvases that the client knows.
            watched = request.kind not in (Kind.OPEN, Kind.AUDIT)
            if watched:
                caller = self.watch(caller, request.prompt, lambda: attempts.part)
            await self._run(request, caller, attempts)
        finally:
            self._context.spending.release(attempts.part)
            await self._context.reachability.written()

    async def _run(self, request: JobRequest, caller: Caller, attempts: _Attempts) -> None:
        tried: set[Address] = set()
        attempts.allowance = await self._context.spending.allowance(attempts.part)
        ranking = await self._chooser.choose(request, allowance=attempts.allowance)
        if not ranking.choices:
            raise nobody(request, ranking)
        attempts.unfit = ranking.unfit
        while ranking.choices and len(tried) < MAX_CANDIDATES:
            for choice in ranking.choices[: MAX_CANDIDATES - len(tried)]:
                if caller.cancelled.is_set():
                    return
                tried.add(choice.operator)
                if await self._try(choice, request, caller, attempts):
                    return
            ranking = await self._chooser.choose(request, tried, attempts.allowance)
        raise attempts.verdict()

    async def reserve(
        self, requests: Sequence[JobRequest], parts: Sequence[Part]
    ) -> tuple[Part, ...]:
        """Hold the ceilings of several requests in one transaction, audits that may be bought
        included. Nothing is signed.

        Raises:
            ClientError: as `PieceworkClient.reserve_many`.
        """
        allowance = await self._context.spending.allowance(parts[0])
        best = await self._best(requests, allowance)
        audits = [await self._audits_of(best[request], request) for request in requests]
        beside = sum(map(sum, audits))
        if beside and allowance.left is not None:
            # What audits may cost is no part of what the answers may take.
            left = Amount(max(0, allowance.left - beside))
            best = await self._best(requests, replace(allowance, left=left))
            audits = [await self._audits_of(best[request], request) for request in requests]
        # Jobs at one worker share a channel, so its opening is paid once.
        fees = {choice.operator: int(choice.fee) for choice in best.values()}
        ceilings, fee = [best[request].ceiling for request in requests], Amount(sum(fees.values()))
        return await self._context.spending.reserve(parts, ceilings, fee, audits)

    async def _best(
        self, requests: Sequence[JobRequest], allowance: Allowance
    ) -> dict[JobRequest, Choice]:
        """Return the best choice for each of several requests that share an allowance."""
        if allowance.left is not None:
            allowance = replace(allowance, left=Amount(allowance.left // len(requests)))
        best: dict[JobRequest, Choice] = {}
        for request in set(requests):
            ranking = await self._chooser.choose(request, allowance=allowance)
            if not ranking.choices:
                raise nobody(request, ranking)
            best[request] = ranking.choices[0]
        return best

    async def _audits_of(self, choice: Choice, request: JobRequest) -> tuple[Amount, ...]:
        """Return what is to be held for audits of a job, if audits are bought."""
        config = self._context.config
        if not config.buys_audits:
            return ()
        found = await self._discovery.offers("0x" + choice.model.digest.hex())
        offers = (signed.offer for signed in found.offers)
        return audit_ceilings(request, choice, offers, config.price_cap)

    async def drive(
        self,
        job: JobRow,
        caller: Caller,
        *,
        admitted: ChannelRow | None = None,
    ) -> None:
        """Follow a job that was recorded a moment ago to its end."""
        driver = JobDriver(self._context, job, caller, admitted=admitted)
        try:
            await driver.run()
        finally:
            # At once and in this thread: a cancelled task may not wait, and nothing is synced.
            if not driver.over:
                if driver.sent:
                    self._context.store.leave(job.id)
                else:
                    self._context.store.finish(job.id, JobStatus.REFUSED, NOT_SENT)

    async def replay(self, job: JobRow, caller: Caller) -> None:
        """Follow a job again from its first canvas. One that is over stays as it ended.

        Raises:
            JobFollowed: another living process follows it.
            ClientError: as `PieceworkClient.resume`.
        """
        store, before = self._context.store, job.status
        cancelled = before is JobStatus.CANCELLED
        row = await asyncio.to_thread(store.take_over, job.id)
        driver = JobDriver(self._context, row, caller, replay=True, was_cancelled=cancelled)
        over = before in (JobStatus.COMPLETE, JobStatus.CANCELLED, JobStatus.FAILED)
        try:
            await driver.run()
        except ProtocolViolation:
            over = False  # it is recorded, and nothing is paid to this worker any more
            raise
        finally:
            # At once and in this thread: a cancelled task may not wait, and nothing is synced.
            if over:
                store.finish(job.id, before, job.detail)
            else:
                store.leave(job.id)

    async def _try(
        self, choice: Choice, request: JobRequest, caller: Caller, attempts: _Attempts
    ) -> bool:
        """Offer the request to one worker, mending what can be mended once. True when it ran to its
        end."""
        mended: set[Next] = set()
        current: Choice | None = choice
        cut = False
        while current is not None:
            since = self._context.clock.monotonic()
            try:
                await self._context.links.to(current.signed.offer)  # before anything is reserved
                part = await self._covered(attempts.part, current, request)
                attempts.part = part
                job, channel = await prepare(self._context, current, request, part)
                await self.drive(job, caller, admitted=channel)
                return True
            except (BudgetExceeded, InsufficientFunds) as short:
                shorter = None if cut else _affordable(current, request, short)
                if shorter is None:
                    attempts.short_of(current, short)
                    return False
                current, cut = shorter, True
                continue
            except WorkerUnreachable as unreachable:
                attempts.declined(current, unreachable)
                self._context.reachability.silent(current.operator, since)
                return False
            except (Refusal, JobFailed) as refused:
                declined = refused
            row = await self._context.store.run(self._context.store.channel, job.channel_id)
            step = await self._after(job, current, declined)
            attempts.declined(current, declined)
            if step in mended:
                return False
            mended.add(step)
            if step is Next.OPEN_ITSELF:
                current = await self._opened(
                    declined, current, request, job, row.authorized, attempts
                )
            else:
                current = await self._mend(declined, current, request, job, attempts)
        return False

    async def _covered(self, part: Part, choice: Choice, request: JobRequest) -> Part:
        """Hold what a job may cost, and with it what its audit may cost."""
        spending = self._context.spending
        audits = () if spending.is_unlimited(part) else await self._audits_of(choice, request)
        return await spending.cover(part, choice.ceiling, audits)

    async def _opened(  # noqa: PLR0917
        self,
        declined: Refusal | JobFailed,
        choice: Choice,
        request: JobRequest,
        job: JobRow,
        total: Amount,
        attempts: _Attempts,
    ) -> Choice | None:
        """The worker does not send the opening: offer the fee that it asks now, or send it."""
        if isinstance(declined, Refusal) and "fee" in declined.metadata:
            renewed = await self._renewed(choice, request, job, attempts)
            if renewed is not None and _fees(renewed) > _fees(choice):
                return renewed
        await self._context.store.run(self._context.store.opened_by_payer, job.channel_id)
        try:
            await self._fund(job.channel_id, total)
        except PieceworkError as error:
            attempts.declined(choice, error)
            return None
        return choice

    async def _after(self, job: JobRow, choice: Choice, declined: Refusal | JobFailed) -> Next:
        """Record a job that was declined, and say what to do next."""
        store = self._context.store
        self._context.reachability.heard(choice.operator)
        if await store.run(store.receipts, job=job.id):
            raise declined
        await store.run(store.finish, job.id, JobStatus.REFUSED, declined.reason.name)
        step = AFTER_REFUSAL[declined.reason]
        if step is Next.GIVE_UP:
            raise declined
        if step is Next.TRY_OTHER_AND_REMEMBER:
            now = self._context.now()
            await store.run(
                store.workers.remember,
                choice.operator,
                lambda memory: learn(memory, now, success=False),
            )
        return step

    async def _mend(
        self,
        declined: Refusal | JobFailed,
        choice: Choice,
        request: JobRequest,
        job: JobRow,
        attempts: _Attempts,
    ) -> Choice | None:
        """Remove the cause of a refusal. The choice to ask again with, or None to go on to the
        next."""
        step = AFTER_REFUSAL[declined.reason]
        if step is Next.SETTLE_UP:
            lock = self._settling.setdefault(job.channel_id, asyncio.Lock())
            async with lock:  # whoever waited finds nothing left to settle
                await pay_outstanding(self._context, job.channel_id)
            return choice
        if step is Next.NEW_CHANNEL:
            await self._context.channels.refresh(job.channel_id)
            return choice
        if step is Next.SHORTEN:
            return _shortened(choice, request, declined)
        if step is not Next.REFRESH_OFFER:
            return None
        return await self._renewed(choice, request, job, attempts)

    async def _renewed(
        self, choice: Choice, request: JobRequest, job: JobRow, attempts: _Attempts
    ) -> Choice | None:
        """The same worker with the offer that it shows now."""
        try:
            signed = await self._discovery.fresh_offer(choice.signed.offer)
        except (WorkerUnreachable, OfferRejected, ProtocolViolation, Refusal):
            return None
        if Digest(self._context.domain.digest(signed.offer)) == job.submission.job.offer:
            return None
        again = await self._chooser.choose(request, allowance=attempts.allowance)
        return next((c for c in again.choices if c.operator == choice.operator), None)


def _fees(choice: Choice) -> int:
    """What the worker asks for raising a channel, opened before or not."""
    offer = choice.signed.offer
    return offer.open_fee + offer.top_up_fee


def _shortened(choice: Choice, request: JobRequest, declined: Refusal | JobFailed) -> Choice | None:
    """The choice with as many tokens as the worker has room for, if the caller asked for none."""
    if not request.may_be_shortened or not isinstance(declined, Refusal):
        return None
    counted = declined.metadata.get("prompt_tokens", "")
    if not (counted.isascii() and counted.isdecimal() and len(counted) < 10):
        return None
    canvas = choice.model.canvas_size
    room = (choice.model.max_context - int(counted)) // canvas * canvas
    if not 0 < room < (choice.generation.max_tokens or 0):
        return None
    return _with(choice, request, replace(choice.generation, max_tokens=Uint32(room)))


def _affordable(
    choice: Choice, request: JobRequest, short: BudgetExceeded | InsufficientFunds
) -> Choice | None:
    """The choice with as many tokens as there is money for, if the caller asked for none."""
    left = short.left if isinstance(short, BudgetExceeded) else short.available
    limit = Amount(max(0, choice.ceiling - (short.needed.units - left.units)))
    if not request.may_be_shortened:
        return None
    generation = affordable(request, choice.generation, choice.model, limit)
    shorter = _with(choice, request, generation)
    return shorter if shorter.ceiling <= limit else None


def _with(choice: Choice, request: JobRequest, generation: Generation) -> Choice:
    """The choice with a shorter answer. Its expected price stays an estimate from above."""
    ceiling = ceiling_of(request, generation, choice.model)
    return replace(choice, generation=generation, ceiling=ceiling)


class _Attempts:
    """Who declined a request and why, and what to tell the caller when nobody is left.

    Attributes:
        part: What the budgets hold for the request.
        allowance: What it may cost.
        unfit: One line for each worker that did not fit from the start.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.allowance = Allowance()
        self.unfit: tuple[str, ...] = ()
        self._why: list[str] = []
        self._busy: list[float] = []
        self._short: BudgetExceeded | InsufficientFunds | None = None
        self._refusals: list[Refusal] = []

    def declined(self, choice: Choice, error: PieceworkError) -> None:
        self._why.append(f"{address_hex(choice.operator)} ({choice.model.name}): {error}")
        if isinstance(error, Refusal) and error.reason in BUSY_REASONS:
            self._busy.append(error.retry_after_s or DEFAULT_RETRY_AFTER_S)
        elif isinstance(error, Refusal):
            self._refusals.append(error)

    def short_of(self, choice: Choice, error: BudgetExceeded | InsufficientFunds) -> None:
        self._why.append(f"{address_hex(choice.operator)} ({choice.model.name}): {error}")
        self._short = error

    def verdict(self) -> PieceworkError:
        """The most useful single error: wait, deposit, mend the request, or nobody is there.

        The request is to blame when every worker that answered says so. One that did not answer
        has no say.
        """
        if self._busy:
            wait = min(self._busy)
            return NoWorkerFits("every worker that fits is busy", self._why, retry_after_s=wait)
        if self._short is not None:
            return self._short
        if self._refusals and all(r.reason in CALLERS_FAULT for r in self._refusals):
            return self._refusals[0]
        return NoWorkerFits("no worker took the request", (*self._why, *self.unfit))


def nobody(request: JobRequest, ranking: Ranking) -> NoWorkerFits:
    """Why there is nobody to ask."""
    if ranking.mistake is not None:
        mistake = ranking.mistake
        return RequestRefused(
            "no worker can take this request", ranking.unfit, code=mistake.code, param=mistake.param
        )
    unknown = request.model is not None and not ranking.model_known
    what = f"nobody serves the model {request.model!r}" if unknown else "no worker fits the request"
    return NoWorkerFits(what, ranking.unfit, unknown_model=unknown)
