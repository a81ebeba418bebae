"""Fees of funding authorizations, as budgets count them. Part of the journal.

A worker may take its fee as soon as it has the authorization, so a fee counts when it is signed. It
is given back when nobody took the job that came with it. It is also given back when a newer
authorization replaces one that was not taken or has ended unused. If the chain shows that the
worker used a declined one all the same, its fee counts again.
"""

from __future__ import annotations

import apsw

from piecework.client.journal import budgets, rows
from piecework.client.journal.records import ChannelRow, Limits
from piecework_protocol.types import Amount, ChannelId, JobId


def replaced(db: apsw.Connection, before: ChannelRow, total: Amount, *, counts: bool) -> None:
    """A new authorization of `total` is signed.

    `before` is the channel as it was. `counts` is whether its authorization could still be used.
    """
    untaken = before.authorized > before.taken
    # Of two authorizations for one total, the chain takes one.
    renewed = before.authorized == total
    if before.authorized > before.funded and (untaken or renewed or not counts):
        give_back(db, before.id)
    _forget(db, before.id)


def charge(db: apsw.Connection, channel: ChannelId, job: JobId, fee: Amount, whole: Limits) -> None:
    """Count the fee of an authorization that is signed for a job. The job has its hold.

    Raises:
        BudgetTooSmall: a budget has too little left for it beside the job's ceiling.
    """
    if fee:
        budget, day = budgets.charge(db, job, fee, whole)
        db.execute("INSERT INTO fees VALUES (?, ?, ?, ?, 1)", (channel, budget, day, str(fee)))


def give_back(db: apsw.Connection, channel: ChannelId) -> None:
    """Count a fee no more: nobody took the job that came with it."""
    _count(db, channel, counted=False)


def used(db: apsw.Connection, channel: ChannelId) -> None:
    """The chain shows that an authorization was used: its fee counts from now on."""
    _count(db, channel, counted=True)
    _forget(db, channel)


def opened_by_payer(db: apsw.Connection, channel: ChannelId) -> None:
    """The payer opens the channel itself: what was given back is not paid."""
    db.execute("DELETE FROM fees WHERE channel = ? AND counted = 0", (channel,))


def _forget(db: apsw.Connection, channel: ChannelId) -> None:
    db.execute("DELETE FROM fees WHERE channel = ?", (channel,))


def _count(db: apsw.Connection, channel: ChannelId, *, counted: bool) -> None:
    sql = "SELECT budget, day, amount FROM fees WHERE channel = ? AND counted <> ?"
    for budget, day, amount in rows.rows(db, sql, (channel, counted)):
        budgets.add(db, budget, day, int(amount) if counted else -int(amount))
        db.execute("UPDATE fees SET counted = ? WHERE channel = ?", (counted, channel))
