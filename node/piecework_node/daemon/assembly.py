"""Build the real graph out of settings. Only here are all the parts named together."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from piecework.base.clock import Clock, SystemClock
from piecework.chain.deployment import Deployment
from piecework.chain.errors import SignerAway
from piecework.chain.nodes.finality import FINALIZED, at_depth
from piecework.chain.reading.reader import ChainReader
from piecework.chain.sending.fees import GWEI, FeePolicy
from piecework.signer.remote import RemoteSigner
from piecework_node import logs
from piecework_node.config import WorkerConfig
from piecework_node.daemon.engines import Engines, make_engines
from piecework_node.daemon.owners import watch_cards
from piecework_node.daemon.surroundings import check_settings
from piecework_node.disputes.chain import DisputeLink
from piecework_node.disputes.defence import Defence
from piecework_node.disputes.leaves import JournalLeaves
from piecework_node.engine.supervisor import EngineCommandLine
from piecework_node.errors import ConfigError
from piecework_node.evidence.steps import StepStore
from piecework_node.home import Home
from piecework_node.jobs.offers import OfferBoard
from piecework_node.jobs.opening import OpeningServer
from piecework_node.jobs.terms import JobTimeouts, OperatorTerms
from piecework_node.jobs.worker import Worker
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import (
    close_operator,
    keystore_address,
    open_operator,
    remote_operator,
    secret_of,
)
from piecework_node.keys.sealing import SealingKeyring, WrappingSecrets, open_wrapping_secret
from piecework_node.keys.tls import TlsIdentity, load_tls
from piecework_node.metrics import Metrics
from piecework_node.owner.watch import OwnerWatch
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.faults import FaultBoard
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.opener import CanvasOpener
from piecework_node.runtime.openings import OpeningCheck
from piecework_node.runtime.signing import ARRIVES_S, PatientSigner
from piecework_node.runtime.write_offs import WriteOffs
from piecework_node.settlement.chain import ChainLink
from piecework_node.settlement.fees import FeeSchedule, FeeSettings
from piecework_node.settlement.openings import Openings
from piecework_node.settlement.payouts import Payouts
from piecework_node.settlement.policy import SettlePolicy
from piecework_node.settlement.settler import Settler
from piecework_node.settlement.simulations import OpeningSimulations
from piecework_node.settlement.transactions import TransactionTracker
from piecework_node.settlement.watch import NodeWatch, WatchLimits
from piecework_node.worker_amounts import WorkerAmounts
from piecework_protocol.signing import AsyncSigner
from piecework_protocol.types import Address, Seconds, parse_address


@dataclass(frozen=True, slots=True)
class Foundations:
    """What the graph stands on: settings, keys, clock, disk, chain and engine."""

    config: WorkerConfig
    amounts: WorkerAmounts
    home: Home
    deployment: Deployment
    operator: AsyncSigner
    secrets: WrappingSecrets
    tls: TlsIdentity
    clock: Clock
    log: Any
    metrics: Metrics
    journal: SqliteJournal
    reader: ChainReader
    engines: Engines
    engine_life: asyncio.Task[None]

    async def close(self) -> None:
        """Let go of chain and journal, in this order."""
        await self.reader.close()
        await close_operator(self.operator)
        await self.journal.close()


@dataclass(frozen=True, slots=True)
class Components:
    """The graph. `build` makes it once, and `Daemon` closes it once."""

    base: Foundations
    keyring: SealingKeyring
    steps: StepStore
    runtime: JobRuntime
    channels: Channels
    settler: Settler
    worker: Worker
    board: OfferBoard
    owners: Mapping[str, OwnerWatch]
    """By the name of the card."""
    fees: FeeSchedule

    def owners_of(self, card: str | None) -> tuple[OwnerWatch, ...]:
        """Return who watches a card. None: all cards."""
        if card is None:
            return tuple(self.owners.values())
        return tuple(owner for name, owner in self.owners.items() if name == card)


async def build(
    home: Home,
    config: WorkerConfig,
    password: str,
    *,
    clock: Clock | None = None,
    engine: EngineCommandLine | None = None,
) -> Components:
    """Turn settings into a working graph, in the order in which things can fail.

    Nothing listens yet. The engine starts at once, because loading a model takes longest.
    `engine` starts another engine than the configured one. It speaks `engine.wire`.

    Raises:
        PieceworkError: a part cannot be made. The text says which and what to do.
    """
    clock = clock or SystemClock()
    log, metrics = logs.logger(config.log_level, config.log_format), Metrics()
    if not home.deployment.is_file():
        raise ConfigError(f"{home.deployment} is missing. Run `piecework worker init` first.")
    deployment = Deployment.load(home.deployment)
    amounts = config.amounts(deployment.payment_token)
    check_settings(config, deployment)
    named = parse_address("0x" + keystore_address(home.operator))
    tls = load_tls(home.certificate, home.certificate_key, named)
    engines = make_engines(config, home, clock, log, engine)
    life = asyncio.create_task(engines.run(), name="engine")
    journal: SqliteJournal | None = None
    reader: ChainReader | None = None
    try:
        operator, wrapping = await _open_keys(home, config, password, deployment, log)
        journal = await _open_journal(home, deployment, operator, clock, metrics)
        reader = await connect(config, deployment)
        for warning in reader.warnings:
            log.warning("chain differs", reason=warning)
        return await assemble(
            Foundations(
                config,
                amounts,
                home,
                deployment,
                operator,
                wrapping,
                tls,
                clock,
                log,
                metrics,
                journal,
                reader,
                engines,
                life,
            )
        )
    except BaseException:
        await _end(life)
        if journal is not None:
            await journal.close()
        if reader is not None:
            await reader.close()
        raise


async def _open_keys(
    home: Home, config: WorkerConfig, password: str, deployment: Deployment, log: Any
) -> tuple[AsyncSigner, WrappingSecrets]:
    """Open the operator's key where it is, and what wraps the sealing keys.

    A signer that is away is not an error. The daemon waits for it once its admin port answers.
    """
    operator: AsyncSigner
    try:
        operator = await open_operator(home.operator, config.signer, password, deployment)
    except SignerAway as error:
        log.warning("waiting for the signer", reason=str(error), within_s=ARRIVES_S)
        operator = remote_operator(home.operator, config.signer, deployment)
    try:
        own = await asyncio.to_thread(open_wrapping_secret, home.sealing, password)
    except BaseException:
        await close_operator(operator)
        raise
    return operator, WrappingSecrets(own, secret_of(operator))


async def _open_journal(
    home: Home, deployment: Deployment, operator: AsyncSigner, clock: Clock, metrics: Metrics
) -> SqliteJournal:
    """Open the journal, and hold every row of it to its log."""
    journal = await SqliteJournal.open(
        home.journal, deployment.domain, operator.address, clock=clock
    )
    try:
        await journal.verify(deep=False)
    except BaseException:
        await journal.close()
        raise
    journal.on_commit = metrics.commit.observe
    return journal


async def connect(config: WorkerConfig, deployment: Deployment) -> ChainReader:
    """Connect to the chain as the settings say. Close the reader with `close`.

    Raises:
        ChainError: no node answers, or it serves another market.
    """
    return await ChainReader.connect(
        deployment,
        rpc_url=config.rpc_url or None,
        rpc_urls=config.rpc_urls,
        rpc_quorum=config.rpc_quorum,
        timeout_s=config.rpc_timeout_s,
        finality=at_depth(config.finality_depth) if config.finality_depth else FINALIZED,
    )


async def _end(life: asyncio.Task[None]) -> None:
    """Stop the engine of a start that failed. What it says of its own end is not the cause."""
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def assemble(base: Foundations) -> Components:
    """Join the parts. Whoever laid the foundations closes them. Raises `PieceworkError`."""
    config, journal, operator = base.config, base.journal, base.operator
    clock, log, metrics, domain = base.clock, base.log, base.metrics, base.deployment.domain
    gas = FeePolicy(max_fee_wei=int(config.max_fee_gwei * GWEI))
    faults = FaultBoard(clock, metrics, log, patience_s=config.chain_outage_s)
    signer = _patient(operator, faults)
    port = ChainLink(base.reader, signer, gas)
    keyring = await SealingKeyring.load(
        journal,
        base.secrets,
        clock=clock,
        entropy=secrets.token_bytes,
        rotation_s=config.sealing_key_rotation_s,
        evidence_s=config.evidence_s,
    )
    steps = await _kept_steps(base, keyring)
    runtime = _runtime(base, signer, keyring, steps)
    channels = Channels(
        runtime,
        port,
        faults,
        refresh_s=config.channel_refresh_s,
        outage_s=config.chain_outage_s,
        log=log,
    )
    write_offs = WriteOffs(runtime, channels, every_s=config.write_off_s, log=log)
    leaves = JournalLeaves(journal, base.engines.cards, keyring, domain, steps)
    settler, fees, check = await _settlement(
        base, port, channels, faults, write_offs=write_offs, leaves=leaves
    )
    terms = operator_terms(config, base.amounts, base.deployment.token)
    timeouts = JobTimeouts(config.payment_timeout_s, config.pause_max_s)
    worker = Worker(
        runtime,
        channels,
        keyring,
        terms=terms,
        timeouts=timeouts,
        openings=check,
        log=log,
    )
    board = OfferBoard(
        journal,
        terms,
        domain=domain,
        signer=operator,
        clock=clock,
        fees=fees.asked,
    )
    owners = await watch_cards(
        base.engines,
        worker.pausing,
        faults,
        base.home,
        several=bool(config.cards),
        clock=clock,
        log=log,
    )
    return Components(base, keyring, steps, runtime, channels, settler, worker, board, owners, fees)


def _patient(operator: AsyncSigner, faults: FaultBoard) -> AsyncSigner:
    """Give the operator as jobs and settlement use it."""
    return PatientSigner(operator, faults) if isinstance(operator, RemoteSigner) else operator


def _runtime(
    base: Foundations, signer: AsyncSigner, keyring: SealingKeyring, steps: StepStore
) -> JobRuntime:
    """Build what makes things happen to jobs, openings among them."""
    domain, cards = base.deployment.domain, base.engines.cards
    opener = CanvasOpener(base.journal, cards, keyring, domain, steps)
    return JobRuntime(
        base.journal,
        cards,
        domain=domain,
        signer=signer,
        clock=base.clock,
        metrics=base.metrics,
        log=base.log,
        steps=steps if base.config.evidence_bytes else None,
        openings=OpeningServer(opener, base.journal),
    )


async def _kept_steps(base: Foundations, keyring: SealingKeyring) -> StepStore:
    """Find the steps of canvases that are kept. A budget of 0 removes them."""
    config = base.config
    steps = StepStore(
        base.home.steps,
        keyring,
        base.deployment.domain,
        budget_bytes=config.evidence_bytes,
        window_s=config.evidence_s,
        clock=base.clock,
        log=base.log,
    )
    await steps.load()
    return steps


def _defence(
    base: Foundations,
    port: ChainLink,
    leaves: JournalLeaves,
    transactions: TransactionTracker,
    faults: FaultBoard,
) -> Defence | None:
    """Build what answers challenges, in a market that has a dispute contract."""
    deployment = base.deployment
    if deployment.disputes is None:
        return None
    return Defence(
        DisputeLink(port, base.operator.address),
        leaves,
        transactions,
        base.journal,
        faults,
        first_block=deployment.from_block or 0,
        log=base.log,
    )


async def _settlement(
    base: Foundations,
    port: ChainLink,
    channels: Channels,
    faults: FaultBoard,
    *,
    write_offs: WriteOffs,
    leaves: JournalLeaves,
) -> tuple[Settler, FeeSchedule, OpeningCheck]:
    """Build what brings money to the chain: settlement, its fees, and its word on openings."""
    config, journal = base.config, base.journal
    clock, log, metrics = base.clock, base.log, base.metrics
    transactions = await TransactionTracker.load(
        journal, port, clock=clock, stuck_s=config.stuck_after_s, metrics=metrics, log=log
    )
    policy = SettlePolicy(
        config.settle_gas_multiple, config.settle_interval_s, base.amounts.native_coin_price
    )
    limits = WatchLimits.of(base.deployment.chain_id, config.block_time_s)
    watch = NodeWatch(port, faults, clock=clock, limits=limits, metrics=metrics)
    fees = FeeSchedule(fee_settings(base.amounts), policy, lambda: watch.price)
    openings = Openings(journal, channels, OpeningSimulations(port, lambda: watch.height), fees)
    settler = Settler(
        channels,
        transactions,
        port,
        journal,
        watch,
        openings=openings,
        payouts=Payouts(
            port,
            journal,
            policy,
            clock,
            receiver=config.receiver,
            tokens=config.tokens(base.deployment.token),
        ),
        write_offs=write_offs,
        clock=clock,
        policy=policy,
        poll_s=config.chain_poll_s,
        metrics=metrics,
        log=log,
        defence=_defence(base, port, leaves, transactions, faults),
    )
    return settler, fees, openings.check


def operator_terms(
    config: WorkerConfig, amounts: WorkerAmounts, default_token: Address
) -> OperatorTerms:
    """Return what the settings ask of every channel and job. Places are those of all cards."""
    cards = [own for _, own in config.of_cards]
    return OperatorTerms(
        receiver=config.receiver,
        tokens=config.tokens(default_token),
        price_per_million_prompt_tokens=amounts.price_per_million_prompt_tokens,
        price_per_million_output_tokens=amounts.price_per_million_output_tokens,
        price_per_thousand_steps=amounts.price_per_thousand_steps,
        slots=sum(own.slots for own in cards),
        queue=sum(own.queue for own in cards),
        jobs_per_channel=config.jobs_per_channel,
        min_withdrawal_delay=Seconds(config.min_withdrawal_delay_s),
        min_deposit=amounts.min_deposit,
        credit=amounts.credit,
        offer_lifetime_s=config.offer_lifetime_s,
        evidence_s=config.evidence_s,
    )


def fee_settings(amounts: WorkerAmounts) -> FeeSettings:
    """Return what the settings say of fees for clients' transactions."""
    return FeeSettings(
        open=amounts.open_fee,
        top_up=amounts.top_up_fee,
        close=amounts.close_fee,
        min_top_up=amounts.min_top_up,
        credit_first=amounts.credit.first,
    )
