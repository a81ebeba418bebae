"""Grouped-query attention of one segment, in a form that torch's fused kernels take.

torch has a switch for grouped queries, `enable_gqa`. On CUDA it excludes the fused kernels where
there is a mask, or where a head is wider than 256. Then torch falls back to its math path. That
path upcasts to float32, repeats keys and values for each query head, and stores all scores: several
GiB a layer at a context of 32 K.

So the query heads of a group become the batch axis here. Keys and values are expanded along it. An
expanded axis has stride 0, so nothing is copied. Each pair of query and key head is computed
exactly as in transformers, so the bits on a CPU are the same (tests/unit/model/test_attention.py).
No form has run on a GPU. `bench.gpu` checks there that no call needs the math path.
"""

from __future__ import annotations

import warnings
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from piecework_model import backend_trial

_WIDEST_SWITCHED: Final = 256
"""The widest head for which transformers uses torch's switch where there is no mask."""


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attend without scaling, because queries are normed. Returns [tokens, heads, dim].

    queries: [tokens, heads, dim]. keys, values: [kv heads, seen, dim]. mask: bool [tokens, seen],
    true where a query sees a key, or None if all see all. Query head h reads key head h // group,
    where group is heads / kv heads.
    """
    tokens, heads, dim = queries.shape
    group = heads // keys.shape[0]
    if tokens == 1 and (mask is not None or dim > _WIDEST_SWITCHED):
        # transformers makes the group's heads the queries here, and a kernel may sum their keys in
        # another order than those of a single query.
        folded = queries.view(1, -1, group, dim)
        attended = functional.scaled_dot_product_attention(
            folded, keys[None], values[None], attn_mask=mask, scale=1.0
        )
        return attended.reshape(1, heads, dim)
    attended = functional.scaled_dot_product_attention(
        queries.view(tokens, -1, group, dim).permute(2, 1, 0, 3),  # [group, kv heads, tokens, dim]
        keys[None].expand(group, -1, -1, -1),
        values[None].expand(group, -1, -1, -1),
        attn_mask=mask,
        scale=1.0,
    )
    return attended.permute(2, 1, 0, 3).reshape(tokens, heads, dim)


def attend_each(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend in one call for several canvases, each over keys of its own. All see all.

    queries: [canvases, tokens, heads, dim]. keys, values: [canvases, kv heads, seen, dim]. Returns
    what `queries` has. The last bits may differ from those of `attend`.
    """
    canvases, tokens, heads, dim = queries.shape
    kv_heads = keys.shape[1]
    # Without a mask a group's heads are as good as more queries, and no key is copied for them.
    grouped = queries.view(canvases, tokens, kv_heads, -1, dim).permute(0, 2, 1, 3, 4)
    attended = functional.scaled_dot_product_attention(
        grouped.reshape(canvases, kv_heads, -1, dim), keys, values, scale=1.0
    )
    parted = attended.view(canvases, kv_heads, tokens, heads // kv_heads, dim)
    return parted.permute(0, 2, 1, 3, 4).reshape(queries.shape)


def why_unfused(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> str:
    """Say why torch's fused kernels do not take such a call, or return an empty string.

    The call is made with the math path forbidden. torch refuses it then, rather than fall back.
    """
    fused = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    try:
        with warnings.catch_warnings(), sdpa_kernel(fused):
            warnings.simplefilter("ignore")  # torch explains each kernel's refusal in a warning
            attend(queries, keys, values, mask)
    except RuntimeError as error:
        return backend_trial.first_line(error)
    return ""


def why_device_is_unfused(
    heads: int, kv_heads: int, dim: int, device: torch.device, dtype: torch.dtype
) -> str:
    """Say the same of layers of such heads: a canvas without a mask, chunks with one."""
    tokens, seen = 16, 40
    queries = torch.zeros((tokens, heads, dim), device=device, dtype=dtype)
    keys = torch.zeros((kv_heads, seen, dim), device=device, dtype=dtype)
    mask = torch.ones((tokens, seen), device=device, dtype=torch.bool)
    return (
        why_unfused(queries, keys, keys, None)
        or why_unfused(queries, keys, keys, mask)
        or why_unfused(queries[:1], keys, keys, mask[:1])
    )
