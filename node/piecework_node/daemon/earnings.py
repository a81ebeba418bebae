"""What a worker has earned, day by day or job by job, as rows of a table. Reads a journal at rest.

Gross is what vouchers promise for the jobs of a day. It adds up, to the unit, to what the escrow
pays once everything is settled. Gas is what the transactions of the day have cost.

The journal knows the fees of the worker's own transactions. Anybody may send an opening or a
closing, and its fee is the worker's all the same. So only the escrow's events know all fees.
`with_chain` takes them from there, and holds what was paid against the journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final

from piecework.chain.deployment import Deployment
from piecework.chain.events import ChannelClosed, ChannelFunded, Settled
from piecework.chain.reader import ChainReader
from piecework_node import config
from piecework_node.config import WorkerConfig
from piecework_node.daemon.assembly import connect
from piecework_node.errors import ConfigError, JournalLocked
from piecework_node.home import Home
from piecework_node.journal.records import PaidJob, SpentTx
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import keystore_address
from piecework_protocol.types import Amount, ChannelId, Timestamp, parse_address, to_hex

WEI: Final = 10**18
DAY_COLUMNS: Final = ("date", "jobs", "canvases", "gross", "fees", "gas_wei", "gas", "net")
CHAIN_COLUMNS: Final = (*DAY_COLUMNS, "settled")
PAYING: Final = ("ChannelFunded", "Settled", "ChannelClosed")
"""The events that bring a worker money."""
JOB_COLUMNS: Final = ("date", "job", "channel", "canvases", "gross")
RUNNING: Final = (
    "the worker runs, and nobody else can read its journal meanwhile: one process holds it alone, "
    "so that each commit is fast. Stop the worker for the table. Sums without --csv come from the "
    "running worker"
)
_FOREVER: Final = 2**40
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


@dataclass(frozen=True, slots=True)
class ChainIncome:
    """What one final event of the escrow brought. Base units. at: the time of its block.

    is_last: the channel is closed, and nothing comes any more.
    """

    channel: ChannelId
    at: Timestamp
    settled: Amount = Amount(0)
    fee: Amount = Amount(0)
    is_last: bool = False


@dataclass(frozen=True, slots=True)
class EarnedBalance:
    """Everything that vouchers promised, and where it is. Base units.

    gross: promised. settled: paid by the escrow. waiting: in open channels. lost: not paid by
    channels that are closed. fees: what clients paid for transactions. troubles: what does not
    agree, one line each.
    """

    gross: int
    settled: int
    waiting: int
    lost: int
    fees: int
    troubles: tuple[str, ...]


def by_day(
    jobs: Sequence[PaidJob],
    spent: Sequence[SpentTx],
    coin_price: int,
    income: Sequence[ChainIncome] | None = None,
) -> list[Row]:
    """One row a day. Gross, fees, gas and net are base units.

    Fees are what clients paid for transactions. `coin_price`: base units of one native coin.
    `income`: what the chain paid. Fees are from there then, and a row ends with what was settled.
    """
    days = {_day(j.at) for j in jobs} | {_day(t.at) for t in spent}
    days |= {_day(event.at) for event in income or ()}
    rows: list[Row] = []
    for day in sorted(days):
        mine = [job for job in jobs if _day(job.at) == day]
        came = [event for event in income or () if _day(event.at) == day]
        gross = sum(job.gross for job in mine)
        wei = sum(tx.fee_wei for tx in spent if _day(tx.at) == day)
        gas = -(-wei * coin_price // WEI)
        canvases = sum(job.canvases for job in mine)
        fees = sum(tx.earned for tx in spent if _day(tx.at) == day)
        if income is not None:
            fees = sum(event.fee for event in came)
        row: Row = (day, len(mine), canvases, gross, fees, wei, gas, gross + fees - gas)
        rows.append(row if income is None else (*row, sum(event.settled for event in came)))
    return rows


def balance(jobs: Sequence[PaidJob], income: Sequence[ChainIncome]) -> EarnedBalance:
    """Hold all that vouchers promised against all that the escrow paid, channel by channel."""
    promised: Counter[ChannelId] = Counter()
    settled: Counter[ChannelId] = Counter()
    for job in jobs:
        promised[job.channel] += job.gross
    for event in income:
        settled[event.channel] += event.settled
    closed = {event.channel for event in income if event.is_last}
    troubles: list[str] = []
    waiting = lost = 0
    for channel in sorted(promised.keys() | settled.keys()):
        more = promised[channel] - settled[channel]
        if more < 0:
            troubles.append(
                f"channel {to_hex(channel)}: the escrow has paid {settled[channel]}, "
                f"this journal has receipts for {promised[channel]}"
            )
        elif channel in closed:
            lost += more
        else:
            waiting += more
    return EarnedBalance(
        promised.total(),
        settled.total(),
        waiting,
        lost,
        sum(event.fee for event in income),
        tuple(troubles),
    )


def by_job(jobs: Sequence[PaidJob]) -> list[Row]:
    """One row a job."""
    return [(_day(j.at), to_hex(j.job), to_hex(j.channel), j.canvases, j.gross) for j in jobs]


async def table(root: Path, period: Period, *, jobs: bool) -> list[Row]:
    """Return the rows of a home's journal, with the names of the columns first.

    Raises:
        JournalLocked: the worker runs. It alone may read its journal, whose lock admits no reader.
    """
    async with _at_rest(root) as (journal, settings, deployment):
        paid = await journal.paid_jobs(*period.seconds)
        if jobs:
            return [JOB_COLUMNS, *by_job(paid)]
        spent = await journal.spent(*period.seconds)
        price = settings.amounts(deployment.payment_token).native_coin_price
        return [DAY_COLUMNS, *by_day(paid, spent, price)]


async def with_chain(root: Path, period: Period) -> tuple[list[Row], EarnedBalance]:
    """Return the table of days with what the chain paid, and where everything earned so far is.

    Raises:
        JournalLocked: the worker runs.
        ChainError: the node does not answer.
    """
    async with _at_rest(root) as (journal, settings, deployment):
        every = await journal.paid_jobs(0, _FOREVER)
        channels = {job.channel for job in every}.union(await journal.channel_ids())
        spent = await journal.spent(*period.seconds)
    # The journal is closed by now: the chain may take long, and a worker may start meanwhile.
    async with await connect(settings, deployment) as reader:
        income = await read_income(reader, channels)
    price = settings.amounts(deployment.payment_token).native_coin_price
    since, until = period.seconds
    paid = [job for job in every if since <= job.at < until]
    came = [event for event in income if since <= event.at < until]
    return [CHAIN_COLUMNS, *by_day(paid, spent, price, came)], balance(every, income)


async def read_income(
    reader: ChainReader, channels: Collection[ChannelId]
) -> tuple[ChainIncome, ...]:
    """Read what the escrow's final events brought for these channels.

    Raises:
        ChainError: the node does not answer.
    """
    events = await reader.events_of(PAYING, channels, await reader.finalized_block())
    blocks = {event.log.block for event in events}
    times = {block: (await reader.block(block)).timestamp for block in blocks}
    found = []
    for event in events:
        at = times[event.log.block]
        match event:
            case Settled(channel=channel, amount=amount):
                found.append(ChainIncome(channel, at, settled=amount))
            case ChannelFunded(channel=channel, fee=fee):
                found.append(ChainIncome(channel, at, fee=fee))
            case ChannelClosed(channel=channel, fee=fee):
                found.append(ChainIncome(channel, at, fee=fee, is_last=True))
            case _:
                raise AssertionError(f"{event} was not asked for")
    return tuple(found)


@asynccontextmanager
async def _at_rest(
    root: Path,
) -> AsyncIterator[tuple[SqliteJournal, WorkerConfig, Deployment]]:
    home, settings = Home(root), config.load(root)
    operator = parse_address("0x" + keystore_address(home.operator))
    deployment = Deployment.load(home.deployment)
    try:
        journal = await SqliteJournal.open(home.journal, deployment.domain, operator)
    except JournalLocked:
        raise JournalLocked(RUNNING) from None
    try:
        yield journal, settings, deployment
    finally:
        await journal.close()


def _start(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
