"""What `bench.gpu` measures of weights: experts in host memory, and loading from files."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch

from bench import gpu_measures
from bench.gpu_measures import GpuDevice
from bench.random_model import RandomDimensions, build, released_recipe
from piecework_model import limits
from piecework_model.checkpoint import headers
from piecework_model.checkpoint.digests import DigestStore
from piecework_model.checkpoint.weights import Placement, load_weights
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.precision import Quantization

LAYERS: Final = 6
"""Of these models: one layer with full attention, and a fifth of the released one's weights."""
SHARD: Final = "2GB"


def offload(
    sizes: RandomDimensions, device: GpuDevice, *, shares: tuple[float, ...], steps: int
) -> dict[str, Any]:
    """Steps of one sequence with int4 experts in host memory, a share of them on the device too.

    With a share of 1 nothing is copied after the first step. What a smaller one takes longer is
    what the copies cost that no computation hides.
    """
    few = replace(sizes, layers=LAYERS)
    figures: dict[str, Any] = {"layers": LAYERS}
    for share in shares:
        random = build(few, device.torch, "int4", resident_share=share)
        executor = BatchedExecutor(random.model, random.limits)
        run = gpu_measures.run_canvas(executor, random, 1, steps, device)
        figures[f"resident_{share:.0%}"] = {
            **gpu_measures.times_of(run.step_s),
            "codec": random.codec,
            "host_bytes": random.host_bytes,
            "peak_bytes": run.peak_bytes,
        }
        del random, executor
        device.release()
    return figures


def loading(sizes: RandomDimensions, device: GpuDevice) -> dict[str, Any]:
    """Load a checkpoint from the page cache, where writing it has left it: no disk is measured.

    Hashed on the way with one thread and with several, and with its digests known.
    """
    few = replace(sizes, layers=LAYERS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random = build(few, device.torch, "none")
        random.model.save_pretrained(folder, max_shard_size=SHARD)
        config = random.model.config
        del random
        device.release()
        tensors = headers.read_folder(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        figures: dict[str, Any] = {"layers": LAYERS, "file_bytes": size}
        kinds: tuple[Quantization, ...] = ("none", "int4")
        for kind in kinds:
            recipe = released_recipe(few, device.torch, kind)
            for threads, known in ((1, False), (limits.LOAD_THREADS, False), (1, True)):
                digests = DigestStore()
                for path in folder.glob("*.safetensors") if known else ():
                    digests.of(path)
                start = time.perf_counter()
                placement = Placement(torch.bfloat16, device.torch, recipe)
                model = load_weights(
                    folder, tensors, config, placement, digests=digests, threads=threads
                )
                device.wait()
                seconds = time.perf_counter() - start
                name = f"{kind}_{'known' if known else 'hashed'}_{threads}_threads"
                figures[name] = {"seconds": seconds, "bytes_second": size / seconds}
                del model
                device.release()
        return figures
