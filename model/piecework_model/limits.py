"""Every bound of the engine, with its unit in the name and its reason beside it."""

from __future__ import annotations

# --- requests

# A 32-byte job id in hex is 66. Longer ids only fatten logs.
MAX_REQUEST_ID_CHARS = 128
# The seed is the 64-bit key of the generator (sampling/philox.py).
MAX_SEED = 2**64 - 1
# Logits are capped at 30. 30 / 0.01 still fits the float16 of the trace fingerprint.
MIN_TEMPERATURE = 0.01
# Far past the point where everything is uniform noise.
MAX_TEMPERATURE = 10.0
# 256 positions of ln(262144) = 12.5 nats: past 3,200 every token is accepted.
MAX_ENTROPY_BOUND_NATS = 10_000.0
# Mean entropy a position cannot exceed ln(vocabulary).
MAX_CONFIDENCE_THRESHOLD_NATS = 100.0
# More than any schedule has steps, and each costs a remembered canvas.
MAX_STABILITY_STEPS = 64
# "Never again" is 0. This only keeps the type sane.
MAX_DRAFT_EVERY_STEPS = 1_000_000
# Canvas indices are uint32 in receipts.
MAX_CANVAS_LIMIT = 2**32 - 1
# Texts of labels that one read looks up in the vocabulary, before anybody pays: 64 questions with
# 255 labels of their own. One takes some 10 microseconds.
MAX_LABEL_LOOKUPS = 16_384
# Of one slot, as the protocol bounds them. Each is a number in the answer.
MAX_LABELS = 255
# As many as a job may have receipts. Each takes one step.
MAX_READ_CANVASES = 8192
# Beyond this the node should have refused. Each holds a prompt of up to 256 K ids.
MAX_QUEUED_REQUESTS = 64
# In the tools and calls of one conversation: 128 tools have some 50 each. One takes half a
# millisecond to render and encode.
MAX_TOOL_STRINGS = 8192
# No tokenizer gives more bytes of text a token. A longer text is refused before it is tokenized.
MAX_TOKEN_BYTES = 64

# Of a template's text that is encoded at once. Some tokenizers take a second for a word of 100 K.
LITERAL_PIECE_CHARS = 1024

# --- checkpoints

# Shards of one checkpoint folder. The 26B model has 11.
MAX_CHECKPOINT_FILES = 4096
# Of config, index and tokenizer. Gemma's tokenizer.json is 32 MB.
MAX_METADATA_FILE_BYTES = 64 * 2**20
# Of one safetensors file. The 26B model has 700 tensors of some 150 bytes each.
MAX_SHARD_HEADER_BYTES = 16 * 2**20
# Weight files that are read and hashed at once. A thread hashes 1.4 GB/s, a fast disk reads 5.
LOAD_THREADS = 4
# Of config, index and headers, which nest five deep.
MAX_JSON_DEPTH = 32
# Of any size in config.json. The largest in the 26B model is its context, 2**18.
MAX_DIMENSION = 2**24
# 30 in the 26B model. Each is a module to build.
MAX_LAYERS = 1024
# Of one layer, 128 in the 26B model. Each is a kernel call in the readable engine.
MAX_EXPERTS = 65_536
# Weights up to here are stored a second time on a CPU, some in float32. More would cost too much.
PACK_MAX_BYTES = 2 * 2**30

# --- sampling

# Vocabulary tile of inverse-CDF sampling: 512 tiles of 512 cover 262,144.
CDF_BLOCK_TOKENS = 512
# Of the fused sampler: the released vocabulary, 64 of its tiles.
MAX_FUSED_VOCAB_TOKENS = 262_144
# Random numbers of a sequence that are drawn at once: 32 KB at a canvas of 256.
DRAWN_STEPS = 8
# A soft embedding this large is hashed (0.2 ms and more) beside the next step.
HASH_ASIDE_BYTES = 256 * 2**10
# Such embeddings that wait to be hashed: 92 MB of the released model's.
HASH_PENDING = 64
# For the digests of large soft embeddings. One sequence's step takes a millisecond.
HASH_THREADS = 2

# --- steps and passes

