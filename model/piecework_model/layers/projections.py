"""Linear projections, in the way that is fastest with the same result.

A row's bits depend on the number of rows in most libraries, so products are made in pieces where
they do (layers/invariance.py).

On CUDA, products are those of layers/matmul.py, where a row's bits do not depend on the number of
rows.

On a CPU in bfloat16, oneDNN converts the layout of the weights in every call. With weights
converted once, the same product takes half the time at few rows. The bits are those of the plain
product, but for some numbers of rows with AMX. In float32 the converted product is another order of
sums (MKL against oneDNN) and no faster for small weights, so those run as torch runs them.

Many CPUs have no instructions for bfloat16. oneDNN emulates it there. In rare cases a row's last
bit then depends on the number of rows, and products of many rows take two to four times as long as
in float32 (docs/LOG.md). So there a product in bfloat16 is made in float32, of the same values, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model import limits
from piecework_model.layers import matmul as tiled
from piecework_model.layers.invariance import (
    ForeignKind,
    InvariantProduct,
    ProductKind,
    Projection,
    WeightKind,
)

Projections = Callable[[Tensor], tuple[Tensor, ...]]
"""[rows, in] to [rows, out] of each of several modules."""

PACK_ROWS_HINT: Final = 64
"""oneDNN chooses a layout for about so many rows. It serves every number of rows."""

MOST_OUTPUTS: Final = 4096
"""Columns of a product. A wider one, as with a vocabulary, is made of several: measuring the span
of a very wide one would take seconds."""
_WIDE_NUMBERS: Final = 2**24
"""Numbers of a weight that are converted to float32 at once: 64 MiB."""


def products_name(weight: Tensor) -> str:
    """Name what multiplies by weights of this type on this device, for the engine profile."""
    if is_emulated(weight):
        return "float32"
    return "tiled" if _is_fixed(weight) else "torch"


def products_reason(weight: Tensor) -> str:
    """Say why products with weights of this type are left to the library, or return ""."""
    return tiled.why_rejected(weight.device, weight.dtype)


def may_pack(model: nn.Module) -> bool:
    """Say whether a model is small enough to store its weights a second time."""
    sizes = (weight.numel() * weight.element_size() for weight in model.parameters())
    return sum(sizes) <= limits.PACK_MAX_BYTES


def can_pack(weight: Tensor) -> bool:
    """Say whether a weight [out, in] gains from being converted once."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    halved = weight.device.type == "cpu" and weight.dtype is torch.bfloat16
    return built and halved and not is_emulated(weight)


def is_emulated(weight: Tensor) -> bool:
    """Say whether a weight is in bfloat16 on a CPU without instructions for products in it."""
    if weight.device.type != "cpu" or weight.dtype is not torch.bfloat16:
        return False
    return not multiplies_bfloat16(torch.cpu.get_capabilities())


def multiplies_bfloat16(capabilities: Mapping[str, Any]) -> bool:
    """Say whether a CPU has an instruction for products in bfloat16, by torch's list of them."""
    return any(found for name, found in capabilities.items() if "bf16" in name)


