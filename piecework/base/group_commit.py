"""Transactions of one SQLite connection that share a commit.

Statements are short, and a commit waits for the disk. So work runs in the event loop's thread, one
piece after the other in one transaction, and a thread of its own commits it for all of them. Work
that comes meanwhile is next. Nobody gets an answer before what it may have seen is committed.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Protocol, TypeVar

import apsw

T = TypeVar("T")
_NOBODY: Final = 0
"""No thread has this number."""
MAX_ROUNDS: Final = 8
"""Rounds of the event loop that a commit waits while each of them brings more work."""


class Transactions(Protocol):
    """Who gives the transactions a meaning. All but `commit` is called in the loop's thread."""

    def begin(self, *, durable: bool, wait: bool) -> None:
        """Open a transaction that writes.

        Args:
            durable: Whether its commit must be on the disk before it returns.
            wait: Whether to wait for another process. This is then not the loop's thread.

        Raises:
            apsw.BusyError: another process holds the file.
        """
        ...

    def closing(self) -> None:
        """Write what belongs to the transaction as a whole."""
        ...

    def commit(self) -> None:
        """Commit, or roll back and raise. Called in the committing thread."""
        ...

    def ended(self, error: BaseException | None) -> None:
        """Take over what was committed, or forget it after an error."""
        ...


class Committer(Protocol):
    """What commits run in."""

    def submit(self, work: Callable[[], object], /) -> object:
        """Do work, after all that was submitted before. It never raises."""
        ...

    def shutdown(self) -> None:
        """Wait for what was submitted, and end."""
        ...


class CommitThread:
    """A thread that starts with its first work. `concurrent.futures` takes three times as long."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._inbox: SimpleQueue[Callable[[], object] | None] = SimpleQueue()

    def submit(self, work: Callable[[], object], /) -> None:
        """Do work in the thread."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            self._thread.start()
        self._inbox.put(work)

    def shutdown(self) -> None:
        """Wait for the thread to end. Another one starts with the next work."""
        if self._thread is not None:
            self._inbox.put(None)
            self._thread.join()
            self._thread = None

    def _serve(self) -> None:
        while (work := self._inbox.get()) is not None:
            work()


class _Later(BaseException):
    """The work has to wait for the thread. Nothing was written, so it runs again from its start."""

    def __init__(self, *, durable: bool, flush: bool) -> None:
        """`flush`: for the commit of what is open. Otherwise for another process."""
        super().__init__()
        self.durable, self.flush = durable, flush


@dataclass(slots=True, eq=False)
class _Work:
    run: Callable[[], Any]
    answer: asyncio.Future[Any]
    alone: bool = False
    """Long work: in the thread, outside of any shared transaction."""
    result: Any = None


@dataclass(slots=True, eq=False)
class _Grant:
    """The connection, for which the thread waits on behalf of the loop."""

    begins: _Later | None
    """The transaction that is opened with it."""
    settled: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    taken: bool = False


