"""The journal alone: `python -m bench.journal [--jobs N] [--json]`.

One job of one canvas is three commits: admitted, delivered, paid. For each job it prints commits,
rows of the log and CPU time, that of making the records included, beside a bare commit of one small
row on the same disk. Then it times the verification at the start, the totals of /status, and a step
of pruning.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

import apsw

from bench.report import environment, percentile
from piecework_node.journal.sqlite import SqliteJournal
from tests.support.clock import FakeClock
from tests.support.node.harness import DOMAIN, OPERATOR
from tests.support.node.journal_life import DAY_S, EVIDENCE_S, Life


async def measure(folder: Path, jobs: int) -> dict[str, float]:
    """Figures of a journal with so many jobs."""
    file, clock = folder / "journal.db", FakeClock()
    journal = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=clock)
    life = Life(journal, clock)
    await life.begin()
    commits: list[float] = []
    journal.on_commit = commits.append
    cpu = time.process_time()
    for _ in range(jobs):
        await life.job()
    cpu = time.process_time() - cpu
    started = time.perf_counter()
    rows = await journal.verify(deep=False)
    verified = time.perf_counter() - started
    started = time.perf_counter()
    await journal.earnings()
    totals = time.perf_counter() - started
    await journal.close()
    raw = apsw.Connection(str(file))
    log_rows = raw.execute("SELECT count(*) FROM log").get
    raw.close()
    return {
        "commits_a_job": len(commits) / jobs,
        "log_rows_a_job": log_rows / jobs,
        "cpu_us_a_job": cpu / jobs * 1e6,
        "commit_p50_us": percentile(commits, 0.5) * 1e6,
        "commit_p99_us": percentile(commits, 0.99) * 1e6,
        "bare_commit_p50_us": bare_commit(folder) * 1e6,
        "rows": rows,
        "verify_s": verified,
        "totals_us": totals * 1e6,
        **await prune(file, clock),
    }


async def prune(file: Path, clock: FakeClock) -> dict[str, float]:
    """Let go of everything, and time each step."""
    clock.advance(EVIDENCE_S + 2 * DAY_S)
    journal = await SqliteJournal.open(file, DOMAIN, OPERATOR.address, clock=clock)
    steps: list[float] = []
    more = True
    while more:
        started = time.perf_counter()
        more = bool(await journal.prune(EVIDENCE_S))
        steps.append(time.perf_counter() - started)
    await journal.close()
    return {
        "prune_step_p50_ms": percentile(steps, 0.5) * 1e3,
        "prune_step_p99_ms": percentile(steps, 0.99) * 1e3,
    }


def bare_commit(folder: Path) -> float:
    """The median of a commit of one small row with the same settings, in seconds."""
    db = apsw.Connection(str(folder / "bare.db"))
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}")
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, data BLOB)")
    times = []
    for _ in range(500):
        started = time.perf_counter()
        db.execute("INSERT INTO t (data) VALUES (zeroblob(100))")
        times.append(time.perf_counter() - started)
    db.close()
    return percentile(times, 0.5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), arguments.jobs))
    if arguments.json:
        print(json.dumps({**environment("apsw"), **figures}, indent=2))
        return
    for name, value in figures.items():
        print(f"{name:22} {value:12.2f}")


if __name__ == "__main__":
    main()
