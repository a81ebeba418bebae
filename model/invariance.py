"""Whether a row of a matrix product depends on how many rows there are, measured on this machine.

Libraries choose kernels, and so orders of summation, by shape: a product of 1 to 3 rows is often another sum
than the same rows among 64. Which order is taken depends on shapes and addresses and never on the numbers,
so random numbers show it. A row's result is then a function of the row alone as long as no product has fewer
rows than `minimum_rows`, and where no such number exists every row has to run alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DiffusionGemmaForBlockDiffusion

from model.projections import weight_projection

ROW_COUNTS: Final = (*range(1, 17), 20, 24, 31, 32, 33, 48, 64, 65, 96, 128, 192, 256)
"""Row counts that are tried: all small ones, and those around the tiles of kernels."""
_MOST_ROWS: Final = 320
_MOST_OUTPUTS: Final = 1024
"""Columns that are tried of a product: kernels do not change beyond, and a vocabulary would take seconds."""
_SEED: Final = 20260214


@dataclass(frozen=True, slots=True)
class Invariance:
    """minimum_rows: products of at least so many rows have rows that do not depend on their number.
    isolated: there is no such number that would serve; every row of the engine must run alone."""

    minimum_rows: int
    isolated: bool


_measured: WeakKeyDictionary[nn.Module, dict[int, Invariance]] = WeakKeyDictionary()


def invariance_of(model: DiffusionGemmaForBlockDiffusion) -> Invariance:
    """What `measure` says, once for each model and number of threads in this process."""
    known = _measured.setdefault(model, {})
    threads = torch.get_num_threads()
    if threads not in known:
        known[threads] = measure(model)
    return known[threads]


def measure(model: DiffusionGemmaForBlockDiffusion) -> Invariance:
    """Tries every shape of product that a pass makes with the model's own weights."""
    canvas: int = model.config.canvas_length
    needed = max((_needed(run, width, weight) for run, width, weight in _products(model)), default=1)
    return Invariance(1, isolated=True) if needed > canvas else Invariance(needed, isolated=False)


def _needed(run: Callable[[Tensor], Tensor], width: int, weight: Tensor) -> int:
    """The least number of rows from which on nothing depends on it; beyond all tried ones if there is
    none."""
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    rows = torch.randn((_MOST_ROWS, width), generator=generator).to(weight.device, weight.dtype)
    with torch.inference_mode():
        whole = run(rows)
        wrong = [
            count
            for count in ROW_COUNTS
            if not torch.equal(run(rows[:count].clone()), whole[:count])
            or not torch.equal(run(rows[-count:].clone()), whole[-count:])
        ]
    return max(wrong, default=0) + 1


def _products(model: Any) -> Iterator[tuple[Callable[[Tensor], Tensor], int, Tensor]]:
    """One product of each shape: how to run it, its inputs a row, and its weight."""
    seen: set[tuple[Any, ...]] = set()
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "vision" not in name:
            yield from _once(seen, module.weight)
        elif hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, nn.Parameter):
            yield from _once(seen, module.gate_up_proj[0])
            yield from _once(seen, module.down_proj[0])
    embedding: Tensor = model.model.decoder.embed_tokens.weight[:_MOST_OUTPUTS]
    yield lambda rows: torch.matmul(rows, embedding), embedding.shape[0], embedding


def _once(
    seen: set[tuple[Any, ...]], weight: Tensor
) -> Iterator[tuple[Callable[[Tensor], Tensor], int, Tensor]]:
    if tuple(weight.shape) not in seen:
        seen.add(tuple(weight.shape))
        used = weight[:_MOST_OUTPUTS]
        yield weight_projection(used, pack=True), used.shape[1], used
