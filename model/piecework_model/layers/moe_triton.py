"""The fused mixture of experts on CUDA: two grouped products a layer, without reading on the host.

`layers/moe.py` asks how many tokens chose each expert and calls each expert in turn. In the
released model that is one wait for the device and about a thousand launches a layer. A step has
30,000 launches, more than 100 ms, against the 17 ms that reading the weights takes. Here the device
computes which tile of rows belongs to which expert. The number of launched tiles is the largest
possible one, N / TILE_ROWS + E. Tiles that are not needed end at once. So nothing depends on the
host, and a piece with experts in it can be recorded (layers/graphs.py).

**Reproducibility.** A row's bits depend on that row, its expert's weights and the constants below.
Every product has TILE_ROWS rows, empty ones included, and one order along the inner dimension. So
they do not depend on how many tokens share the pass, nor on a token's tile or place. Values are
rounded where the modules round (after each product, the activation, the gating, the share). A
token's experts are summed in ascending order. So results differ from those of `Moe` only in the
order of sums inside a product.

**Experts in host memory.** A launch takes the experts that are on the device at the time. A table
says in which slot each of them lies. Each pair of token and expert has a row of its own in the
result and is computed by one launch. So the number of launches changes no bit.

**Cost.** TILE_ROWS is 64 for every size of batch, because another height could be another
instruction and another order. With one sequence of the released model an expert has 16 tokens on
average, so three quarters of the arithmetic are empty: 2.9 TFLOP a step, 4 ms of an H100's tensor
cores, against 15 ms in which the experts' weights are read. With 16 sequences an expert has 256
tokens and little is empty. Its weights are then read four times, mostly from the L2 cache.

Weights are bfloat16 or float32 as published, float8 with one scale an output (`quantization.Fp8`),
or 4 bits with one scale a group of inputs (`quantization.Int4`). The kernels convert packed weights
to the states' type tile by tile, in the loop of the product. They have never run on a GPU. They are
held against `Moe` in Triton's interpreter, where products are in float32, and compiled for real
targets. Times are arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from piecework_model.layers import moe_kernels as kernels

TILE_ROWS: Final = 64
TILE_COLUMNS: Final = 64
TILE_INNER: Final = 64
"""All three divide the released model's 2,816 and 704. They decide a result's last bits."""
WARPS: Final = 4
STAGES: Final = 3  # of copies in flight: 74 KB of shared memory on Hopper, 49 KB elsewhere


@dataclass(frozen=True, slots=True)
class Matrices:
    """One matrix of every expert.

    data: [E, out, in] with scales None, or float8 with scales [E, out] float32. In 4 bits data is
    bytes [E, out, in / 2] and scales are bfloat16 [E, out, in / group] (`quantization.Int4`).
    """

    data: Tensor
    scales: Tensor | None

    def __post_init__(self) -> None:
        if self.data.dim() != 3 or self.data.stride()[1:] != (self.data.shape[2], 1):
            raise ValueError(
                f"each expert's matrix must be contiguous: {self.data.shape}, {self.data.stride()}"
            )
        if self.is_int4:
            self._check_groups()
        elif self.scales is not None and (
            self.scales.shape != self.data.shape[:2] or self.scales.dtype is not torch.float32
        ):
            raise ValueError(f"scales must be float32 {tuple(self.data.shape[:2])}")

    def _check_groups(self) -> None:
        scales = self.scales
        if scales is None or scales.dtype is not torch.bfloat16 or scales.dim() != 3:
            raise ValueError("scales of 4-bit weights must be bfloat16 [experts, out, groups]")
        if scales.shape[:2] != self.data.shape[:2] or self.inputs % scales.shape[2]:
            raise ValueError(f"scales {tuple(scales.shape)} for {tuple(self.data.shape)}")
        if scales.stride()[1:] != (scales.shape[2], 1):
            raise ValueError(f"each expert's scales must be contiguous: {scales.stride()}")

    @property
    def is_int4(self) -> bool:
        """Whether two weights share a byte."""
        return self.data.dtype is torch.uint8

    @property
    def inputs(self) -> int:
        """The width of a matrix."""
        return self.data.shape[2] * (2 if self.is_int4 else 1)

    @property
    def _group(self) -> int:
        """How many inputs share a scale, 0 if not in 4 bits."""
        return (
            self.inputs // self.scales.shape[2] if self.scales is not None and self.is_int4 else 0
        )

    def constants(self, states: Tensor, experts: int) -> dict[str, Any]:
        """Return the constants that the kernels are compiled for."""
        products = tl.float32 if _interpreted() or states.dtype is torch.float32 else tl.bfloat16
        return {
            "experts": experts,
            "weight_stride": self.data.stride(0),
            "scale_stride": self.scales.stride(0) if self.scales is not None else 0,
            "scaled": self.scales is not None and not self.is_int4,
            "group": self._group,
            "compute": products,
            "rows": TILE_ROWS,
            "columns": TILE_COLUMNS,
            "inner": TILE_INNER,
            "num_warps": WARPS,
            "num_stages": STAGES,
        }


@dataclass(frozen=True, slots=True)
class Tiles:
    """Where each pair of token and expert is. All int32 and on the device. N pairs, E experts.

    order: [N], the pair at each place, grouped by expert. starts: [E + 1], each expert's first
    place. expert, first: of each tile, its expert (E for none) and its first place.
    """

    order: Tensor
    starts: Tensor
    expert: Tensor
    first: Tensor


def tiles(chosen: Tensor, experts: int) -> Tiles:
    """Compute the tiles of pairs whose experts are `chosen` [N]. No number leaves the device."""
    pairs = chosen.numel()
    grouped, order = chosen.sort(stable=True)
    device = chosen.device
    starts = torch.searchsorted(grouped, torch.arange(experts + 1, device=device))
    needed = (starts[1:] - starts[:-1] + TILE_ROWS - 1) // TILE_ROWS  # [E]
    ends = needed.cumsum(0)
    index = torch.arange(pairs // TILE_ROWS + experts, device=device)
    expert = torch.searchsorted(ends, index, right=True)
    owner = expert.clamp(max=experts - 1)
    first = starts[owner] + (index - (ends - needed)[owner]) * TILE_ROWS
    return Tiles(*(part.to(torch.int32) for part in (order, starts, expert, first)))


class ExpertGroups(Protocol):
    """Experts whose weights come to the device in groups."""

    @property
    def experts(self) -> int:
        """How many there are."""

    def groups(self, chosen: Tensor) -> Iterable[Tensor]:
        """Bring the chosen experts [N] to the device, group by group.

        Yields for each group a table [E] int32 on the device: in which slot an expert lies, -1 if
        it is not in this group. Slots may be overwritten once the next table is asked for.
        """


class FusedMoe:
    """The experts of one layer, called like `Moe`."""

    def __init__(
        self, gate_up: Matrices, down: Matrices, source: ExpertGroups | None = None
    ) -> None:
        """Take the weights. gate_up: [E, 2 I, H]. down: [E, H, I].

        source: brings the experts to their slots, if the weights are slots [S, ...] of a cache.
        """
        experts, doubled, _ = gate_up.data.shape
        hidden = gate_up.inputs
        if (*down.data.shape[:2], down.inputs) != (experts, hidden, doubled // 2):
            raise ValueError(
                f"{tuple(gate_up.data.shape)} and {tuple(down.data.shape)} are no experts"
            )
        self._gate_up, self._down, self.source = gate_up, down, source
        self.hidden_size: int = hidden
        self._experts = experts if source is None else source.experts
        self._width = doubled // 2

    def __call__(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Compute the weighted sum [T, H] of each token's experts.

        chosen: [T, k] int64. weights: [T, k] float32.
        """
        tokens, k = chosen.shape
        chosen, by_expert = chosen.sort(dim=-1)
        shares = weights.gather(-1, by_expert).to(torch.float32).flatten().contiguous()
        grid = tiles(chosen.flatten(), self._experts)
        states = hidden.contiguous()
        inner = states.new_empty((tokens * k, self._width))
        outputs = states.new_empty((tokens * k, self.hidden_size))
        for slots in (None,) if self.source is None else self.source.groups(chosen.flatten()):
            self._launch(grid, slots, states=states, inner=inner, shares=shares, outputs=outputs)
        scattered = outputs.view(tokens, k, self.hidden_size)
        total = scattered[:, 0].clone()
        for rank in range(1, k):  # in ascending order of the experts, rounded after each
            total += scattered[:, rank]
        return total

    def _launch(
        self,
        grid: Tiles,
        slots: Tensor | None,
        *,
        states: Tensor,
        inner: Tensor,
        shares: Tensor,
        outputs: Tensor,
    ) -> None:
        """Compute the outputs of the experts that are there. inner: between the two products."""
        places = (grid.order, grid.starts, grid.expert, grid.first, slots)
        count, top_k = len(grid.expert), len(grid.order) // len(states)
        up, down = self._gate_up, self._down
        kernels.expert_up[(count, triton.cdiv(self._width, TILE_COLUMNS))](
            states, up.data, up.scales, *places, inner, top_k=top_k, width=self.hidden_size,
            outputs=self._width, **up.constants(states, self._experts),
        )  # fmt: skip
        kernels.expert_down[(count, triton.cdiv(self.hidden_size, TILE_COLUMNS))](
            inner, down.data, down.scales, *places, shares, outputs, width=self._width,
            outputs=self.hidden_size, **down.constants(states, self._experts),
        )  # fmt: skip


def _interpreted() -> bool:
    """Say whether Triton's interpreter runs the kernels.

    It multiplies bfloat16 as if its bits were integers. float32 holds every such product.
    """
    return isinstance(kernels.expert_up, InterpretedFunction)
