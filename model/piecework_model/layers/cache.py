"""The KV cache of one sequence: one buffer a layer, allocated once, appended to in place.

transformers' cache concatenates all keys and values in every layer at every step. Here the
committed tokens and the canvas are side by side in one buffer. Attention reads a view of it, and
only the canvas itself is copied.
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
        """Whether it is free of NaN and infinity."""
        sums = [part.sum(dtype=torch.float32) for part in (*self.keys, *self.values)]
        return bool(torch.isfinite(torch.stack(sums)).all())

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))


class SequenceCache:
    """The keys and values of `length` committed tokens.

    Windowed layers hold fewer of them than full layers. `end` says where the next token goes.
    """

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
        """Make room for `tokens` more: the chunks and the canvas of one pass together.

        Windowed layers move what their window still reaches to the front. If memory runs out, none
        of them has moved.
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
        """Return where the next committed token of `layer` goes."""
        return self._window_end if self._layout.layers[layer].window else self.length

    def write(self, layer: int, offset: int, keys: Tensor, values: Tensor) -> None:
        """Write keys and values [tokens, heads, head_dim] `offset` tokens behind the committed
        ones.
        """
        start = self.end(layer) + offset
        stop = start + keys.shape[0]
        self.keys[layer][:, start:stop] = keys.transpose(0, 1)
        self.values[layer][:, start:stop] = values.transpose(0, 1)

    def view(self, layer: int, offset: int, tokens: int) -> tuple[Tensor, Tensor, int]:
        """Return what `tokens` queries that stand `offset` tokens behind the committed ones see.

        These are keys and values [heads, visible + tokens, head_dim], and how many earlier tokens
        the first query sees.
        """
        end = self.end(layer) + offset
        window = self._layout.layers[layer].window
        start = max(0, end - (window - 1)) if window else 0
        return (
            self.keys[layer][:, start : end + tokens],
            self.values[layer][:, start : end + tokens],
            end - start,
        )

    def commit(self, tokens: int) -> None:
        """Commit the next `tokens` tokens, which are already written."""
        self.length += tokens
        self._window_end += tokens

    def copy(self, offset: int, tokens: int) -> ChunkKV:
        """Copy `tokens` tokens that are written `offset` tokens behind the committed ones."""
        spans = [
            slice(self.end(i) + offset, self.end(i) + offset + tokens)
            for i in range(len(self.keys))
        ]
        return ChunkKV(
            tuple(keys[:, span].clone() for keys, span in zip(self.keys, spans, strict=True)),
            tuple(values[:, span].clone() for values, span in zip(self.values, spans, strict=True)),
        )

    def append(self, chunk: ChunkKV) -> None:
        """Commit tokens whose keys and values are already known."""
        self.reserve(chunk.tokens)
        for layer, (keys, values) in enumerate(zip(chunk.keys, chunk.values, strict=True)):
            self.write(layer, 0, keys.transpose(0, 1), values.transpose(0, 1))
        self.commit(chunk.tokens)


class CanvasCache:
    """One canvas behind the committed tokens of another cache, which it reads and never changes.

    So many canvases can stand behind the same tokens in one pass, and those are stored once.
    """

    def __init__(self, committed: SequenceCache) -> None:
        self._committed = committed
        self._keys: dict[int, Tensor] = {}  # of each layer, [heads, tokens, head_dim]
        self._values: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        """Committed tokens, as in `SequenceCache`."""
        return self._committed.length

    def write(self, layer: int, offset: int, keys: Tensor, values: Tensor) -> None:
        """Take the keys and values [tokens, heads, head_dim] of the canvas."""
        if offset:
            raise ValueError("a canvas stands directly behind the committed tokens")
        self._keys[layer], self._values[layer] = keys.transpose(0, 1), values.transpose(0, 1)

    def view(self, layer: int, offset: int, tokens: int) -> tuple[Tensor, Tensor, int]:
        """Return what the canvas sees, as `SequenceCache.view` does."""
        keys, values, before = self._committed.view(layer, offset, 0)
        seen_keys = torch.cat([keys, self._keys.pop(layer)], dim=1)
        return seen_keys, torch.cat([values, self._values.pop(layer)], dim=1), before
