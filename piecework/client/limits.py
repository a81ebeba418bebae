"""The client's own bounds, each with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

# One page of an index: what does not fit cannot be ranked by a person or a program anyway.
MAX_INDEX_BYTES: Final = 8 * 1024 * 1024
INDEX_PAGE_OFFERS: Final = 500
# All pages of one index, whatever total it claims: every offer costs a stake, so a market is
# smaller.
MAX_INDEX_OFFERS: Final = 4000
# All that an index has to say, page by page.
INDEX_TIMEOUT_S: Final = 10.0
# Without an index the client asks workers itself: it reads so many of the registry, those that
# answered last first.
MAX_REGISTRY_WORKERS: Final = 2000
REGISTRY_PARALLEL: Final = 16
# What they said serves searches for any model for this long.
REGISTRY_FRESH_S: Final = 2.5
# A worker's offer at its registered endpoint: a connection and one small answer.
ASK_TIMEOUT_S: Final = 5.0
# An offer's addresses are dialled one after the other: the next one after this much silence.
NEXT_WAY_S: Final = 1.0
# An address over which a stream failed is dialled last for this long, if there are others.
WAY_REST_S: Final = 60.0
# Strangers are asked side by side: a few at once, twice as many after each pause, so many in all.
# Each is a socket, and a process may have 1,024.
FIRST_DIALS: Final = 8
DIAL_WAVE_S: Final = 0.1
MAX_DIALS: Final = 256
# So many workers that answer are a choice.
ENOUGH_WORKERS: Final = 8
# Once somebody has answered, the others have this long in all.
SEARCH_GRACE_S: Final = 1.0
# When all that was said is "nothing", slower sources get this long in all.
EMPTY_GRACE_S: Final = 3.0
# A source that failed rests, twice as long after each failure in a row.
SOURCE_REST_S: Final = 5.0
LONGEST_SOURCE_REST_S: Final = 300.0
# So does a worker, in the client's memory.
SILENT_REST_S: Final = 30.0
LONGEST_SILENT_REST_S: Final = 3600.0
# A silence counts when somebody else is heard within this time.
WITNESS_S: Final = 10.0
# An answer is worth a commit this often. Within the second time it counts as a worker that answers.
ANSWER_NOTED_S: Final = 300.0
ANSWER_COUNTS_S: Final = 3600
# Registry facts change by transactions and take blocks to change: a minute old is fresh.
STANDING_LIFETIME_S: Final = 60
# One search for so many unknown workers reads the registry page by page, not worker by worker.
STANDINGS_BY_PAGE: Final = 64
# A search is shared by the requests of the next seconds; offers live minutes. An older one still
# serves while a new one is under way.
OFFERS_FRESH_S: Final = 3.0
OFFERS_STALE_S: Final = 60.0
# Searches by model that are kept. Callers choose the names.
MAX_SEARCHES: Final = 64
# How many workers one request is offered to before it fails: a person is waiting.
MAX_CANDIDATES: Final = 8
# Open connections to workers that are kept for the next job.
MAX_OPEN_LINKS: Final = 32
# Events that wait for a slow reader; drafts beyond it are dropped, canvases wait.
MAX_WAITING_EVENTS: Final = 64
# After a cancel the worker has this long to stop at its next denoising step.
CANCEL_TIMEOUT_S: Final = 15.0
# A clean-up after the reader went away, all in all.
CLOSE_TIMEOUT_S: Final = 30.0
# A TLS handshake and a connection to a worker: a loopback takes 2 ms, the far side of the world 0.6
# s. A worker that needs longer serves nobody well.
CONNECT_TIMEOUT_S: Final = 3.0
UNARY_TIMEOUT_S: Final = 20.0
# For one frame to leave: a prompt of 2 MiB takes 17 s at 1 Mbit/s. grpc.aio has been seen to wait
# for ever for a stream whose worker was killed while it opened.
SEND_TIMEOUT_S: Final = 30.0
# Wait between two attempts to resume a dropped stream: doubles from the first to the last.
RESUME_FIRST_WAIT_S: Final = 0.25
RESUME_LONGEST_WAIT_S: Final = 8.0
# Another process of the same client holds the book for one commit (p99 8 ms); ten seconds is a hung
# disk.
BUSY_TIMEOUT_MS: Final = 10_000
# The escrow compares a deadline with its block's time, which may lie this far behind our clock.
FUNDING_GRACE_S: Final = 60
# Half of what was learnt about a worker is forgotten in this time: machines and operators change.
EXPERIENCE_HALF_LIFE_S: Final = 24 * 3600
# What a worker claims of itself fades out over so many jobs of the client's own.
OWN_JOBS_THAT_COUNT_FULLY: Final = 20
# A worker that broke a clause is left alone for this long.
BROKEN_WORKER_REST_S: Final = 7 * 24 * 3600
# English text in a subword vocabulary has about four bytes a token: for estimates, never for
# ceilings.
BYTES_PER_TOKEN_ESTIMATE: Final = 4
# The published processor makes 256 to 280 tokens of most images, and two frame them.
IMAGE_TOKENS_ESTIMATE: Final = 280
# A worker without a slot and without a place in its queue: a usual job there has to end first.
FULL_WORKER_WAIT_S: Final = 10.0
# A worker has so long to take a job: it reads the chain and counts the prompt.
ACCEPT_PATIENCE_S: Final = 30.0
# All the time in a worker's queue, or paused, before the first canvas.
QUEUE_PATIENCE_S: Final = 120.0
# Beside that a first canvas may take so many times what the worker claims.
FIRST_CANVAS_SLACK: Final = 8.0
# A last word to a worker that says nothing.
GOODBYE_TIMEOUT_S: Final = 1.0
# For the worker to end a stream on which all is said. Then it is reset.
LEAVE_TIMEOUT_S: Final = 5.0
# Loading a large model from disk takes minutes, and one canvas of it some seconds.
AUDIT_TIMEOUT_S: Final = 1800.0
# Canvases that a client remembers to check auditors with, and offers of auditors that it looks up.
MAX_KNOWN_CANVASES: Final = 32
MAX_AUDITORS: Final = 256
# Of one canvas: two that agree, and one more where they do not.
MAX_OPINIONS: Final = 3
# Beside those with an opinion some are away, and some take the money and say nothing that holds.
MAX_ASKED_AUDITORS: Final = 8
# Jobs that wait for their audit in the background. More are not audited: the rate is a wish.
MAX_WAITING_AUDITS: Final = 64
