"""The tables of the client's database. `journal.store` gives them meaning.

Schema 2 is the first that is kept: a later one comes as a migration. Amounts are uint128 as decimal
text, because SQLite's integers end at 63 bits. Times are Unix seconds.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import apsw

from piecework.base.migrations import Migration, Schema, script
from piecework_protocol.outlines import Outline

_SECOND: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
-- authorized: the total of the newest funding authorization that was signed
-- taken: the total under which a worker accepted a job, so it may be opening the channel now
-- funded, withdrawn, settled: the chain's word, as it was seen last
CREATE TABLE channels (
    id BLOB PRIMARY KEY, payer BLOB NOT NULL, authorizer BLOB NOT NULL, receiver BLOB NOT NULL,
    operator BLOB NOT NULL, token BLOB NOT NULL, withdrawal_delay INTEGER NOT NULL,
    salt BLOB NOT NULL,
    authorized TEXT NOT NULL, fee TEXT NOT NULL, funding_deadline INTEGER NOT NULL,
    taken TEXT NOT NULL,
    funded TEXT NOT NULL, withdrawn TEXT NOT NULL,
    settled TEXT NOT NULL,
    cumulative TEXT NOT NULL, count INTEGER NOT NULL, peaks BLOB NOT NULL,
    acknowledged INTEGER NOT NULL,
    status TEXT NOT NULL
) STRICT;
CREATE INDEX channels_by_operator ON channels (operator, status);
CREATE TABLE jobs (
    id BLOB PRIMARY KEY, channel BLOB NOT NULL REFERENCES channels (id), submission BLOB NOT NULL,
    offer BLOB NOT NULL, reply_secret BLOB NOT NULL, prompt_bytes INTEGER NOT NULL,
    max_amount TEXT NOT NULL, deadline INTEGER NOT NULL, prompt_tokens INTEGER,
    status TEXT NOT NULL, detail TEXT NOT NULL, created_at INTEGER NOT NULL, owner TEXT NOT NULL,
    prompt TEXT
) STRICT;
CREATE INDEX jobs_by_channel ON jobs (channel, status);
CREATE TABLE receipts (
    job BLOB NOT NULL REFERENCES jobs (id), canvas INTEGER NOT NULL, channel BLOB NOT NULL,
    frame BLOB NOT NULL, digest BLOB NOT NULL, amount TEXT NOT NULL, leaf_index INTEGER NOT NULL,
    text TEXT, PRIMARY KEY (job, canvas), UNIQUE (channel, leaf_index)
) STRICT;
CREATE TABLE vouchers (
    channel BLOB NOT NULL REFERENCES channels (id), count INTEGER NOT NULL,
    cumulative TEXT NOT NULL,
    root BLOB NOT NULL, PRIMARY KEY (channel, count)
) STRICT;
CREATE TABLE workers (
    operator BLOB PRIMARY KEY, successes REAL NOT NULL, failures REAL NOT NULL,
    updated_at INTEGER NOT NULL,
    broken_clause TEXT NOT NULL, broken_at INTEGER NOT NULL, silences REAL NOT NULL,
    silent_at INTEGER NOT NULL, answered_at INTEGER NOT NULL
) STRICT;
-- What the client's own jobs took, beside what the worker claims: sums that decay
CREATE TABLE measured (
    operator BLOB NOT NULL, model BLOB NOT NULL, jobs REAL NOT NULL, seconds REAL NOT NULL,
    claimed_seconds REAL NOT NULL, steps REAL NOT NULL, usual_steps REAL NOT NULL,
    updated_at INTEGER NOT NULL, PRIMARY KEY (operator, model)
) STRICT;
-- The prices of the last job that was paid for a model
CREATE TABLE tariffs (
    model BLOB PRIMARY KEY, prompt TEXT NOT NULL, output TEXT NOT NULL, steps TEXT NOT NULL
) STRICT;
-- The payer's part of the escrow's events, up to and without the block in meta "scanned_to".
-- Only final blocks are read, so a row is never taken back.
CREATE TABLE chain_logs (
    block INTEGER NOT NULL, log_index INTEGER NOT NULL, time INTEGER NOT NULL,
    transaction_hash BLOB NOT NULL, topics BLOB NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (block, log_index)
) STRICT, WITHOUT ROWID;
"""

