"""One life of the worker daemon.

Start: settings, keys, journal (locked), chain (verified), engine (loaded and measured), gRPC,
offer, ready. Stop (SIGTERM, SIGINT or /drain): nothing new, running jobs get a grace, the rest is
suspended, what has value is settled, the journal is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from piecework.base.errors import PieceworkError
from piecework_node import config as settings
from piecework_node.config import split_endpoint
from piecework_node.daemon.admin import ADDRESS_FILE, AdminServer, admin_token
from piecework_node.daemon.assembly import Components, build
from piecework_node.daemon.server import GrpcServer, WorkerServicer
from piecework_node.daemon.status import exposure_bound, status_of
from piecework_node.engine.benchmark_table import with_speeds
from piecework_node.engine.link import EngineEvent, EngineFacts, EngineReady
from piecework_node.engine.supervisor import EngineCommandLine
from piecework_node.errors import ConfigError
from piecework_node.home import Home
from piecework_node.jobs.offers import AiohttpPoster, OfferTerms, publish, refresh_due
from piecework_node.keys.operator import write_private
from piecework_node.limiter import RateLimiter
from piecework_protocol.types import Amount, Seconds, address_hex

TICK_S: Final = 0.5
POLL_S: Final = 0.1
FIRST_SHOWING_S: Final = 5.0
"""The ready line waits this long for the indexes, so that who reads it finds the worker there."""
STOP_GRACE_S: Final = 2.0
"""For streams that were told to end."""
FINAL_SETTLE_S: Final = 60.0
"""For the last settlement to be mined; if the chain is slower, the next start takes it up."""


class Daemon:
    """One life of the worker. Implements `node.admin.Operations`."""

    def __init__(self, components: Components) -> None:
        self._p = components
        self._draining = asyncio.Event()
        self._started = False
        self._grpc_port = 0
        servicer = WorkerServicer(
            components.worker,
            components.board,
            RateLimiter(components.config.requests_per_minute / 60, components.clock),
            components.metrics,
            components.log,
        )
        self._grpc = GrpcServer(servicer, components.tls, max_streams=components.config.max_streams)
        host = components.config.admin_host
        self._admin = AdminServer(self, admin_token(components.home.root), host)

    # --- Operations

    @property
    def ready(self) -> bool:
        worker = self._p.worker
        return (
            self._started and not worker.draining and worker.fault is None and self._p.engine.ready
        )

    def metrics(self) -> bytes:
        self._gauges()
        return self._p.metrics.render()

    def settle(self) -> None:
        self._p.settler.ask()

    def drain(self) -> None:
        self._draining.set()

    async def status(self) -> dict[str, Any]:
        state = self._state()
        return await status_of(self._p, state, self._grpc_port)

    def _state(self) -> str:
        if self._p.worker.draining:
            return "draining"
        return "ready" if self.ready else "faulted" if self._p.worker.fault else "starting"

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
                    group.create_task(self._engine(), name="engine"),
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

    async def _engine(self) -> None:
        """Lives and ends with the engine's supervisor, which was started before the rest of the
        graph."""
        await self._p.engine_life

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
            raise ConfigError(
                f"{error}. Is another worker running, or is the port taken?"
            ) from None
        tasks += [
            group.create_task(self._pump(events), name="engine events"),
            group.create_task(p.settler.run(), name="settlement"),
            group.create_task(self._ticks(), name="ticks"),
        ]
        await self._issue(first)
        shown = asyncio.Event()
        tasks.append(group.create_task(self._offers(shown), name="offers"))
        self._started = True
        await self._grpc.serving(True)
        with contextlib.suppress(
            TimeoutError
        ):  # a silent index must not keep the worker from working
            await asyncio.wait_for(shown.wait(), FIRST_SHOWING_S)
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
            "exposure_bound": exposure_bound(self._p),
        }
        print(json.dumps(line), flush=True)
        p.log.info(
            "ready", port=self._grpc_port, admin_port=admin_port, bound=exposure_bound(self._p)
        )

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

    async def _offers(self, shown: asyncio.Event) -> None:
        """Show the offer to the indexes, and renew it when it is due. `shown`: the first showing is
        over."""
        import aiohttp

        p = self._p
        async with aiohttp.ClientSession() as session:
            poster = AiohttpPoster(session)
            while True:
                current = p.board.current
                if current is not None:
                    await publish(current, p.config.indexes, poster, p.metrics, p.log)
                shown.set()
                await self._until(self._offer_due)
                if p.engine.facts is not None:
                    await self._issue(p.engine.facts)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that no single event announces."""
        while not condition():  # noqa: ASYNC110  load, time and health all move it
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
            price_per_thousand_steps=config.step_price,
            slots=config.slots,
            credit_window=config.credit_window,
            min_withdrawal_delay=Seconds(config.min_withdrawal_delay_s),
            min_deposit=Amount(config.min_deposit),
            lifetime_s=config.offer_lifetime_s,
        )
        signed = await p.board.issue(
            terms,
            with_speeds(p.home, facts),
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


async def serve(
    home: Path, flags: dict[str, Any], password: str, *, engine: EngineCommandLine | None = None
) -> None:
    """`piecework worker start`: settings to the last line of the log."""
    place = Home(home)
    components = await build(place, settings.load(home, flags), password, engine=engine)
    try:
        daemon = Daemon(components)
    except PieceworkError:
        components.engine_life.cancel()
        await components.journal.close()
        await components.reader.close()
        raise
    await daemon.run()
