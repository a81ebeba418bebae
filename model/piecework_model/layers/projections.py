"""Linear projections, in the way that is fastest with the same result.

On CUDA, products are those of layers/matmul.py, where a row's bits do not depend on the number of
rows.

On a CPU in bfloat16, oneDNN converts the layout of the weights in every call. With weights
converted once, the same product takes half the time at few rows and is equal bit for bit. In
float32 the converted product is another order of sums (MKL against oneDNN) and no faster for small
weights, so those run as torch runs them.

Many CPUs have no instructions for bfloat16. oneDNN emulates it there. In rare cases a row's last
bit then depends on the number of rows, and products of many rows take two to four times as long as
in float32 (docs/LOG.md). So there a product in bfloat16 is made in float32, of the same values, and
rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from piecework_model import limits
from piecework_model.layers import matmul as products

Projection = Callable[[Tensor], Tensor]
"""[rows, in] to [rows, out]."""

Projections = Callable[[Tensor], tuple[Tensor, ...]]
"""[rows, in] to [rows, out] of each of several modules."""

PACK_ROWS_HINT: Final = 64
"""oneDNN chooses a layout for about so many rows. It serves every number of rows."""

_WIDE_NUMBERS: Final = 2**24
"""Numbers of a weight that are converted to float32 at once: 64 MiB."""


def products_name(weight: Tensor) -> str:
    """Name what multiplies by weights of this type on this device, for the engine profile."""
    if is_emulated(weight):
        return "float32"
    return "tiled" if _is_fixed(weight) else "torch"


def products_reason(weight: Tensor) -> str:
    """Say why products with weights of this type are left to the library, or return ""."""
    return products.why_rejected(weight.device, weight.dtype)


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


def projection(module: nn.Module, pack: bool) -> Projection:
    """Return how to run a linear module. Modules of other kinds (quantized ones) run as they
    are.
    """
    if _is_plain(module):
        weight = module.weight
        if _is_fixed(weight) or is_emulated(weight) or (pack and can_pack(weight)):
            return weight_projection(weight, pack)
    return module


def weight_projection(weight: Tensor, pack: bool) -> Projection:
    """Return x @ weight.T for a weight [out, in]."""
    if _is_fixed(weight):
        return lambda rows: products.multiply(rows, weight)
    if is_emulated(weight):
        return _in_float32(weight, keep=pack)
    if not (pack and can_pack(weight)):
        return lambda rows: functional.linear(rows, weight)
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight.detach(), PACK_ROWS_HINT)

    def run(rows: Tensor) -> Tensor:
        product: Tensor = operators._linear_pointwise(rows, packed, None, "none", [], "")
        return product

    return run


def _in_float32(weight: Tensor, *, keep: bool) -> Projection:
    """Return x @ weight.T in float32, rounded to the weight's type.

    keep: whether the weight in float32 is kept, or made part by part at each product.
    """
    if keep:
        kept = weight.detach().float()
        return lambda rows: functional.linear(rows.float(), kept).to(weight.dtype)
    parts = torch.tensor_split(weight, in_parts(weight))

    def run(rows: Tensor) -> Tensor:
        wide = rows.float()
        made = [functional.linear(wide, part.float()).to(weight.dtype) for part in parts]
        return torch.cat(made, dim=-1)

    return run


def in_parts(weight: Tensor) -> int:
    """Say in how many parts of equal size a weight becomes float32."""
    return -(-weight.numel() // _WIDE_NUMBERS)


def projections(modules: Sequence[nn.Module], pack: bool) -> Projections:
    """Return how to run linear modules on the same rows.

    Where products are made of tiles of one size, an output's bits do not depend on its neighbours
    (`matmul.try_product`). There the modules run as one product, which fills the device better.
    """
    linears = [module for module in modules if _is_plain(module)]
    if len(linears) == len(modules) and all(_is_fixed(module.weight) for module in linears):
        return joined(linears, products.multiply)
    runs = [projection(module, pack) for module in modules]
    return lambda rows: tuple(run(rows) for run in runs)


def joined(modules: Sequence[nn.Linear], multiply: products.Multiply) -> Projections:
    """Run linear modules of equal width as one product.

    Their weights become parts of one matrix, which takes their place, so that none is stored twice.
    """
    sizes = [module.out_features for module in modules]
    whole = torch.cat([module.weight.detach() for module in modules])
    for module, part in zip(modules, torch.split(whole, sizes), strict=True):
        module.weight.data = part
    return lambda rows: torch.split(multiply(rows, whole), sizes, dim=-1)


def product(matrix: Tensor, pack: bool) -> Projection:
    """Return x @ matrix for a matrix [in, out]."""
    if _is_fixed(matrix):
        return lambda rows: products.multiply(rows, matrix.t())
    if is_emulated(matrix) and not pack:
        return _columns_in_float32(matrix)
    if not (is_emulated(matrix) or (pack and can_pack(matrix))):
        return lambda rows: torch.matmul(rows, matrix)
    return weight_projection(matrix.t().contiguous(), pack)


def _columns_in_float32(matrix: Tensor) -> Projection:
    """Return x @ matrix in float32, rounded to the matrix's type. It keeps nothing."""
    parts = torch.tensor_split(matrix, in_parts(matrix), dim=1)

    def run(rows: Tensor) -> Tensor:
        wide = rows.float()
        made = [torch.matmul(wide, part.float()).to(matrix.dtype) for part in parts]
        return torch.cat(made, dim=-1)

    return run


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Say whether a module is torch's own linear without bias."""
    return type(module) is nn.Linear and module.bias is None


def _is_fixed(weight: Tensor) -> bool:
    """Say whether products with it are made of tiles of one size."""
    return weight.device.type == "cuda" and not products.why_rejected(weight.device, weight.dtype)
