"""An untrusted relay for workers behind routers.

It knows its workers by operator, finds the worker of a client by the server name of the client's
ClientHello, and passes bytes. TLS begins at the client and ends at the worker, whose certificate
the signed offer pins. So a relay can drop and delay, and it sees addresses, sizes and times. It
cannot read, change or forge.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from piecework.base.clock import Clock
from piecework.base.connections import MAX_ADDRESSES, ConnectionTable
from piecework.base.listener import Listener
from piecework.base.rates import Rate, RateLimiter
from piecework.dialback import DialBackServer, DialRefused
from piecework.relay.connection import RelayConnection
from piecework.relay.joined import Gatekeeper, JoinedWorker, LinkEnded
from piecework.relay.limits import (
    JOINS_BURST,
    JOINS_PER_S,
    READ_BYTES,
    SPARE_SHARE,
    SWEEP_S,
    WORKER_CLIENTS_BURST,
    WORKER_CLIENTS_PER_S,
    RelayLimits,
)
from piecework_protocol.dialling import MAX_DIAL_BYTES
from piecework_protocol.relaying import named_operator
from piecework_protocol.types import Address, address_hex

MAX_HANDSHAKES: Final = 256
"""Workers that join at the same time. More are told to come back."""


class Relay:
    """Implements `Switchboard`. `start` accepts and `close` ends everything."""

    def __init__(
        self,
        gatekeeper: Gatekeeper,
        dials: DialBackServer,
        limits: RelayLimits,
        *,
        clock: Clock,
        log: Any,
    ) -> None:
        """dials: dials the addresses of workers that ask for it."""
        self.buffer = memoryview(bytearray(READ_BYTES))
        self.counts: Counter[str] = Counter()
        """Connections that were ended, by reason."""
        self.dials: Counter[str] = Counter()
        """Addresses that were dialled for workers, by what became of it."""
        self._dials = dials
        self.joins = self._passed_before = 0
        self._gatekeeper, self.limits = gatekeeper, limits
        self._clock, self._log = clock, log
        self.now = clock.monotonic
        self._table = ConnectionTable(limits.connections)
        self._joins = RateLimiter(Rate(JOINS_PER_S, JOINS_BURST), keys=MAX_ADDRESSES)
        calls = Rate(WORKER_CLIENTS_PER_S, WORKER_CLIENTS_BURST)
        # By operator and not by link: who joins again gets no new rate.
        self._calls = RateLimiter(calls, keys=max(1, 4 * limits.workers))
        self._workers: dict[Address, JoinedWorker] = {}
        self._clients: dict[RelayConnection, tuple[JoinedWorker, bytes]] = {}
        self._tokens: dict[bytes, JoinedWorker] = {}
        self._joined: set[RelayConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None

    def start(self, sockets: Sequence[socket.socket]) -> int:
        """Accept on bound sockets from now on. Returns the port."""
        self._listener = Listener(
            sockets,
            self._table,
            lambda peer: RelayConnection(peer, self, self.limits.opening_s),
            on_refused=lambda why: self.refused(f"connection_{why}"),
            clock=self._clock,
        )
        self._listener.start()
        self._spawn(self._sweep(), "sweep")
        return self._listener.port

    async def close(self) -> None:
        """Accept nothing more, and end what is open."""
        if self._listener is not None:
            await self._listener.close()
        for worker in list(self._workers.values()):
            worker.close()
        self._table.abort_all()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def workers(self) -> int:
        """Workers that are admitted now."""
        return len(self._workers)

    @property
    def clients(self) -> int:
        """Clients' connections that a worker has, or that wait for one."""
        return len(self._clients)

    @property
    def passed_bytes(self) -> int:
        """Bytes that were passed on, both ways together."""
        open_now = (*self._joined, *self._clients)
        return self._passed_before + sum(one.passed_bytes for one in open_now)

    @property
    def connections(self) -> int:
        """Open connections of every kind."""
        return len(self._table)

    @property
    def most_clients(self) -> int:
        """Clients that all workers may have together. Each takes two connections."""
        total = self.limits.connections.total
        return max(1, (total - total // SPARE_SHARE - self.workers) // 2)

    # --- Switchboard

    def refused(self, why: str) -> None:
        self.counts[why] += 1

    def call(self, client: RelayConnection, name: str) -> None:
        operator = named_operator(name)
        worker = self._workers.get(operator) if operator is not None else None
        if worker is None:
            client.turn_away("no_such_worker")
            return
        if self._calls.take(worker.operator, self._clock.monotonic()):
            client.turn_away("worker_rate_total")
            return
        if self.clients >= self.most_clients and not self._make_room(worker):
            client.turn_away("clients_total")
            return
        token, why = worker.call(client)
        if not token:
            client.turn_away(why)
            return
        self._clients[client] = (worker, token)
        self._tokens[token] = worker

    def _make_room(self, newcomer: JoinedWorker) -> bool:
        """Close the longest quiet client of the worker that has most, if it has more.

        So a flood of one worker's clients costs that worker, and not the others.
        """
        most = max(self._workers.values(), key=lambda worker: len(worker.clients))
        if len(most.clients) <= len(newcomer.clients) + 1:
            return False
        held = [client for client, (worker, _) in self._clients.items() if worker is most]
        longest = min(held, key=lambda client: client.moved_at)
        self.refused("made_room")
        longest.abort()
        self.gone(longest)
        return True

    def take(self, way: RelayConnection, token: bytes) -> None:
        worker = self._tokens.pop(token, None)
        client = worker.taken(token) if worker is not None else None
        if worker is None or client is None:
            self.refused("no_such_token")
            way.abort()
            return
        # The worker's own address would soon be full of its clients. They are bounded above.
        self._table.remove(way)
        way.address = f"worker {worker.operator.hex()}"
        self._table.add(way)
        way.join(client)
        self._joined.add(way)

    def join(self, link: RelayConnection, operator: Address) -> None:
        wait_s = self._joins.take(link.address, self._clock.monotonic())
        if wait_s or len(self._tasks) >= MAX_HANDSHAKES + self.limits.workers:
            self.refused("join_rate" if wait_s else "joins_total")
            link.abort()
            return
        worker = JoinedWorker(operator, link, self._gatekeeper, self.limits)
        self._spawn(self._live(worker, link), "worker")

    def dial(self, link: RelayConnection, early: bytes) -> None:
        # It costs as much as a join: a signature, and a stranger's one call to the chain.
        wait_s = self._joins.take(link.address, self._clock.monotonic())
        if wait_s or len(self._tasks) >= MAX_HANDSHAKES + self.limits.workers:
            self.refused("dial_rate" if wait_s else "dials_total")
            link.abort()
            return
        self._spawn(self._answer_dial(link, early), "dial")

    async def _answer_dial(self, link: RelayConnection, early: bytes) -> None:
        """Read one request, dial, answer, and hang up."""
        reader, writer = link.streams(MAX_DIAL_BYTES, early)
        try:
            async with asyncio.timeout(self.limits.opening_s):
                data = await reader.readuntil(b"\n")
            link.disarm()
            try:
                answer = await self._dials.answer(data)
            except DialRefused as error:
                self.refused(f"dial_{error.code}")
                answer = error.body()
            self.dials.update(one["outcome"] for one in answer.get("dialled", ()))
            writer.write(json.dumps(answer).encode() + b"\n")
            link.finish()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, TimeoutError):
            self.refused("bad_dial")
            link.abort()
        finally:
            self.gone(link)

    def gone(self, connection: RelayConnection) -> None:
        self._table.remove(connection)
        worker, token = self._clients.pop(connection, (None, b""))
        if worker is not None or connection in self._joined:
            self._passed_before += connection.passed_bytes
        self._joined.discard(connection)
        if worker is not None:
            self._tokens.pop(token, None)
            worker.gone(token, connection)

    # --- workers

    async def _live(self, worker: JoinedWorker, link: RelayConnection) -> None:
        operator = address_hex(worker.operator)
        try:
            await worker.authenticate()
            self._place(worker)
            self.joins += 1
            self._log.info("worker admitted", operator=operator, workers=self.workers)
            await worker.serve(self.refused)
        except LinkEnded as error:
            self._log.info("worker gone", operator=operator, why=str(error))
        finally:
            if self._workers.get(worker.operator) is worker:
                del self._workers[worker.operator]
            worker.close()
            self.gone(link)

    def _place(self, worker: JoinedWorker) -> None:
        """Let clients find a worker. A newer link of the same operator replaces the older one."""
        before = self._workers.get(worker.operator)
        if before is not None:
            before.close()
        elif self.workers >= self.limits.workers:
            worker.refuse("this relay has as many workers as it takes")
            raise LinkEnded("too many workers")
        self._workers[worker.operator] = worker

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _sweep(self) -> None:
        """Close connections over which nothing goes any more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            oldest = self.now() - self.limits.idle_s
            for connection in [c for c in self._joined if c.moved_at < oldest]:
                self.refused("idle")
                connection.abort()
