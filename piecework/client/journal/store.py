"""The client's journal: channels, jobs, receipts and vouchers, each recorded before it has an
effect.

Every method is one transaction (see `journal.database`). The database is the only copy of the
payer's book: nothing is cached in memory, so any number of jobs and processes may pay over one
channel. A change is durable if a signature, a frame or a transaction comes after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import apsw

from piecework.base.group_commit import Committer
from piecework.client.errors import JobFollowed, StoreError
from piecework.client.journal import budgets, fees, requests, rows
from piecework.client.journal.api_keys import ApiKeys
from piecework.client.journal.budgets import Budgets
from piecework.client.journal.contradictions import Contradictions
from piecework.client.journal.database import Database, WriteWatcher
from piecework.client.journal.logs import ChainLogs
from piecework.client.journal.memory import Lesson, WorkerMemory, teach
from piecework.client.journal.owners import NOBODY, Owner
from piecework.client.journal.records import (
    ChannelRow,
    ChannelStatus,
    JobRow,
    JobStatus,
    JobTexts,
    Limits,
    Part,
    Payment,
    ReceiptRow,
    Reservation,
    ReservedFor,
    SeenChannel,
)
from piecework.client.journal.requests import Requests
from piecework.client.limits import FUNDING_GRACE_S
from piecework_protocol import wire
from piecework_protocol.client_session import CanvasVerified
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import ProtocolViolation, invariant
from piecework_protocol.frames import Accepted, Account, CanvasDelivered, LeafRef
from piecework_protocol.ledger import PayerLedger
from piecework_protocol.limits import MAX_LEAVES_PER_VOUCHER
from piecework_protocol.objects import Channel
from piecework_protocol.types import Address, Amount, ChannelId, JobId, Timestamp

OWNERS_FOLDER = "owners"
MAX_ID_DIGITS = 64
NO_PART = Part()
NO_LIMITS = Limits()
"""A job that nothing was reserved for. It counts in the client's own budget."""
_AUTHORIZE = (
    "UPDATE channels SET authorized = ?, fee = ?, funding_deadline = ?, taken = ?, one_step = ?"
    " WHERE id = ?"
)


