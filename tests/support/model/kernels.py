"""Compiles the fused sampler's kernels for GPUs that are not here, and says what came out.

`python -m tests.support.model.kernels 80 90` prints a JSON list, one object a kernel. Run it with
TRITON_INTERPRET=0: in the interpreter there is nothing to compile.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_kernel

from piecework_model.sampling import sampler_kernels, sampler_triton

VOCAB_TOKENS = 262_144
TILES = VOCAB_TOKENS // sampler_triton.TILE_TOKENS
WARP_THREADS = 32


def pointers(kernel: str, logits: str) -> list[str]:
    """The argument types of a kernel that come before its constants."""
    return {
        "summarise": [logits, "*fp32", "*fp32", "*i32"],
        "decide": [logits, "*fp32", "*fp64", "*fp32", "*i32", "*i64", "*fp32", "*fp32"],
        "soften": [logits, "*fp32", "*fp32", logits],
    }[kernel]


def source(kernel: str, logits: str) -> ASTSource:
    """A kernel for the released model, as `sample` launches it: only small inputs may be
    unaligned."""
    constants: dict[str, Any] = {
        "cap": 30.0,
        "vocab_size": VOCAB_TOKENS,
        "tile": sampler_triton.TILE_TOKENS,
    }
    if kernel == "decide":
        constants |= {"tiles": TILES, "lanes": TILES}
    function = getattr(sampler_kernels, kernel)
    types = dict(zip(function.arg_names, pointers(kernel, logits), strict=False))
    aligned = [i for i, name in enumerate(types) if name not in {"temperatures", "uniforms"}]
    return ASTSource(
        fn=function,
        signature=types | dict.fromkeys(constants, "constexpr"),
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", sampler_triton.ALIGNMENT_BYTES]] for i in aligned},
    )


def main() -> None:
    """Prints what each kernel became on each target."""
    found = []
    for capability in map(int, sys.argv[1:]):
        for logits in ("*bf16", "*fp32"):
            for kernel in ("summarise", "decide", "soften"):
                target = GPUTarget("cuda", capability, WARP_THREADS)
                options = {"num_warps": sampler_triton.WARPS}
                compiled = compile_kernel(source(kernel, logits), target=target, options=options)
                ptx = compiled.asm["ptx"]
                found.append(
                    {
                        "target": capability,
                        "logits": logits,
                        "kernel": kernel,
                        "cubin_bytes": len(compiled.asm["cubin"]),
                        "wide_loads": ptx.count("ld.global.v4.b32"),
                        "wide_stores": ptx.count("st.global.v4.b32"),
                        "atomics": len(re.findall(r"\b(?:atom|red)\.", ptx)),
                        "local_memory": ".local" in ptx,
                    }
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
