"""The signer's bounds, each with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

MAX_FRAME_BYTES: Final = 512 * 1024
"""A transaction has at most 128 KiB, which is twice as much in hex. The rest is room."""
MAX_CLIENTS: Final = 16
"""Connections at once. A worker has one, and each of its commands another."""
FRAME_S: Final = 5.0
"""From the first byte of a frame to its last, and for an answer to be taken."""
IDLE_S: Final = 3600.0
"""A connection without a question is closed. The worker connects again."""
ANSWER_S: Final = 5.0
"""What a worker waits for a connection and for one answer."""
RESERVED_SIGNATURES: Final = 1000
"""Counted on the disk at a time. A crash costs at most as many, and a receipt waits for no disk."""
DAY_S: Final = 24 * 3600
KEPT_DAYS: Final = 400
"""Of the journal of limits."""
JOB_DAYS: Final = 2
"""From a job's first statement to its deadline: a day at most, and the rest of the last one."""
FIRST_EVIDENCE_DAYS: Final = 5
"""In which a worker signs again, until an offer says otherwise. It is the default of workers."""
MAX_EVIDENCE_DAYS: Final = 400
MAX_OFFER_STEP: Final = 2**32
"""From the number of an offer to the next one. A thief at the socket would need years of a day's
signatures to come to the highest number, after which this key could offer nothing."""
LOG_BYTES: Final = 64 * 1024 * 1024
"""Of one file of the log of what was signed."""
LOG_FILES: Final = 8
"""That are kept beside the one that grows."""
MAX_DOMAIN_CHARACTERS: Final = 128
"""Of the name and of the version of a token's domain."""
MAX_SOCKET_PATH_BYTES: Final = 107
"""What Linux takes for the path of a unix socket."""
MAX_GROUP: Final = 2**32 - 2
"""What Linux takes for the number of a group."""
