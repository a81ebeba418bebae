"""The SDK: ask for text, pay per canvas."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from piecework.base.amounts import Token, TokenAmount
from piecework.base.clock import Clock, SystemClock
from piecework.chain.deployment import Deployment
from piecework.chain.reading.reader import ChainReader
from piecework.client.auditors.market import auditor_of
from piecework.client.audits.background import Audits
from piecework.client.config import ClientConfig, ClientHome, load_config
from piecework.client.errors import StoreError
from piecework.client.evidence import NO_TEXTS, known_texts, make_evidence
from piecework.client.funds import Funds
from piecework.client.jobs.channels import ChannelManager
from piecework.client.jobs.choosing import Chooser
from piecework.client.jobs.completion import Completion, collect
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.failover import FailOver, nobody
from piecework.client.jobs.output_rates import RateOf
from piecework.client.jobs.reads import ReadResult, collect_read
from piecework.client.jobs.requests import (
    Filters,
    JobRequest,
    Prompt,
    ReadRequest,
    TextRequest,
    conversation_of,
)
from piecework.client.jobs.run import Caller, JobRun
from piecework.client.jobs.selection import Choice, Ranking
from piecework.client.jobs.spending import Spending
from piecework.client.journal.proofs import ProvenReceipt, prove_receipts
from piecework.client.journal.records import (
    ChannelRow,
    JobStatus,
    Limits,
    Part,
    Reservation,
)
from piecework.client.journal.store import NO_PART, Store
from piecework.client.network.discovery import ChainView, Discovery
from piecework.client.network.indexes import IndexReader
from piecework.client.network.links import Connect, Links
from piecework.client.network.nodes import connect
from piecework.client.network.reachability import Reachability
from piecework.client.network.searches import Found
from piecework.client.network.transport import WorkerLink
from piecework.client.wallet import Wallet, open_wallet
from piecework_protocol.conversation import Image, Tool
from piecework_protocol.errors import ProtocolViolation
from piecework_protocol.evidence.file import EvidenceFile
from piecework_protocol.kinds.read import Question
from piecework_protocol.kinds.text import TemplatePart
from piecework_protocol.types import Address, Amount, ChannelId, JobId


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
        """What the job should cost, for an answer of the usual length. `choice.usage` has it."""
        return self.token.amount(self.choice.expected)

    @property
    def ceiling(self) -> TokenAmount:
        """The most that the job can cost. The signed job says so."""
        return self.token.amount(self.choice.ceiling)

    @property
    def fee(self) -> TokenAmount:
        """What the worker gets beside it for opening a channel. 0 if there is one."""
        return self.token.amount(self.choice.fee)

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
        in_channels: What channels hold, without what was settled or asked back.
        paid: What vouchers have promised to workers so far.
        spent_today: What the jobs of this UTC day have cost, what running ones still may, and
            the fees of authorizations.
        spent_this_month: The same for the UTC month.
        reservations: What `pooled` holds for workers that may open or top up a channel, and why.
    """

    payer: Address
    pooled: TokenAmount
    free: TokenAmount
    in_channels: TokenAmount
    paid: TokenAmount
    spent_today: TokenAmount
    spent_this_month: TokenAmount
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
        connect: Connect = WorkerLink.connect,
    ) -> None:
        """Build a client from its parts. Programs call `open` instead."""
        clock = clock or SystemClock()
        self.store, self.chain, self.wallet, self.config = store, chain, wallet, config
        self.payment_token, self.token = token, Address(token.address or b"")
        self.links = Links(connect)
        self.reachability = Reachability(store.workers, clock)
        indexes = IndexReader(config.indexes, clock)
        self.discovery = Discovery(chain, indexes, self.links, clock, self.reachability)
        self.channels = ChannelManager(
            store, chain, wallet, token=token, config=config, clock=clock, entropy=entropy
        )
        amounts = config.amounts(token)
        limits = Limits(amounts.spend_per_day, amounts.spend_per_month)
        self._spending = Spending(
            store.budgets, limits, token, clock, lifetime_s=config.job_lifetime_s
        )
        self._context = JobContext(
            store,
            self.channels,
            self.links,
            wallet,
            chain.domain,
            config,
            clock,
            entropy,
            self.reachability,
            self._spending,
        )
        filters = Filters(
            now=0,
            token=token,
            max_job_price=amounts.max_job_price,
            max_price_per_million_output=amounts.max_price_per_million_output,
            second_is_worth=amounts.second_is_worth,
            price_cap=config.price_cap,
            max_fee=amounts.max_fee,
            deposit=amounts.deposit,
            default_max_tokens=config.default_max_tokens,
        )
        self._chooser = Chooser(self.discovery, self.links, self.reachability, clock, filters)
        self.audits = Audits(self._context, auditor_of(self, config))
        self._fail_over = FailOver(self._context, self._chooser, self.discovery, self._fund)
        self._fail_over.watch = self.audits.watching
        self._runs: set[JobRun] = set()
        self._reader = chain if isinstance(chain, ChainReader) else None
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
            reader = await connect(config, deployment)
        except BaseException:
            store.close()
            raise
        return cls(store, reader, wallet, deployment.payment_token, config)

    @property
    def reader(self) -> ChainReader:
        """The chain, for transactions. A client that came from `open` has one."""
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

    async def _fund(self, channel: ChannelId, total: Amount) -> None:
        """Open or top up a channel that its worker leaves to us."""
        await self.funds.fund(channel, total)

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
        await self.audits.close()
        await self._chooser.close()
        await self.discovery.close()
        await self.reachability.written()
        await self.links.close()
        if self._reader is not None:
            await self._reader.close()
        self.store.close()

    # --- asking

    async def offers(self) -> Found:
        """Return every usable offer, verified, and one line for each that was left out."""
        return await self.discovery.offers()

    async def rates(self) -> RateOf:
        """Return what tells the price of output, steps included, of each model of an offer.

        It knows the client's own jobs until now.
        """
        return await self._chooser.rates()

    async def rank(self, request: JobRequest) -> Ranking:
        """Return who could take the request, best first, and why others cannot.

        Workers are dialed for that. They are told nothing.
        """
        allowance = await self._spending.allowance(NO_PART)
        return await self._chooser.choose(request, allowance=allowance)

    async def ask(
        self,
        prompt: Prompt,
        *,
        system: str | None = None,
        images: Sequence[Image] = (),
        tools: Sequence[Tool] = (),
        thinking: bool = False,
        template: Sequence[TemplatePart] = (),
        model: str | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        max_price: TokenAmount | str | None = None,
        best_effort: bool = False,
    ) -> Completion:
        """Ask for a text, pay for it canvas by canvas, and return all of it with its receipts.

        Args:
            prompt: What the user says, or messages, or a whole conversation.
            system: A system message in front of it.
            images: Shown before the text of the last user message. Not all models take images.
            tools: Functions that the model may call. `Completion.tool_calls` has its calls.
            thinking: Whether the model thinks before it answers.
            template: The form of the answer: fixed texts and holes.
            model: A name, a digest in hex, or None for any model.
            max_tokens: The longest answer, in tokens.
            seed: 64 bits. Drawn at random if None.
            temperature: 0 to 2, as in chat APIs. 1 is the model's published schedule.
            max_price: The most that the job may cost, such as "0.05" (tokens).
            best_effort: Whether models without seed and trace will do.

        Raises:
            MalformedInput: A message is not one that the protocol can carry.
            AmountError: `max_price` is not an amount of this market's token.
            NoWorkerFits: Nobody can take the request. The error says why.
            RequestRefused: No worker can take such a request, now or later.
            InsufficientFunds: The escrow holds too little.
            BudgetExceeded: A spending limit has too little left.
            Refusal: Every worker declined for the same reason, which the caller can mend.
            JobInterrupted: The worker went away. `resume` continues the job.
            JobFailed: The worker ended the job early. Delivered canvases are paid.
            ProtocolViolation: The worker cheated. Nothing more is paid to it.
        """
        limit = None if max_price is None else Amount(self.payment_token.units_of(max_price))
        request = TextRequest.of(
            prompt,
            system=system,
            images=images,
            tools=tools,
            thinking=thinking,
            template=template,
            model=model,
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
            max_price=limit,
            best_effort=best_effort,
        )
        return await self.collect(self.run(request))

    async def read(
        self,
        prompt: Prompt,
        questions: Sequence[Question],
        *,
        draws: int = 1,
        model: str | None = None,
        seed: int | None = None,
        max_price: TokenAmount | str | None = None,
        best_effort: bool = False,
    ) -> ReadResult:
        """Ask questions with labels to choose from. The answers are probabilities, and no text.

        Args:
            prompt: What the questions are about: a text, or messages, or a whole conversation.
            questions: What to decide.
            draws: How often each question is answered. Two or more give a standard error.
            model: A name, a digest in hex, or None for any model that takes reads.
            seed: 64 bits. Drawn at random if None.
            max_price: The most that the job may cost, such as "0.05" (tokens).
            best_effort: Whether models without seed and trace will do.

        Returns:
            A decision for each question, and what the job has cost.

        Raises:
            MalformedInput: A question is not one that the protocol can carry.
            ClientError: As `ask`.

        Example:
            >>> rude = Question("Is it rude?", (Label("yes"), Label("no")))
            >>> result = await client.read("You are late again!", [rude], draws=4)
            >>> print(result.decisions[0].probability("yes"), result.cost)
        """
        limit = None if max_price is None else Amount(self.payment_token.units_of(max_price))
        request = ReadRequest(
            conversation_of(prompt),
            tuple(questions),
            draws,
            model=model,
            seed=seed,
            max_price=limit,
            best_effort=best_effort,
        )
        return await collect_read(self.run(request), request, self.payment_token)

    async def quote(self, request: JobRequest) -> Quote:
        """Return what the request would cost now. Nothing is sent to a worker.

        Raises:
            NoWorkerFits: Nobody can take the request. The error says why.

        Example:
            >>> quote = await client.quote(TextRequest.of("Tell me a story.", max_tokens=256))
            >>> print(quote.expected, quote.ceiling)
        """
        ranking = await self.rank(request)
        if not ranking.choices:
            raise nobody(request, ranking)
        return Quote(self.payment_token, ranking.choices[0], ranking.choices[1:], ranking.unfit)

    @asynccontextmanager
    async def reserve_many(
        self,
        requests: Sequence[JobRequest],
        parts: Sequence[Part] | None = None,
    ) -> AsyncIterator[tuple[Part, ...]]:
        """Reserve what several requests may cost, all or nothing, before any of them is signed.

        What no job has taken over at the end of the block is free again.

        Args:
            requests: What is asked for, such as one request as often as there are choices.
            parts: Whose money it is: one part for each request, all with one budget. Without
                them it is the client's own.

        Returns:
            One part for each request, to be given to `run`.

        Raises:
            NoWorkerFits: Nobody can take one of the requests. The error says why.
            BudgetExceeded: A budget has too little left for all of them. Nothing is reserved.
            StoreError: There is no such API key.

        Example:
            >>> async with client.reserve_many([request] * 3) as parts:
            ...     runs = [client.run(request, part) for part in parts]
            ...     answers = await asyncio.gather(*map(client.collect, runs))
        """
        whose = [Part(number=n) for n in range(len(requests))] if parts is None else parts
        held = await self._fail_over.reserve(requests, whose) if requests else ()
        try:
            yield held
        finally:
            for part in held:
                self._spending.release(part)

    def run(self, request: JobRequest, part: Part = NO_PART) -> JobRun:
        """Run the request at the best worker, or at the next one if that declines.

        Args:
            request: What is asked for.
            part: What `reserve_many` holds for it. Without it the run holds its own ceiling.

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
        return self._start(lambda caller: self._fail_over.run(request, caller, part))

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
        await self._fail_over.replay(row, caller)

    # --- looking back

    async def evidence(self, job: JobId, *, with_text: bool = True) -> tuple[EvidenceFile, str]:
        """Make the evidence file of a job, which proves it to somebody who has nothing else.

        The text is in it as far as it is known: a client that keeps no text asks the worker for the
        outputs again.

        Args:
            job: The job's id.
            with_text: Whether the prompt and the answer are in it.

        Returns:
            The file, and what is missing of the text. That is empty if nothing is.

        Raises:
            StoreError: The journal does not know the job.
            EvidenceRefused: What the journal has of the job does not hold together.

        Example:
            >>> file, missing = await client.evidence(answer.job)
            >>> Path("evidence.json").write_bytes(write_evidence(file))
        """
        texts, missing = NO_TEXTS, ""
        if with_text:
            texts, missing = await known_texts(self.store, job, self.resume)
        return await make_evidence(self._context, job, texts), missing

    async def balance(self) -> Balance:
        """Return where the client's money is.

        Raises:
            ChainError: The chain does not answer.
        """
        reservations = await self.channels.reservations()
        pooled = await self.chain.pooled_balance(self.token, self.wallet.payer.address)
        rows = await asyncio.to_thread(self.store.channels)
        used = await self._spending.used()
        amount = self.payment_token.amount
        reserved = sum(r.amount for r in reservations if not r.one_step)
        return Balance(
            payer=self.wallet.payer.address,
            pooled=amount(pooled),
            free=amount(max(0, pooled - reserved)),
            in_channels=amount(sum(max(0, r.funded - r.withdrawn - r.settled) for r in rows)),
            paid=amount(sum(row.book.cumulative for row in rows)),
            spent_today=amount(used.day),
            spent_this_month=amount(used.month),
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
