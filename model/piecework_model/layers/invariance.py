"""Batch invariance: whether a row of a matrix product depends on the number of rows, measured here.

Libraries choose kernels, and so orders of summation, by shape. A product of 1 to 3 rows is often
another sum than the same rows among 64. The order depends on shapes and addresses and never on the
values, so random values show it. As long as no product has fewer rows than `minimum_rows`, a row's
result is a function of the row alone. Where there is no such number, every sequence has to run
alone.

Products in float32 that are rounded to bfloat16 are measured before they are rounded. Few
differences of a sum cross a rounding, so random values would seldom show one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model.layers.projections import (
    Projection,
    can_pack,
    in_parts,
    is_emulated,
    may_pack,
    product,
    weight_projection,
)

ROW_COUNTS: Final = (
    *range(1, 17),
    20,
    24,
    31,
    32,
    33,
    48,
    64,
    65,
    96,
    128,
    192,
    256,
    320,
    384,
    512,
    576,
)
"""Row counts that are tried: all small ones, and those around the tiles of kernels."""
_MOST_ROWS: Final = 640
"""The most rows of a pass on a CPU, including a canvas beyond its limit."""
_MOST_INPUTS: Final = 32_768
"""Inner size of the tried product with a vocabulary on a CPU. More would take seconds."""
_SMALL_VOCABULARY: Final = 8_192
"""Tokens of a vocabulary whose embeddings may be stored in a second layout."""
_MOST_OUTPUTS: Final = 1024
"""Columns of a tried product. Kernels do not change beyond, and a vocabulary would take seconds."""
_SEED: Final = 20260214


@dataclass(frozen=True, slots=True)
class Invariance:
    """What was measured.

    minimum_rows: in products of at least so many rows, a row does not depend on their number.
    isolated: there is no such number, so every sequence must run alone.
    """

    minimum_rows: int
    isolated: bool


_turned: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()
_measured: WeakKeyDictionary[nn.Module, dict[int, Invariance]] = WeakKeyDictionary()


def invariance_of(model: DiffusionGemmaForBlockDiffusion) -> Invariance:
    """Measure once for each model and number of threads in this process."""
    known = _measured.setdefault(model, {})
    threads = torch.get_num_threads()
    if threads not in known:
        known[threads] = measure(model)
    return known[threads]


class FilledProducts(TorchFunctionMode):
    """A context in which transformers' linear modules multiply as the fast executor does on a CPU.

    None multiplies fewer than `minimum_rows` rows: rows of zeros are added and taken away again.
    What a CPU would emulate is made in float32.
    """

    def __init__(self, model: DiffusionGemmaForBlockDiffusion) -> None:
        super().__init__()
        self._minimum_rows = invariance_of(model).minimum_rows
        self._pack = may_pack(model)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function."""
        if func is functional.linear:
            return self._filled(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _filled(self, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        filled = states.reshape(-1, states.shape[-1])
        rows = filled.shape[0]
        if 0 < rows < self._minimum_rows:
            filled = functional.pad(filled, (0, 0, 0, self._minimum_rows - rows))
        if bias is None and is_emulated(weight):
            made = weight_projection(weight, self._pack)(filled)
        else:
            made = functional.linear(filled, weight, bias)
        return made[:rows].view(*states.shape[:-1], -1)


def soft_product(model: DiffusionGemmaForBlockDiffusion) -> Projection:
    """Return probabilities [C, V] @ embeddings [V, H], which makes soft embeddings.

    With a small vocabulary on a CPU there is a choice of two layouts of the embeddings. Libraries
    add up a long inner dimension in parts where there are few rows, and where that begins depends
    on the layout and the processor. So the layout is taken that needs fewer rows. It is the same
    for every executor of a process with this number of threads.
    """
    embedding: Tensor = model.model.decoder.embed_tokens.weight
    plain = product(embedding, may_pack(model))
    small = embedding.device.type == "cpu" and embedding.shape[0] <= _SMALL_VOCABULARY
    if not small or is_emulated(embedding) or (may_pack(model) and can_pack(embedding)):
        return plain
    across = embedding.detach().t().contiguous()

    def turned(rows: Tensor) -> Tensor:
        return functional.linear(rows, across)

    known = _turned.setdefault(model, {})
    threads = torch.get_num_threads()
    if threads not in known:
        known[threads] = _needed(_with_embeddings(embedding, turned)) < _needed(
            _with_embeddings(embedding, plain)
        )
    return turned if known[threads] else plain


def _exact(weight: Tensor) -> Tensor:
    """Return what a weight is multiplied as, before the product is rounded to the weight's type."""
    return weight.float() if is_emulated(weight) else weight


def _with_embeddings(embedding: Tensor, run: Projection) -> _Product:
    return _Product(run, embedding.shape[0], embedding.device, embedding.dtype)


def measure(model: DiffusionGemmaForBlockDiffusion) -> Invariance:
    """Try products of each width that a pass makes, with the model's own weights.

    Of large weights it tries a part.
    """
    canvas: int = model.config.canvas_length
    needed = max(map(_needed, _products(model)))
    return Invariance(1, isolated=True) if needed > canvas else Invariance(needed, isolated=False)


@dataclass(frozen=True, slots=True)
class _Product:
    """How to run a product, and what its rows are."""

    run: Projection
    width: int
    device: torch.device
    dtype: torch.dtype


def _needed(tried: _Product) -> int:
    """Find the least number of rows from which on no result depends on it.

    The number is beyond all tried ones if there is none.
    """
    generator = torch.Generator(device="cpu").manual_seed(_SEED)
    rows = torch.randn((_MOST_ROWS, tried.width), generator=generator).to(tried.device, tried.dtype)
    with torch.inference_mode():
        whole = tried.run(rows)
        wrong = [
            count
            for count in ROW_COUNTS
            if not torch.equal(tried.run(rows[:count].clone()), whole[:count])
            or not torch.equal(tried.run(rows[-count:].clone()), whole[-count:])
        ]
    return max(wrong, default=0) + 1


def _products(model: Any) -> Iterator[_Product]:
    """List one product of each kind and shape that a pass makes."""
    pack = may_pack(model)
    embedding: Tensor = model.model.decoder.embed_tokens.weight
    emulated = is_emulated(embedding)
    if emulated:
        embedding = _exact(embedding[:_MOST_INPUTS])
    device, dtype = embedding.device, embedding.dtype
    if emulated and pack:
        across = embedding[:, :_MOST_OUTPUTS].t().contiguous()
        yield _with_embeddings(embedding, weight_projection(across, pack))
    elif not emulated and embedding.shape[0] <= _SMALL_VOCABULARY:
        yield _with_embeddings(embedding, soft_product(model))
    else:
        if device.type == "cpu":
            embedding = embedding[:_MOST_INPUTS]
        columns = _MOST_OUTPUTS
        if emulated:
            whole = model.model.decoder.embed_tokens.weight
            columns = min(columns, whole.shape[1] // in_parts(whole))
        yield _with_embeddings(embedding, product(embedding[:, :columns], pack))
    seen: set[tuple[Any, ...]] = set()
    for name, module in model.named_modules():
        if "vision" in name:
            continue
        for kind, run, width in _of_module(module, model.config.text_config.hidden_size, pack):
            if kind not in seen:
                seen.add(kind)
                yield _Product(run(), width, device, dtype)


def _of_module(
    module: Any, hidden: int, pack: bool
) -> Iterator[tuple[tuple[Any, ...], Callable[[], Projection], int]]:
    """List the products of a module: of any kind of linear, and of experts.

    For each: what makes two products alike, how to run it, and how wide its rows are.
    """
    if type(module) is nn.Linear:
        yield (
            ("linear", *module.weight.shape),
            partial(_plain, module.weight, pack),
            module.in_features,
        )
    elif hasattr(module, "in_features"):
        yield (
            (type(module), module.in_features, module.out_features),
            lambda: module,
            module.in_features,
        )
    elif hasattr(module, "num_experts") and hasattr(module, "run"):
        yield (type(module),), lambda: partial(module.run, 0), hidden
    elif isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
        for weight in (module.gate_up_proj[0], module.down_proj[0]):
            yield ("expert", *weight.shape), partial(_plain, weight, pack), weight.shape[1]


def _plain(weight: Tensor, pack: bool) -> Projection:
    return weight_projection(_exact(weight[:_MOST_OUTPUTS]), pack)