_THIRD: Final = """
-- 1: the channel is opened out of the payer's own tokens, by one authorization
ALTER TABLE channels ADD COLUMN one_step INTEGER NOT NULL DEFAULT 0;
"""
_FOURTH: Final = """
-- budget: the name of the API key that a job was bought with, or '' for the client's own jobs
-- day: the UTC day whose budgets it counts in, as days since 1970-01-01
ALTER TABLE jobs ADD COLUMN budget TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN day INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET day = created_at / 86400;
-- A part of the budgets that is kept for one job, from before its signature until its end
CREATE TABLE holds (
    id INTEGER PRIMARY KEY AUTOINCREMENT, budget TEXT NOT NULL, day INTEGER NOT NULL,
    amount TEXT NOT NULL, until INTEGER NOT NULL, owner TEXT NOT NULL,
    job BLOB UNIQUE REFERENCES jobs (id)
) STRICT;
-- What was paid: by API key, and under '' by the client as a whole
CREATE TABLE spent (
    budget TEXT NOT NULL, day INTEGER NOT NULL, amount TEXT NOT NULL, PRIMARY KEY (budget, day)
) STRICT, WITHOUT ROWID;
-- secret: SHA-256 of the key. expires_at, revoked_at: 0 is never
CREATE TABLE api_keys (
    name TEXT PRIMARY KEY, secret BLOB NOT NULL UNIQUE, created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL, revoked_at INTEGER NOT NULL, per_day TEXT, per_month TEXT,
    max_price TEXT
) STRICT;
-- Requests with an Idempotency-Key: SHA-256 of the header and of the body, and each part's job
CREATE TABLE requests (
    budget TEXT NOT NULL, key BLOB NOT NULL, body BLOB NOT NULL, created_at INTEGER NOT NULL,
    PRIMARY KEY (budget, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_by_age ON requests (created_at);
CREATE TABLE request_jobs (
    budget TEXT NOT NULL, key BLOB NOT NULL, part INTEGER NOT NULL,
    job BLOB NOT NULL REFERENCES jobs (id), PRIMARY KEY (budget, key, part),
    FOREIGN KEY (budget, key) REFERENCES requests (budget, key) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
"""


def _fourth(db: apsw.Connection) -> None:
    """Add budgets. What was paid before counts on the day of its job."""
    db.execute(_FOURTH).fetchall()
    paid: Counter[int] = Counter()
    for day, amount in db.execute(
        "SELECT j.day, r.amount FROM receipts r JOIN jobs j ON j.id = r.job"
    ):
        paid[int(str(day))] += int(str(amount))
    totals = [(day, str(total)) for day, total in sorted(paid.items())]
    db.executemany("INSERT INTO spent VALUES ('', ?, ?)", totals)


_FIFTH: Final = """
-- outline: the shape of a job's content, which its outputs are held to
ALTER TABLE jobs ADD COLUMN outline BLOB NOT NULL DEFAULT x'';
-- owner: the process that works on a request now, or ''
ALTER TABLE requests ADD COLUMN owner TEXT NOT NULL DEFAULT '';
-- The fee of a channel's newest authorization, until the chain shows that it was used
-- counted: 1 while it is part of what was spent
CREATE TABLE fees (
    channel BLOB PRIMARY KEY REFERENCES channels (id), budget TEXT NOT NULL, day INTEGER NOT NULL,
    amount TEXT NOT NULL, counted INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""


def _fifth(db: apsw.Connection) -> None:
    """Keep outlines of contents. Earlier jobs wrote freely, and had at most a token for a byte of
    the prompt and 256 more.
    """
    db.execute(_FIFTH).fetchall()
    for key, prompt_bytes in db.execute("SELECT id, prompt_bytes FROM jobs").fetchall():
        outline = Outline(int(str(prompt_bytes)) + 256).encode()
        db.execute("UPDATE jobs SET outline = ? WHERE id = ?", (outline, key))
    db.execute("ALTER TABLE jobs DROP COLUMN prompt_bytes").fetchall()


_SIXTH: Final = """
-- How long a model's answers were that ended by themselves: sums that decay
CREATE TABLE lengths (
    model BLOB PRIMARY KEY, jobs REAL NOT NULL, tokens REAL NOT NULL, updated_at INTEGER NOT NULL
) STRICT;
"""

CLIENT_SCHEMA: Final = Schema(
    what="the client's database",
    first=2,
    create=script(_SECOND),
    old=(
        "Finish with the program that made it: client close, client withdraw. "
        "Or move the file away and run: piecework client recover"
    ),
    migrations=(
        Migration(3, script(_THIRD)),
        Migration(4, _fourth),
        Migration(5, _fifth),
        Migration(6, script(_SIXTH)),
    ),
)
