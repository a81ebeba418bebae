"""What `bench.gpu` measures: the device, the sampler, and a model's denoising steps."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from bench.random_model import RandomModel
from bench.report import percentile
from bench.sections import Budget
from piecework_model.engine.batched import BatchedExecutor
from piecework_model.engine.denoiser import Denoiser
from piecework_model.engine.executor import SequenceStep
from piecework_model.engine.reference import ReferenceExecutor
from piecework_model.engine.scheduler import PrefillChunk, SequenceWork
from piecework_model.layers import matmul as products
from piecework_model.layers import moe_backends
from piecework_model.layers.backbone import Backbone, Segment
from piecework_model.layers.cache import SequenceCache
from piecework_model.layers.moe import Moe
from piecework_model.layers.projections import products_of
from piecework_model.layout import cache_layout
from piecework_model.requests import FailedEvent, GenerationRequest
from piecework_model.sampling import sampler
from piecework_model.sampling.sampler import SampleOutput
from piecework_model.sampling.sampler_backends import SampleFn, why_rejected

CAP: Final = 30.0
TEMPERATURE: Final = 0.6
WARM_UP_STEPS: Final = 3
"""Not timed: kernels are compiled once, and not for every canvas."""
PROMPT_TOKENS: Final = 300
"""Of every sequence: more than a canvas, less than the window and than a chunk of prefill."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the device was measured to do; None where that section failed."""

    read_bytes_second: float | None
    flops_second: float | None


class StepFailedError(RuntimeError):
    """A sequence failed instead of making a step."""


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """Where it is measured. On a CPU peak memory is that of the whole process."""

    torch: torch.device

    @property
    def is_cuda(self) -> bool:
        return self.torch.type == "cuda"

    def wait(self) -> None:
        """Until all that was asked of the device is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        """Peak memory is counted from here on, where the device can do that."""
        if self.is_cuda:
            torch.cuda.reset_peak_memory_stats()

    def release(self) -> None:
        """Gives back the memory of what is no longer referred to."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def peak_bytes(self) -> int:
        """The most memory in use since `forget_peak`."""
        if self.is_cuda:
            return torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def seconds(self, action: Callable[[], object], rounds: int) -> float:
        """Median time of an action, after one round that is not counted."""
        return statistics.median(self.times(action, rounds))

    def times(self, action: Callable[[], object], rounds: int) -> list[float]:
        """Times of an action, after one round that is not counted."""
        action()
        times = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            action()
            self.wait()
            times.append(time.perf_counter() - start)
        return times


def times_of(taken_s: Sequence[float]) -> dict[str, float]:
    """Describe repeated times: the median, the least, the 90th percentile, and the spread.

    spread: between the 10th and the 90th percentile, as a share of the median.
    """
    ordered = sorted(taken_s)
    median = statistics.median(ordered)
    low, high = percentile(ordered, 0.1), percentile(ordered, 0.9)
    return {
        "p50_ms": 1000 * median,
        "least_ms": 1000 * ordered[0],
        "p90_ms": 1000 * high,
        "spread": (high - low) / median,
    }


