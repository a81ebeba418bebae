"""One function builds the real graph out of settings: the only place where the parts are named
together."""

from __future__ import annotations

import asyncio
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.chain.deployment import Deployment
from piecework.chain.fees import GWEI, FeePolicy
from piecework.chain.finality import FINALIZED, at_depth
from piecework.chain.reader import ChainReader
from piecework_node import logs
from piecework_node.clock import Clock, SystemClock
from piecework_node.config import WorkerConfig, child_environment
from piecework_node.engine.link import EngineBackend
from piecework_node.engine.supervisor import EngineCommandLine, EngineSupervisor, engine_arguments
from piecework_node.errors import ConfigError
from piecework_node.home import Home
from piecework_node.jobs.offers import OfferBoard
from piecework_node.jobs.runtime import Execution
from piecework_node.jobs.worker import Worker
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import SealingKeys, TlsIdentity, load_operator, load_tls
from piecework_node.metrics import Metrics
from piecework_node.settlement.chain import ChainLink
from piecework_node.settlement.policy import SettlePolicy
from piecework_node.settlement.settler import Settler, SettlerTimes
from piecework_protocol.signing import LocalSigner

if TYPE_CHECKING:
    from piecework_node.vllm.link import VllmSettings


@dataclass(slots=True)
class Components:
    """The graph. Built once by `build`, closed once by `Daemon`."""

    config: WorkerConfig
    home: Home
    deployment: Deployment
    operator: LocalSigner
    tls: TlsIdentity
    clock: Clock
    log: Any
    metrics: Metrics
    journal: SqliteJournal
    reader: ChainReader
    engine: EngineBackend
    engine_life: asyncio.Task[None]
    execution: Execution
    settler: Settler
    worker: Worker
    board: OfferBoard


async def build(
    home: Home,
    config: WorkerConfig,
    password: str,
    *,
    clock: Clock | None = None,
    engine: EngineCommandLine | None = None,
) -> Components:
    """Settings to a working graph, in the order in which things can fail. Nothing listens yet.

    The engine process starts at once, beside everything else: loading a model takes longest.
    `engine` starts another one than the configured; it speaks `node.engine_wire`.
    """
    clock = clock or SystemClock()
    log, metrics = logs.logger(config.log_level), Metrics()
    if not home.deployment.is_file():
        raise ConfigError(f"{home.deployment} is missing. Run `piecework worker init` first.")
    deployment = Deployment.load(home.deployment)
    tls = load_tls(home.certificate, home.certificate_key)
    backend = _backend(config, clock, log, engine)
    life = asyncio.create_task(backend.run(), name="engine")
    journal: SqliteJournal | None = None
    reader: ChainReader | None = None
    try:
        operator = await asyncio.to_thread(load_operator, home.operator, password)
        journal = await SqliteJournal.open(home.journal, deployment.domain, operator.address)
        journal.on_commit = metrics.commit.observe
        finality = at_depth(config.finality_depth) if config.finality_depth else FINALIZED
        reader = await ChainReader.connect(
            deployment,
            rpc_url=config.rpc_url or None,
            timeout_s=config.rpc_timeout_s,
            finality=finality,
        )
        components = await _assemble(
            home,
            config,
            deployment,
            operator,
            tls,
            clock,
            log,
            metrics,
            journal,
            reader,
            backend,
            life,
        )
    except BaseException:
        await _end(life)
        if journal is not None:
            await journal.close()
        if reader is not None:
            await reader.close()
        raise
    return components


async def _end(life: asyncio.Task[None]) -> None:
    """Stop the engine process of a start that failed; what it has to say of itself is not the
    cause."""
    life.cancel()
    await asyncio.gather(life, return_exceptions=True)


async def _assemble(  # noqa: PLR0917  the graph's roots, once
    home: Home,
    config: WorkerConfig,
    deployment: Deployment,
    operator: LocalSigner,
    tls: TlsIdentity,
    clock: Clock,
    log: Any,
    metrics: Metrics,
    journal: SqliteJournal,
    reader: ChainReader,
    engine: EngineBackend,
    life: asyncio.Task[None],
) -> Components:
    chain = ChainLink(reader, operator, FeePolicy(max_fee_wei=int(config.max_fee_gwei * GWEI)))
    keys = await sealing_keys(journal, operator, clock, config.sealing_key_rotation_s)
    execution = Execution(
        domain=deployment.domain,
        signer=operator,
        journal=journal,
        engine=engine,
        keys=keys,
        clock=clock,
        metrics=metrics,
        log=log,
    )
    policy = SettlePolicy(
        config.settle_gas_multiple, config.settle_interval_s, config.native_coin_price
    )
    times = SettlerTimes(config.chain_poll_s, config.stuck_after_s)
    settler = Settler(
        journal, chain, clock=clock, policy=policy, times=times, metrics=metrics, log=log
    )
    worker = Worker(
        execution,
        chain,
        settler,
        receiver=config.receiver,
        terms=config.terms(deployment.token),
        policy=config.policy,
    )
    board = OfferBoard(journal, deployment.domain, operator, clock)
    return Components(
        config=config,
        home=home,
        deployment=deployment,
        operator=operator,
        tls=tls,
        clock=clock,
        log=log,
        metrics=metrics,
        journal=journal,
        reader=reader,
        engine=engine,
        engine_life=life,
        execution=execution,
        settler=settler,
        worker=worker,
        board=board,
    )


async def sealing_keys(
    journal: SqliteJournal, operator: LocalSigner, clock: Clock, rotation_s: int
) -> SealingKeys:
    """The journal's sealing keys, with a fresh one when it is time."""
    keys = SealingKeys.load(await journal.sealing_keys(), operator.secret)
    if keys.rotation_due(clock.now(), rotation_s):
        keys, records = keys.rotated(clock.now(), operator.secret, secrets.token_bytes)
        await journal.append(records)
    return keys


def _backend(
    config: WorkerConfig, clock: Clock, log: Any, command: EngineCommandLine | None
) -> EngineBackend:
    if config.backend == "diffusion" or command is not None:
        return EngineSupervisor(command or _engine_command(config), clock, log)
    from piecework_node.vllm.link import VllmLink

    return VllmLink(vllm_settings(config), clock, log)


def vllm_settings(config: WorkerConfig) -> VllmSettings:
    """What the settings say of vLLM. `ModelNotPulled` says what to run when the checkpoint is not
    here."""
    from piecework_node.vllm.link import VllmSettings

    folder = config.checkpoint()
    if folder is None:
        raise ConfigError("backend vllm needs model: the checkpoint that the servers serve")
    return VllmSettings(
        urls=config.vllm_endpoints,
        key=config.vllm_api_key,
        model=config.vllm_model,
        checkpoint=folder,
        slots=config.slots,
        benchmark_s=config.benchmark_s,
    )


def _engine_command(config: WorkerConfig) -> EngineCommandLine:
    folder = config.checkpoint()
    arguments = engine_arguments(
        sys.executable,
        model=str(folder or ""),
        device=config.device,
        precision=config.precision,
        planned_context=config.planned_context,
        slots=config.slots,
        queue=config.queue,
        threads=config.threads,
        benchmark_s=config.benchmark_s,
    )
    return EngineCommandLine(tuple(arguments), child_environment())
