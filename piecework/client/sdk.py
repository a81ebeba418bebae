"""The SDK: ask for text, pay per canvas.

async with await PieceworkClient.open(home, config, password) as client:
    async with client.run(TextRequest((Message("user", "Tell me a story."),))) as run:
        async for event in run:
            ...
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from piecework.chain.deployment import Deployment
from piecework.chain.reader import ChainReader
from piecework.client.config import ClientConfig, ClientHome
from piecework.client.errors import (
    InsufficientFunds,
    JobFailed,
    NoWorkerFits,
    StoreError,
    WorkerUnreachable,
)
from piecework.client.jobs.channels import ChannelManager
from piecework.client.jobs.driver import JobContext, JobDriver, prepare
from piecework.client.jobs.outstanding import pay_outstanding
from piecework.client.jobs.requests import Filters, TextRequest
from piecework.client.jobs.run import Caller, JobRun
from piecework.client.jobs.selection import (
    AFTER_REFUSAL,
    BUSY_REASONS,
    Choice,
    Next,
    Ranking,
    learn,
    rank,
)
from piecework.client.journal.proofs import ProvenReceipt, prove_receipts
from piecework.client.journal.records import ChannelRow, ChannelStatus, JobRow, JobStatus
from piecework.client.journal.store import Store
from piecework.client.limits import MAX_CANDIDATES
from piecework.client.network.discovery import ChainView, Clock, Discovery, Found, Links
from piecework.client.wallet import Wallet, open_wallet
from piecework_protocol.errors import PieceworkError, ProtocolViolation, Reason, Refusal
from piecework_protocol.offers import OfferRejected
from piecework_protocol.types import Address, Amount, ChannelId, Digest, JobId, address_hex

DEFAULT_RETRY_AFTER_S = 2.0
_FIXES = frozenset({Next.REFRESH_OFFER, Next.SETTLE_UP, Next.NEW_CHANNEL})


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request should cost and can cost at most, at the worker that would get it. Base
    units."""

    choice: Choice
    alternatives: tuple[Choice, ...]
    unfit: tuple[str, ...]

    @property
    def expected(self) -> Amount:
        return self.choice.expected

    @property
    def ceiling(self) -> Amount:
        return self.choice.ceiling

    @property
    def why(self) -> str:
        return self.choice.why


@dataclass(frozen=True, slots=True)
class Balance:
    """The client's money in base units.

    `pooled` lies in the escrow outside of channels, `free` of it is not promised to a channel yet;
    `in_channels` is the deposit of channels that are not closed; `paid` is what vouchers ever
    promised.
    """

    payer: Address
    token: Address
    pooled: Amount
    free: Amount
    in_channels: Amount
    paid: Amount


