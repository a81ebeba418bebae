"""Every bound of the engine, with its unit in the name and its reason beside it."""

from __future__ import annotations

MAX_REQUEST_ID_CHARS = 128  # a 32-byte job id in hex is 66; longer ids only fatten logs
MAX_SEED = 2**64 - 1  # the seed is the 64-bit key of the generator (sampling/philox.py)
MIN_TEMPERATURE = (
    0.01  # logits are capped at 30: 30 / 0.01 still fits the float16 of the trace fingerprint
)
MAX_TEMPERATURE = 10.0  # far past the point where everything is uniform noise
MAX_ENTROPY_BOUND_NATS = (
    10_000.0  # 256 positions of ln(262144) = 12.5 nats: past 3,200 every token is accepted
)
MAX_CONFIDENCE_THRESHOLD_NATS = 100.0  # mean entropy a position cannot exceed ln(vocabulary)
MAX_STABILITY_STEPS = 64  # more than any schedule has steps, and each costs a remembered canvas
MAX_DRAFT_EVERY_STEPS = 1_000_000  # "never again" is 0; this only keeps the type sane
MAX_CANVAS_LIMIT = 2**32 - 1  # canvas indices are uint32 in receipts
MAX_QUEUED_REQUESTS = (
    64  # beyond this the node should have refused; each holds a prompt of up to 256 K ids
)
MAX_MESSAGES = 256  # of one conversation; the context bound bites first for real ones
MAX_CONTENT_CHARS = (
    4_000_000  # 256 K tokens at some 4 characters are 1 M; four times that cannot fit any context
)
MAX_CHECKPOINT_FILES = 4096  # shards of one checkpoint folder; the 26B model has 11
MAX_METADATA_FILE_BYTES = 64 * 2**20  # config, index, tokenizer: Gemma's tokenizer.json is 32 MB
CDF_BLOCK_TOKENS = 512  # vocabulary tile of inverse-CDF sampling: 512 tiles of 512 cover 262,144
MAX_FUSED_VOCAB_TOKENS = 262_144  # of the fused sampler: the released vocabulary, 64 of its tiles
BENCHMARK_MAX_SECONDS = 300.0  # a start-up measurement that takes longer is a hang
MAX_SHARD_HEADER_BYTES = (
    16 * 2**20
)  # of one safetensors file; some 150 bytes a tensor, the 26B model has 700
MAX_JSON_DEPTH = 32  # of config, index and headers, which nest five deep
MAX_DIMENSION = (
    2**24
)  # of any size in config.json; the largest in the 26B model is its context, 2**18
MAX_LAYERS = 1024  # 30 in the 26B model; each is a module to build
MAX_EXPERTS = (
    65_536  # of one layer, 128 in the 26B model; each is a kernel call in the readable engine
)
# Requests that may pass one that waits for memory; more would starve it, none would idle rows
MAX_OVERTAKES = 8
HASH_ASIDE_BYTES = (
    256 * 2**10
)  # a soft embedding this large is hashed (0.2 ms and more) beside the next step
KEPT_ANGLES = (
    256  # segments whose rotation is remembered: 0.5 MB each at 256 tokens of the released model
)
DRAWN_STEPS = 8  # random numbers of a row that are drawn at once: 32 KB at a canvas of 256
HASH_PENDING = 64  # such embeddings that wait to be hashed: 92 MB of the released model's
CALM_STEPS = 512  # without running out of memory, after which passes may be twice as large again
HASH_THREADS = (
    2  # for the trace's digests of large soft embeddings: one row's step takes a millisecond
)
# Tokens of a causal chunk, in canvases: 512 as released, one pass of the weights a chunk
PREFILL_CHUNK_CANVASES = 2
# Whole chunks to prefill in one step over all rows: so long may a step of others be held up
PREFILL_STEP_CHUNKS = 4
CPU_PASS_TOKENS = (
    512  # of one pass: products are as fast as they get, and what they make fits the L2 cache
)
GPU_PASS_TOKENS = (
    16_384  # of one pass: 64 canvases, whose intermediates take some 2 GB at 2,816 wide
)
LOGIT_TILE_VALUES = (
    2**19
)  # logits that exist at once, 2 MB in float32, but at least those of one row
# KV caches where nobody measured the device: 8 rows of 8 K tokens of the 26B model
DEFAULT_CACHE_BYTES = 4 * 2**30
# Of kept prompt beginnings: 4 chunks of the 26B model, most of it windowed layers
PREFIX_CACHE_BYTES = 512 * 2**20
# Weights up to here are laid out a second time on a CPU; more would cost gigabytes
PACK_MAX_BYTES = 2 * 2**30
# Of recorded pieces of a step with their inputs (layers/graphs.py), of a GPU's reserve
GRAPH_BYTES = 512 * 2**20
# Attention masks kept for the next pass, each made in microseconds; one of 512 tokens in 256 K
# takes 134 MB
KEPT_MASK_BYTES = 64 * 2**20
