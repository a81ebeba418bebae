"""Every limit of the chain package, with its unit in the name and its reason beside it."""

from __future__ import annotations

from typing import Final

# A healthy node answers in milliseconds; longer than this and a job would rather be refused.
DEFAULT_RPC_TIMEOUT_S: Final = 10.0
# Reads are repeated over a dropped connection or a 429; more tries only hide a node that is down.
RPC_ATTEMPTS: Final = 3
RPC_BACKOFF_S: Final = 0.2
# What a quorum has decided waits so long for the other nodes: they may say something else, and that
# is noted. Public nodes answer within it.
RPC_GRACE_S: Final = 1.0
# So long nobody waits for a node that was silent, and twice as long after each next time. At the
# most it is longer than a round of the worker's watch, and shorter than anybody waits for a repair.
RPC_REST_S: Final = 5.0
MAX_RPC_REST_S: Final = 300.0
# So far a quorum's latest block may fall behind one that it once had: nodes behind one address and
# short reorganizations. More is what a node says that lies.
MAX_HEIGHT_LOSS_BLOCKS: Final = 32
# The largest answer that we ask for is a page of logs or workers, well under a MiB.
MAX_RPC_RESPONSE_BYTES: Final = 16 * 1024 * 1024
# Public nodes refuse wider eth_getLogs ranges (2,000 to 10,000 blocks).
MAX_LOG_RANGE_BLOCKS: Final = 2_000
# What a search grows to on a node without such a limit: a year of a fast rollup in 2,500 requests.
MAX_LOG_SEARCH_BLOCKS: Final = 50_000
# A page of workers is one eth_call; 256-byte endpoints make it about 50 KB.
MAX_WORKERS_PER_PAGE: Final = 100
# Claims in one transaction: 200 x 30,000 gas stays far below every block gas limit (30 M and more).
MAX_CLAIMS_PER_SETTLE: Final = 200
# Longest revert data that we decode; a custom error has a few words.
MAX_REVERT_BYTES: Final = 4 * 1024
# Text from nodes and contracts in our messages: enough to understand, too little to flood a log.
MAX_SHOWN_CHARACTERS: Final = 300
# Estimates are exact for one state; other transactions may get in between. A quarter covers a cold
# slot.
GAS_MARGIN_PERCENT: Final = 25
# Nodes ask for 10 % more on both fees to replace a transaction; 12.5 % survives rounding (geth,
# reth).
REPLACEMENT_BUMP_PERMILLE: Final = 125
# The base fee can rise 12.5 % a block: twice the current one stays valid for six full blocks.
BASE_FEE_HEADROOM: Final = 2
# 500 gwei: ten times what mainnet asks on a bad day. Above it the node or the market is wrong.
DEFAULT_MAX_FEE_WEI: Final = 500 * 10**9
# How long `execute` waits for a block, and how often it looks.
DEFAULT_MINING_TIMEOUT_S: Final = 120.0
DEFAULT_POLL_S: Final = 0.25
# A tool that waits for its transaction sends it again this often.
RESEND_S: Final = 3.0

# The embedded chain: one transaction or a small batch a request. Contract creation is 24 KB in hex
# at most.
MAX_RPC_REQUEST_BYTES: Final = 1024 * 1024
MAX_RPC_BATCH: Final = 100
# Requests that may queue for the one thread that runs the EVM; more are told to come back.
MAX_EMBEDDED_WAITING_REQUESTS: Final = 256
# Transactions that wait for an earlier nonce, as geth's default account queue.
MAX_EMBEDDED_QUEUE_PER_SENDER: Final = 64
# Mainnet's for years: what fits here fits nearly everywhere.
EMBEDDED_BLOCK_GAS: Final = 30_000_000
# As many as geth answers for.
MAX_FEE_HISTORY_BLOCKS: Final = 1024
# As public nodes: a wider query has to be asked in parts.
MAX_EMBEDDED_LOG_RESULTS: Final = 10_000
# A deployment file has a handful of short members.
MAX_DEPLOYMENT_BYTES: Final = 16 * 1024
# EIP-2294 proposes the same order of size; what a node reports is at most 2**53 in practice.
MAX_CHAIN_ID: Final = 2**63 - 1
# Money in the contracts is below 2**96.
MAX_MIN_STAKE: Final = 2**96 - 1
# As the registry's constructor: a dispute needs days, and a mistyped delay must not lock stakes.
MIN_UNBONDING_DELAY_S: Final = 7 * 24 * 3600
MAX_UNBONDING_DELAY_S: Final = 180 * 24 * 3600
# anvil starts in well under a second; a loaded machine may take some more.
ANVIL_START_TIMEOUT_S: Final = 20.0
ANVIL_STOP_TIMEOUT_S: Final = 5.0

EMBEDDED_CHAIN_ID: Final = 131277322940537
"""The id that eth-tester made known: no public network has it."""
ANVIL_CHAIN_ID: Final = 31337
DEVELOPMENT_CHAIN_IDS: Final = frozenset({EMBEDDED_CHAIN_ID, ANVIL_CHAIN_ID})
"""The chains on which the faucet's well-known key may be used."""
# The dispute contract's own bounds. A committee of more members is not cheaper to corrupt, and each
# vote costs gas.
MAX_COMMITTEE: Final = 32
MAX_DISPUTE_AMOUNT: Final = 2**96 - 1
TEST_CHAIN_IDS: Final = frozenset({11155111, 560048, 84532, 421614, 11155420})
"""Public test networks: Sepolia, Hoodi, and the Sepolia ones of Base, Arbitrum and Optimism."""
# Topics in one eth_getLogs query. Public nodes take at least this many.
MAX_CHANNELS_PER_LOG_QUERY: Final = 50
# Of a node that suggests no tip by any method, and of a replacement: a thousandth of a gwei. Most
# rollups take it. From a tip of nothing no number of replacements gets anywhere.
TIP_FLOOR_WEI: Final = 10**6
