"""The index's bounds, each with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

from piecework_protocol.limits import MAX_OFFER_MODELS

# A worker refreshes its offer about every half minute and whenever its load changes much.
OPERATOR_POSTS_PER_MINUTE: Final = 30
OPERATOR_POST_BURST: Final = 10
# One address may be a NAT with many workers behind it; checking one offer costs about 0.2 ms.
ADDRESS_POSTS_PER_MINUTE: Final = 300
ADDRESS_POST_BURST: Final = 60
ADDRESS_READS_PER_MINUTE: Final = 600
ADDRESS_READ_BURST: Final = 120
# Buckets kept at once; the longest unused is forgotten, which only forgives it.
MAX_BUCKETS: Final = 50_000
# Offers held: every one belongs to a bonded worker, so this many cost somebody real money.
MAX_OFFERS: Final = 10_000
# Offers with as many models as they may have, each of its own.
MAX_OFFSET: Final = MAX_OFFERS * MAX_OFFER_MODELS
MAX_LISTED_OFFERS: Final = 1_000
DEFAULT_LISTED_OFFERS: Final = 200
# An offer with many models takes 150 KB as JSON, and clients read at most 8 MiB at once.
MAX_PAGE_BYTES: Final = 4 * 1024 * 1024
# Registry facts are asked again after this long.
STANDING_LIFETIME_S: Final = 30.0
MAX_STANDINGS: Final = 20_000
# Expired offers are swept this often; they are never shown in between.
SWEEP_INTERVAL_S: Final = 30.0
# What other instances on the same database took in is listed after this long at most.
FOLLOW_INTERVAL_S: Final = 1.0
# Offers read at once: they take about 20 ms to decode, and readers come between.
FOLLOWED_AT_ONCE: Final = 200
# The market is sampled this often, and its samples are kept this long: 26,000 rows.
SAMPLE_INTERVAL_S: Final = 300
HISTORY_DAYS: Final = 90
# Workers of a sample that are written at once, so that readers come between.
SAMPLED_AT_ONCE: Final = 500
# Payments that the page of a worker shows. Sums by day are kept as long as samples.
SETTLEMENTS_KEPT: Final = 50
# Events of the chain that are written in one transaction, and the rest of their last block. Each
# takes up to eight statements, and other writers wait for 10 seconds at most.
EVENTS_AT_ONCE: Final = 200
# The chain's final blocks are read this often.
SETTLEMENTS_INTERVAL_S: Final = 30.0
# Checking one audit recovers a signature for each canvas, and applies the rules: up to a second.
ADDRESS_AUDITS_PER_MINUTE: Final = 6
ADDRESS_AUDIT_BURST: Final = 12
# By the client that signed it. It paid for each job that it reports.
REPORTER_AUDITS_PER_HOUR: Final = 30
REPORTER_AUDIT_BURST: Final = 10
# Of one worker, newest first. What is proven is kept before what is reported.
AUDITS_KEPT: Final = 100
# Of these, by one client. So one client cannot fill a worker's page.
AUDITS_KEPT_PER_REPORTER: Final = 10
# Of one worker, newest first: the evidence and reports. A worker can make its own for nothing, and
# whoever fills the index has to put down as many stakes as this goes into the bound below.
MAX_WORKER_AUDIT_BYTES: Final = 16 * 1024 * 1024
# Evidence of all workers. The index takes no more then.
MAX_AUDIT_STORE_BYTES: Final = 2 * 1024 * 1024 * 1024
MAX_AUDIT_FINDINGS: Final = 16
# Reports that wait for their check. Each may hold 4 MiB.
MAX_WAITING_AUDITS: Final = 8