def bandwidth(device: GpuDevice, buffer_bytes: int) -> dict[str, float]:
    """Bytes a second of a copy, reads and writes counted, and of reading alone, as weights are."""
    source = torch.ones(buffer_bytes // 4, dtype=torch.float32, device=device.torch)
    target = torch.empty_like(source)
    copy_s = device.seconds(lambda: target.copy_(source), rounds=10)
    read_s = device.seconds(source.sum, rounds=10)
    return {
        "buffer_bytes": buffer_bytes,
        "copy_bytes_second": 2 * buffer_bytes / copy_s,
        "read_bytes_second": buffer_bytes / read_s,
    }


def arithmetic(device: GpuDevice, size: int) -> dict[str, float]:
    """Measure a square bfloat16 product, which bounds a step with many sequences."""
    left = torch.randn((size, size), device=device.torch).to(torch.bfloat16)
    product_s = device.seconds(lambda: left @ left, rounds=5)
    return {"size": size, "bf16_flops_second": 2 * size**3 / product_s}


def tiled_products(
    device: GpuDevice, shapes: Sequence[tuple[int, int, int]], rounds: int
) -> dict[str, Any]:
    """Products of tiles of one size beside torch's at each (rows, inner, outputs), and whether
    torch's rows have the same bits among fewer: where they have, the tiles' time buys nothing.
    """
    figures: dict[str, Any] = {
        "refusal": products.try_product(products.multiply, device.torch, torch.bfloat16)
    }
    generator = torch.Generator(device.torch).manual_seed(3)
    for rows, inner, outputs in shapes:
        states, weight = (
            torch.empty(size, dtype=torch.bfloat16, device=device.torch).normal_(
                generator=generator
            )
            for size in ((rows, inner), (outputs, inner))
        )
        plain = partial(functional.linear, states, weight)
        fewer = functional.linear(states[: max(1, rows // 16)], weight)
        figures[f"{rows}x{inner}x{outputs}"] = {
            "tiled_ms": 1000 * device.seconds(partial(products.multiply, states, weight), rounds),
            "torch_ms": 1000 * device.seconds(plain, rounds),
            "torch_rows_equal": torch.equal(fewer, plain()[: len(fewer)]),
        }
    return figures


def fused_sampler(
    device: GpuDevice, positions: int, vocab_size: int, rounds: int
) -> dict[str, Any]:
    """The fused sampler beside the pure one on the same logits: time, and how far they agree."""
    from piecework_model.sampling import sampler_triton

    generator = torch.Generator(device.torch).manual_seed(1)
    raw = torch.empty((positions, vocab_size), dtype=torch.bfloat16, device=device.torch)
    raw.normal_(0.0, 4.0, generator=generator)
    temperatures = torch.full((positions,), TEMPERATURE, device=device.torch)
    uniforms = torch.rand(positions, dtype=torch.float64, device=device.torch, generator=generator)

    def run(sample: SampleFn) -> SampleOutput:
        return sample(raw.clone(), temperatures, CAP, uniforms)

    clone_s = device.seconds(raw.clone, rounds)
    pure_s = device.seconds(lambda: run(sampler.sample), rounds) - clone_s
    fused_s = device.seconds(lambda: run(sampler_triton.sample), rounds) - clone_s
    pure, fused = run(sampler.sample), run(sampler_triton.sample)
    return {
        "positions": positions,
        "vocabulary": vocab_size,
        "fused_ms": 1000 * fused_s,
        "pure_ms": 1000 * pure_s,
        "argmax_equal": _share(fused.argmax, pure.argmax),
        "sampled_equal": _share(fused.sampled, pure.sampled),
        "entropy_error_nats": float((fused.entropy - pure.entropy).abs().max()),
        "probability_error": float(
            (fused.probabilities.float() - pure.probabilities.float()).abs().max()
        ),
        "refusal": why_rejected(sampler_triton.sample, device.torch, torch.bfloat16, vocab_size),
    }


def _share(left: Tensor, right: Tensor) -> float:
    return float((left == right).float().mean())


def request(
    number: int, random: RandomModel, steps: int, prompt_tokens: int = 0
) -> GenerationRequest:
    """A job whose canvases take exactly `steps` steps: it is never confident.

    prompt_tokens: 0 for a prompt that one chunk holds.
    """
    vocab_size = random.limits.vocab_size
    length = prompt_tokens or _prompt_tokens(random)
    prompt = tuple((7 + 31 * number + 17 * i) % vocab_size for i in range(length))
    return GenerationRequest(
        request_id=f"sequence-{number}",
        prompt_ids=prompt,
        seed=1000 + number,
        max_tokens=2 * random.limits.canvas_size,
        max_steps=steps,
        temperature_start=0.8,
        temperature_end=0.4,
        entropy_bound=0.1,
        confidence_threshold=0.0,
        stability_steps=1,
        canvas_limit=2,
        draft_every=0,
    )


def _prompt_tokens(random: RandomModel) -> int:
    return min(PROMPT_TOKENS, random.limits.chunk_tokens)


def step_of(
    executor: BatchedExecutor | ReferenceExecutor, work: Sequence[SequenceWork]
) -> list[SequenceStep]:
    """One step of every sequence, or the error that stopped one."""
    made = []
    for outcome in executor.step(work):
        if isinstance(outcome, FailedEvent):
            raise StepFailedError(f"{outcome.request_id} failed: {outcome.kind}, {outcome.message}")
        made.append(outcome)
    return made


@dataclass(frozen=True, slots=True)
class CanvasRun:
    """One canvas of `sequences` sequences. leaves: of each sequence, one a step."""

    sequences: int
    step_s: list[float]
    canvas_s: float
    peak_bytes: int
    leaves: dict[str, tuple[bytes, ...]]


def run_canvas(
    executor: BatchedExecutor, random: RandomModel, sequences: int, steps: int, device: GpuDevice
) -> CanvasRun:
    """Times a canvas from its second step on, and the first step of the next, which prefills what
    was committed: `steps` steps and one prefill, and not the prompt.
    """
    jobs = [request(number, random, steps) for number in range(sequences)]
    for job in jobs:
        executor.open(job)
    try:
        device.forget_peak()
        ids = [job.request_id for job in jobs]
        step_of(executor, [SequenceWork(name, 1, denoise=True) for name in ids])
        times: list[float] = []
        made: list[SequenceStep] = []
        for _ in range(steps - 1):
            start = time.perf_counter()
            made = step_of(executor, [SequenceWork(name, 0, denoise=True) for name in ids])
            times.append(time.perf_counter() - start)
        for stepped in made:
            executor.commit(stepped.request_id, stepped.argmax)
        start = time.perf_counter()
        step_of(executor, [SequenceWork(name, 1, denoise=True) for name in ids])
        last = time.perf_counter() - start
        leaves = {stepped.request_id: stepped.leaves for stepped in made}
        return CanvasRun(sequences, times, sum(times) + last, device.peak_bytes(), leaves)
    finally:
        for job in jobs:
            executor.close(job.request_id)


def steps_figures(
    random: RandomModel,
    device: GpuDevice,
    budget: Budget,
    rates: Rates,
    *,
    sequences: Sequence[int],
    steps: int,
) -> dict[str, Any]:
    """Measure step times and tokens a second at each number of sequences.

    The two floors are beside them, and whether a sequence's trace is the same in every batch. A
    number of sequences that would overdraw the budget is left out and named.
    """
    executor = BatchedExecutor(random.model, random.limits)
    executor.record(max(sequences))
    figures: dict[str, Any] = {"isolated": executor.isolated}
    runs: list[CanvasRun] = []
    for count in sequences:
        # At most in proportion. The first runs in any case: nothing tells yet how long it takes.
        expected_s = runs[-1].canvas_s * count / runs[-1].sequences if runs else 0.0
        if runs and expected_s > budget.left_s:
            figures[f"rows_{count}"] = {"skipped": f"needs up to {expected_s:.0f} s"}
            continue
        run_canvas(executor, random, count, WARM_UP_STEPS, device)
        run = run_canvas(executor, random, count, steps, device)
        runs.append(run)
        figures[f"rows_{count}"] = _sequence_figures(run, random, rates)
    company = [
        more.leaves[name] == leaves
        for fewer, more in pairwise(runs)
        for name, leaves in fewer.leaves.items()
    ]
    figures["transcripts_equal"] = all(company) if company else None
    return figures


def _sequence_figures(run: CanvasRun, random: RandomModel, rates: Rates) -> dict[str, Any]:
    step_s = statistics.median(run.step_s)
    canvas = random.limits.canvas_size
    figures: dict[str, Any] = {
        **times_of(run.step_s),
        "canvas_s": run.canvas_s,
        "tokens_second": run.sequences * canvas / run.canvas_s,
        "peak_bytes": run.peak_bytes,
    }
    if rates.read_bytes_second is not None:
        floor_s = random.step_bytes / rates.read_bytes_second
        figures |= {"bandwidth_floor_ms": 1000 * floor_s, "over_bandwidth_floor": step_s / floor_s}
    if rates.flops_second is not None:
        figures["arithmetic_floor_ms"] = (
            1000 * run.sequences * canvas * random.flops_token / rates.flops_second
        )
    return figures


def correctness(random: RandomModel, device: GpuDevice) -> dict[str, Any]:
    """The fast executor against the reference: the leaves of two steps, and how far the logits of
    one are apart, in units of their own spread. On a GPU the two multiply by other kernels: there
    the leaves may differ, and the errors count.
    """
    job = request(0, random, steps=2)
    leaves = []
    for executor in (
        BatchedExecutor(random.model, random.limits),
        ReferenceExecutor(random.model, random.limits),
    ):
        executor.open(job)
        step_of(executor, [SequenceWork(job.request_id, 1, denoise=True)])
        leaves.append(step_of(executor, [SequenceWork(job.request_id, 0, denoise=True)])[0].leaves)
        executor.close(job.request_id)
    ours, theirs = first_logits(random, job, device)
    error = (ours - theirs).abs()
    spread = theirs.std()
    apart = ours.argmax(-1) != theirs.argmax(-1)
    top = theirs.topk(2, dim=-1).values
    gaps = (top[:, 0] - top[:, 1])[apart]
    return {
        "leaves_equal": leaves[0] == leaves[1],
        "logit_error_mean": float(error.mean() / spread),
        "logit_error_max": float(error.max() / spread),
        "argmax_equal": 1 - float(apart.float().mean()),
        "largest_gap_flipped": float(gaps.max() / spread) if len(gaps) else 0.0,
    }


@torch.inference_mode()
def mixture(
    random: RandomModel, device: GpuDevice, sequences: Sequence[int], rounds: int
) -> dict[str, Any]:
    """The experts of one layer, fused beside one expert after the other: time, bytes of weights a
    second, and whether the fused ones would be admitted.
    """
    text = random.model.config.text_config
    module: Any = random.model.model.decoder.layers[0].experts
    plain = Moe(module, products_of(random.model, pack=False))
    fused = moe_backends.fused_moe(module)
    trial = moe_backends.MoeTrial(
        module.num_experts,
        text.hidden_size,
        text.top_k_experts,
        device.torch,
        torch.bfloat16,
        moe_backends.tolerance(module),
    )
    figures: dict[str, Any] = {"refusal": moe_backends.why_rejected(fused, plain, trial)}
    weights = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    generator = torch.Generator(device.torch).manual_seed(2)
    for count in sequences:
        tokens = count * random.limits.canvas_size
        hidden = torch.empty((tokens, text.hidden_size), dtype=torch.bfloat16, device=device.torch)
        hidden.normal_(generator=generator)
        scores = torch.rand((tokens, module.num_experts), generator=generator, device=device.torch)
        shares, chosen = scores.topk(text.top_k_experts, dim=-1)
        fused_s = device.seconds(partial(fused, hidden, chosen, shares), rounds)
        plain_s = device.seconds(partial(plain, hidden, chosen, shares), rounds)
        figures[f"rows_{count}"] = {
            "fused_ms": 1000 * fused_s,
            "plain_ms": 1000 * plain_s,
            "fused_bytes_second": weights / fused_s,
        }
    return figures


@torch.inference_mode()
def first_logits(
    random: RandomModel, job: GenerationRequest, device: GpuDevice
) -> tuple[Tensor, Tensor]:
    """Raw logits [C, V] float32 of a canvas behind the job's prompt: the fast stack's,
    transformers'."""
    model, limits = random.model, random.limits
    canvas = torch.arange(limits.canvas_size, device=device.torch) * 37 % limits.vocab_size
    denoiser = Denoiser(model)
    theirs_cache: DynamicCache = denoiser.new_cache()
    denoiser.prefill(theirs_cache, PrefillChunk(job.prompt_ids))
    theirs = denoiser.raw_logits(theirs_cache, canvas, None)
    layout = cache_layout(model.config.text_config, limits.canvas_size, limits.chunk_tokens)
    cache = SequenceCache(layout, limits.sequence_tokens(job), device.torch, denoiser.dtype)
    products = products_of(model, pack=False)
    backbone = Backbone(model, products)
    prompt = torch.tensor(job.prompt_ids, device=device.torch)
    embedded = backbone.embed(canvas)
    hidden = torch.cat(
        [backbone.condition(embedded, torch.zeros_like(embedded)), backbone.embed(prompt)]
    )
    segments = [
        Segment(cache, 0, len(canvas), len(prompt), causal=False),
        Segment(cache, len(canvas), len(prompt), 0, causal=True),
    ]
    cache.reserve(len(hidden))
    head = products.of_module(model.lm_head)
    ours = head(backbone.run(hidden, segments, len(canvas)))
    return ours.float(), theirs.float()
