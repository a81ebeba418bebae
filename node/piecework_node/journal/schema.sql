-- The worker's journal, version 1. Digests, amounts and sealed bytes; never text, never a bare key.
-- Amounts are 16-byte big-endian blobs (uint128), which compare and sort like the numbers they hold.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE offers (
    digest BLOB PRIMARY KEY,
    sequence INTEGER NOT NULL UNIQUE,
    expires_at INTEGER NOT NULL,
    signed BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sealing_keys (
    public BLOB PRIMARY KEY,
    wrapped BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    -- order of creation, because two keys may be made within one second
    position INTEGER NOT NULL UNIQUE
) STRICT, WITHOUT ROWID;

CREATE TABLE channels (
    id BLOB PRIMARY KEY,
    payer BLOB NOT NULL,
    authorizer BLOB NOT NULL,
    receiver BLOB NOT NULL,
    operator BLOB NOT NULL,
    token BLOB NOT NULL,
    withdrawal_delay INTEGER NOT NULL,
    salt BLOB NOT NULL,
    -- the latest accepted voucher as its frame, and the accumulator's peaks after it
    accepted BLOB,
    cumulative BLOB NOT NULL,
    count INTEGER NOT NULL,
    peaks BLOB NOT NULL,
    -- the payer's latest funding authorization
    funding_deposit BLOB,
    funding_deadline INTEGER,
    funding_signature BLOB,
    -- the chain's last word
    state TEXT NOT NULL,
    deposit BLOB NOT NULL,
    settled BLOB NOT NULL,
    observed_at INTEGER NOT NULL,
    close_signature BLOB
) STRICT, WITHOUT ROWID;

CREATE TABLE jobs (
    id BLOB PRIMARY KEY,
    channel BLOB NOT NULL REFERENCES channels (id),
    salt BLOB NOT NULL,
    submission BLOB NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    credit_window INTEGER NOT NULL,
    at INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    UNIQUE (channel, salt)
) STRICT;

CREATE INDEX jobs_open ON jobs (state) WHERE state IN ('new', 'accepted', 'running', 'suspended');

CREATE TABLE canvases (
    job BLOB NOT NULL REFERENCES jobs (id),
    canvas INTEGER NOT NULL,
    channel BLOB NOT NULL,
    digest BLOB NOT NULL,
    output_digest BLOB NOT NULL,
    trace_root BLOB NOT NULL,
    steps INTEGER NOT NULL,
    units INTEGER NOT NULL,
    amount BLOB NOT NULL,
    finish INTEGER NOT NULL,
    previous BLOB NOT NULL,
    sealed_output BLOB NOT NULL,
    resume_secret BLOB NOT NULL,
    -- position in the channel's accumulator; NULL until it is paid for
    leaf_index INTEGER,
    PRIMARY KEY (job, canvas),
    UNIQUE (channel, leaf_index)
) STRICT, WITHOUT ROWID;

CREATE INDEX canvases_unpaid ON canvases (channel) WHERE leaf_index IS NULL;

CREATE TABLE transactions (
    hash BLOB PRIMARY KEY,
    kind TEXT NOT NULL,
    raw BLOB NOT NULL,
    nonce INTEGER NOT NULL,
    -- wei, as decimal text: they outgrow 64 bits
    max_fee TEXT NOT NULL,
    priority_fee TEXT NOT NULL,
    gas_limit INTEGER NOT NULL,
    -- what it brings in base units, and the most that it may cost in wei (decimal text; NULL: any)
    value BLOB NOT NULL,
    value_wei TEXT,
    subjects BLOB NOT NULL,
    at INTEGER NOT NULL,
    state TEXT NOT NULL,
    moved_at INTEGER NOT NULL,
    gas_used INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row for every row written above: which one, the SHA-256 of what it then held, and the chained head.
-- `worker check` walks it; a row that was changed, lost or rolled back behind our back shows.
CREATE TABLE log (
    position INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    key BLOB NOT NULL,
    body BLOB NOT NULL,
    head BLOB NOT NULL
) STRICT;
