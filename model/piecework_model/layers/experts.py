"""The experts of one layer, packed: on the device, or in host memory with a cache on the device.

They are about 90 % of the released model, as two matrices an expert. All fields of an expert are
adjacent in memory, so that one copy brings it to the device. Where the bytes come from changes no
bit of a result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal, Protocol

import torch
from torch import Tensor, nn

from piecework_model.elementwise import by_rows
from piecework_model.layers.quantization import Codec, Fields
from piecework_model.precision import aligned

Matrix = Literal["gate_up_proj", "down_proj"]
MATRICES: Final[tuple[Matrix, Matrix]] = ("gate_up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class _Slice:
    """Where one field is in an expert's bytes."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int

    def view(self, expert: Tensor) -> Tensor:
        return expert[self.start : self.start + self.size].view(self.dtype).view(self.shape)


class ExpertLayout:
    """How an expert's fields share `expert_bytes` adjacent bytes.

    gate and up: one matrix [2 I, H], as published. down: [H, I].
    """

    def __init__(self, hidden: int, intermediate: int, codec: Codec) -> None:
        shapes = {"gate_up_proj": (2 * intermediate, hidden), "down_proj": (hidden, intermediate)}
        specs = [(matrix, spec) for matrix in MATRICES for spec in codec.specs(*shapes[matrix])]
        sizes = [torch.Size(shape).numel() * dtype.itemsize for _, (shape, dtype) in specs]
        ends = list(accumulate(aligned(size) for size in sizes))
        self.expert_bytes = ends[-1]
        self._slices: dict[Matrix, list[_Slice]] = {matrix: [] for matrix in MATRICES}
        for (matrix, (shape, dtype)), start, size in zip(specs, [0, *ends], sizes, strict=False):
            self._slices[matrix].append(_Slice(start, shape, dtype, size))

    def fields(self, matrix: Matrix, expert: Tensor) -> Fields:
        """Return views of a matrix's fields in an expert's bytes [expert_bytes]."""
        return tuple(place.view(expert) for place in self._slices[matrix])

    def stacked(self, matrix: Matrix, packed: Tensor) -> Fields:
        """Return the same for all experts at once: views [E, ...] of packed [E, expert_bytes]."""
        return tuple(
            packed[:, place.start : place.start + place.size]
            .view(place.dtype)
            .view(-1, *place.shape)
            for place in self._slices[matrix]
        )


class ExpertBytes(Protocol):
    """The packed experts of one layer, wherever they are."""

    def writable(self, expert: int) -> Tensor:
        """Return the bytes [expert_bytes] of an expert in the place where they are kept."""

    def on_device(self, expert: int) -> Tensor:
        """Return the same bytes on the device. They are valid until the next call."""


class DeviceBytes(nn.Module):
    """All experts of a layer on the device, as one buffer [E, expert_bytes]."""

    def __init__(self, experts: int, expert_bytes: int, device: torch.device) -> None:
        super().__init__()
        self.packed: Tensor
        self.register_buffer(
            "packed", torch.empty((experts, expert_bytes), dtype=torch.uint8, device=device)
        )

    def writable(self, expert: int) -> Tensor:
        """Return a row of the buffer."""
        return self.packed[expert]

    def on_device(self, expert: int) -> Tensor:
        """Return the same row."""
        return self.packed[expert]


class Residency:
    """Which experts are on the device: keys in slots 0 to slots-1, at most one key a slot. No
    tensors.

    A forward pass walks through the layers in order, and a canvas of 256 tokens with 8 experts each
    uses nearly every expert of every layer. To a cache that holds a part of them, this is one long
    loop. Dropping the least recently used entry would never hit, because it drops exactly what
    comes next. So that entry goes only if it has missed a whole round. Otherwise the most recently
    used one goes, whose next use is farthest away (Belady's rule for a loop; Denning calls the
    failure of LRU sequential flooding).

    population: how many keys there are.
    """

    def __init__(self, slots: int, population: int) -> None:
        if slots < 1:
            raise ValueError("a cache needs at least one slot")
        self._free = list(range(slots))
        self._population = population
        # key: (slot, number of the look-up that used it last)
        self._slots: OrderedDict[Hashable, tuple[int, int]] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._slots)

    def place(self, key: Hashable) -> tuple[int, bool]:
        """Give a key a slot. Returns the slot, and whether the key had it already."""
        now = self.hits + self.misses
        found = self._slots.pop(key, None)
        if found is not None:
            self.hits += 1
            slot = found[0]
        else:
            self.misses += 1
            slot = self._free.pop() if self._free else self._evict(now)
        self._slots[key] = slot, now
        return slot, found is not None

    def forget(self, key: Hashable) -> None:
        """Free the slot of a key whose content did not arrive."""
        slot, _ = self._slots.pop(key)
        self._free.append(slot)

    def _evict(self, now: int) -> int:
        oldest = next(iter(self._slots.values()))
        stale = now - oldest[1] > self._population
        _, (slot, _) = self._slots.popitem(last=not stale)
        return slot