@dataclass(frozen=True, slots=True)
class Products:
    """How products with the weights of one model are made.

    like: a weight [out, in] whose rows have the width, device and type of the model's, as the
    embeddings have. pack: whether weights may be stored a second time in another layout. invariant:
    whether a row's bits must not depend on the number of rows. made: those that must not, as they
    are asked for.
    """

    like: Tensor
    pack: bool
    invariant: bool = True
    made: list[InvariantProduct] = field(default_factory=list)

    @property
    def isolated(self) -> bool:
        """Whether a row depends on the number of rows all the same. Then sequences run alone.

        Asking measures each kind of product, once for each number of threads.
        """
        return any(product.span() is None for product in self.made)

    def of_module(self, module: Any) -> Projection:
        """Return how to run a linear module. Modules of other kinds (quantized ones) run as they
        are.
        """
        if not is_plain(module):
            return self.of_foreign(module, (type(module), str(module)), module.in_features)
        weight = module.weight
        wide = self.invariant and weight.shape[0] > MOST_OUTPUTS
        if wide or _is_fixed(weight) or is_emulated(weight) or self._packs(weight):
            return self.of_weight(weight)
        # The module itself runs, with whatever is hooked to it.
        return self._in_span(module, WeightKind.of(_plain, weight))

    def of_modules(self, modules: Sequence[nn.Module]) -> Projections:
        """Return how to run linear modules on the same rows.

        Where products are made of tiles of one size, an output's bits do not depend on its
        neighbours (`matmul.try_product`). There the modules run as one product, which fills the
        device better.
        """
        linears = [module for module in modules if is_plain(module)]
        if len(linears) == len(modules) and all(_is_fixed(module.weight) for module in linears):
            return joined(linears, tiled.multiply)
        runs = [self.of_module(module) for module in modules]
        return lambda rows: tuple(run(rows) for run in runs)

    def of_foreign(self, run: Projection, name: Hashable, width: int) -> Projection:
        """Return how to run something that multiplies rows of this width in its own way.

        name: equal for what multiplies alike.
        """
        return self._in_span(run, ForeignKind(name, width, self.like.dtype, self.like.device))

    def of_weight(self, weight: Tensor) -> Projection:
        """Return x @ weight.T for a weight [out, in]."""
        if _is_fixed(weight):
            return lambda rows: tiled.multiply(rows, weight)
        if is_emulated(weight):
            return self._in_float32(weight)
        return self._by_columns(weight, _packed if self._packs(weight) else _plain)

    def of_matrix(self, matrix: Tensor) -> Projection:
        """Return x @ matrix for a matrix [in, out]. A row may depend on the number of rows."""
        if _is_fixed(matrix):
            return lambda rows: tiled.multiply(rows, matrix.t())
        if self._packs(matrix) or (self.pack and is_emulated(matrix)):
            return replace(self, invariant=False).of_weight(matrix.t().contiguous())
        if is_emulated(matrix):
            return _columns_in_float32(matrix)
        return lambda rows: torch.matmul(rows, matrix)

    def of_embeddings(self, embeddings: Tensor, canvas: int) -> Projection:
        """Return probabilities [C, V] @ embeddings [V, H] of any number of canvases.

        Libraries add up so long an inner dimension in parts, and where a part ends depends on the
        number of rows. So each canvas is a product of its own.
        """
        run = self.of_matrix(embeddings)
        if _is_fixed(embeddings):
            return run
        return lambda rows: torch.cat([run(each) for each in torch.split(rows, canvas)])

    def _by_columns(self, weight: Tensor, make: Callable[[Tensor], Projection]) -> Projection:
        """Return a product of several parts of a weight [out, in], each with a span."""
        parts = torch.split(weight, MOST_OUTPUTS) if self.invariant else (weight,)
        runs = [self._in_span(make(part), WeightKind.of(make, part)) for part in parts]
        if len(runs) == 1:
            return runs[0]
        return lambda rows: torch.cat([run(rows) for run in runs], dim=-1)

    def _in_float32(self, weight: Tensor) -> Projection:
        """Return x @ weight.T in float32, rounded to the weight's type.

        With `pack` the weight in float32 is kept. Else it is made part by part at each product.
        """
        dtype = weight.dtype
        if self.pack:
            kept = self._by_columns(weight.detach().float(), _plain)
            return lambda rows: kept(rows.float()).to(dtype)
        runs = []
        for part in torch.tensor_split(weight, in_parts(weight)):
            kind = replace(WeightKind.of(_plain, part), dtype=torch.float32)
            runs.append(self._in_span(partial(_widened, part), kind))

        def run(rows: Tensor) -> Tensor:
            wide = rows.float()
            return torch.cat([part(wide).to(dtype) for part in runs], dim=-1)

        return run

    def _packs(self, weight: Tensor) -> bool:
        return self.pack and can_pack(weight)

    def _in_span(self, run: Projection, kind: ProductKind) -> Projection:
        if not self.invariant:
            return run
        product = InvariantProduct(run, kind)
        self.made.append(product)
        return product


def products_of(
    model: DiffusionGemmaForBlockDiffusion, *, pack: bool | None = None, invariant: bool = True
) -> Products:
    """Return how the products of a model are made. Without `pack` its size decides."""
    embeddings: Tensor = model.model.decoder.embed_tokens.weight
    return Products(embeddings, may_pack(model) if pack is None else pack, invariant)


def _plain(weight: Tensor) -> Projection:
    """Return the product as torch makes it."""
    return lambda rows: functional.linear(rows, weight)


def _packed(weight: Tensor) -> Projection:
    """Return the product with a weight that oneDNN has converted once."""
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight.detach(), PACK_ROWS_HINT)

    def run(rows: Tensor) -> Tensor:
        product: Tensor = operators._linear_pointwise(rows, packed, None, "none", [], "")
        return product

    return run


def _widened(part: Tensor, rows: Tensor) -> Tensor:
    """Multiply by a part of a weight that becomes float32 for this."""
    return functional.linear(rows, part.float())


def in_parts(weight: Tensor) -> int:
    """Say in how many parts of equal size a weight becomes float32."""
    return -(-weight.numel() // _WIDE_NUMBERS)


def joined(modules: Sequence[nn.Linear], multiply: tiled.Multiply) -> Projections:
    """Run linear modules of equal width as one product.

    Their weights become parts of one matrix, which takes their place, so that none is stored twice.
    """
    sizes = [module.out_features for module in modules]
    whole = torch.cat([module.weight.detach() for module in modules])
    for module, part in zip(modules, torch.split(whole, sizes), strict=True):
        module.weight.data = part
    return lambda rows: torch.split(multiply(rows, whole), sizes, dim=-1)


def _columns_in_float32(matrix: Tensor) -> Projection:
    """Return x @ matrix in float32, rounded to the matrix's type. It keeps nothing."""
    parts = torch.tensor_split(matrix, in_parts(matrix), dim=1)

    def run(rows: Tensor) -> Tensor:
        wide = rows.float()
        made = [torch.matmul(wide, part.float()).to(matrix.dtype) for part in parts]
        return torch.cat(made, dim=-1)

    return run


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Say whether a module is torch's own linear without bias."""
    return type(module) is nn.Linear and module.bias is None


def _is_fixed(weight: Tensor) -> bool:
    """Say whether products with it are made of tiles of one size."""
    return weight.device.type == "cuda" and not tiled.why_rejected(weight.device, weight.dtype)
