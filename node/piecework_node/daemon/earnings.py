"""What a worker has earned, day by day or job by job, as rows of a table. Reads a journal at rest.

Gross is what vouchers promise for the jobs of a day. It adds up, to the unit, to what the escrow
pays once everything is settled. Gas is what the transactions of the day have cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final

from piecework.chain.deployment import Deployment
from piecework_node import config
from piecework_node.errors import ConfigError, JournalLocked
from piecework_node.home import Home
from piecework_node.journal.records import PaidJob, SpentTx
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import keystore_address
from piecework_protocol.types import parse_address, to_hex

WEI: Final = 10**18
DAY_COLUMNS: Final = ("date", "jobs", "canvases", "gross", "fees", "gas_wei", "gas", "net")
JOB_COLUMNS: Final = ("date", "job", "channel", "canvases", "gross")
RUNNING: Final = (
    "the worker runs, and nobody else can read its journal meanwhile: one process holds it alone, "
    "so that each commit is fast. Stop the worker for the table. Sums without --csv come from the "
    "running worker"
)
Row = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Period:
    """Days in UTC, both included."""

    first: date
    last: date

    @property
    def seconds(self) -> tuple[int, int]:
        """From the first second on, and before the second after the last."""
        return _start(self.first), _start(self.last + timedelta(days=1))

    @classmethod
    def parse(cls, first: str, last: str) -> Period:
        """Read two dates as YYYY-MM-DD. Empty: from the beginning, until today.

        Raises:
            ConfigError: one is not a date, or they are the wrong way round.
        """
        try:
            begin = date.fromisoformat(first) if first else date(1970, 1, 1)
            end = date.fromisoformat(last) if last else datetime.now(UTC).date()
        except ValueError as error:
            raise ConfigError(f"a date is YYYY-MM-DD: {error}") from None
        if begin > end:
            raise ConfigError(f"--from {begin} is after --to {end}")
        return cls(begin, end)


def by_day(jobs: Sequence[PaidJob], spent: Sequence[SpentTx], coin_price: int) -> list[Row]:
    """One row a day. Gross, fees, gas and net are base units.

    Fees are what clients paid for their transactions. `coin_price`: base units of one native coin.
    """
    days = sorted({_day(j.at) for j in jobs} | {_day(t.at) for t in spent})
    rows: list[Row] = []
    for day in days:
        mine = [job for job in jobs if _day(job.at) == day]
        gross = sum(job.gross for job in mine)
        wei = sum(tx.fee_wei for tx in spent if _day(tx.at) == day)
        gas = -(-wei * coin_price // WEI)
        canvases = sum(job.canvases for job in mine)
        fees = sum(tx.earned for tx in spent if _day(tx.at) == day)
        rows.append((day, len(mine), canvases, gross, fees, wei, gas, gross + fees - gas))
    return rows


def by_job(jobs: Sequence[PaidJob]) -> list[Row]:
    """One row a job."""
    return [(_day(j.at), to_hex(j.job), to_hex(j.channel), j.canvases, j.gross) for j in jobs]


async def table(root: Path, period: Period, *, jobs: bool) -> list[Row]:
    """Return the rows of a home's journal, with the names of the columns first.

    Raises:
        JournalLocked: the worker runs. It alone may read its journal, whose lock admits no reader.
    """
    home, settings = Home(root), config.load(root)
    operator = parse_address("0x" + keystore_address(home.operator))
    deployment = Deployment.load(home.deployment)
    domain, amounts = deployment.domain, settings.amounts(deployment.payment_token)
    try:
        journal = await SqliteJournal.open(home.journal, domain, operator)
    except JournalLocked:
        raise JournalLocked(RUNNING) from None
    try:
        paid = await journal.paid_jobs(*period.seconds)
        if jobs:
            return [JOB_COLUMNS, *by_job(paid)]
        spent = await journal.spent(*period.seconds)
        return [DAY_COLUMNS, *by_day(paid, spent, amounts.native_coin_price)]
    finally:
        await journal.close()


def _start(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