class ExpertCache:
    """Slots for experts on the device, within a budget of bytes. All layers share them."""

    def __init__(
        self, budget_bytes: int, expert_bytes: int, population: int, device: torch.device
    ) -> None:
        slots = min(budget_bytes // expert_bytes, population)
        if slots < 1:
            raise ValueError(f"a budget of {budget_bytes} bytes holds no expert of {expert_bytes}")
        self.residency = Residency(slots, population)
        self.slots = torch.empty((slots, expert_bytes), dtype=torch.uint8, device=device)

    def fetch(self, key: tuple[int, int], source: Tensor) -> Tensor:
        """Return the bytes of an expert on the device. Copy them from `source` if they are not
        there.

        Copies and kernels share one stream, so a slot is never overwritten while a kernel reads it.
        """
        slot, present = self.residency.place(key)
        if not present:
            try:
                self.slots[slot].copy_(source, non_blocking=True)
            except RuntimeError:  # a slot of unknown content must not count as this expert
                self.residency.forget(key)
                raise
        return self.slots[slot]


class HostBytes:
    """All experts of a layer in host memory, pinned if the device is a GPU.

    It is not a module buffer, so that moving the model leaves it in place.
    """

    def __init__(self, layer: int, experts: int, cache: ExpertCache) -> None:
        self._layer, self._cache = layer, cache
        pinned = cache.slots.device.type == "cuda"
        shape = (experts, cache.slots.shape[1])
        self.packed = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)

    def writable(self, expert: int) -> Tensor:
        """Return a row in host memory."""
        return self.packed[expert]

    def on_device(self, expert: int) -> Tensor:
        """Return a slot of the cache, which the next expert may take."""
        return self._cache.fetch((self._layer, expert), self.packed[expert])


class QuantizedExperts(nn.Module):
    """A replacement for transformers' DiffusionGemmaTextExperts, with the same forward and packed
    weights.

    H hidden size, I intermediate size, E experts. A token's experts are summed in ascending order,
    as in the eager implementation there.
    """

    def __init__(
        self,
        experts: int,
        layout: ExpertLayout,
        codec: Codec,
        activation: Callable[[Tensor], Tensor],
        source: ExpertBytes,
    ) -> None:
        super().__init__()
        self.num_experts = experts
        self._layout, self._codec, self._activation, self._source = (
            layout,
            codec,
            activation,
            source,
        )

    def fill(self, matrix: Matrix, expert: int, weight: Tensor, device: torch.device) -> None:
        """Pack one matrix [out, in] of one expert on `device`, into the place where it is kept."""
        kept = self._layout.fields(matrix, self._source.writable(expert))
        for place, field in zip(kept, self._codec.pack(weight.to(device)), strict=True):
            place.copy_(field)

    @property
    def codec(self) -> Codec:
        """How they are packed."""
        return self._codec

    def stacked(self, matrix: Matrix) -> Fields | None:
        """Return a matrix's fields for all experts: views [E, ...] of a buffer.

        Returns None if they are in host memory.
        """
        if not isinstance(self._source, DeviceBytes):
            return None
        return self._layout.stacked(matrix, self._source.packed)

    def run(self, expert: int, x: Tensor) -> Tensor:
        """Run the MLP of one expert on rows x [n, H]: down(act(gate(x)) * up(x)), unweighted, [n,
        H].
        """
        packed = self._source.on_device(expert)
        gate, up = self._codec.matmul(x, self._layout.fields("gate_up_proj", packed)).chunk(
            2, dim=-1
        )
        return self._codec.matmul(
            by_rows(self._activation, gate) * up, self._layout.fields("down_proj", packed)
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Compute each token's weighted sum [n, H].

        hidden_states: [n, H]. top_k_index, top_k_weights: [n, K].
        """
        result = torch.zeros_like(hidden_states)
        for expert in torch.bincount(top_k_index.flatten()).nonzero().flatten().tolist():
            token, place = torch.where(top_k_index == expert)
            rows = self.run(expert, hidden_states[token]) * top_k_weights[token, place, None]
            result.index_add_(0, token, rows.to(result.dtype))
        return result
