"""What a worker has earned, day by day or job by job, as rows of a table. Reads a journal at rest.

Gross is what vouchers promise for the jobs of a day. It adds up, to the unit, to what the escrow
pays once everything is settled. Gas is what the transactions of the day have cost.

The journal knows the fees of the worker's own transactions. Anybody may send an opening or a
closing, and its fee is the worker's all the same. So only the escrow's events know all fees.
`with_chain` takes them from there, and holds what was paid against the journal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final

from piecework.chain.contracts.events import (
    ChannelClosed,
    ChannelFunded,
    EscrowEvent,
    Settled,
    Withdrawn,
)
from piecework.chain.deployment import Deployment
from piecework.chain.reading.reader import ChainReader
from piecework_node import config
from piecework_node.config import WorkerConfig
from piecework_node.daemon.assembly import connect
from piecework_node.errors import ConfigError, JournalLocked
from piecework_node.home import Home
from piecework_node.journal.records import OneStepFunding, PaidJob, SpentTx
from piecework_node.journal.sqlite import SqliteJournal
from piecework_node.keys.operator import keystore_address
from piecework_node.runtime.funding import usable_funding
from piecework_protocol.frames import FundingAuthorization
from piecework_protocol.types import Address, Amount, ChannelId, Timestamp, parse_address, to_hex

WEI: Final = 10**18
DAY_COLUMNS: Final = ("date", "jobs", "canvases", "gross", "fees", "gas_wei", "gas", "net")
CHAIN_COLUMNS: Final = (*DAY_COLUMNS, "settled")
MOVING: Final = ("ChannelFunded", "Settled", "ChannelClosed", "Withdrawn")
"""The events that bring a worker money, or change what a channel can bring."""
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
    """What one event of the escrow brought. Base units. at: the time of its block.

    It is final, unless all that it says is `funded`. is_last: the channel is closed, and nothing
    comes any more. funded: what the payer put in. withdrawn: what the payer took out.
    """

    channel: ChannelId
    at: Timestamp
    settled: Amount = Amount(0)
    fee: Amount = Amount(0)
    is_last: bool = False
    funded: Amount = Amount(0)
    withdrawn: Amount = Amount(0)


@dataclass(frozen=True, slots=True)
class EscrowAccount:
    """What the escrow says of a worker's channels.

    opened: those that were opened, also in blocks that are not final. final_at: the time of the
    newest final block.
    """

    income: tuple[ChainIncome, ...]
    opened: frozenset[ChannelId]
    final_at: Timestamp


@dataclass(frozen=True, slots=True)
class EarnedBalance:
    """Everything that vouchers promised, and where it is. Base units.

    gross: promised. settled: paid by the escrow. waiting: what open channels hold for it, or will
    once an authorization is mined that is still valid. lost: what no channel can pay. fees: what
    clients paid for transactions. losses: why something is lost, one line a channel. troubles: what
    does not agree, one line each.
    """

    gross: int
    settled: int
    waiting: int
    lost: int
    fees: int
    losses: tuple[str, ...]
    troubles: tuple[str, ...]


@dataclass(slots=True)
class _DaySums:
    """What happened on a day. Base units, but for `wei`."""

    jobs: int = 0
    canvases: int = 0
    gross: int = 0
    fees: int = 0
    wei: int = 0
    settled: int = 0

    def row(self, day: str, coin_price: int) -> Row:
        """Return it in the order of `CHAIN_COLUMNS`."""
        gas = -(-self.wei * coin_price // WEI)
        net = self.gross + self.fees - gas
        made = self.jobs, self.canvases, self.gross
        return (day, *made, self.fees, self.wei, gas, net, self.settled)


@dataclass(slots=True)
class _ChannelSums:
    """A channel's vouchers and money. Base units. to_come: as `balance` has it."""

    promised: int = 0
    settled: int = 0
    funded: int = 0
    withdrawn: int = 0
    to_come: int = 0
    is_closed: bool = False

    def add(self, event: ChainIncome) -> None:
        self.settled += event.settled
        self.funded += event.funded
        self.withdrawn += event.withdrawn
        self.is_closed = self.is_closed or event.is_last

    @property
    def payable(self) -> int:
        """What vouchers may still be paid, settled ones left out."""
        if self.is_closed:
            return 0
        holds = max(self.funded, self.to_come) - self.withdrawn
        return max(0, min(self.promised, holds) - self.settled)

    @property
    def why_not(self) -> str:
        """Why it is not more."""
        if self.is_closed:
            return "it is closed"
        if self.withdrawn:
            return f"the payer has withdrawn {self.withdrawn}"
        if not self.funded and not self.to_come:
            return "its opening was never mined"
        return "no deposit reaches that far"


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
    days: defaultdict[str, _DaySums] = defaultdict(_DaySums)
    for job in jobs:
        day = days[_day(job.at)]
        day.jobs += 1
        day.canvases += job.canvases
        day.gross += job.gross
    for tx in spent:
        day = days[_day(tx.at)]
        day.wei += tx.fee_wei
        day.fees += tx.earned if income is None else 0
    for event in income or ():
        if event.settled or event.fee:
            day = days[_day(event.at)]
            day.fees += event.fee
            day.settled += event.settled
    return [
        sums.row(name, coin_price)[: len(DAY_COLUMNS) if income is None else None]
        for name, sums in sorted(days.items())
    ]


