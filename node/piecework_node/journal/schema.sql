-- The worker's journal, schema 2: the first that is kept. Digests, amounts and sealed bytes. It
-- holds no text of a job and no bare key.
-- Amounts are 16-byte big-endian blobs (uint128), which compare and sort like the numbers they
-- hold. Sums and amounts of wei are 32-byte blobs (uint256). What a peer signed is kept as the
-- message that it travels in, so that no number of a peer meets a narrower column.
-- The key of each table comes first.

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
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    -- the channel's members
    terms BLOB NOT NULL,
    -- the latest accepted voucher as its frame, and the accumulator's peaks after it
    accepted BLOB,
    cumulative BLOB NOT NULL,
    count INTEGER NOT NULL,
    peaks BLOB NOT NULL,
    -- the payer's latest funding authorization
    funding BLOB,
    -- the chain's last word. deposit: what was ever put in
    state TEXT NOT NULL,
    deposit BLOB NOT NULL,
    settled BLOB NOT NULL,
    withdrawn BLOB NOT NULL,
    requested BLOB NOT NULL,
    requested_at INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    observed_at INTEGER NOT NULL,
    close_signature BLOB
) STRICT;

CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    channel INTEGER NOT NULL REFERENCES channels (number),
    -- NULL for a job that is known by its receipts alone, after a journal was rolled back
    salt BLOB,
    prompt_tokens INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    -- after which nobody may return to the job. Later than any clock goes: the largest integer
    deadline INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT,
    -- 1 when submission, outputs and receipts are gone, and only digests and amounts are left
    pruned INTEGER NOT NULL DEFAULT 0,
    UNIQUE (channel, salt)
) STRICT;

CREATE INDEX jobs_to_prune ON jobs (deadline) WHERE pruned = 0;

CREATE TABLE submissions (
    job INTEGER PRIMARY KEY REFERENCES jobs (number),
    offer BLOB NOT NULL,
    -- the submission as its frame, without prompt and funding
    frame BLOB NOT NULL
) STRICT;

CREATE INDEX submissions_offer ON submissions (offer);

CREATE TABLE canvases (
    job INTEGER NOT NULL REFERENCES jobs (number),
    canvas INTEGER NOT NULL,
    channel INTEGER NOT NULL,
    digest BLOB NOT NULL,
    amount BLOB NOT NULL,
    -- position in the channel's accumulator. NULL until it is paid for
    leaf_index INTEGER,
    -- 1 when the receipt's members and the output are gone. The digest proves them
    pruned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, canvas),
    UNIQUE (channel, leaf_index)
) STRICT, WITHOUT ROWID;

CREATE TABLE outputs (
    job INTEGER NOT NULL,
    canvas INTEGER NOT NULL,
    -- the receipt's members
    receipt BLOB NOT NULL,
    sealed_output BLOB NOT NULL,
    resume_secret BLOB NOT NULL,
    PRIMARY KEY (job, canvas),
    FOREIGN KEY (job, canvas) REFERENCES canvases (job, canvas)
) STRICT, WITHOUT ROWID;

CREATE TABLE transactions (
    hash BLOB PRIMARY KEY,
    kind TEXT NOT NULL,
    raw BLOB NOT NULL,
    nonce INTEGER NOT NULL,
    subjects BLOB NOT NULL,
    -- what it brings in base units, and the most that it may cost in wei. NULL: any
    value BLOB NOT NULL,
    value_wei BLOB,
    at INTEGER NOT NULL,
    state TEXT NOT NULL,
    moved_at INTEGER NOT NULL,
    gas_used INTEGER NOT NULL,
    -- what it cost
    fee_wei BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Two messages of one signer that contradict each other: evidence. The first pair of a kind is kept.
CREATE TABLE contradictions (
    channel BLOB NOT NULL,
    kind TEXT NOT NULL,
    first BLOB NOT NULL,
    second BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (channel, kind)
) STRICT, WITHOUT ROWID;

-- One row for every commit: which rows it wrote and a digest of each, the running totals after it,
-- and the chained head over both. The start of the worker walks it. A row that was changed or lost
-- behind our back shows.
CREATE TABLE log (
    position INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    entries BLOB NOT NULL,
    totals BLOB NOT NULL,
    head BLOB NOT NULL
) STRICT;
