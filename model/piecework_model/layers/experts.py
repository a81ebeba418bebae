"""The experts of one layer, packed.

They are about 90 % of the released model, as two matrices an expert. All fields of an expert are
adjacent in memory, so that one copy brings it to the device. The bytes are on the device, or in
host memory (layers/offload.py). Where they come from changes no bit of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def expect(self, experts: Sequence[int]) -> None:
        """Tell which experts will be asked for next, in this order."""

    @property
    def together(self) -> Tensor:
        """What kernels read experts from: [n, expert_bytes] on the device. All, or the slots."""


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

    def expect(self, experts: Sequence[int]) -> None:
        """Do nothing, because all of them are here."""

    @property
    def together(self) -> Tensor:
        """Return the buffer."""
        return self.packed


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

    @property
    def source(self) -> ExpertBytes:
        """Where they are kept."""
        return self._source

    def stacked(self, matrix: Matrix, packed: Tensor) -> Fields:
        """Return a matrix's fields of many experts: views [n, ...] of packed [n, expert_bytes]."""
        return self._layout.stacked(matrix, packed)

    def expect(self, experts: Sequence[int]) -> None:
        """Tell which experts `run` will be called for next, in this order."""
        self._source.expect(experts)

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
        present = torch.bincount(top_k_index.flatten()).nonzero().flatten().tolist()
        self.expect(present)
        for expert in present:
            token, place = torch.where(top_k_index == expert)
            rows = self.run(expert, hidden_states[token]) * top_k_weights[token, place, None]
            result.index_add_(0, token, rows.to(result.dtype))
        return result
