"""The fused sampler for CUDA. It computes what `sampling/sampler.py` does, without the copies.

P = positions of the tile (sequences * canvas), V = vocabulary, T = vocabulary tiles of
`TILE_TOKENS`. There are three kernels. In each of them a program belongs to one position:

    summarise  grid [P, T]  reads all logits      -> per tile: two maxima, an id, three sums
    decide     grid [P]     reads one tile of T   -> argmax, sample, entropy, log-probability, gap
    soften     grid [P, T]  reads all logits      -> probabilities, in the place of the logits

The sums of a vocabulary tile are relative to the tile's own maximum. `decide` brings them to the
common one: the online softmax of Milakov and Gimelshein, "Online normalizer calculation for
softmax", arXiv 1805.02867. Inverse-CDF sampling has the two levels of `sampler.inverse_cdf_sample`,
with larger tiles.

**Cost.** Logits of w bytes are read twice, one tile of T a third time. The probabilities are
written once. That is (3 + 1/T) P V w bytes. One canvas of the released model in bf16 has P = 256, V
= 262,144, T = 64: 405 MB, 0.13 ms at 3.0 TB/s. The kernels take some 120 instructions a logit, most
of them for the two hyperbolic tangents. At an H100's 3e13 instructions a second that is 0.27 ms, so
arithmetic is the bound and not memory. Reading all bf16 weights once takes 17 ms, so the sampler
adds 1.6 %. A call allocates 24 P T bytes (0.4 MB), because the probabilities take the place of the
logits.

**Reproducibility.** There are no atomics, no autotuning, and no split that depends on P. V and the
type of the logits alone decide tile, warps and the order of every sum. So the bits of a position do
not depend on P, its place or its neighbours. Addresses must be aligned to 16 bytes. For others
Triton would compile a second kernel with another layout, and so another order. The bits differ from
those of the pure version, because the order of sums is another and the hyperbolic tangent is a
polynomial. So this sampler belongs to the engine profile.

**Ties.** The lowest id among equal scaled logits wins, as in `torch.argmax`. The gap is then 0.

**Non-finite logits.** A NaN or an infinity at a position makes its entropy and its probabilities
NaN. Its ids then mean nothing but are in the vocabulary. Neighbours are untouched.

It has never run on a GPU. The tests hold the kernels against the pure version in Triton's
interpreter on a CPU, and compile them for real targets. The times above are arithmetic.
"""

from __future__ import annotations

from typing import Final

import torch
import triton
from torch import Tensor

from piecework_model import limits
from piecework_model.sampling import sampler_kernels as kernels
from piecework_model.sampling.sampler import SampleOutput

TILE_TOKENS: Final = 4096
"""Vocabulary tile: 16 logits for each of 256 threads. It decides the result's last bits."""
WARPS: Final = 8
ALIGNMENT_BYTES: Final = 16  # the widest load of a thread
_DTYPES: Final = frozenset({torch.float32, torch.bfloat16})


def sample(raw: Tensor, temperatures: Tensor, cap: float, uniforms: Tensor) -> SampleOutput:
    """Sample as `sampler.sample` does. `raw` is overwritten with the probabilities.

    raw: [P, V] bfloat16 or float32, the output of lm_head, aligned to 16 bytes. temperatures: [P]
    float32, positive. cap: the model's final_logit_softcapping. uniforms: [P] float64 in (0, 1).
    All on one device and contiguous. Raises ValueError for anything else.
    """
    _check(raw, temperatures, uniforms)
    positions, vocab_size = raw.shape
    tiles = triton.cdiv(vocab_size, TILE_TOKENS)
    device = raw.device
    summary = torch.empty(
        (positions, kernels.PLANES.value, tiles), dtype=torch.float32, device=device
    )
    tile_argmax = torch.empty((positions, tiles), dtype=torch.int32, device=device)
    ids = torch.empty((positions, 2), dtype=torch.int64, device=device)  # argmax, sampled
    figures = torch.empty((positions, 3), dtype=torch.float32, device=device)
    soft = torch.empty((positions, 2), dtype=torch.float32, device=device)
    shape = {"cap": cap, "vocab_size": vocab_size, "tile": TILE_TOKENS, "num_warps": WARPS}
    lanes = triton.next_power_of_2(tiles)
    buffers = (summary, tile_argmax, ids, figures, soft)
    grid = (positions, tiles)
    kernels.summarise[grid](raw, temperatures, summary, tile_argmax, **shape)
    kernels.decide[(positions,)](
        raw, temperatures, uniforms, *buffers, tiles=tiles, lanes=lanes, **shape
    )
    kernels.soften[grid](raw, temperatures, soft, raw, **shape)
    argmax, sampled = ids.unbind(1)
    entropy, log_probability, gap = figures.unbind(1)
    return SampleOutput(argmax, sampled, entropy, log_probability, gap, probabilities=raw)


def _check(raw: Tensor, temperatures: Tensor, uniforms: Tensor) -> None:
    if raw.dtype not in _DTYPES or raw.dim() != 2 or raw.shape[0] < 1:
        raise ValueError(
            f"logits must be [P, V] float32 or bfloat16, got {tuple(raw.shape)} {raw.dtype}"
        )
    if not 2 <= raw.shape[1] <= limits.MAX_FUSED_VOCAB_TOKENS:
        raise ValueError(
            f"a vocabulary of {raw.shape[1]} is not in [2, {limits.MAX_FUSED_VOCAB_TOKENS}]"
        )
    expected = {
        "temperatures": (temperatures, raw.shape[:1], torch.float32),
        "uniforms": (uniforms, raw.shape[:1], torch.float64),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tensor.shape != shape or tensor.dtype != dtype or tensor.device != raw.device:
            raise ValueError(f"{name} must be {tuple(shape)} {dtype} on {raw.device}")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
    if not raw.is_contiguous() or raw.data_ptr() % ALIGNMENT_BYTES:
        raise ValueError(f"logits must be contiguous and aligned to {ALIGNMENT_BYTES} bytes")
