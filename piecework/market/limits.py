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
# The chain's final blocks are read this often.
SETTLEMENTS_INTERVAL_S: Final = 30.0