class PieceworkClient:
    """One wallet's client. Any number of jobs run at once; they share channels safely."""

    def __init__(
        self,
        store: Store,
        chain: ChainView,
        wallet: Wallet,
        token: Address,
        config: ClientConfig,
        *,
        clock: Clock = time.time,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.store, self.chain, self.wallet, self.token, self.config = (
            store,
            chain,
            wallet,
            token,
            config,
        )
        self.links = Links()
        self.discovery = Discovery(chain, config.indexes, self.links, clock)
        self.channels = ChannelManager(
            store, chain, wallet, token=token, config=config, clock=clock, entropy=entropy
        )
        self._context = JobContext(
            store, self.channels, self.links, wallet, chain.domain, config, clock, entropy
        )
        self._runs: set[JobRun] = set()
        self._active: set[JobId] = set()
        self._settling = asyncio.Lock()
        self._reader: ChainReader | None = None

    @classmethod
    async def open(cls, home: ClientHome, config: ClientConfig, password: str) -> Self:
        """Open a home that `client init` made: keys, journal, chain; errors say what is missing."""
        deployment = Deployment.load(home.deployment)
        wallet = await asyncio.to_thread(open_wallet, home.wallet, home.authorizer, password)
        store = Store(home.store, deployment.domain, wallet.payer.address)
        try:
            reader = await ChainReader.connect(
                deployment, rpc_url=config.rpc_url, timeout_s=config.rpc_timeout_s
            )
        except BaseException:
            store.close()
            raise
        client = cls(store, reader, wallet, deployment.token, config)
        client._reader = reader
        return client

    @property
    def reader(self) -> ChainReader:
        """The chain, for transactions; only a client that was `open`ed from a home has one."""
        if self._reader is None:
            raise StoreError("this client was built without a chain connection of its own")
        return self._reader

    @property
    def context(self) -> JobContext:
        return self._context

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what runs, pay for what was delivered, and give everything back."""
        await asyncio.gather(*(run.aclose() for run in list(self._runs)))
        await self.discovery.close()
        await self.links.close()
        if self._reader is not None:
            await self._reader.close()
        self.store.close()

    # --- asking

    async def offers(self) -> Found:
        """Every usable offer, verified."""
        return await self.discovery.offers()

    async def rank(self, request: TextRequest) -> Ranking:
        """Who could take the request, best first."""
        found = await self.discovery.offers()
        experience = await asyncio.to_thread(self.store.experience)
        filters = Filters(
            now=self._context.now(),
            token=self.token,
            max_job_price=None
            if self.config.max_job_price is None
            else Amount(self.config.max_job_price),
            max_price_per_million_output=self._most_per_million(),
            second_is_worth=self.config.second_is_worth,
        )
        ranking = rank(request, found.offers, experience, filters)
        return Ranking(ranking.choices, (*ranking.unfit, *found.troubles), ranking.model_known)

    def _most_per_million(self) -> Amount | None:
        most = self.config.max_price_per_million_output
        return None if most is None else Amount(most)

    async def quote(self, request: TextRequest) -> Quote:
        """What the request would cost now. `NoWorkerFits` says why when nobody would take it."""
        ranking = await self.rank(request)
        if not ranking.choices:
            raise _nobody(request, ranking)
        return Quote(ranking.choices[0], ranking.choices[1:], ranking.unfit)

    def run(self, request: TextRequest) -> JobRun:
        """Run the request at the best worker, or the next when one declines; see
        `client.jobs.run.JobRun`."""
        return self._start(lambda caller: self._run(request, caller))

    def resume(self, job: JobId) -> JobRun:
        """Follow a job of an earlier process again: its whole text, every canvas paid once."""
        return self._start(lambda caller: self._resume(job, caller))

    def _start(self, drive: Callable[[Caller], Awaitable[None]]) -> JobRun:
        run = JobRun(drive, self._runs.discard)
        self._runs.add(run)
        return run

    async def _resume(self, job: JobId, caller: Caller) -> None:
        row = await asyncio.to_thread(self.store.job, job)
        if row.status is JobStatus.BROKEN:
            raise ProtocolViolation(
                "4.6", f"this job's worker broke the protocol before: {row.detail}"
            )
        await asyncio.to_thread(self.store.take_over, job, os.getpid())
        await self._drive(row, caller, replay=True)

    # ------------------------------------------------------------------------------------ fail-over

    async def _run(self, request: TextRequest, caller: Caller) -> None:
        ranking = await self.rank(request)
        if not ranking.choices:
            raise _nobody(request, ranking)
        attempt = _Attempts(request, ranking)
        for choice in ranking.choices[:MAX_CANDIDATES]:
            if caller.cancelled.is_set():
                return
            if await self._try(choice, request, caller, attempt):
                return
        raise attempt.verdict()

    async def _try(
        self, choice: Choice, request: TextRequest, caller: Caller, attempts: _Attempts
    ) -> bool:
        """Offer the request to one worker, mending what can be mended once. True when it ran to its
        end."""
        mended: set[Next] = set()
        current: Choice | None = choice
        while current is not None:
            try:
                job = await prepare(self._context, current, request)
            except InsufficientFunds as short:
                attempts.short_of(current, short)
                return False
            try:
                await self._drive(job, caller)
                return True
            except (Refusal, JobFailed) as refused:
                if await asyncio.to_thread(self.store.receipts, job=job.id):
                    raise
                declined = refused
            except WorkerUnreachable as unreachable:
                attempts.declined(current, unreachable)
                await self._remember_failure(current)
                return False
            await asyncio.to_thread(
                self.store.finish, job.id, JobStatus.REFUSED, declined.reason.label
            )
            step = AFTER_REFUSAL[declined.reason]
            attempts.declined(current, declined)
            if step is Next.GIVE_UP:
                raise declined
            if step is Next.TRY_OTHER_AND_REMEMBER:
                await self._remember_failure(current)
            current = await self._mend(step, current, request, job) if step not in mended else None
            mended.add(step)
        return False

    async def _mend(
        self, step: Next, choice: Choice, request: TextRequest, job: JobRow
    ) -> Choice | None:
        """Remove the cause of a refusal; the choice to ask again with, or None to go on to the
        next."""
        if step not in _FIXES:
            return None
        if step is Next.SETTLE_UP:
            async with self._settling:  # whoever waited finds nothing left to settle
                await pay_outstanding(self._context, job.channel_id, self._active)
            return choice
        if step is Next.NEW_CHANNEL:
            await self.channels.refresh(job.channel_id)
            return choice
        try:
            signed = await self.discovery.fresh_offer(choice.signed.offer)
        except (WorkerUnreachable, OfferRejected, ProtocolViolation, Refusal):
            return None
        if Digest(self._context.domain.digest(signed.offer)) == job.submission.job.offer:
            return None
        again = await self.rank(request)
        return next((c for c in again.choices if c.operator == choice.operator), None)

    async def _drive(self, job: JobRow, caller: Caller, *, replay: bool = False) -> None:
        self._active.add(job.id)
        driver = JobDriver(self._context, job, caller, replay=replay)
        try:
            await driver.run()
        except WorkerUnreachable:
            if not driver.sent:
                await asyncio.to_thread(self.store.finish, job.id, JobStatus.REFUSED, "unreachable")
            raise
        finally:
            self._active.discard(job.id)

    async def _remember_failure(self, choice: Choice) -> None:
        now = self._context.now()
        await asyncio.to_thread(
            self.store.remember, choice.operator, lambda memory: learn(memory, now, success=False)
        )

    # --- looking back

    async def balance(self) -> Balance:
        """Where the client's money is."""
        pooled = await self.chain.pooled_balance(self.token, self.wallet.payer.address)
        rows = await asyncio.to_thread(self.store.channels)
        return Balance(
            payer=self.wallet.payer.address,
            token=self.token,
            pooled=pooled,
            free=await self.channels.free_balance(),
            in_channels=Amount(sum(r.funded for r in rows if r.status is not ChannelStatus.CLOSED)),
            paid=Amount(sum(row.book.cumulative for row in rows)),
        )

    async def receipts(self, channel: ChannelId) -> tuple[ChannelRow, tuple[ProvenReceipt, ...]]:
        """Every paid receipt of a channel, checked and proved against the latest voucher."""
        row = await asyncio.to_thread(self.store.channel, channel)
        rows = await asyncio.to_thread(self.store.receipts, channel=channel)
        return row, prove_receipts(self._context.domain, row.channel, row.book.voucher(), rows)


class _Attempts:
    """Who declined a request and why, and what to tell the caller when nobody is left."""

    def __init__(self, request: TextRequest, ranking: Ranking) -> None:
        self._request, self._ranking = request, ranking
        self._why: list[str] = []
        self._busy: list[float] = []
        self._short: InsufficientFunds | None = None
        self._refusals: list[Refusal] = []
        self._others = 0

    def declined(self, choice: Choice, error: PieceworkError) -> None:
        self._why.append(f"{address_hex(choice.operator)} ({choice.model.name}): {error}")
        if isinstance(error, Refusal) and error.reason in BUSY_REASONS:
            self._busy.append(error.retry_after_s or DEFAULT_RETRY_AFTER_S)
        elif isinstance(error, Refusal):
            self._refusals.append(error)
        else:
            self._others += 1

    def short_of(self, choice: Choice, error: InsufficientFunds) -> None:
        self._why.append(f"{address_hex(choice.operator)} ({choice.model.name}): {error}")
        self._short = error

    def verdict(self) -> PieceworkError:
        """The most useful single error: wait, deposit, mend the request, or nobody is there."""
        if self._busy:
            wait = min(self._busy)
            return NoWorkerFits("every worker that fits is busy", self._why, retry_after_s=wait)
        if self._short is not None:
            return self._short
        same = {refusal.reason for refusal in self._refusals}
        if len(same) == 1 and not self._others and next(iter(same)) in _CALLERS_FAULT:
            return self._refusals[0]
        return NoWorkerFits("no worker took the request", (*self._why, *self._ranking.unfit))


_CALLERS_FAULT = frozenset({Reason.PROMPT_TOO_LONG, Reason.BAD_PARAMETERS})
"""Refusals that a caller can mend, when every worker gives the same one."""


def _nobody(request: TextRequest, ranking: Ranking) -> NoWorkerFits:
    unknown = request.model is not None and not ranking.model_known
    what = f"nobody serves the model {request.model!r}" if unknown else "no worker fits the request"
    return NoWorkerFits(what, ranking.unfit, unknown_model=unknown)
