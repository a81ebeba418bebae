"""What the KV cache of one sequence holds, in tokens and bytes. Pure arithmetic, no torch.

Full-attention layers keep every committed token. Sliding-window layers keep the last `window - 1`
tokens, because the window of a query includes the query itself. Behind the committed tokens every
layer has room for the chunks of one pass and for the canvas. The canvas is overwritten at each
denoising step and never copied.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """The keys of one layer, and as many values: heads * head_dim a token.

    window: in tokens, 0 for full attention.
    """

    heads: int
    head_dim: int
    window: int


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """All layers of a model.

    canvas: tokens of a canvas. chunk: tokens of the largest chunk of a causal pass.
    """

    layers: tuple[LayerLayout, ...]
    canvas: int
    chunk: int

    def capacity(self, layer: LayerLayout, tokens: int) -> int:
        """Count the tokens that `layer` has room for, in a sequence of at most `tokens` tokens."""
        if not layer.window:
            return tokens
        return min(tokens, layer.window - 1 + self.chunk + self.canvas)

    def sequence_bytes(self, tokens: int, element_bytes: int) -> int:
        """Count the bytes of keys and values of a sequence of at most `tokens` tokens."""
        values = sum(
            self.capacity(layer, tokens) * layer.heads * layer.head_dim for layer in self.layers
        )
        return 2 * values * element_bytes

    def longest_sequence(self, memory_bytes: int, element_bytes: int, most_tokens: int) -> int:
        """Find the longest sequence, up to `most_tokens` tokens, that fits into this much
        memory.
        """
        return bisect.bisect_right(
            range(1, most_tokens + 1),
            memory_bytes,
            key=lambda tokens: self.sequence_bytes(tokens, element_bytes),
        )

    def chunk_bytes(self, tokens: int, element_bytes: int) -> int:
        """Count the bytes of keys and values of `tokens` tokens in every layer: the cost of a kept
        prefix.
        """
        return (
            2 * tokens * element_bytes * sum(layer.heads * layer.head_dim for layer in self.layers)
        )


def cache_layout(text_config: Any, canvas: int, chunk: int) -> CacheLayout:
    """Build the layout of a `DiffusionGemmaTextConfig`, or of anything with its attributes."""
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
