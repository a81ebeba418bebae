"""The KV cache of one row: one buffer a layer, allocated once, appended to in place.

transformers' cache concatenates all keys and values in every layer at every step. Here the
committed tokens and the canvas lie side by side in one buffer, so that attention reads a view of it
and nothing is copied but the canvas itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piecework_model.layout import CacheLayout


@dataclass(frozen=True, slots=True)
class ChunkKV:
    """Keys and values of consecutive tokens in every layer, [heads, tokens, head_dim] each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def tokens(self) -> int:
        return int(self.keys[0].shape[1])

    @property
    def finite(self) -> bool:
        """Whether there is no NaN and no infinity in it."""
        sums = [part.sum(dtype=torch.float32) for part in (*self.keys, *self.values)]
        return bool(torch.isfinite(torch.stack(sums)).all())

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))


class SequenceCache:
    """`length` committed tokens. Windowed layers hold fewer of them than full ones: `_full_end` and
    `_window_end` say where the next token goes in each kind."""

    def __init__(
        self, layout: CacheLayout, tokens: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._layout = layout
        self.keys = [
            torch.empty(
                (layer.heads, layout.capacity(layer, tokens), layer.head_dim),
                device=device,
                dtype=dtype,
            )
            for layer in layout.layers
        ]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.length = 0
        self._window_end = 0

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` more, chunks and canvas of one pass together: windowed layers
        move what their window still reaches to the front. Either all of them move or, when memory
        runs out, none.
        """
        windowed = [index for index, layer in enumerate(self._layout.layers) if layer.window]
        if not windowed or self._window_end + tokens <= self.keys[windowed[0]].shape[1]:
            return
        end = self._window_end
        keep = min(end, self._layout.layers[windowed[0]].window - 1)
        buffers = [part for index in windowed for part in (self.keys[index], self.values[index])]
        # Copies first: source and target may overlap, and only allocating can fail.
        tails = [buffer[:, end - keep : end].clone() for buffer in buffers]
        for buffer, tail in zip(buffers, tails, strict=True):
            buffer[:, :keep] = tail
        self._window_end = keep

    def end(self, layer: int) -> int:
        """Where the next committed token of `layer` goes."""
        return self._window_end if self._layout.layers[layer].window else self.length

    def write(self, layer: int, offset: int, keys: Tensor, values: Tensor) -> None:
        """Puts keys and values [tokens, heads, head_dim] `offset` tokens behind the committed
        ones."""
        start = self.end(layer) + offset
        stop = start + keys.shape[0]
        self.keys[layer][:, start:stop] = keys.transpose(0, 1)
        self.values[layer][:, start:stop] = values.transpose(0, 1)

    def view(self, layer: int, offset: int, tokens: int) -> tuple[Tensor, Tensor, int]:
        """Keys and values [heads, visible + tokens, head_dim] for `tokens` queries that stand
        `offset` tokens behind the committed ones, and how many earlier tokens are visible to the
        first of them."""
        end = self.end(layer) + offset
        window = self._layout.layers[layer].window
        start = max(0, end - (window - 1)) if window else 0
        return (
            self.keys[layer][:, start : end + tokens],
            self.values[layer][:, start : end + tokens],
            end - start,
        )

    def commit(self, tokens: int) -> None:
        """The next `tokens` tokens behind the committed ones, already written, are committed."""
        self.length += tokens
        self._window_end += tokens

    def copy(self, offset: int, tokens: int) -> ChunkKV:
        """A copy of `tokens` tokens that are written `offset` tokens behind the committed ones."""
        spans = [
            slice(self.end(i) + offset, self.end(i) + offset + tokens)
            for i in range(len(self.keys))
        ]
        return ChunkKV(
            tuple(keys[:, span].clone() for keys, span in zip(self.keys, spans, strict=True)),
            tuple(values[:, span].clone() for values, span in zip(self.values, spans, strict=True)),
        )

    def append(self, chunk: ChunkKV) -> None:
        """Commits tokens whose keys and values are known already."""
        self.reserve(chunk.tokens)
        for layer, (keys, values) in enumerate(zip(chunk.keys, chunk.values, strict=True)):
            self.write(layer, 0, keys.transpose(0, 1), values.transpose(0, 1))
        self.commit(chunk.tokens)
