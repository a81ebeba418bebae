"""Every limit of the protocol, with its unit in the name and its reason beside it.

These bound what a peer may make us hold or compute. An operator can set lower limits in the node's
configuration. Higher ones would break the protocol.
"""

from __future__ import annotations

from typing import Final

# A 256 K token context in UTF-8 is about one MiB of text; JSON quoting and a template fit in the
# rest.
MAX_CONTENT_BYTES: Final = 2 * 1024 * 1024
# HPKE adds an encapsulated key (32) and a tag (16).
SEALING_OVERHEAD_BYTES: Final = 48
# One frame: the largest is a submission with its sealed content.
MAX_FRAME_BYTES: Final = MAX_CONTENT_BYTES + 64 * 1024
# A canvas is 256 tokens. Ids take 4 bytes each. No tokenizer gives more than 64 bytes of text a
# token, and each may be a segment of its own with 5 bytes before it. A tool call that began on
# earlier canvases stands in the one that ends it: one with a whole file in it has so many bytes.
MAX_CANVAS_TOKENS: Final = 1024
MAX_CALL_BYTES: Final = 512 * 1024
MAX_OUTPUT_BYTES: Final = 8 + MAX_CANVAS_TOKENS * (4 + 64 + 5) + MAX_CALL_BYTES
# 256 K tokens of output in canvases of 32, the smallest canvas in use.
MAX_CANVASES_PER_JOB: Final = 8192
# A template takes some 0.2 ms for a message and a millisecond for a call, before anybody pays.
MAX_MESSAGES_PER_PROMPT: Final = 256
# Content of chat APIs: far above what clients send, and little work to walk through.
MAX_PARTS_PER_MESSAGE: Final = 64
MAX_IMAGES_PER_PROMPT: Final = 16
MAX_TOOLS_PER_PROMPT: Final = 128
MAX_CALLS_PER_MESSAGE: Final = 128
MAX_CALLS_PER_PROMPT: Final = 512
MAX_CALL_ID_BYTES: Final = 128
# JSON schemas of tools nest about ten deep.
MAX_TOOL_JSON_DEPTH: Final = 32
# Commas, colons and opening brackets outside of strings, in the JSON of all tools and calls: each
# value of JSON has one before it. 128 tools have some 50 values each.
MAX_TOOL_JSON_MARKS: Final = 16_384
# A template's holes and fixed parts, and the positions of a hole: a whole context.
MAX_TEMPLATE_PARTS: Final = 4096
MAX_HOLE_TOKENS: Final = 1 << 18
# A read. Questions and labels as the decision APIs of other vendors bound them.
MAX_QUESTIONS: Final = 400
MAX_LABELS: Final = 255
MAX_DRAWS: Final = 64
# Steps of one canvas that an open job asks for: more than the published model takes. Each may bring
# a soft embedding, which has 1.4 MB in the published model and must fit a frame.
MAX_OPENED_STEPS: Final = 64
MAX_OPENING_BYTES: Final = 2 * 1024 * 1024
# The published model stops at 48; room for experiments, and a bound on the trace tree.
MAX_DENOISING_STEPS: Final = 256
# One leaf of the canvas, then one a step.
MAX_TRACE_LEAVES: Final = MAX_DENOISING_STEPS + 1
# Below it a temperature means nothing more, and logits over it leave the numbers of a trace.
MIN_TEMPERATURE_MICROS: Final = 10_000
# An authorization or job that is valid for longer than this is a mistake or a trap.
MAX_JOB_LIFETIME_S: Final = 24 * 3600
# Offers live minutes: stale capacity and stale prices are worse than a refresh.
MAX_OFFER_LIFETIME_S: Final = 3600
MAX_OFFER_BYTES: Final = 64 * 1024
MAX_OFFER_MODELS: Final = 64
MAX_OFFER_TOKENS: Final = 16
MAX_ENDPOINT_BYTES: Final = 256
MAX_OFFER_ENDPOINTS: Final = 8
MAX_NAME_BYTES: Final = 128
MAX_DETAILS_BYTES: Final = 8 * 1024
# A worker's own facts nest three deep. They must parse for everybody, wrapped in an index's page.
MAX_DETAILS_DEPTH: Final = 16
# Vouchers name the receipts they add; more than this many unpaid receipts means that payment has
# stalled.
MAX_LEAVES_PER_VOUCHER: Final = 4096
# Canvases the worker may run ahead of the vouchers of one job, inside the payer's credit: hides the
# round trip, bounds the loss.
MAX_CANVASES_AHEAD: Final = 2
# A stream that is not resumed within this ends its job as cancelled: long enough for a phone that
# changes its network, short enough for a slot.
RESUME_S: Final = 60
# Progress comes at least this often from acceptance to end, so silence means death.
PROGRESS_INTERVAL_MS: Final = 250
# Steps that a cancelled receipt may lie beyond the last progress: a cancel is on its way while the
# engine goes on.
MAX_STEPS_PAST_PROGRESS: Final = 8
# Receipts in one call that heals a rolled-back journal; the client calls again for more.
MAX_SHOWN_RECEIPTS: Final = 1024
# The escrow's own bounds.
MIN_WITHDRAWAL_DELAY_S: Final = 60
MAX_WITHDRAWAL_DELAY_S: Final = 30 * 24 * 3600
MAX_CHANNEL_AMOUNT: Final = 2**96 - 1
# Wall clocks of honest machines under NTP differ by far less.
MAX_CLOCK_SKEW_S: Final = 5
# A merkle tree over 2**64 leaves has a proof of 64 siblings; counts are uint64.
MAX_PROOF_SIBLINGS: Final = 64
# Longest text that a peer may put into a reason: enough to explain, too little to flood a log.
MAX_REASON_BYTES: Final = 512
MAX_FRAMES_TOGETHER: Final = 4
"""Of a worker in one message. One canvas with its end, and with what it acknowledges, are three."""
# An evidence file, in which hex doubles the bytes. 256 K tokens of output with ids and text, the
# longest content, and the leaves of a thousand canvases take a third of it.
MAX_EVIDENCE_BYTES: Final = 64 * 1024 * 1024
# Contradictions and vouchers in it. One of each is enough to prove anything.
MAX_EVIDENCE_ENTRIES: Final = 64