# Requests that may pass one that waits for memory. More would starve it, none would waste memory.
MAX_OVERTAKES = 8
# Short reads beside the sequences of texts: two passes of a CPU. A GPU takes two or more, each as
# large as the plan of its texts.
SHORT_SEQUENCES = 32
# Of a read that is short: all draws of one canvas. Each takes one step.
SHORT_READ_CANVASES = 64
# Of its prompt: 4,096 tokens as released, two steps of prefill for it alone.
SHORT_READ_CHUNKS = 8
# One part in so many of the memory for KV caches is the most that a short read takes.
SHORT_FOOTPRINT_SHARE = 8
# One part in so many of the memory for KV caches is kept for short reads.
SHORT_MEMORY_SHARE = 16
# Tokens of a causal chunk, in canvases: 512 as released, one pass of the weights a chunk.
PREFILL_CHUNK_CANVASES = 2
# Whole chunks to prefill in one step over all sequences. The others' step is delayed so long.
PREFILL_STEP_CHUNKS = 4
# Of one pass: products are as fast as they get, and what they make fits the L2 cache.
CPU_PASS_TOKENS = 512
# Of one pass of an audit: all 48 steps of a canvas of 32, which no other job waits for.
CPU_AUDIT_TOKENS = 2048
# Of one pass: 64 canvases, whose intermediates take some 2 GB at 2,816 wide.
GPU_PASS_TOKENS = 16_384
# Committed tokens that are copied at once for canvases of an audit that attend together: 1.1 GB in
# the full layers of the released model, as one canvas behind its longest prompt takes.
COPIED_CACHE_TOKENS = 262_144
# Without running out of memory. After these, passes may be twice as large again.
CALM_STEPS = 512
# Logits that exist at once, 2 MB in float32, but at least those of one sequence.
LOGIT_TILE_VALUES = 2**19
# Float32 arrays of that size at once in the pure sampler: 4 were counted, 1 is the allocator's.
LOGIT_COPIES = 5
# Rotations of segments that are remembered: 0.8 MB at 256 tokens of the released model.
KEPT_ANGLE_BYTES = 32 * 2**20
# Attention masks kept for the next pass, each made in microseconds. A mask of 512 tokens in 256 K
# takes 134 MB.
KEPT_MASK_BYTES = 64 * 2**20
# Steps of so many sequences are recorded at the start. Beyond, launching takes no time of its own.
RECORDED_SEQUENCES = (1, 2, 3, 4, 5, 6, 7, 8)
# Of recorded pieces of a step with their inputs (layers/graphs.py), from a GPU's reserve.
GRAPH_BYTES = 512 * 2**20
# KV caches if the device was not measured: 8 sequences of 8 K tokens of the 26B model.
DEFAULT_CACHE_BYTES = 4 * 2**30
# Of cached prefixes: 4 chunks of the 26B model, most of it windowed layers.
PREFIX_CACHE_BYTES = 512 * 2**20
# A start-up measurement that takes longer is a hang.
BENCHMARK_MAX_SECONDS = 300.0

# --- images

# Of one image, before anything of it is decoded: 16 megapixels take some 0.3 s and 50 MB. The
# processor makes at most 0.7 megapixels of them.
MAX_IMAGE_PIXELS = 2**24
# Of either side, in pixels, before anything is decoded. A PNG of one row may name 2^24 columns:
# decoders and resizers keep tables and buffers by row and column, whatever the pixels are.
MAX_IMAGE_SIDE = 2**14
# Of all images of a prompt. JPEG of 2 MiB, the most that a content has, is about as large.
MAX_PROMPT_PIXELS = 2**25
# Of a JPEG. A scan takes some 30 bytes, and a decoder walks all pixels for each: 2 MiB would keep
# it busy for a quarter of an hour. A progressive file has about 10.
MAX_JPEG_SCANS = 64
# Of the patches of all images of a prompt: 16 images of 280 tokens have 31 MB.
MAX_PROMPT_PATCH_BYTES = 32 * 2**20
# Of a processor's settings. 16 and 3 as published.
MAX_PATCH_PIXELS = 64
MAX_POOLING = 16
