"""The client's own bounds, each with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

# One index answers with a page of offers; what does not fit cannot be ranked by a person or a
# program anyway.
MAX_INDEX_BYTES: Final = 8 * 1024 * 1024
MAX_INDEX_OFFERS: Final = 1000
# Without an index the client asks workers itself, so many at a time and so many in all.
MAX_REGISTRY_WORKERS: Final = 256
REGISTRY_PARALLEL: Final = 16
# Registry facts change by transactions and take blocks to change: a minute old is fresh.
STANDING_LIFETIME_S: Final = 60
# A search is shared by the requests of the next seconds; offers live minutes.
OFFERS_FRESH_S: Final = 3.0
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
# s.
CONNECT_TIMEOUT_S: Final = 10.0
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
# Topics in one eth_getLogs query. Public nodes take at least this many.
MAX_CHANNELS_PER_LOG_QUERY: Final = 50
# Half of what was learnt about a worker is forgotten in this time: machines and operators change.
EXPERIENCE_HALF_LIFE_S: Final = 24 * 3600
# A worker that broke a clause is left alone for this long.
BROKEN_WORKER_REST_S: Final = 7 * 24 * 3600
# English text in a subword vocabulary has about four bytes a token: for estimates, never for
# ceilings.
BYTES_PER_TOKEN_ESTIMATE: Final = 4
# Mean denoising steps of a canvas on real prompts (docs/model.md); at most what the parameters
# allow.
MEAN_STEPS_ESTIMATE: Final = 27