def balance(
    jobs: Sequence[PaidJob],
    income: Sequence[ChainIncome],
    to_come: Mapping[ChannelId, Amount],
) -> EarnedBalance:
    """Hold all that vouchers promised against all that the escrow paid, channel by channel.

    to_come: what valid authorizations that may not be mined yet put into a channel in all.
    """
    channels: defaultdict[ChannelId, _ChannelSums] = defaultdict(_ChannelSums)
    for job in jobs:
        channels[job.channel].promised += job.gross
    for event in income:
        channels[event.channel].add(event)
    for channel, amount in to_come.items():
        channels[channel].to_come = amount
    losses, troubles = list[str](), list[str]()
    waiting = lost = 0
    for channel, sums in sorted(channels.items()):
        open_ = sums.promised - sums.settled
        if open_ < 0:
            troubles.append(
                f"channel {to_hex(channel)}: the escrow has paid {sums.settled}, "
                f"this journal has receipts for {sums.promised}"
            )
            continue
        waiting += sums.payable
        gone = open_ - sums.payable
        lost += gone
        if gone:
            losses.append(f"channel {to_hex(channel)}: {gone} lost, because {sums.why_not}")
    return EarnedBalance(
        sum(sums.promised for sums in channels.values()),
        sum(sums.settled for sums in channels.values()),
        waiting,
        lost,
        sum(event.fee for event in income),
        tuple(losses),
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
        fundings = {one.id: one.funding for one in await journal.channels()}
        spent = await journal.spent(*period.seconds)
    # The journal is closed by now: the chain may take long, and a worker may start meanwhile.
    async with await connect(settings, deployment) as reader:
        account = await read_income(reader, operator_of(Home(root)), channels)
    price = settings.amounts(deployment.payment_token).native_coin_price
    since, until = period.seconds
    paid = [job for job in every if since <= job.at < until]
    came = [event for event in account.income if since <= event.at < until]
    held = balance(every, account.income, still_to_come(fundings, account))
    return [CHAIN_COLUMNS, *by_day(paid, spent, price, came)], held


def still_to_come(
    fundings: Mapping[ChannelId, FundingAuthorization | None], account: EscrowAccount
) -> dict[ChannelId, Amount]:
    """Return what each channel would hold in all by its authorization, if that may be mined yet.

    One that had expired at the newest final block is in no later block.
    """
    found = {}
    for channel, known in fundings.items():
        funding = usable_funding(known, account.final_at)
        # An opening out of the payer's own tokens opens. It raises nothing.
        is_over = isinstance(funding, OneStepFunding) and channel in account.opened
        if funding is not None and not is_over:
            found[channel] = funding.authorization.funded
    return found


async def read_income(
    reader: ChainReader, operator: Address, channels: Collection[ChannelId]
) -> EscrowAccount:
    """Read what the escrow's events brought for these channels of an operator.

    The logs of a channel are read from its opening on.

    Raises:
        ChainError: the node does not answer.
    """
    final = await reader.block(await reader.finalized_block())
    head = max(final.number, await reader.latest_block())
    blocks = await reader.opening_blocks(operator, head)
    opened = {channel: blocks[channel] for channel in channels if channel in blocks}
    events = await reader.events_of(MOVING, opened, head)
    # What is not final may be undone. A funding counts all the same: it may stay.
    counted = [e for e in events if e.log.block <= final.number or isinstance(e, ChannelFunded)]
    times = {n: (await reader.block(n)).timestamp for n in {event.log.block for event in counted}}
    income = [
        _income(event, times[event.log.block], is_final=event.log.block <= final.number)
        for event in counted
    ]
    return EscrowAccount(tuple(income), frozenset(opened), final.timestamp)


def _income(event: EscrowEvent, at: Timestamp, *, is_final: bool) -> ChainIncome:
    match event:
        case Settled(channel=channel, amount=amount):
            return ChainIncome(channel, at, settled=amount)
        case ChannelFunded(channel=channel, added=added, fee=fee):
            return ChainIncome(channel, at, fee=fee if is_final else Amount(0), funded=added)
        case ChannelClosed(channel=channel, fee=fee):
            return ChainIncome(channel, at, fee=fee, is_last=True)
        case Withdrawn(channel=channel, amount=amount):
            return ChainIncome(channel, at, withdrawn=amount)
    raise AssertionError(f"{event} was not asked for")


@asynccontextmanager
async def _at_rest(
    root: Path,
) -> AsyncIterator[tuple[SqliteJournal, WorkerConfig, Deployment]]:
    home, settings = Home(root), config.load(root)
    deployment = Deployment.load(home.deployment)
    try:
        journal = await SqliteJournal.open(home.journal, deployment.domain, operator_of(home))
    except JournalLocked:
        raise JournalLocked(RUNNING) from None
    try:
        yield journal, settings, deployment
    finally:
        await journal.close()


def operator_of(home: Home) -> Address:
    """Return the address of a home's operator."""
    return parse_address("0x" + keystore_address(home.operator))


def _start(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp())


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
