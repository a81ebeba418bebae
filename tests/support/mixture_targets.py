"""Compiles the kernels of the fused mixture for GPUs that are not here, and says what came out.

`python -m tests.support.mixture_targets 80 90` prints a JSON list. Run it with TRITON_INTERPRET=0.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from model import mixture_kernels, mixture_triton

HIDDEN, WIDTH, EXPERTS, TOP_K = 2816, 704, 128, 8
FLOAT8_CAPABILITY = 89
WARP_THREADS = 32


def constants(up: bool, float8: bool) -> dict[str, Any]:
    """What a kernel is compiled for with the weights of the released model."""
    own = 2 * WIDTH * HIDDEN if up else HIDDEN * WIDTH
    expert = 3 * WIDTH * HIDDEN + 4 * (2 * WIDTH + HIDDEN)  # bytes of all fields of a packed expert
    made = {
        "experts": EXPERTS,
        "width": HIDDEN if up else WIDTH,
        "outputs": WIDTH if up else HIDDEN,
        "weight_stride": expert if float8 else own,
        "scale_stride": expert // 4 if float8 else 0,
        "scaled": float8,
        "compute": tl.bfloat16,
        "rows": mixture_triton.TILE_ROWS,
        "columns": mixture_triton.TILE_COLUMNS,
        "inner": mixture_triton.TILE_INNER,
    }
    return made | ({"top_k": TOP_K} if up else {}) | ({} if float8 else {"scale": None})


def source(up: bool, float8: bool) -> ASTSource:
    """A kernel as `FusedMixture` launches it."""
    function = mixture_kernels.expert_up if up else mixture_kernels.expert_down
    places = ["*i32"] * 4
    types = [
        "*bf16",
        "*fp8e4nv" if float8 else "*bf16",
        "*fp32",
        *places,
        *([] if up else ["*fp32"]),
        "*bf16",
    ]
    fixed = constants(up, float8)
    pointers = dict(zip(function.arg_names, types, strict=False))
    signature = {name: "constexpr" if name in fixed else pointers[name] for name in function.arg_names}
    aligned = [i for i, name in enumerate(function.arg_names) if signature[name] != "constexpr"]
    return ASTSource(
        fn=function,
        signature=signature,
        constexprs=fixed,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )


def compiled(capability: int) -> Iterator[dict[str, Any]]:
    """Each kernel on one target."""
    for float8 in (False, True) if capability >= FLOAT8_CAPABILITY else (False,):
        for up in (True, False):
            options = {"num_warps": mixture_triton.WARPS, "num_stages": mixture_triton.STAGES}
            made = compile(source(up, float8), GPUTarget("cuda", capability, WARP_THREADS), options)
            ptx = made.asm["ptx"]
            yield {
                "target": capability,
                "float8": float8,
                "kernel": "expert_up" if up else "expert_down",
                "shared_bytes": made.metadata.shared,
                "tensor_core_products": len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\.", ptx)),
                "asynchronous_copies": ptx.count("cp.async.cg.shared.global"),
                "local_memory": ".local" in ptx,
            }


if __name__ == "__main__":
    print(json.dumps([kernel for capability in sys.argv[1:] for kernel in compiled(int(capability))]))
