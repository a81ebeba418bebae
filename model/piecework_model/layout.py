"""What the KV cache of one row holds, in tokens and bytes. Pure arithmetic; no torch.

Full-attention layers keep every committed token. Sliding-window layers keep the last `window - 1`:
the window of a query includes the query itself. Behind the committed tokens every layer has room
for the chunks that one pass appends and for the canvas, which is written there anew at each
denoising step and is never copied.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One layer's keys (and as many values): heads × head_dim a token. `window`: in tokens, 0 for
    none."""

    heads: int
    head_dim: int
    window: int


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """All layers of a model. canvas, chunk: tokens of a canvas, and of the largest chunk of one
    causal pass."""

    layers: tuple[LayerLayout, ...]
    canvas: int
    chunk: int

    def capacity(self, layer: LayerLayout, tokens: int) -> int:
        """Tokens for which `layer` has room in a row of `tokens` tokens at most, canvases
        included."""
        if not layer.window:
            return tokens
        return min(tokens, layer.window - 1 + self.chunk + self.canvas)

    def sequence_bytes(self, tokens: int, element_bytes: int) -> int:
        """Bytes of keys and values of a row of `tokens` tokens at most."""
        values = sum(
            self.capacity(layer, tokens) * layer.heads * layer.head_dim for layer in self.layers
        )
        return 2 * values * element_bytes

    def longest_sequence(self, memory_bytes: int, element_bytes: int, most_tokens: int) -> int:
        """The most tokens, up to `most_tokens`, of a row that fits into so much memory."""
        return bisect.bisect_right(
            range(1, most_tokens + 1),
            memory_bytes,
            key=lambda tokens: self.sequence_bytes(tokens, element_bytes),
        )

    def chunk_bytes(self, tokens: int, element_bytes: int) -> int:
        """Bytes of the keys and values of `tokens` tokens in every layer: what a kept prefix
        costs."""
        return (
            2 * tokens * element_bytes * sum(layer.heads * layer.head_dim for layer in self.layers)
        )


def cache_layout(text_config: Any, canvas: int, chunk: int) -> CacheLayout:
    """The layout of a `DiffusionGemmaTextConfig`, or of anything with its attributes."""
    per_layer: Mapping[int, Any] = text_config.per_layer_config
    layers = tuple(
        LayerLayout(
            heads=per_layer[index].num_key_value_heads,
            head_dim=per_layer[index].head_dim,
            window=text_config.sliding_window if kind == "sliding_attention" else 0,
        )
        for index, kind in enumerate(text_config.layer_types)
    )
    return CacheLayout(layers, canvas, max(chunk, canvas))
