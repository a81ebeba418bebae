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

    def view_behind(
        self, layer: int, keys: Tensor, values: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Return what canvases see that stand directly behind the committed tokens, none of which
        sees another: keys and values [canvases, heads, visible + size, head_dim]. The committed
        ones are copied for each, and nothing is written.

        keys, values: the canvases' own, [canvases * size, heads, head_dim].
        """
        seen_keys, seen_values, _ = self.view(layer, 0, 0)
        return _behind(seen_keys, keys, size), _behind(seen_values, values, size)

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


def _behind(committed: Tensor, own: Tensor, size: int) -> Tensor:
    heads, _, dim = committed.shape
    parted = own.view(-1, size, heads, dim).transpose(1, 2)
    return torch.cat([committed.expand(len(parted), -1, -1, -1), parted], dim=2)
