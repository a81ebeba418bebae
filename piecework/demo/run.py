"""The demo from start to verdict."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piecework.chain.contracts.events import ChannelFunded, Settled
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.transactions import Finalized, Mined, TransactionSender
from piecework.client.jobs.requests import Generation, TextRequest
from piecework.demo import report as accounts
from piecework.demo.jobs import JobResult, run_jobs
from piecework.demo.market import (
    POLL_S,
    DemoMarket,
    Stopwatch,
    balances,
    open_market,
)
from piecework.demo.report import Evidence
from piecework.demo.screen import DemoScreen
from piecework.processes import ProcessGroup, RoleFailed
from piecework_node.daemon.admin import ask_daemon
from piecework_protocol.conversation import Conversation, Message
from piecework_protocol.signing import sign
from piecework_protocol.types import Amount, ChannelId, Micros

DEFAULT_PROMPT = "Write a story about a fox, a lantern and a river."
SUBJECTS = ("a fox", "a bear", "an owl", "a dragon", "a robot", "a cat", "a sailor", "a queen")
THINGS = ("a lantern", "a map", "a key", "a bell", "a kite", "a book", "a mirror")
PLACES = ("a river", "a forest", "a castle", "an island", "a garden")
MAX_SLOTS = 8
# What suits the bundled model: more steps a canvas than the published 0.8, 0.4 and 0.1, and better
# sentences.
TEMPERATURE_START = Micros(1_000_000)
TEMPERATURE_END = Micros(400_000)
ENTROPY_BOUND = Micros(20_000)
SETTLE_TIMEOUT_S = 120.0
ROLES = {
    "chain": "an EVM chain with the contracts",
    "index": "lists signed offers",
    "worker": "loads the model, measures this machine, registers",
    "gateway": "serves the OpenAI API",
}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asked for."""

    prompt: str
    jobs: int
    concurrency: int
    seed: int | None
    max_tokens: int


@dataclass(slots=True)
class Demo:
    """One demo: the market, its report, and whether it may be used further."""

    options: Options
    screen: DemoScreen
    market: DemoMarket | None = None

    async def run(self, group: ProcessGroup, root: Path) -> dict[str, Any]:
        """Bring the market up, run the jobs, settle, and account for everything."""
        watch = Stopwatch()
        options = self.options
        slots = min(MAX_SLOTS, options.concurrency)
        self.screen.phase("starting four processes:")
        self.screen.expect(ROLES)
        group.on_ready = lambda role: self.screen.ready(role.name, watch.elapsed_s)
        self.market = market = await open_market(group, root, slots=slots, watch=watch)
        self.screen.token = market.deployment.payment_token
        client = market.customer.client
        requests = [self._request(prompt, number) for number, prompt in enumerate(self.prompts())]
        what = "1 job" if options.jobs == 1 else f"{options.jobs} jobs"
        self.screen.phase(f"running {what}: sign, seal, denoise, verify, pay …")
        with self.screen:
            results = await run_jobs(
                client, self.prompts(), requests, options.concurrency, self.screen
            )
        watch.lap("jobs")
        self.screen.phase("settling on chain …")
        evidence = await settle(market, results, watch)
        return accounts.to_json(evidence)

    def prompts(self) -> Sequence[str]:
        """The prompt, or when there are many jobs the prompt and variations on it."""
        stories = (
            f"Write a story about {SUBJECTS[i % len(SUBJECTS)]}, {THINGS[i % len(THINGS)]} "
            f"and {PLACES[i % len(PLACES)]}."
            for i in range(self.options.jobs - 1)
        )
        return [self.options.prompt, *stories]

    def _request(self, prompt: str, number: int) -> TextRequest:
        seed = None if self.options.seed is None else self.options.seed + number
        return TextRequest(
            Conversation((Message("user", prompt),)),
            generation=Generation(
                seed=seed,
                max_tokens=self.options.max_tokens,
                temperature_start=TEMPERATURE_START,
                temperature_end=TEMPERATURE_END,
                entropy_bound=ENTROPY_BOUND,
            ),
            drafts=not self.screen.quiet,
        )


async def settle(market: DemoMarket, results: list[JobResult], watch: Stopwatch) -> Evidence:
    """Have the worker settle, then take the chain's word for everything."""
    client = market.customer.client
    channel = _channel(results)
    row, receipts = await client.receipts(channel)
    voucher = row.book.voucher()
    await ask_daemon(market.worker_home, "POST", "/settle")
    settlements = await _settled(client.reader, channel, voucher.cumulative, market)
    watch.lap("settlement")
    reader, signature = client.reader, sign(client.reader.domain, voucher, client.wallet.authorizer)
    events = await reader.escrow_events(
        ("ChannelFunded",),
        market.deployment.from_block,
        await reader.latest_block(),
        channelId=channel,
    )
    funded = [e for e in events if isinstance(e, ChannelFunded)]
    openings = {e.log.transaction for e in funded}
    sender = TransactionSender.of(reader, client.wallet.payer)
    gas = {"deposit": market.customer.deposit_gas, "open": 0, "settle": 0}
    for kind, transactions in (
        ("open", openings),
        ("settle", {s.log.transaction for s in settlements}),
    ):
        for transaction in transactions:
            outcome = await sender.outcome(transaction)
            mined = outcome.mined if isinstance(outcome, Finalized) else outcome
            if not isinstance(mined, Mined):
                raise RoleFailed(f"the chain does not know its own {kind} transaction")
            gas[kind] += mined.gas_used
    before, after = market.customer.before, await balances(client, market.receiver)
    ready = market.worker.ready
    worker = {name: ready[name] for name in ("operator", "receiver", "endpoint", "exposure_bound")}
    fees = sum(e.fee for e in funded)
    paid = results, receipts, voucher, signature, settlements, fees
    return Evidence(
        *paid,
        gas,
        before,
        after,
        worker,
        watch.timings_ms,
        reader.domain,
        client.wallet.payer.address,
        market.deployment.payment_token,
    )


def _channel(results: list[JobResult]) -> ChannelId:
    channels = {r.ended.channel for r in results if r.ended is not None}
    if len(channels) != 1:
        errors = "; ".join(sorted({r.error for r in results if r.error})) or "no job ended"
        raise RoleFailed(f"the jobs used {len(channels)} channels, one was expected. {errors}")
    return channels.pop()


async def _settled(
    reader: ChainReader, channel: ChannelId, cumulative: Amount, market: DemoMarket
) -> tuple[Settled, ...]:
    """Wait, boundedly, until the chain has paid what the last voucher says."""
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT_S):
            while not await _is_home(reader, channel, cumulative, market):  # noqa: ASYNC110  the chain has no event
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise RoleFailed(
            f"the worker did not settle within {SETTLE_TIMEOUT_S:.0f} s. {market.worker.log_tail()}"
        ) from None
    return await reader.settlements(channel)


def temporary_root() -> tempfile.TemporaryDirectory[str]:
    """Where a demo keeps its homes; gone when it ends."""
    return tempfile.TemporaryDirectory(prefix="piecework-demo-", ignore_cleanup_errors=True)


async def _is_home(
    reader: ChainReader, channel: ChannelId, cumulative: Amount, market: DemoMarket
) -> bool:
    """Whether the voucher is settled, and the fee for the opening was pushed to the receiver."""
    if (await reader.channel(channel)).settled < cumulative:
        return False
    return not await reader.waiting_payout(reader.deployment.token, market.receiver)