class GroupCommit:
    """The one way to a connection from an event loop. Other threads take `lock`."""

    def __init__(
        self, connection: apsw.Connection, transactions: Transactions, committer: Committer
    ) -> None:
        self._db, self._transactions, self._committer = connection, transactions, committer
        self.lock = threading.Lock()
        """Held from the begin of a transaction to its end."""
        self._queue: deque[_Work] = deque()
        self._written: list[_Work] = []
        """Work that ran in the open transaction."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = self._holder = _NOBODY
        self._grant: _Grant | None = None
        self._open = self._durable = False
        self._busy = self._flush_is_due = self._inside = False
        self._rounds = self._seen = 0
        """Rounds that the open transaction has waited, and what it held after the last one."""

    @property
    def is_inside(self) -> bool:
        """Whether this thread is doing work of `run` now, which needs no lock."""
        return self._inside and self._is_mine

    @property
    def _is_mine(self) -> bool:
        return self._holder == threading.get_ident()

    async def run(self, work: Callable[[], T]) -> T:
        """Do short work with the connection, in the order of the calls.

        Before it writes, it calls `begin`. Until then it must change nothing: it may run again.
        """
        return await self._enter(work, alone=False)

    async def alone(self, work: Callable[[], T]) -> T:
        """Do long work in the thread, outside of any shared transaction."""
        return await self._enter(work, alone=True)

    def begin(self, *, durable: bool = True) -> None:
        """Open the shared transaction, or join it. Called by work."""
        if self._open:
            if durable and not self._durable:
                raise _Later(durable=durable, flush=True)
            return
        try:
            self._transactions.begin(durable=durable, wait=False)
        except apsw.BusyError:
            raise _Later(durable=durable, flush=False) from None
        self._open, self._durable = True, durable

    def settle(self) -> None:
        """Commit now what this thread has open. It calls this before it takes the lock itself."""
        if self._loop_thread != threading.get_ident():
            return
        if self._grant is not None:
            self._grant.settled.wait()
            self._take(self._grant)
        if not self._is_mine:
            return
        if not self._open:
            self._let_go()
            return
        self._holder = _NOBODY
        try:
            self._transactions.closing()
        except BaseException:
            self.lock.release()
            raise
        self._finish(self._commit())

    def finish(self) -> None:
        """Commit what is open, and end the committer. Nothing may run."""
        self._committer.shutdown()
        self.settle()

    # --- in the loop's thread

    def _enter(self, work: Callable[[], T], *, alone: bool) -> asyncio.Future[T]:
        loop = self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        answer: asyncio.Future[T] = loop.create_future()
        self._queue.append(_Work(work, answer, alone))
        self._pump()
        return answer

    def _pump(self) -> None:
        """Do what can be done now."""
        while self._queue and not self._busy:
            work = self._queue.popleft()
            if work.alone and not self._open:
                self._hop(work.run, partial(_give, work))
            elif work.alone:
                self._queue.appendleft(work)
                self._flush()
            else:
                self._do(work)
        if self._open and not self._busy and not self._flush_is_due and self._loop is not None:
            self._flush_is_due, self._seen = True, len(self._written)
            self._loop.call_soon(self._next_round)

    def _do(self, work: _Work) -> None:
        if not self._is_mine and not self.lock.acquire(blocking=False):
            self._wait_for(work, None)
            return
        self._holder, self._inside = threading.get_ident(), True
        try:
            work.result = work.run()
        except _Later as later:
            self._inside = False
            self._put_off(work, later)
            return
        except BaseException as error:  # noqa: BLE001  given to whoever waits for it
            if self._open and not self._db.in_transaction:
                self._finish(error)  # SQLite has rolled all of it back
            _give(work, None, error)
        else:
            if self._open:
                self._written.append(work)
            else:
                _give(work, work.result, None)
        self._inside = False
        self._let_go()

    def _let_go(self) -> None:
        """Give the lock back, unless a transaction is open."""
        if not self._open:
            self._holder = _NOBODY
            self.lock.release()

    def _put_off(self, work: _Work, later: _Later) -> None:
        if later.flush:
            self._queue.appendleft(work)
            self._flush()
        else:
            self._let_go()
            self._wait_for(work, later)

    def _wait_for(self, work: _Work, begins: _Later | None) -> None:
        """Take the lock in the thread, and open the transaction there that the work begins."""
        grant = self._grant = _Grant(begins)

        def go_on(_: object, error: BaseException | None) -> None:
            if not grant.taken:
                self._take(grant)
            if error is not None or grant.error is not None:
                _give(work, None, error or grant.error)
            else:
                self._queue.appendleft(work)

        self._hop(partial(self._acquire, grant), go_on)

    def _take(self, grant: _Grant) -> None:
        """Hold in the loop's thread what the committing thread has acquired."""
        grant.taken, self._grant = True, None
        if grant.error is None:
            self._holder = self._loop_thread
            if grant.begins is not None:
                self._open, self._durable = True, grant.begins.durable

    def _next_round(self) -> None:
        """Commit when a round of the loop has brought no more work."""
        self._flush_is_due = False
        if len(self._written) > self._seen and self._rounds < MAX_ROUNDS and self._loop is not None:
            self._rounds, self._seen = self._rounds + 1, len(self._written)
            self._flush_is_due = True
            self._loop.call_soon(self._next_round)
        else:
            self._flush()

    def _flush(self) -> None:
        """Commit in the thread what was written so far."""
        if self._busy or not self._open:
            return
        try:
            self._transactions.closing()
        except BaseException as error:  # noqa: BLE001  given to everybody who waits
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._finish(error)
            self._let_go()
            self._pump()
            return
        self._holder = _NOBODY
        self._hop(self._commit, lambda error, _: self._finish(error))

    def _finish(self, error: BaseException | None) -> None:
        """Answer everybody whose work was in the transaction."""
        written, self._written, self._open = self._written, [], False
        self._rounds = self._seen = 0
        try:
            self._transactions.ended(error)
        except BaseException as failure:  # noqa: BLE001  given to everybody who waits
            error = failure
        for work in written:
            _give(work, work.result, error)

    def _hop(
        self, work: Callable[[], T], then: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Do work in the thread, then go on here."""
        loop, self._busy = self._loop, True

        def here(result: T | None, error: BaseException | None) -> None:
            self._busy = False
            then(result, error)
            self._pump()

        def there() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  given to whoever waits for it
                answer: tuple[T | None, BaseException | None] = (None, error)
            else:
                answer = (result, None)
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(here, *answer)

        self._committer.submit(there)

    # --- in the committing thread

    def _acquire(self, grant: _Grant) -> None:
        self.lock.acquire()
        try:
            if grant.begins is not None:
                self._transactions.begin(durable=grant.begins.durable, wait=True)
        except BaseException as error:  # noqa: BLE001  given to the work that waits for it
            grant.error = error
            self.lock.release()
        grant.settled.set()

    def _commit(self) -> BaseException | None:
        try:
            self._transactions.commit()
        except BaseException as error:  # noqa: BLE001  given to everybody who waits
            return error
        finally:
            self.lock.release()
        return None


def _give(work: _Work, result: Any, error: BaseException | None) -> None:
    if work.answer.done():
        return
    if error is not None:
        work.answer.set_exception(error)
    else:
        work.answer.set_result(result)
