"""Compiles the kernels of products and of the fused mixture for GPUs that are not here, and
describes them.

`python -m tests.support.model.kernel_targets 80 90` prints a JSON list. Run it with
TRITON_INTERPRET=0.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from piecework_model.layers import matmul as products
from piecework_model.layers import matmul_kernels as product_kernels
from piecework_model.layers import moe_kernels, moe_triton

HIDDEN, WIDTH, EXPERTS, TOP_K, VOCABULARY = 2816, 704, 128, 8, 262_144
FLOAT8_CAPABILITY = 89
WARP_THREADS = 32


BFLOAT16, FLOAT8, INT4 = "bfloat16", "float8", "int4"
GROUP = 64


def constants(up: bool, kind: str, *, mapped: bool = False) -> dict[str, Any]:
    """What a kernel is compiled for with the weights of the released model."""
    own = 2 * WIDTH * HIDDEN if up else HIDDEN * WIDTH
    weights = 3 * WIDTH * HIDDEN
    # Bytes of all fields of a packed expert.
    expert = {
        FLOAT8: weights + 4 * (2 * WIDTH + HIDDEN),
        INT4: weights // 2 + 2 * weights // GROUP,
    }.get(kind, 0)
    made = {
        "experts": EXPERTS,
        "width": HIDDEN if up else WIDTH,
        "outputs": WIDTH if up else HIDDEN,
        "weight_stride": expert or own,
        "scale_stride": expert // (2 if kind == INT4 else 4),
        "scaled": kind == FLOAT8,
        "group": GROUP if kind == INT4 else 0,
        "compute": tl.bfloat16,
        "rows": moe_triton.TILE_ROWS,
        "columns": moe_triton.TILE_COLUMNS,
        "inner": moe_triton.TILE_INNER,
    }
    if not mapped:
        made["slots"] = None
    return made | ({"top_k": TOP_K} if up else {}) | ({"scale": None} if kind == BFLOAT16 else {})


def source(up: bool, kind: str, *, mapped: bool = False) -> ASTSource:
    """A kernel as `FusedMoe` launches it. mapped: with experts in slots."""
    function = moe_kernels.expert_up if up else moe_kernels.expert_down
    places = ["*i32"] * 5
    types = [
        "*bf16",
        {FLOAT8: "*fp8e4nv", INT4: "*u8"}.get(kind, "*bf16"),
        "*bf16" if kind == INT4 else "*fp32",
        *places,
        *([] if up else ["*fp32"]),
        "*bf16",
    ]
    fixed = constants(up, kind, mapped=mapped)
    pointers = dict(zip(function.arg_names, types, strict=False))
    signature = {
        name: "constexpr" if name in fixed else pointers[name] for name in function.arg_names
    }
    aligned = [i for i, name in enumerate(function.arg_names) if signature[name] != "constexpr"]
    return ASTSource(
        fn=function,
        signature=signature,
        constexprs=fixed,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )


def product(turned: bool) -> ASTSource:
    """The product with the embedding: for logits, and turned for soft embeddings."""
    width, outputs = (VOCABULARY, HIDDEN) if turned else (HIDDEN, VOCABULARY)
    function = product_kernels.fixed_product
    fixed = {
        "width": width,
        "outputs": outputs,
        "output_stride": 1 if turned else width,
        "width_stride": outputs if turned else 1,
        "compute": tl.bfloat16,
        "rows": products.TILE_ROWS,
        "columns": products.TILE_COLUMNS,
        "inner": products.TILE_INNER,
    }
    signature = {"states": "*bf16", "weight": "*bf16", "out": "*bf16", "count": "i32"}
    return ASTSource(
        fn=function,
        signature=signature | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        attrs={(i,): [["tt.divisibility", 16]] for i in range(3)},
    )


def sources(capability: int) -> Iterator[tuple[str, ASTSource]]:
    """Every kernel that a target can run, by name."""
    for kind in (BFLOAT16, FLOAT8, INT4):
        if kind != FLOAT8 or capability >= FLOAT8_CAPABILITY:
            yield f"expert_up {kind}", source(True, kind)
            yield f"expert_down {kind}", source(False, kind)
    for name, up in (("expert_up", True), ("expert_down", False)):
        yield f"{name} {INT4} in slots", source(up, INT4, mapped=True)
    yield "fixed_product straight", product(turned=False)
    yield "fixed_product turned", product(turned=True)


def compiled(capability: int) -> Iterator[dict[str, Any]]:
    """Each kernel on one target."""
    options = {"num_warps": moe_triton.WARPS, "num_stages": moe_triton.STAGES}
    for name, kernel in sources(capability):
        made = compile_kernel(kernel, GPUTarget("cuda", capability, WARP_THREADS), options)
        ptx = made.asm["ptx"]
        yield {
            "target": capability,
            "kernel": name,
            "shared_bytes": made.metadata.shared,
            "tensor_core_products": len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\.", ptx)),
            "asynchronous_copies": ptx.count("cp.async.cg.shared.global"),
            "local_memory": ".local" in ptx,
        }


if __name__ == "__main__":
    print(
        json.dumps([kernel for capability in sys.argv[1:] for kernel in compiled(int(capability))])
    )