class Store:
    """The journal of one client on one chain.

    Attributes:
        run: Calls a method of this journal, or of a part of it, from an event loop.
        logs: The payer's part of the escrow's events.
        workers: What is remembered of workers.
        budgets: What was spent, and what is held for jobs.
        api_keys: Who may spend through the gateway.
        requests: Requests with an Idempotency-Key.
        contradictions: What workers signed and should not have.
    """

    def __init__(
        self,
        file: Path,
        domain: Domain,
        payer: Address,
        watcher: WriteWatcher | None = None,
        *,
        committer: Committer | None = None,
    ) -> None:
        """Open the journal, or make it.

        Args:
            file: The database. Lock files of its processes lie in a folder beside it.
            domain: What the client's signatures are under.
            payer: Whose money it is.
            watcher: Told the name of each change, before and after its commit.
            committer: What commits run in, if not in a thread of their own.

        Raises:
            StoreError: the file cannot be used, or belongs to somebody else.
        """
        self._domain = domain
        self.folder = file.parent
        """The client's home."""
        self._database = Database(file, watcher, committer)
        try:
            self._database.bind(domain, payer)
            self._owner = Owner(file.with_name(OWNERS_FOLDER))
        except BaseException as error:
            self._database.close()
            if isinstance(error, OSError):
                raise StoreError(f"cannot lock {file.with_name(OWNERS_FOLDER)}: {error}") from None
            raise
        self.run = self._database.run
        self.logs = ChainLogs(self._database)
        self.workers = WorkerMemory(self._database)
        self.budgets = Budgets(self._database, self._owner)
        self.api_keys = ApiKeys(self._database)
        self.requests = Requests(self._database, self._owner)
        self.contradictions = Contradictions(self._database, domain)

    @property
    def owner(self) -> str:
        """The name under which this process follows jobs."""
        return self._owner.name

    def close(self) -> None:
        """Give the file and the jobs back."""
        self._database.close()
        self._owner.close()

    # --- channels

    def channel(self, channel: ChannelId) -> ChannelRow:
        """Return one channel.

        Raises:
            StoreError: the journal does not know it.
        """
        with self._database.read() as db:
            return rows.channel(db, channel)

    def channels(self) -> tuple[ChannelRow, ...]:
        """Return every channel, oldest first."""
        with self._database.read() as db:
            return rows.channels(db)

    def open_channel(self, terms: Channel) -> ChannelRow:
        """Return the open channel with these terms, or record a new one.

        The salt does not matter, and the delay of the channel may be longer.
        """
        with self._database.read() as db:
            found = rows.channel_like(db, terms)
        if found is not None:
            return found
        with self._database.change("record a channel", durable=False) as db:
            found = rows.channel_like(db, terms)
            if found is not None:
                return found
            key = terms.id(self._domain)
            rows.add_channel(db, key, terms, ChannelStatus.OPEN)
            return rows.channel(db, key)

    def adopt_channel(self, terms: Channel) -> ChannelRow:
        """Record a channel that the chain knows and this journal may have lost."""
        key = terms.id(self._domain)
        with self._database.change("adopt a channel") as db:
            rows.add_channel(db, key, terms, ChannelStatus.OPEN)
            return rows.channel(db, key)

    def seen_on_chain(
        self, channel: ChannelId, seen: SeenChannel, status: ChannelStatus
    ) -> ChannelRow:
        """Record what the chain says now. A closed channel never opens again."""
        row = self.channel(channel)
        if not _is_news(row, seen, status):
            return row
        with self._database.change("record what the chain shows", durable=False) as db:
            row = rows.channel(db, channel)
            if seen.funded > row.funded:
                fees.used(db, channel)
            kept = ChannelStatus.CLOSED if row.status is ChannelStatus.CLOSED else status
            db.execute(
                "UPDATE channels SET funded = ?, withdrawn = ?, settled = ?,"
                " status = ? WHERE id = ?",
                (
                    str(seen.funded),
                    str(seen.withdrawn),
                    str(seen.settled),
                    kept.value,
                    channel,
                ),
            )
            return rows.channel(db, channel)

    def opened_by_payer(self, channel: ChannelId) -> None:
        """Record that the payer opens or tops up a channel itself, without a fee."""
        with self._database.change("forget a declined fee", durable=False) as db:
            fees.opened_by_payer(db, channel)

    def set_status(self, channel: ChannelId, status: ChannelStatus) -> None:
        """Stop the use of a channel, or allow it again. A closed channel stays closed."""
        with self._database.change("change a channel's status") as db:
            db.execute(
                "UPDATE channels SET status = ? WHERE id = ? AND status <> 'closed'",
                (status.value, channel),
            )

    def adopt_account(self, channel: ChannelId, account: Account | None) -> PayerLedger:
        """Bring the book in line with the worker's record, before a signature depends on it.

        The caller has checked that the voucher in it carries our signature (clause 5.7).

        Raises:
            ProtocolViolation: the record contradicts itself, the chain or what was confirmed.
            StoreError: the worker holds a voucher of ours that contradicts this journal.
        """
        with self._database.change("adopt the worker's record") as db:
            return self._reconcile(db, rows.channel(db, channel), account)

    def _reconcile(
        self, db: apsw.Connection, row: ChannelRow, account: Account | None
    ) -> PayerLedger:
        """A record behind ours makes the next voucher name again what it lacks. One ahead of ours
        means that this file is an older copy, and is adopted."""
        book = row.book
        count = account.voucher.count if account else 0
        if (account.voucher.cumulative if account else 0) < row.settled:
            raise ProtocolViolation(
                "5.7", "the worker's record lies before a voucher that it has settled"
            )
        if account and count > book.accumulator.count:
            book = book.adopt(account)
            rows.write_voucher(db, book)
        else:
            if account:
                rows.check_known(db, account.voucher)
            known = count - book.acknowledged
            since = book.unacknowledged[known:] if known >= 0 else rows.leaves(db, row.id, count)
            if count + len(since) != book.accumulator.count:
                raise ProtocolViolation(
                    "5.7", "the worker's record lies before one that it has confirmed"
                )
            book = book.rewind(count, since)
        if book != row.book:
            rows.write_book(db, book)
        return book

    def unpromised(self, channel: ChannelId, now: Timestamp) -> Amount:
        """Return what a channel holds on chain beyond what was promised or may come to be."""
        with self._database.read() as db:
            row = rows.channel(db, channel)
            promised = row.book.cumulative + rows.reserved_by_jobs(db, channel, now)
        return Amount(max(0, row.funded - row.withdrawn - promised))

    # --- reservations

    def reservations(self, token: Address, now: Timestamp) -> tuple[Reservation, ...]:
        """Return what signed authorizations may still take from the pooled balance.

        An authorization counts while a worker may be submitting it, or while a living process
        offers a job with it. One that was declined, never sent, or is past its deadline does not
        count.
        """
        with self._database.read() as db:
            found = [
                self._reservation(db, row, now)
                for row in rows.channels(db)
                if row.channel.token == token and row.status is not ChannelStatus.CLOSED
            ]
        return tuple(reservation for reservation in found if reservation is not None)

    def _reservation(
        self, db: apsw.Connection, row: ChannelRow, now: Timestamp
    ) -> Reservation | None:
        if row.funding_deadline + FUNDING_GRACE_S < now:
            return None
        total, why = row.taken, ReservedFor.OPENING
        if row.authorized > max(total, row.funded) and self._is_submitted(db, row.id, now):
            total, why = row.authorized, ReservedFor.SUBMISSION
        if total <= row.funded:
            return None
        amount = Amount(total - row.funded + row.fee)
        until = row.funding_deadline
        return Reservation(row.id, row.channel.operator, amount, until, why, row.one_step)

    def _is_submitted(self, db: apsw.Connection, channel: ChannelId, now: Timestamp) -> bool:
        """Whether a living process offers a job that no worker has taken yet."""
        owners = rows.rows(
            db,
            "SELECT DISTINCT owner FROM jobs WHERE channel = ? AND status = 'live'"
            " AND prompt_tokens IS NULL AND deadline > ?",
            (channel, now),
        )
        return any(self._owner.follows(owner) for (owner,) in owners)

    # --- jobs

    def admit(
        self,
        job: JobRow,
        prompt: str | None,
        grow: Callable[[Amount, Amount], Amount],
        funding_deadline: Timestamp,
        *,
        content: bytes | None = None,
        one_step: bool = False,
        part: Part = NO_PART,
        whole: Limits = NO_LIMITS,
    ) -> ChannelRow:
        """Record a signed job and reserve its ceiling in its channel.

        Args:
            job: The job. Other live jobs keep what they have reserved.
            prompt: Its text, if texts are kept.
            grow: Called with the total that is needed and the total that counts already, when the
                second is too small. It returns the channel's new total.
            funding_deadline: When a new authorization ends.
            content: The exact bytes of its content, if texts are kept.
            one_step: Whether a new authorization takes the payer's own tokens.
            part: What it was asked for, and what is held for it.
            whole: The limits of the client as a whole.

        Raises:
            InsufficientFunds: `grow` raised it. Nothing was recorded.
            BudgetTooSmall: a budget does not cover a new fee. Nothing was recorded.
            StoreError: what was held for the part has ended. Nothing was recorded.
        """
        now = job.created_at
        with self._database.change("admit a job") as db:
            row = rows.channel(db, job.channel_id)
            pending = self._reservation(db, row, now)
            counted = Amount(row.funded + (pending.amount - row.fee if pending else 0))
            promised = row.book.cumulative + rows.reserved_by_jobs(db, row.id, now)
            # A channel exists once it holds something, so even a free job needs one base unit.
            asked = max(1, promised + job.submission.job.max_amount)
            needed, total = Amount(asked + row.withdrawn), counted
            if needed > counted:
                total = grow(needed, counted)
                invariant(total >= needed, "a raised deposit covers what is needed")
            # An authorization is signed again before a slow worker has used half of its life.
            stale = 2 * (row.funding_deadline - now) < funding_deadline - now
            signs = total > row.funded and (total != row.authorized or stale)
            day, budget = budgets.day_and_budget(db, part, now)
            rows.add_job(db, job, prompt, content, day=day, budget=budget)
            terms = job.submission.job
            budgets.bind(db, part, job.id, terms.max_amount, terms.deadline)
            if signs:
                offer, taken = job.offer.offer, row.taken if pending else 0
                fee = offer.top_up_fee if row.funded else offer.open_fee
                amounts = (str(total), str(fee), funding_deadline, str(taken))
                db.execute(_AUTHORIZE, (*amounts, one_step, row.id))
                fees.replaced(db, row, total, counts=pending is not None)
                fees.charge(db, row.id, job.id, fee, whole)
            requests.record(db, part, job.id)
            return rows.channel(db, row.id) if signs else row

    def accepted(self, job: JobId, event: Accepted) -> PayerLedger:
        """Record the worker's signed acceptance, and bring the book in line with its record.

        The first acceptance of a job stays. A second with another prompt length contradicts it.

        From now on the worker may be opening the channel, so what was authorized is reserved.

        Raises:
            ProtocolViolation: the record contradicts itself, the chain or what was confirmed.
            StoreError: the worker holds a voucher of ours that contradicts this journal.
        """
        with self._database.change("record an acceptance", durable=False) as db:
            channel, known = rows.acceptance_of(db, job)
            if known not in (None, event.prompt_tokens):
                raise ProtocolViolation("3.5", "the worker signed two prompt lengths for one job")
            frame = wire.encode_worker_frame(replace(event, account=None))
            db.execute(
                "UPDATE jobs SET prompt_tokens = ?, acceptance = coalesce(acceptance, ?)"
                " WHERE id = ?",
                (event.prompt_tokens, frame, job),
            )
            row = rows.channel(db, channel)
            if row.authorized > row.taken:
                sql = "UPDATE channels SET taken = ? WHERE id = ?"
                db.execute(sql, (str(row.authorized), channel))
            return self._reconcile(db, row, event.account)

    def job(self, job: JobId) -> JobRow:
        """Return one job.

        Raises:
            StoreError: the journal does not know it.
        """
        with self._database.read() as db:
            return rows.job(db, job)

    def jobs(
        self, channel: ChannelId | None = None, status: JobStatus | None = None
    ) -> tuple[JobRow, ...]:
        """Return jobs, oldest first. Of one channel and with one status if given."""
        with self._database.read() as db:
            return rows.jobs(db, channel, status)

    def job_named(self, digits: str) -> JobId:
        """Return the only job whose id begins with these hex digits.

        Raises:
            StoreError: no job does, or several do.
        """
        return JobId(self._named("job", "jobs", digits))

    def channel_named(self, digits: str) -> ChannelId:
        """Return the only channel whose id begins with these hex digits.

        Raises:
            StoreError: no channel does, or several do.
        """
        return ChannelId(self._named("channel", "channels", digits))

    def _named(self, what: str, table: str, digits: str) -> bytes:
        beginning = digits.lower().removeprefix("0x")
        if (
            not beginning
            or len(beginning) > MAX_ID_DIGITS
            or set(beginning) - set("0123456789abcdef")
        ):
            raise StoreError(f"the id of a {what} is 0x and hex digits")
        with self._database.read() as db:
            found = rows.rows(
                db,
                f"SELECT id FROM {table} WHERE lower(hex(id)) LIKE ? LIMIT 2",  # noqa: S608
                (beginning + "%",),
            )
        if len(found) != 1:
            which = "no" if not found else "more than one"
            raise StoreError(f"{which} {what} in this client's journal begins with 0x{beginning}")
        return bytes(found[0][0])

    def is_followed(self, job: JobRow) -> bool:
        """Return whether a living process follows the job, this one included."""
        return self._owner.follows(job.owner)

    def take_over(self, job: JobId) -> JobRow:
        """Follow a job in this process from now on.

        Raises:
            JobFollowed: another living process follows it.
            StoreError: the journal does not know it.
        """
        with self._database.change("take a job over", durable=False) as db:
            row = rows.job(db, job)
            held = row.status is JobStatus.LIVE and row.owner != self.owner
            if held and self._owner.follows(row.owner):
                raise JobFollowed(job)
            db.execute("UPDATE jobs SET owner = ?, status = 'live' WHERE id = ?", (self.owner, job))
            return rows.job(db, job)

    def leave(self, job: JobId) -> None:
        """Stop following a job. If it is not over, any process of this client may take it up."""
        with self._database.read() as db:
            live = rows.is_live(db, job)
        if live:
            with self._database.change("leave a job", durable=False) as db:
                db.execute(
                    "UPDATE jobs SET owner = ? WHERE id = ? AND owner = ? AND status = 'live'",
                    (NOBODY, job, self.owner),
                )

    def finish(
        self,
        job: JobId,
        status: JobStatus,
        detail: str = "",
        *,
        lesson: Lesson | None = None,
        acknowledged: int = 0,
    ) -> None:
        """Record that the job is over. What it had reserved is free again.

        Args:
            job: The job.
            status: How it ended. REFUSED also gives its funding authorization up.
            detail: Words for a person.
            lesson: Changes what is remembered of the worker.
            acknowledged: How many paid receipts of the channel the worker has confirmed, if that
                is not recorded yet.

        Raises:
            ProtocolViolation: the worker confirms more than was paid. Nothing was recorded.
        """
        with self._database.change("finish a job", durable=False) as db:
            channel, operator, created_at = rows.party(db, job)
            if acknowledged:
                rows.acknowledge(db, channel, acknowledged)
            db.execute(
                "UPDATE jobs SET status = ?, detail = ? WHERE id = ?", (status.value, detail, job)
            )
            budgets.end(db, job, status)
            if status is JobStatus.REFUSED:
                self._release(db, channel, created_at)
            if lesson is not None:
                teach(db, operator, lesson)

    def _release(self, db: apsw.Connection, channel: ChannelId, made_at: Timestamp) -> None:
        """Nobody took the job. Its authorization counts no more, unless another job offers it."""
        row = rows.channel(db, channel)
        if row.authorized > row.taken and not self._is_submitted(db, row.id, made_at):
            fees.give_back(db, row.id)
            kept = max(row.taken, row.funded)
            db.execute("UPDATE channels SET authorized = ? WHERE id = ?", (str(kept), row.id))

    # --- receipts

    def pay(
        self,
        event: CanvasVerified,
        channel: ChannelId,
        text: str | None,
        *,
        output: bytes | None = None,
        acknowledged: int = 0,
    ) -> Payment:
        """Record a verified receipt and the voucher that pays for it, in one transaction.

        A receipt that was paid before changes nothing, so a job can be replayed from its first
        canvas. `output` are its exact bytes, if texts are kept. `acknowledged` is as for `finish`.

        Raises:
            ProtocolViolation: the worker confirms more than was paid, there is another receipt for
                this canvas, the deposit is used up, or the worker confirms nothing.
        """
        receipt = event.receipt
        with self._database.change("pay a receipt") as db:
            row = rows.channel(db, channel)
            before = row.book.acknowledge(acknowledged)
            known = rows.rows(
                db,
                "SELECT digest, leaf_index FROM receipts WHERE job = ? AND canvas = ?",
                (receipt.job, receipt.canvas),
            )
            if known:
                if known[0][0] != event.digest:
                    raise ProtocolViolation("4.1", "two different receipts for one canvas")
                return Payment(row.book, known[0][1], voucher=None)
            if len(before.unacknowledged) >= MAX_LEAVES_PER_VOUCHER:
                raise ProtocolViolation("5.6", "the worker does not confirm what it is paid")
            ref = LeafRef(receipt.job, receipt.canvas)
            book = before.pay(ref, event.digest, receipt.amount, row.deposit)
            index = book.accumulator.count - 1
            frame = wire.encode_worker_frame(
                CanvasDelivered(receipt, event.signature, b"", event.leaves)
            )
            key = (receipt.job, receipt.canvas, channel, frame, event.digest)
            db.execute(
                "INSERT INTO receipts (job, canvas, channel, frame, digest, amount, leaf_index,"
                " text, output) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*key, str(receipt.amount), index, text, output),
            )
            budgets.spend(db, receipt.job, receipt.amount)
            rows.write_book(db, book)
            return Payment(book, index, rows.write_voucher(db, book))

    def receipts(
        self, *, channel: ChannelId | None = None, job: JobId | None = None
    ) -> tuple[ReceiptRow, ...]:
        """Return paid receipts in the order in which they were paid."""
        with self._database.read() as db:
            return rows.receipts(db, channel, job)

    def texts(self, job: JobId) -> JobTexts:
        """Return the exact texts of a job, as far as they are kept."""
        with self._database.read() as db:
            return rows.texts(db, job)


def _is_news(row: ChannelRow, seen: SeenChannel, status: ChannelStatus) -> bool:
    known = SeenChannel(row.funded, row.withdrawn, row.settled)
    return known != seen or (row.status is not status and row.status is not ChannelStatus.CLOSED)
