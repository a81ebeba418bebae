"""The SDK: ask for text, pay per canvas."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from piecework.base.amounts import Token, TokenAmount
from piecework.base.clock import Clock, SystemClock
from piecework.base.errors import PieceworkError
from piecework.chain.deployment import Deployment
from piecework.chain.reader import ChainReader
from piecework.client.config import ClientConfig, ClientHome, load_config
from piecework.client.errors import (
    InsufficientFunds,
    JobFailed,
    NoWorkerFits,
    StoreError,
    WorkerUnreachable,
)
from piecework.client.funds import Funds
from piecework.client.jobs.channels import ChannelManager
from piecework.client.jobs.completion import Completion, collect
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
from piecework.client.journal.records import (
    ChannelRow,
    ChannelStatus,
    JobRow,
    JobStatus,
    Reservation,
)
from piecework.client.journal.store import Store
from piecework.client.limits import MAX_CANDIDATES
from piecework.client.network.discovery import ChainView, Discovery, Found, Links
from piecework.client.wallet import Wallet, open_wallet
from piecework_protocol.content import Message
from piecework_protocol.errors import ProtocolViolation, Reason, Refusal
from piecework_protocol.offers import OfferRejected
from piecework_protocol.types import Address, Amount, ChannelId, Digest, JobId, address_hex

DEFAULT_RETRY_AFTER_S = 2.0
_FIXES = frozenset({Next.REFRESH_OFFER, Next.SETTLE_UP, Next.NEW_CHANNEL})


@dataclass(frozen=True, slots=True)
class Quote:
    """What a request should cost, and what it can cost at most.

    Attributes:
        token: What the amounts are counted in.
        choice: The worker that would get the job.
        alternatives: Other workers that fit, best first.
        unfit: One line for each worker that does not fit.
    """

    token: Token
    choice: Choice
    alternatives: tuple[Choice, ...]
    unfit: tuple[str, ...]

    @property
    def expected(self) -> TokenAmount:
        """What the job should cost, if the whole `max_tokens` is written."""
        return self.token.amount(self.choice.expected)

    @property
    def ceiling(self) -> TokenAmount:
        """The most that the job can cost. The signed job says so."""
        return self.token.amount(self.choice.ceiling)

    @property
    def why(self) -> str:
        """One line for a person: price, time and reliability."""
        chosen = self.choice
        return (
            f"about {self.expected} and {chosen.seconds:.1f} s at "
            f"{chosen.reliability:.0%} reliability" + (", busy now" if chosen.full else "")
        )


@dataclass(frozen=True, slots=True)
class Balance:
    """Where the client's money is.

    Attributes:
        payer: Whose money it is.
        pooled: What lies in the escrow outside of channels.
        free: The part of `pooled` that no channel is waiting for.
        in_channels: The deposits of channels that are not closed.
        paid: What vouchers have promised to workers so far.
        reservations: What `pooled` holds for workers that may open or top up a channel, and why.
    """

    payer: Address
    pooled: TokenAmount
    free: TokenAmount
    in_channels: TokenAmount
    paid: TokenAmount
    reservations: tuple[Reservation, ...] = ()


class PieceworkClient:
    """One wallet's client. Any number of jobs run at once. They share channels safely.

    Open it with `PieceworkClient.open` and close it, or use `async with`.

    Attributes:
        payment_token: What amounts of this market are counted in.
        config: The settings.

    Example:
        >>> async with await PieceworkClient.open(ClientHome.default(), password=secret) as client:
        ...     answer = await client.ask("Tell me a story.", max_tokens=256)
        ...     print(answer.text, answer.cost)
    """

    def __init__(
        self,
        store: Store,
        chain: ChainView,
        wallet: Wallet,
        token: Token,
        config: ClientConfig,
        *,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Build a client from its parts. Programs call `open` instead."""
        clock = clock or SystemClock()
        self.store, self.chain, self.wallet, self.config = store, chain, wallet, config
        self.payment_token, self.token = token, Address(token.address or b"")
        self._amounts = config.amounts(token)
        self.links = Links()
        self.discovery = Discovery(chain, config.indexes, self.links, clock)
        self.channels = ChannelManager(
            store, chain, wallet, token=token, config=config, clock=clock, entropy=entropy
        )
        self._context = JobContext(
            store, self.channels, self.links, wallet, chain.domain, config, clock, entropy
        )
        self._runs: set[JobRun] = set()
        self._settling = asyncio.Lock()
        self._reader: ChainReader | None = None
        self._funds: Funds | None = None

    @classmethod
    async def open(
        cls, home: ClientHome, config: ClientConfig | None = None, *, password: str
    ) -> Self:
        """Open a home that `piecework client init` made: its keys, its journal and the chain.

        Args:
            home: The folder. `ClientHome.default()` is the command line's.
            config: Settings instead of those in the home and the environment.
            password: Opens the keys.

        Returns:
            A client that is connected to the chain. Close it, or use `async with`.

        Raises:
            HomeError: There is no client in this home.
            SettingsError: A setting cannot be used.
            WalletError: A key file is damaged, or the password is wrong.
            StoreError: The journal cannot be opened, or belongs to another payer.
            ChainError: The chain does not answer, or is another one than the deployment's.

        Example:
            >>> client = await PieceworkClient.open(ClientHome.default(), password=secret)
            >>> await client.close()
        """
        home.check()
        if config is None:
            config = await asyncio.to_thread(load_config, home.config)
        deployment = await asyncio.to_thread(Deployment.load, home.deployment)
        config.amounts(deployment.payment_token)
        wallet = await asyncio.to_thread(open_wallet, home.wallet, home.authorizer, password)
        store = Store(home.store, deployment.domain, wallet.payer.address)
        try:
            reader = await ChainReader.connect(
                deployment, rpc_url=config.rpc_url, timeout_s=config.rpc_timeout_s
            )
        except BaseException:
            store.close()
            raise
        client = cls(store, reader, wallet, deployment.payment_token, config)
        client._reader = reader
        return client

    @property
    def reader(self) -> ChainReader:
        """The chain, for transactions. Only a client that came from `open` has one."""
        if self._reader is None:
            raise StoreError("this client was built without a chain connection of its own")
        return self._reader

    @property
    def context(self) -> JobContext:
        """What every job of this client shares."""
        return self._context

    @property
    def funds(self) -> Funds:
        """Deposits, channel closing and withdrawals. These send transactions.

        Raises:
            StoreError: The client did not come from `open`.
        """
        if self._funds is None:  # one for all: it counts the nonces of what it sends
            self._funds = Funds(self._context, self.discovery, self.links, self.reader)
        return self._funds

    def amount(self, tokens: str) -> TokenAmount:
        """Return a number of tokens, such as "1.5", as an amount.

        Raises:
            AmountError: It is not a number, or this token has fewer decimals.
        """
        return self.payment_token.amount(self.payment_token.parse(tokens))

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
        """Return every usable offer, verified, and one line for each that was left out."""
        return await self.discovery.offers()

    async def rank(self, request: TextRequest) -> Ranking:
        """Return who could take the request, best first, and why others cannot."""
        found = await self.discovery.offers()
        experience = await asyncio.to_thread(self.store.experience)
        filters = Filters(
            now=self._context.now(),
            token=self.payment_token,
            max_job_price=self._amounts.max_job_price,
            max_price_per_million_output=self._amounts.max_price_per_million_output,
            second_is_worth=self._amounts.second_is_worth,
        )
        ranking = rank(request, found.offers, experience, filters)
        return Ranking(ranking.choices, (*ranking.unfit, *found.troubles), ranking.model_known)

    async def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        model: str | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        max_price: TokenAmount | str | None = None,
        best_effort: bool = False,
    ) -> Completion:
        """Ask for a text, wait for all of it, and pay for it canvas by canvas.

        Args:
            prompt: What the user says, or a whole conversation.
            system: A system message in front of it.
            model: A name, a digest in hex, or None for any model.
            max_tokens: The longest answer, in tokens.
            seed: 64 bits. Drawn at random if None.
            temperature: Temperature at the last step, 0 to 2.
            max_price: The most that the job may cost, such as "0.05" (tokens).
            best_effort: Whether models without seed and trace will do.

        Returns:
            The text, its receipts and its cost.

        Raises:
            MalformedInput: A message is not one that the protocol can carry.
            AmountError: `max_price` is not an amount of this market's token.
            NoWorkerFits: Nobody can take the request. The error says why.
            InsufficientFunds: The escrow holds too little.
            Refusal: Every worker declined for the same reason, which the caller can mend.
            JobInterrupted: The worker went away. `resume` continues the job.
            JobFailed: The worker ended the job early. Delivered canvases are paid.
            ProtocolViolation: The worker cheated. Nothing more is paid to it.

        Example:
            >>> answer = await client.ask("Tell me a story.", max_tokens=256)
            >>> print(answer.text, answer.cost)
        """
        limit = None if max_price is None else Amount(self.payment_token.units_of(max_price))
        request = TextRequest.of(
            prompt,
            system=system,
            model=model,
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
            max_price=limit,
            best_effort=best_effort,
        )
        return await self.collect(self.run(request))

    async def quote(self, request: TextRequest) -> Quote:
        """Return what the request would cost now. Nothing is sent to a worker.

        Raises:
            NoWorkerFits: Nobody can take the request. The error says why.

        Example:
            >>> quote = await client.quote(TextRequest.of("Tell me a story.", max_tokens=256))
            >>> print(quote.expected, quote.ceiling)
        """
        ranking = await self.rank(request)
        if not ranking.choices:
            raise _nobody(request, ranking)
        return Quote(self.payment_token, ranking.choices[0], ranking.choices[1:], ranking.unfit)

    def run(self, request: TextRequest) -> JobRun:
        """Run the request at the best worker, or at the next one if that declines.

        Returns:
            The job. Iterate over its events. Leaving its block early cancels it.

        Raises:
            ClientError: While iterating, as `ask`.

        Example:
            >>> async with client.run(TextRequest.of("Tell me a story.", drafts=True)) as run:
            ...     async for event in run:
            ...         if isinstance(event, CanvasText):
            ...             print(event.text, end="")
        """
        return self._start(lambda caller: self._run(request, caller))

    def resume(self, job: JobId) -> JobRun:
        """Follow a job again that was interrupted, perhaps in an earlier process.

        Returns:
            The job, with its whole text. A canvas that was paid is not paid again.

        Raises:
            StoreError: While iterating: the journal does not know the job.
            ClientError: While iterating, as `ask`.

        Example:
            >>> answer = await client.collect(client.resume(error.job))
        """
        return self._start(lambda caller: self._resume(job, caller))

    async def collect(self, run: JobRun) -> Completion:
        """Follow a run to its end and return its whole text.

        Raises:
            ClientError: As `ask`.
        """
        return await collect(run, self.payment_token)

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
        row = await asyncio.to_thread(self.store.take_over, job)
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
            except WorkerUnreachable as unreachable:
                attempts.declined(current, unreachable)
                await self._remember_failure(current)
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
                self.store.finish, job.id, JobStatus.REFUSED, declined.reason.name
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
                await pay_outstanding(self._context, job.channel_id)
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
        driver = JobDriver(self._context, job, caller, replay=replay)
        try:
            await driver.run()
        except WorkerUnreachable:
            if not driver.sent:
                await asyncio.to_thread(self.store.finish, job.id, JobStatus.REFUSED, "unreachable")
            raise
        finally:
            # At once and in this thread: a cancelled task may not wait, and nothing is synced.
            self.store.leave(job.id)

    async def _remember_failure(self, choice: Choice) -> None:
        now = self._context.now()
        await asyncio.to_thread(
            self.store.remember, choice.operator, lambda memory: learn(memory, now, success=False)
        )

    # --- looking back

    async def balance(self) -> Balance:
        """Return where the client's money is.

        Raises:
            ChainError: The chain does not answer.
        """
        reservations = await self.channels.reservations()
        pooled = await self.chain.pooled_balance(self.token, self.wallet.payer.address)
        rows = await asyncio.to_thread(self.store.channels)
        amount = self.payment_token.amount
        reserved = sum(reservation.amount for reservation in reservations)
        return Balance(
            payer=self.wallet.payer.address,
            pooled=amount(pooled),
            free=amount(max(0, pooled - reserved)),
            in_channels=amount(sum(r.funded for r in rows if r.status is not ChannelStatus.CLOSED)),
            paid=amount(sum(row.book.cumulative for row in rows)),
            reservations=reservations,
        )

    async def receipts(self, channel: ChannelId) -> tuple[ChannelRow, tuple[ProvenReceipt, ...]]:
        """Return a channel and its paid receipts, proved against the latest voucher.

        Raises:
            StoreError: The journal does not know the channel.
        """
        row = await asyncio.to_thread(self.store.channel, channel)
        return row, await asyncio.to_thread(self._prove, row, None)

    async def proofs(self, job: JobId | None = None) -> tuple[ProvenReceipt, ...]:
        """Return every paid receipt, or those of one job, each with its proof or its trouble.

        Raises:
            StoreError: The journal does not know the job.

        Example:
            >>> assert all(not proof.trouble for proof in await client.proofs())
        """
        if job is None:
            rows = await asyncio.to_thread(self.store.channels)
        else:
            channel = (await asyncio.to_thread(self.store.job, job)).channel_id
            rows = (await asyncio.to_thread(self.store.channel, channel),)
        proven: list[ProvenReceipt] = []
        for row in rows:
            proven += await asyncio.to_thread(self._prove, row, job)
        return tuple(proven)

    def _prove(self, row: ChannelRow, job: JobId | None) -> tuple[ProvenReceipt, ...]:
        receipts = self.store.receipts(channel=row.id)
        voucher = row.book.voucher()
        return prove_receipts(self._context.domain, row.channel, voucher, receipts, job=job)


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
