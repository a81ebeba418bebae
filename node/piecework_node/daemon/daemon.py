"""One life of the worker daemon.

Start: settings, keys, journal (locked), chain (verified), engine (loaded and measured), gRPC,
offer, ready. Stop (SIGTERM, SIGINT or /drain): nothing new is taken on, running jobs get a grace,
the rest is suspended, what has value is settled, and the journal is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from piecework.base.connections import Refused
from piecework.base.errors import PieceworkError
from piecework.base.files import write_private
from piecework.base.http import HttpReader
from piecework.chain.errors import SignerAway, SignerError, SignerRefuses
from piecework.signer.policy import OFFER_OLD
from piecework_node import config
from piecework_node.console.model import Snapshot
from piecework_node.daemon.admin import ADDRESS_FILE, AdminServer, admin_token
from piecework_node.daemon.assembly import Components, build
from piecework_node.daemon.card_pumps import CardPumps
from piecework_node.daemon.changing import ChangeReport
from piecework_node.daemon.console_feed import ConsoleFeed
from piecework_node.daemon.evidence import answer_of
from piecework_node.daemon.offered import offered, show_card, with_claims
from piecework_node.daemon.ports import Ports
from piecework_node.daemon.price_watch import follow_market, price_watch
from piecework_node.daemon.reach import (
    REACH_LIMITS,
    Onlooker,
    ReachWatch,
    keep_looking,
    look_at,
)
from piecework_node.daemon.reconfiguring import Reconfigurer
from piecework_node.daemon.standing import StandingWatch
from piecework_node.daemon.status import exposure_bound, status_of
from piecework_node.daemon.surroundings import DiskWatch, IndexWatch
from piecework_node.endpoints import split_endpoint
from piecework_node.engine.supervisor import EngineCommandLine
from piecework_node.errors import ConfigError, JournalError
from piecework_node.evidence.expiry import EvidenceExpiry
from piecework_node.home import Home
from piecework_node.job_port.front import front_of
from piecework_node.job_port.peers import FrontEntrance, PeerLimits, Peers
from piecework_node.job_port.relays import RelayCredentials, Relays
from piecework_node.job_port.server import GrpcServer, WorkerServicer
from piecework_node.jobs.offers import PUBLISH_LIMITS, Dates, OfferAddress, OfferEntry, publish
from piecework_node.jobs.own_test import OwnTests
from piecework_node.jobs.rollback import last_offer, later, notice, signers_word
from piecework_node.runtime.signing import ARRIVES_S, PatientSigner
from piecework_protocol.limits import PROGRESS_INTERVAL_MS
from piecework_protocol.objects import Endpoint, Route
from piecework_protocol.relaying import relay_domain
from piecework_protocol.types import PublicKey, address_hex

TICK_S: Final = 0.5
HEARTBEAT_S: Final = 0.8 * PROGRESS_INTERVAL_MS / 1000
"""A little more often than clients are promised."""
PRUNE_PAUSE_S: Final = 0.01
"""Between two steps of pruning, each of a few milliseconds."""
PRUNE_INTERVAL_S: Final = 60.0
"""After which pruning looks again whether there is something to let go of."""
Loop = Callable[[], Awaitable[None]]
POLL_S: Final = 0.1
FIRST_PUBLISH_S: Final = 5.0
"""Wait at most this long for the indexes before printing the ready line. Then clients can find the
worker once the line is printed."""
FIRST_JOIN_S: Final = 5.0
"""Wait at most this long for the relays before the first offer names them."""
FIRST_LOOK_S: Final = 5.0
"""Wait at most this long for the indexes to say how they see the worker."""
WITHDRAW_S: Final = 3.0
"""For the indexes to take the offer of a worker that drains."""
STOP_GRACE_S: Final = 2.0
"""For streams that were told to end."""
FINAL_SETTLE_S: Final = 60.0
"""For the last settlement to be mined. If the chain is slower, the next start takes it up."""


class Daemon:
    """One life of the worker. Implements `admin.Operations`."""

    _offers_refused = False

    def __init__(
        self, components: Components, ports: Ports, flags: Mapping[str, Any] | None = None
    ) -> None:
        """`flags` are those of the command line. They go before the settings of the home."""
        self._p, self._base, self._ports = components, components.base, ports
        self._draining = asyncio.Event()
        self._started = False
        self._grpc_port = 0
        self._published_at = 0.0
        self._indexes = IndexWatch(components.channels.faults, components.base.metrics)
        self._feed = ConsoleFeed(components, self._state, self._places)
        self._prices = price_watch(components, self._feed.spent)
        self._settings = Reconfigurer(components, flags or {}, self._prices)
        base, config = components.base, components.base.config
        faults, least_mib = components.channels.faults, config.min_free_disk_mib
        self._pumps = CardPumps(
            base.engines, components.worker, faults, own=lambda: self._prices.own
        )
        self._disk = DiskWatch(faults, base.home.root, least_mib)
        self._reach = ReachWatch(faults)
        self._standing = StandingWatch(
            base.reader,
            faults,
            operator=base.operator.address,
            receiver=components.worker.terms.receiver,
            addresses=config.lasting_addresses,
        )
        peers = Peers(
            PeerLimits(
                config.max_streams,
                config.streams_per_address,
                config.requests_per_minute,
                config.paid_requests_per_minute,
            )
        )
        self._front = front_of(config, peers.has_paid, base.metrics, base.clock)
        self._relays = Relays(
            config.relays,
            RelayCredentials(
                base.operator,
                relay_domain(base.deployment.chain_id, base.deployment.registry),
                base.clock,
            ),
            self._front,
            components.channels.faults,
            listens=config.listens,
        )
        servicer = WorkerServicer(
            components.worker,
            components.settler.close_channel,
            components.board,
            entrance=FrontEntrance(self._front, peers, base.clock),
            clock=base.clock,
            metrics=base.metrics,
            log=base.log,
        )
        self._grpc = GrpcServer(servicer, base.tls, self._front)
        self._admin = AdminServer(self, admin_token(base.home.root), config.admin_host)

    # --- Operations

    @property
    def ready(self) -> bool:
        return self._started and self._takes_jobs

    @property
    def _takes_jobs(self) -> bool:
        worker = self._p.worker
        able = not worker.draining and self._p.channels.faults.stopping is None
        return able and any(card.serves for card in worker.cards)

    def metrics(self) -> bytes:
        self._gauges()
        return self._base.metrics.render()

    def connection_refused(self, why: Refused) -> None:
        self._base.metrics.connection_refused("admin", why)

    def settle(self) -> None:
        self._p.settler.ask()

    def drain(self) -> None:
        self._draining.set()

    @property
    def cards(self) -> tuple[str, ...]:
        return tuple(self._p.owners)

    def pause(self, seconds: float | None, card: str | None) -> None:
        for owner in self._p.owners_of(card):
            owner.command(seconds)

    def resume(self, card: str | None) -> tuple[str, ...]:
        left = [owner.lift() for owner in self._p.owners_of(card)]
        return tuple(dict.fromkeys(cause for causes in left for cause in causes))

    async def change(self, texts: Mapping[str, str], unset: Sequence[str]) -> ChangeReport:
        return await self._settings.change(texts, unset)

    async def status(self) -> dict[str, Any]:
        shown = await status_of(self._p, self._state(), self._grpc_port)
        return {**shown, **self._seen(), "prices": self._prices.status()}

    def _seen(self) -> dict[str, Any]:
        """How others see the worker, and what keeps it from earning."""
        obstacles = self._reach.obstacles
        return {
            "can_earn": self.ready and not obstacles,
            "obstacles": list(obstacles),
            "seen_by": self._indexes.seen_by,
            "shown_by": self._reach.shown_by,
            "reached": self._reach.reached,
            "dialled_by": list(self._reach.dialled_by),
            "relays": self._relays.states,
        }

    async def console(self) -> Snapshot:
        return await self._feed.snapshot(self._prices.shown)

    @property
    def own_tests(self) -> OwnTests:
        return self._p.worker.own_tests

    async def evidence(self, asked: bytes) -> dict[str, Any]:
        return await answer_of(self._p, asked)

    def _state(self) -> str:
        if self._p.worker.draining:
            return "draining"
        if self._p.worker.cards.pause is not None:
            return "paused"
        if self.ready:
            return "ready"
        return "faulted" if self._p.channels.faults.stopping else "starting"

    # --- life

    async def run(self) -> None:
        """Start, serve until told to stop, and stop well. Errors of ours end it at once."""
        self._catch_signals()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._p.runtime.failure(), name="failure"),
                    group.create_task(self._engine(), name="engine"),
                ]
                await self._start(group, tasks)
                await self._draining.wait()
                await self._stop()
                for task in tasks:
                    task.cancel()
        finally:
            await self._close()

    async def _engine(self) -> None:
        """Live and end with the engine's supervisor, which `build` started."""
        await self._base.engine_life

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.drain)

    async def _start(self, group: asyncio.TaskGroup, tasks: list[asyncio.Task[Any]]) -> None:
        p, base, signer = self._p, self._base, self._p.runtime.signer
        # While signer and engine are waited for, monitoring sees a worker that starts.
        admin_port = await self._admin.start_on(self._ports.admin)
        if isinstance(signer, PatientSigner):  # its fault may last, and is shown by commands
            self._write_address(admin_port)
        if not await self._signer_there():
            return
        # Offers from before this start carry no new job. A journal that was rolled back without
        # a trace would admit one again that it has forgotten.
        await p.worker.recover()
        await self._compare_with_others()
        self._grpc_port = await self._grpc.start(self._ports.jobs)
        tasks.append(group.create_task(self._kept(self._relays.run), name="relays"))
        tasks.append(group.create_task(self._kept(self._pumps.gone), name="gone cards"))
        for one in base.engines:
            name, owner = one.card.name, p.owners[one.card.name]
            tasks.append(
                group.create_task(self._kept(self._pumps.pump_of(one)), name=f"events {name}")
            )
            tasks.append(group.create_task(self._kept(owner.run), name=f"owner {name}"))
        if not await self._first_ready():
            return
        await p.settler.check()
        await self._standing.look_if_told()
        loops: dict[str, Loop] = {
            "settlement": p.settler.run,
            "ticks": self._ticks,
            "heartbeats": self._heartbeats,
            "pruning": self._prune,
            "console": self._feed.run,
            "prices": lambda: follow_market(p, self._prices),
            **({"signer": signer.watch} if isinstance(signer, PatientSigner) else {}),
            "standing": lambda: self._standing.run(base.config.chain_poll_s),
        }
        tasks += [group.create_task(self._kept(loop), name=name) for name, loop in loops.items()]
        self._prices.begin()
        await self._relays.settled(FIRST_JOIN_S)
        if not await self._first_issue():
            return
        shown = asyncio.Event()
        tasks.append(group.create_task(self._kept(lambda: self._offers(shown)), name="offers"))
        self._started = True
        self._grpc.serving(self.ready)
        with contextlib.suppress(TimeoutError):  # a silent index must not stop the worker
            await asyncio.wait_for(shown.wait(), FIRST_PUBLISH_S)
        looked = asyncio.Event()
        tasks.append(group.create_task(self._kept(lambda: self._look(looked)), name="reach"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(looked.wait(), FIRST_LOOK_S)
        self._announce(admin_port)

    async def _signer_there(self) -> bool:
        """Wait for a signer that is away, as jobs do later. False: the daemon shall stop.

        Raises:
            SignerError: it is away for too long, or another one.
        """
        signer = self._p.runtime.signer
        if not isinstance(signer, PatientSigner):
            return True
        return await signer.arrives(self._draining, self._base.clock, ARRIVES_S)

    async def _first_issue(self) -> bool:
        """Sign the first offer. A signer that left while the engine loaded is waited for.

        Returns False if the daemon shall stop.
        """
        while await self._signer_there():
            with contextlib.suppress(SignerAway):
                await self._issue()
                return True
        return False

    async def _look(self, looked: asyncio.Event) -> None:
        """See the worker as the indexes do. looked: set once they were asked."""
        base = self._base
        async with HttpReader(REACH_LIMITS) as http:
            market = base.deployment.domain
            config = base.config
            onlooker = Onlooker(
                config.indexes, http, base.operator, market, base.clock, relays=config.relays
            )
            await look_at(onlooker, self._reach, self._p.board.current)
            looked.set()
            await keep_looking(onlooker, self._reach, lambda: self._p.board.current)

    def _places(self) -> tuple[dict[str, bool], dict[str, str]]:
        """Which index shows the offer, and how each relay is."""
        return self._indexes.seen_by, self._relays.states

    async def _compare_with_others(self) -> None:
        """Take no job if the journal is older than what this worker has signed."""
        base = self._base
        async with HttpReader(PUBLISH_LIMITS) as http:
            domain, operator = base.deployment.domain, base.operator.address
            last = await last_offer(base.config.indexes, operator, domain, http)
        why = await notice(base.journal, later(last, await signers_word(base.operator)))
        if why is not None:
            await self._p.worker.distrust(why)

    async def _first_ready(self) -> bool:
        """Wait until the engine of a card is loaded. Returns False if the daemon shall stop.

        Raises:
            ConfigError: no card can take jobs.
        """
        await self._until(lambda: self._draining.is_set() or self._pumps.decided)
        if self._draining.is_set():
            return False
        self._pumps.check()
        return True

    def _write_address(self, admin_port: int) -> None:
        """Say where the admin port is, for the commands of this home."""
        host, file = self._base.config.admin_host, self._base.home.root / ADDRESS_FILE
        address = {"host": host, "port": admin_port, "pid": os.getpid()}
        write_private(file, json.dumps(address).encode(), replace=True)

    def _announce(self, admin_port: int) -> None:
        """Print the ready line. Everything answers by now."""
        base, bound = self._base, exposure_bound(self._p)
        self._write_address(admin_port)
        stopping = self._p.channels.faults.stopping
        line = {
            "ready": self.ready,
            "fault": stopping.line if stopping else None,
            **self._seen(),
            "role": "worker",
            "operator": address_hex(base.operator.address),
            "receiver": address_hex(self._p.worker.terms.receiver),
            "endpoint": self._endpoints()[0].address,
            "grpc_port": self._grpc_port,
            "admin_port": admin_port,
            "admin_url": f"http://{base.config.admin_host}:{admin_port}",
            "tls_certificate": "0x" + base.tls.digest.hex(),
            "model": next((c.facts.name for c in self._p.worker.cards if c.facts), ""),
            "engine_pid": base.engines.kept[0].backend.pid,
            "cards": {one.card.name: one.backend.pid for one in base.engines},
            "exposure_bound": bound,
        }
        print(json.dumps(line), flush=True)
        base.log.info(
            "ready" if self.ready else "not ready",
            port=self._grpc_port,
            admin_port=admin_port,
            bound=bound,
        )

    async def _kept(self, loop: Loop) -> None:
        """Begin a loop of ours again when an error ends it. Only a failing disk ends the daemon."""
        while True:
            try:
                return await loop()
            except JournalError:
                raise
            except Exception as error:  # noqa: BLE001  logged and counted, and the loop goes on
                self._p.runtime.note(error)
            await asyncio.sleep(TICK_S)

    async def _prune(self) -> None:
        """Let go of old jobs, a few at a time, so that no commit waits for it."""
        expiry = EvidenceExpiry(
            self._base.journal,
            self._p.steps,
            self._p.keyring,
            window_s=self._base.config.evidence_s,
            quiet=lambda: self._p.settler.quiet,
        )
        while True:
            more = await expiry.step()
            await asyncio.sleep(PRUNE_PAUSE_S if more else PRUNE_INTERVAL_S)

    async def _heartbeats(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._p.worker.heartbeat()

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._disk.look()
            self._pumps.look()
            await self._p.worker.tick()
            await self._p.keyring.rotate_if_due(self._base.config.sealing_key_rotation_s)
            self._grpc.serving(self.ready)

    # --- offers

    async def _offers(self, shown: asyncio.Event) -> None:
        """Send the offer to the indexes, and renew it when it is due.

        shown: set once the first offer was sent.
        """
        dates = Dates()
        async with HttpReader(PUBLISH_LIMITS, dated=dates) as http:
            while True:
                await self._publish(http, dates)
                shown.set()
                self._published_at = self._base.clock.monotonic()
                await self._until(lambda: self._offer_due() or self._retry_due())
                if self._offer_due():
                    await self._issue()

    async def _publish(self, http: HttpReader, dates: Dates) -> None:
        base, current = self._base, self._p.board.current
        if current is None:
            return
        answers = await publish(
            current,
            base.config.indexes,
            http,
            base.metrics,
            base.log,
            clock=base.clock,
            dates=dates,
        )
        self._indexes.note(answers)

    def _retry_due(self) -> bool:
        """Whether it is time to try again the indexes that did not take the offer."""
        retry_s = self._indexes.retry_s
        since = self._base.clock.monotonic() - self._published_at
        return retry_s is not None and since >= retry_s

    async def _withdraw_offer(self) -> None:
        """Tell the indexes, with an offer that is over in seconds, that no place is left."""
        try:
            if not self._started or await self._p.board.withdraw() is None:
                return
        except SignerError as error:
            self._base.log.warning("the offer is not withdrawn", reason=str(error))
            return
        dates = Dates()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITHDRAW_S), HttpReader(PUBLISH_LIMITS, dated=dates) as http:
                await self._publish(http, dates)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that no single event announces."""
        while not condition():  # noqa: ASYNC110  load, time and health all move it
            await asyncio.sleep(POLL_S)

    def _offer_due(self) -> bool:
        key = self._p.keyring.current
        if self._offers_refused or key is None or not self._started or self._p.worker.draining:
            return False
        return self._p.board.is_due(self._address(key), self._entries())

    def _entries(self) -> list[OfferEntry]:
        return offered(self._p.worker, takes_jobs=self._takes_jobs)

    async def _issue(self) -> None:
        p, base = self._p, self._base
        key = p.keyring.current
        if key is None:
            raise ConfigError("there is no sealing key")
        entries = with_claims(self._entries(), base.home, p.runtime.recent)
        try:
            signed = await p.board.issue(entries, self._address(key))
        except SignerRefuses as error:
            if error.refusal != OFFER_OLD:
                raise
            self._offers_refused = True
            await p.worker.distrust(str(error))
            return
        p.worker.remember_offer(signed)
        base.log.info("offer", sequence=signed.offer.sequence, slots=signed.offer.slots_free)

    def _address(self, key: PublicKey) -> OfferAddress:
        return OfferAddress(self._endpoints(), self._base.tls.digest, key)

    def _endpoints(self) -> tuple[Endpoint, ...]:
        """The worker's own address first, then its relays."""
        config = self._base.config
        own: tuple[Endpoint, ...] = ()
        if config.listens:
            host, _ = split_endpoint(config.bind)
            bound = f"[{host}]:{self._grpc_port}" if ":" in host else f"{host}:{self._grpc_port}"
            own = (Endpoint(Route.DIRECT, config.endpoint or bound),)
        return own + self._relays.endpoints

    # --- stopping

    async def _stop(self) -> None:
        """Drain: take nothing new, give running jobs a grace, suspend the rest, settle."""
        p, base = self._p, self._base
        p.worker.draining = True
        base.log.info("draining", active=p.worker.active)
        self._grpc.serving(False)
        await self._withdraw_offer()
        deadline = base.clock.monotonic() + base.config.drain_grace_s
        # A paused job would not get on in its grace.
        await self._until(
            lambda: (
                not p.worker.streams
                or p.worker.cards.pause is not None
                or base.clock.monotonic() >= deadline
            )
        )
        if isinstance(p.runtime.signer, PatientSigner):
            p.runtime.signer.end()
        await p.worker.suspend_all()
        await self._grpc.stop(STOP_GRACE_S)
        if self._started:
            await p.settler.finish(FINAL_SETTLE_S, min(TICK_S, base.config.chain_poll_s))

    async def _close(self) -> None:
        base = self._base
        (base.home.root / ADDRESS_FILE).unlink(missing_ok=True)
        await self._admin.stop()
        await self._grpc.stop(0)
        self._p.channels.stop()
        if self._p.runtime.openings is not None:
            await self._p.runtime.openings.close()
        await self._p.runtime.wait_idle()
        await self._p.steps.close()
        await base.close()
        base.log.info("stopped")

    def _gauges(self) -> None:
        p, metrics = self._p, self._base.metrics
        p.channels.faults.show()
        metrics.kept_steps_bytes.set(p.steps.usage.used_bytes)
        metrics.slots.set(p.worker.terms.slots)
        metrics.connections.set(len(self._front.table))
        metrics.active.set(p.worker.active)
        metrics.streams.set(p.worker.streams)
        metrics.exposure.set(p.channels.exposure)
        metrics.unsettled.set(p.channels.unsettled)
        metrics.ready.set(int(self.ready))
        metrics.pause.set(int(p.worker.cards.pause is not None))
        for one in self._base.engines:
            show_card(metrics, one.card, p.runtime.load[one.card.name], p.owners[one.card.name])
        credit = p.runtime.credit
        if credit is not None:
            totals = credit.totals()
            metrics.strangers.set(totals.strangers)
            metrics.strangers_limit.set(credit.terms.strangers)
            metrics.left.set(totals.left)
            metrics.at_limit.set(totals.at_limit)


async def serve(
    home: Path, flags: dict[str, Any], password: str, *, engine: EngineCommandLine | None = None
) -> None:
    """Run `piecework worker start`, from the settings to the last line of the log."""
    settings = config.load(home, flags)
    ports = Ports.bind(settings)
    try:
        components = await build(Home(home), settings, password, engine=engine)
        try:
            daemon = Daemon(components, ports, flags)
        except PieceworkError:
            components.base.engine_life.cancel()
            await components.base.close()
            raise
        # What is built stays. A collection that walks all of it takes as long as many jobs.
        gc.collect()
        gc.freeze()
        await daemon.run()
    finally:
        ports.close()
