"""The composition root: one function builds the real graph, one object lives it.

Start: settings, keys, journal (locked), chain (verified), engine (loaded and measured), gRPC, offer, ready.
Stop (SIGTERM, SIGINT or /drain): nothing new, running jobs get a grace, the rest is suspended, what is worth it is
settled, the journal is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from chain.deployment import Deployment
from chain.fees import GWEI, FeePolicy
from chain.finality import FINALIZED, at_depth
from chain.reader import ChainReader
from node import config as settings
from node import logs
from node.admin import ADDRESS_FILE, AdminServer, admin_token
from node.chain_link import ChainLink
from node.clock import Clock, SystemClock
from node.config import WorkerConfig, child_environment, split_endpoint
from node.engine import EngineCommandLine, EngineSupervisor, engine_arguments
from node.engine_link import EngineEvent, EngineFacts, EngineReady
from node.errors import ConfigError
from node.execution import Execution
from node.home import Home
from node.journal_sqlite import SqliteJournal
from node.keys import SealingKeys, TlsIdentity, load_operator, load_tls, write_private
from node.limiter import RateLimiter
from node.metrics import Metrics
from node.offers import AiohttpPoster, OfferBoard, OfferTerms, publish, refresh_due
from node.server import Door, GrpcServer
from node.settlement import Settler, SettlerTimes
from node.settlement_policy import SettlePolicy
from node.worker import Worker
from protocol.errors import PieceworkError
from protocol.objects import Offer
from protocol.pricing import Usage, price
from protocol.signing import LocalSigner
from protocol.types import Amount, Seconds, address_hex, to_hex

TICK_S: Final = 0.5
POLL_S: Final = 0.1
STOP_GRACE_S: Final = 2.0
"""For streams that were told to end."""
FINAL_SETTLE_S: Final = 60.0
"""For the last settlement to be mined; if the chain is slower, the next start takes it up."""


@dataclass(slots=True)
class Parts:
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
    engine: EngineSupervisor
    execution: Execution
    settler: Settler
    worker: Worker
    board: OfferBoard


async def build(home: Home, config: WorkerConfig, password: str, *, clock: Clock | None = None) -> Parts:
    """Settings to a working graph, in the order in which things can fail. Nothing listens yet."""
    clock = clock or SystemClock()
    log, metrics = logs.logger(config.log_level), Metrics()
    if not home.deployment.is_file():
        raise ConfigError(f"{home.deployment} is missing. Run `piecework worker init` first.")
    deployment = Deployment.load(home.deployment)
    tls = load_tls(home.certificate, home.certificate_key)
    operator = await asyncio.to_thread(load_operator, home.operator, password)
    journal = await SqliteJournal.open(home.journal, deployment.domain, operator.address)
    journal.on_commit = metrics.commit.observe
    reader: ChainReader | None = None
    try:
        finality = at_depth(config.finality_depth) if config.finality_depth else FINALIZED
        reader = await ChainReader.connect(
            deployment,
            rpc_url=config.rpc_url or None,
            timeout_s=config.rpc_timeout_s,
            finality=finality,
        )
        return await _wire(home, config, deployment, operator, tls, clock, log, metrics, journal, reader)
    except BaseException:
        await journal.close()
        if reader is not None:
            await reader.close()
        raise


async def _wire(  # noqa: PLR0917  the graph's roots, once
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
) -> Parts:
    chain = ChainLink(reader, operator, FeePolicy(max_fee_wei=int(config.max_fee_gwei * GWEI)))
    keys = await sealing_keys(journal, operator, clock, config.sealing_key_rotation_s)
    engine = EngineSupervisor(_engine_command(config), clock, log)
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
    settler = Settler(
        journal,
        chain,
        clock=clock,
        policy=SettlePolicy(config.settle_gas_multiple, config.settle_interval_s, config.native_coin_price),
        times=SettlerTimes(config.chain_poll_s, config.stuck_after_s),
        metrics=metrics,
        log=log,
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
    return Parts(
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


def _engine_command(config: WorkerConfig) -> EngineCommandLine:
    arguments = engine_arguments(
        sys.executable,
        model=config.model,
        device=config.device,
        dtype=config.dtype,
        slots=config.slots,
        queue=config.queue,
        threads=config.threads,
        benchmark_s=config.benchmark_s,
    )
    return EngineCommandLine(tuple(arguments), child_environment())


class Daemon:
    """One life of the worker. Implements `node.admin.Operations`."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts
        self._draining = asyncio.Event()
        self._started = False
        self._grpc_port = 0
        door = Door(
            parts.worker,
            parts.board,
            RateLimiter(parts.config.requests_per_minute / 60, parts.clock),
            parts.metrics,
            parts.log,
        )
        self._grpc = GrpcServer(door, parts.tls, max_streams=parts.config.max_streams)
        host = parts.config.admin_host
        self._admin = AdminServer(self, admin_token(parts.home.root), host)

    # --- Operations

    @property
    def ready(self) -> bool:
        worker = self._p.worker
        return self._started and not worker.draining and worker.fault is None and self._p.engine.ready

    def metrics(self) -> bytes:
        self._gauges()
        return self._p.metrics.render()

    def settle(self) -> None:
        self._p.settler.ask()

    def drain(self) -> None:
        self._draining.set()

    async def status(self) -> dict[str, Any]:
        """Everything an operator wants to know at a glance. Amounts in base units."""
        p, worker = self._p, self._p.worker
        current = p.board.current
        earnings = await p.journal.earnings()
        return {
            "state": self._state(),
            "fault": worker.fault,
            "operator": address_hex(p.operator.address),
            "receiver": address_hex(worker.receiver),
            "grpc_port": self._grpc_port,
            "engine": {
                "ready": p.engine.ready,
                "pid": p.engine.pid,
                "restarts": p.engine.losses,
                **(_engine_status(p.engine.facts) if p.engine.facts else {}),
            },
            "slots": p.config.slots,
            "queue": p.config.queue,
            "active": worker.active,
            "streams": worker.streams,
            "channels": len(list(worker.books)),
            "offer": _offer_status(current.offer) if current else None,
            "earnings": asdict(earnings),
            "unsettled": p.settler.unsettled,
            "exposure": worker.exposure,
            "exposure_bound": self._exposure_bound(),
            "transactions": [
                {"kind": t.kind.value, "hash": "0x" + t.tx.hash.hex(), "state": t.state.value}
                for t in p.settler.under_way
            ],
            "refusals": dict(sorted(p.metrics.refusals.items())),
            "errors": [asdict(note) for note in p.metrics.errors],
        }

    def _state(self) -> str:
        if self._p.worker.draining:
            return "draining"
        return "ready" if self.ready else "faulted" if self._p.worker.fault else "starting"

    def _exposure_bound(self) -> int | None:
        """The most that can be delivered and not paid for by jobs that run at once (clause 3.7)."""
        current = self._p.board.current
        if current is None:
            return None
        model, config = current.offer.models[0], self._p.config
        usage = Usage(
            model.max_context,
            config.credit_window * model.canvas_size,
            config.credit_window * model.max_steps,
        )
        return (config.slots + config.queue) * price(model, usage)

    # --- life

    async def run(self) -> None:
        """Start, serve until told to stop, and stop well. Errors of ours end it at once."""
        p = self._p
        p.execution.failed = asyncio.get_running_loop().create_future()
        self._catch_signals()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._failure(), name="failure"),
                    group.create_task(p.engine.run(), name="engine"),
                ]
                await self._start(group, tasks)
                await self._draining.wait()
                await self._stop()
                for task in tasks:
                    task.cancel()
        finally:
            await self._close()

    async def _failure(self) -> None:
        """Turns an error in any unit of work into the end of the daemon."""
        if self._p.execution.failed is not None:
            await self._p.execution.failed

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)

    async def _start(self, group: asyncio.TaskGroup, tasks: list[asyncio.Task[Any]]) -> None:
        p = self._p
        for signed in await p.journal.offers_since(p.clock.now()):
            p.worker.remember_offer(signed)
        await p.worker.recover()
        await p.settler.resume(p.worker)
        events = aiter(p.engine.events())
        first = await self._first_ready(events)
        if first is None:
            return
        host, port = split_endpoint(p.config.bind)
        try:
            admin_port = await self._admin.start(p.config.admin_host, p.config.admin_port)
            self._grpc_port = await self._grpc.start(host, port)
        except OSError as error:
            raise ConfigError(f"{error}. Is another worker running, or is the port taken?") from None
        tasks += [
            group.create_task(self._pump(events), name="engine events"),
            group.create_task(p.settler.run(), name="settlement"),
            group.create_task(self._ticks(), name="ticks"),
        ]
        await self._issue(first)
        tasks.append(group.create_task(self._offers(), name="offers"))
        self._started = True
        await self._grpc.serving(True)
        self._announce(admin_port)

    async def _first_ready(self, events: Any) -> EngineFacts | None:
        """Wait for the engine to be loaded, or for the order to stop."""
        stopping = asyncio.ensure_future(self._draining.wait())
        event: asyncio.Future[EngineEvent] = asyncio.ensure_future(anext(events))
        try:
            await asyncio.wait((stopping, event), return_when=asyncio.FIRST_COMPLETED)
            if not event.done():
                return None
            report = event.result()
            if not isinstance(report, EngineReady):
                raise ConfigError("the engine failed before it was ready")
            return report.facts
        finally:
            stopping.cancel()
            event.cancel()

    def _announce(self, admin_port: int) -> None:
        """The ready line, once everything answers."""
        p = self._p
        address = {"host": p.config.admin_host, "port": admin_port, "pid": os.getpid()}
        write_private(p.home.root / ADDRESS_FILE, json.dumps(address).encode(), replace=True)
        line = {
            "ready": True,
            "role": "worker",
            "operator": address_hex(p.operator.address),
            "receiver": address_hex(p.worker.receiver),
            "endpoint": self._endpoint(),
            "grpc_port": self._grpc_port,
            "admin_port": admin_port,
            "admin_url": f"http://{p.config.admin_host}:{admin_port}",
            "tls_certificate": "0x" + p.tls.digest.hex(),
            "model": p.engine.facts.name if p.engine.facts else "",
            "engine_pid": p.engine.pid,
            "exposure_bound": self._exposure_bound(),
        }
        print(json.dumps(line), flush=True)
        p.log.info("ready", port=self._grpc_port, admin_port=admin_port, bound=self._exposure_bound())

    async def _pump(self, events: Any) -> None:
        async for event in events:
            await self._p.worker.engine_event(event)

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            await self._p.worker.tick()
            await self._rotate()
            await self._grpc.serving(self.ready)

    async def _rotate(self) -> None:
        p = self._p
        now = p.clock.now()
        if p.execution.keys.rotation_due(now, p.config.sealing_key_rotation_s):
            keys, records = p.execution.keys.rotated(now, p.operator.secret, secrets.token_bytes)
            await p.journal.append(records)
            p.execution.keys = keys

    # --- offers

    async def _offers(self) -> None:
        """Show the offer to the indexes, and renew it when it is due."""
        import aiohttp

        p = self._p
        async with aiohttp.ClientSession() as session:
            poster = AiohttpPoster(session)
            while True:
                current = p.board.current
                if current is not None:
                    await publish(current, p.config.indexes, poster, p.metrics, p.log)
                await self._until(self._offer_due)
                if p.engine.facts is not None:
                    await self._issue(p.engine.facts)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that no single event announces."""
        while not condition():
            await asyncio.sleep(POLL_S)

    def _offer_due(self) -> bool:
        p = self._p
        current, key = p.board.current, p.execution.keys.current
        if current is None or key is None or not self.ready:
            return False
        free = max(0, p.config.slots - p.worker.active)
        return refresh_due(current.offer, p.clock.now(), free, key)

    async def _issue(self, facts: EngineFacts) -> None:
        p, config = self._p, self._p.config
        key = p.execution.keys.current
        if key is None:
            raise ConfigError("there is no sealing key")
        terms = OfferTerms(
            receiver=p.worker.receiver,
            endpoint=self._endpoint(),
            tls_certificate=p.tls.digest,
            tokens=config.tokens(p.deployment.token),
            price_per_million_prompt_tokens=Amount(config.price_per_million_prompt_tokens),
            price_per_million_output_tokens=Amount(config.price_per_million_output_tokens),
            price_per_thousand_steps=Amount(config.price_per_thousand_steps),
            slots=config.slots,
            credit_window=config.credit_window,
            min_withdrawal_delay=Seconds(config.min_withdrawal_delay_s),
            min_deposit=Amount(config.min_deposit),
            lifetime_s=config.offer_lifetime_s,
        )
        signed = await p.board.issue(
            terms,
            facts,
            sealing_key=key,
            active=p.worker.active,
            capacity=config.slots + config.queue,
        )
        p.worker.remember_offer(signed)
        p.log.info("offer", sequence=signed.offer.sequence, slots=signed.offer.slots_free)

    def _endpoint(self) -> str:
        if self._p.config.endpoint:
            return self._p.config.endpoint
        host, _ = split_endpoint(self._p.config.bind)
        return f"[{host}]:{self._grpc_port}" if ":" in host else f"{host}:{self._grpc_port}"

    # --- stopping

    async def _stop(self) -> None:
        """Drain: nothing new, a grace for what runs, suspend the rest, settle."""
        p = self._p
        p.worker.draining = True
        p.log.info("draining", active=p.worker.active)
        await self._grpc.serving(False)
        deadline = p.clock.monotonic() + p.config.drain_grace_s
        await self._until(lambda: not p.worker.streams or p.clock.monotonic() >= deadline)
        await p.worker.suspend_all()
        await self._grpc.stop(STOP_GRACE_S)
        if self._started:
            await self._settle_last()

    async def _settle_last(self) -> None:
        p = self._p
        p.settler.ask()
        deadline = p.clock.monotonic() + FINAL_SETTLE_S
        await p.settler.tick()
        while not p.settler.idle and p.clock.monotonic() < deadline:
            await asyncio.sleep(min(TICK_S, p.config.chain_poll_s))
            await p.settler.tick()

    async def _close(self) -> None:
        p = self._p
        (p.home.root / ADDRESS_FILE).unlink(missing_ok=True)
        await self._admin.stop()
        await self._grpc.stop(0)
        await p.execution.settle_down()
        await p.reader.close()
        await p.journal.close()
        p.log.info("stopped")

    def _gauges(self) -> None:
        p, m = self._p, self._p.metrics
        m.slots.set(p.config.slots)
        m.active.set(p.worker.active)
        m.streams.set(p.worker.streams)
        m.exposure.set(p.worker.exposure)
        m.unsettled.set(p.settler.unsettled)
        m.ready.set(int(self.ready))


def _engine_status(facts: EngineFacts) -> dict[str, Any]:
    return {
        "model": facts.name,
        "digest": to_hex(facts.digest),
        "profile": facts.profile,
        "device": facts.device,
        "tokens_per_second": facts.tokens_per_second,
        "first_canvas_ms": facts.first_canvas_ms,
    }


def _offer_status(offer: Offer) -> dict[str, Any]:
    model = offer.models[0]
    return {
        "sequence": offer.sequence,
        "endpoint": offer.endpoint,
        "expires_at": offer.expires_at,
        "slots_free": offer.slots_free,
        "queue_free": offer.queue_free,
        "price_per_million_prompt_tokens": model.price_per_million_prompt_tokens,
        "price_per_million_output_tokens": model.price_per_million_output_tokens,
        "price_per_thousand_steps": model.price_per_thousand_steps,
    }


async def serve(home: Path, flags: dict[str, Any], password: str) -> None:
    """`piecework worker start`: settings to the last line of the log."""
    place = Home(home)
    parts = await build(place, settings.load(home, flags), password)
    try:
        daemon = Daemon(parts)
    except PieceworkError:
        await parts.journal.close()
        await parts.reader.close()
        raise
    await daemon.run()
