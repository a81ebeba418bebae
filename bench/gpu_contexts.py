"""What `bench.gpu` measures at long contexts.

Attention of a layer, prompts of 8 K and 32 K, and the memory that they take beside the memory that
was planned for them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import random_model
from bench.gpu_measures import GpuDevice, request, step_of, times_of
from bench.random_model import RandomDimensions, RandomModel
from piecework_model.checkpoint import memory
from piecework_model.checkpoint.dimensions import Blueprint, dimensions, published_tensors
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.scheduler import SequenceWork, prompt_chunks
from piecework_model.layers.attention import attend, why_unfused
from piecework_model.precision import Precision, Quantization


@torch.inference_mode()
def attention(
    device: GpuDevice, sizes: RandomDimensions, contexts: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Attention of one layer of each kind: a canvas behind a context, and a chunk of its prefill.

    refused: why the fused kernels do not take the call. A refused call would run in the math path,
    at gigabytes a layer. It is not timed, and the section fails.
    """
    figures: dict[str, Any] = {}
    refusals = []
    for name, kv_heads, dim in (
        ("sliding", sizes.kv_heads, sizes.head_dim),
        ("full", sizes.full_kv_heads, sizes.full_head_dim),
    ):
        for context in contexts:
            seen = min(context, sizes.window - 1) if name == "sliding" else context
            for use, tokens in (("canvas", sizes.canvas), ("chunk", 2 * sizes.canvas)):
                call = _call(device, (tokens, sizes.heads, kv_heads, dim, seen), use == "chunk")
                device.forget_peak()
                refused = why_unfused(*call)
                refusals += [f"{name} {use} at {context}: {refused}"] * bool(refused)
                figures[f"{name}_{use}_{context}"] = {"refused": refused} if refused else {
                    **times_of(device.times(partial(attend, *call), rounds)),
                    "peak_bytes": device.peak_bytes(),
                }  # fmt: skip
    if refusals:
        raise RuntimeError("attention needs the math path: " + "; ".join(refusals))
    return figures


def _call(
    device: GpuDevice, shape: tuple[int, int, int, int, int], masked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries, keys, values and mask of one call."""
    tokens, heads, kv_heads, dim, seen = shape
    generator = torch.Generator(device.torch).manual_seed(5)

    def normal(*size: int) -> Tensor:
        made = torch.empty(size, dtype=torch.bfloat16, device=device.torch)
        return made.normal_(generator=generator)

    keys, values = normal(2, kv_heads, seen + tokens, dim)
    mask = None
    if masked:
        everything = torch.ones((tokens, seen + tokens), dtype=torch.bool, device=device.torch)
        mask = everything.tril_(seen)
    return normal(tokens, heads, dim), keys, values, mask


def prompts(
    random: RandomModel,
    device: GpuDevice,
    sizes: RandomDimensions,
    quantization: Quantization,
    *,
    contexts: Sequence[int],
    steps: int,
) -> dict[str, Any]:
    """One sequence behind a long prompt: prefill, steps, and peak memory beside the plan."""
    executor = BatchedExecutor(random.model, random.limits)
    executor.record(1)
    return {
        f"prompt_{context}": _prompt(executor, random, device, context, steps)
        | planned(sizes, quantization, 1, context)
        for context in contexts
    }


def _prompt(
    executor: BatchedExecutor, random: RandomModel, device: GpuDevice, context: int, steps: int
) -> dict[str, Any]:
    tokens = context - 2 * random.limits.canvas_size  # room for the job's own canvases
    job = request(0, random, steps + 1, tokens)
    executor.open(job)
    try:
        device.forget_peak()
        start = time.perf_counter()
        for _ in prompt_chunks(job.prompt_ids, executor.chunk_tokens):
            step_of(executor, [SequenceWork(job.request_id, 1, denoise=False)])
        device.wait()
        prefill_s = time.perf_counter() - start
        taken = []
        for _ in range(steps):
            start = time.perf_counter()
            step_of(executor, [SequenceWork(job.request_id, 0, denoise=True)])
            taken.append(time.perf_counter() - start)
        return {
            "prefill_s": prefill_s,
            "prefill_tokens_second": tokens / prefill_s,
            "first_step_ms": 1000 * taken[0],
            **times_of(taken[1:]),
            "peak_bytes": device.peak_bytes(),
        }
    finally:
        executor.close(job.request_id)


def planned(
    sizes: RandomDimensions, quantization: Quantization, sequences: int, context: int
) -> dict[str, int]:
    """What the planner counts for it: all of it, and the weights alone."""
    of = dimensions(random_model.config(sizes).to_dict(), Path("config.json"))
    precision: Precision = "bfloat16" if quantization == "none" else quantization
    need = memory.need(
        Blueprint(of, tuple(published_tensors(of))),
        (precision, "bfloat16", quantization),
        "cuda",
        sequences,
        context,
    )
    return {"planned_bytes": need.device_bytes, "planned_weight_bytes": need.weights_bytes}
