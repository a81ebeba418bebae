"""Transactions that share a commit: order, durability, errors, other threads and processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from piecework.base.group_commit import CommitThread, GroupCommit

LONG_MS = 5_000


class Table:
    """A table of numbers. Implements `Transactions`, and remembers what was called."""

    def __init__(self, file: Path) -> None:
        self.db = apsw.Connection(str(file))
        self.db.execute("PRAGMA journal_mode = WAL").fetchall()
        self.db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY)")
        self.commits: list[bool] = []
        self.fails: apsw.Error | None = None
        self.durable = True
        self.gate = threading.Event()
        self.gate.set()
        self.group = GroupCommit(self.db, self, CommitThread("test"))

    def begin(self, *, durable: bool, wait: bool) -> None:
        self.durable = durable
        self.db.set_busy_timeout(LONG_MS if wait else 0)
        self.db.execute("BEGIN IMMEDIATE")

    def closing(self) -> None:
        return

    def commit(self) -> None:
        assert self.gate.wait(LONG_MS / 1000)
        if self.fails is not None:
            self.db.execute("ROLLBACK")
            raise self.fails
        self.db.execute("COMMIT")
        self.commits.append(self.durable)

    def ended(self, error: BaseException | None) -> None:
        return

    def insert(self, number: int, *, durable: bool = True) -> int:
        self.group.begin(durable=durable)
        with self.db:
            self.db.execute("INSERT INTO t VALUES (?)", (number,))
        return number

    def numbers(self) -> list[int]:
        return [row[0] for row in self.db.execute("SELECT n FROM t ORDER BY n")]

    async def add(self, number: int, *, durable: bool = True) -> int:
        return await self.group.run(lambda: self.insert(number, durable=durable))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    made = Table(tmp_path / "t.db")
    yield made
    made.group.finish()
    made.db.close()


async def test_work_of_one_round_shares_a_commit(table: Table) -> None:
    assert await asyncio.gather(*(table.add(n) for n in range(5))) == [0, 1, 2, 3, 4]
    assert table.numbers() == [0, 1, 2, 3, 4]
    assert len(table.commits) == 1


async def test_no_answer_comes_before_the_commit(table: Table) -> None:
    table.gate.clear()
    adding = asyncio.create_task(table.add(1))
    reading = asyncio.create_task(table.group.run(table.numbers))
    done, _ = await asyncio.wait({adding, reading}, timeout=0.05)
    assert not done
    table.gate.set()
    assert (await adding, await reading) == (1, [1])


async def test_work_that_fails_takes_nothing_else_with_it(table: Table) -> None:
    one, again, two = await asyncio.gather(
        table.add(1), table.add(1), table.add(2), return_exceptions=True
    )
    assert (one, two) == (1, 2)
    assert isinstance(again, apsw.ConstraintError)
    assert table.numbers() == [1, 2]


async def test_a_commit_that_fails_fails_all_of_its_work_and_no_more(table: Table) -> None:
    table.fails = apsw.FullError("injected")
    one, two = await asyncio.gather(table.add(1), table.add(2), return_exceptions=True)
    assert one is two is table.fails
    table.fails = None
    assert await table.add(3) == 3
    assert table.numbers() == [3]


async def test_a_change_that_must_last_never_joins_one_that_need_not(table: Table) -> None:
    await asyncio.gather(table.add(1, durable=False), table.add(2), table.add(3, durable=False))
    assert table.commits == [False, True]
    assert table.numbers() == [1, 2, 3]


async def test_another_process_is_waited_for_in_the_thread(table: Table, tmp_path: Path) -> None:
    other = apsw.Connection(str(tmp_path / "t.db"))
    other.execute("BEGIN IMMEDIATE")
    adding = asyncio.create_task(table.add(1))
    assert not (await asyncio.wait({adding}, timeout=0.05))[0]
    other.execute("COMMIT")
    assert await adding == 1
    other.close()


async def test_a_thread_that_holds_the_lock_is_waited_for(table: Table) -> None:
    with table.group.lock:
        adding = asyncio.create_task(table.add(1))
        assert not (await asyncio.wait({adding}, timeout=0.05))[0]
    assert await adding == 1


async def test_the_loops_thread_may_take_the_lock_whatever_is_open(table: Table) -> None:
    """A call without `run` in the loop's thread must not wait for what the loop has to do."""
    adding = asyncio.create_task(table.add(1))
    await asyncio.sleep(0)  # it is written and not committed
    table.group.settle()
    with table.group.lock:
        assert table.numbers() == [1]
    assert await adding == 1


async def test_the_loops_thread_may_take_the_lock_that_was_just_granted_to_it(
    table: Table,
) -> None:
    table.group.lock.acquire()
    adding = asyncio.create_task(table.add(1))
    await asyncio.wait({adding}, timeout=0.05)  # the thread waits for the lock by now
    table.group.lock.release()
    table.group.settle()
    with table.group.lock:
        assert table.numbers() == []
    assert await adding == 1


async def test_long_work_has_the_connection_to_itself(table: Table) -> None:
    loop_thread = threading.get_ident()
    before, (thread, seen), after = await asyncio.gather(
        table.add(1),
        table.group.alone(lambda: (threading.get_ident(), table.numbers())),
        table.add(2),
    )
    assert (before, seen, after) == (1, [1], 2)
    assert thread != loop_thread
    assert len(table.commits) == 2


async def test_what_is_open_at_the_end_is_committed(table: Table) -> None:
    adding = asyncio.create_task(table.add(1))
    await asyncio.sleep(0)
    table.group.finish()
    assert await adding == 1
    assert table.commits == [True]
