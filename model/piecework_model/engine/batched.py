"""The fast executor: all sequences of a step in as few passes as fit.

A sequence has the same result, bit for bit, alone and among others:

- Its prompt is cut where the request says (`prompt_chunks` in engine/scheduler.py).
- A projection sees every token as one row of a matrix. Products are made in pieces whose rows do
  not depend on their number (layers/invariance.py).
- Attention, sampling and acceptance run within the sequence.

On a machine where a row depends on its place in a product, every sequence runs alone, and its
prefill is a pass of its own. That is slower and has the same results.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import DiffusionGemmaForBlockDiffusion

from piecework_model import bounds, limits
from piecework_model.bounds import ModelLimits
from piecework_model.engine.executor import (
    SequenceOutcome,
    SequenceStep,
    StepObserver,
    StepTrace,
)
from piecework_model.engine.parking import ParkedMemory, tensors_on
from piecework_model.engine.prefix_cache import Key, PrefixCache, prefix_keys
from piecework_model.engine.scheduler import SequenceWork, prompt_chunks
from piecework_model.engine.sequence import (
    CanvasDecision,
    DeviceDecisions,
    SequenceState,
    decide,
    label_logits,
    to_host,
)
from piecework_model.errors import NonFiniteError
from piecework_model.failures import failure_of, is_out_of_memory
from piecework_model.fast_paths import FastPath
from piecework_model.layers.backbone import Backbone, Segment
from piecework_model.layers.cache import ChunkKV, SequenceCache
from piecework_model.layers.projections import products_name, products_of, products_reason
from piecework_model.layers.vision import ImageEncoder
from piecework_model.layout import cache_layout
from piecework_model.requests import FailedEvent, GenerationRequest
from piecework_model.sampling.sampler_backends import sampler_for

APART: Final = "a row of a product depends on its place on this device"
"""Why every sequence runs alone."""


@dataclass(slots=True)
class _OpenSequence:
    state: SequenceState
    prefix_keys: list[Key]  # of the prompt's chunks, empty if none is shared
    known: list[ChunkKV]  # the next chunks, to be copied into the cache
    stored: int  # chunks of the prompt that are in the cache or known
    opened: SequenceCache | None = None

    @property
    def cache(self) -> SequenceCache:
        if self.opened is None:
            raise ValueError("a sequence has no cache before its first pass")
        return self.opened


@dataclass(frozen=True, slots=True)
class _Task:
    """The work of one sequence in a pass."""

    request_id: str
    sequence: _OpenSequence
    chunks: int
    denoise: bool

    @property
    def causal_tokens(self) -> int:
        return sum(len(self.sequence.state.pending[index]) for index in range(self.chunks))


class BatchedExecutor:
    """Sequences of one model on one device."""

    def __init__(
        self,
        model: DiffusionGemmaForBlockDiffusion,
        limits_: ModelLimits,
        *,
        isolated: bool | None = None,
        observe: StepObserver | None = None,
    ) -> None:
        """Take the model's weights.

        isolated: whether every sequence runs alone. If not given, products of them are measured.
        """
        self.observe = observe
        """Told of every step. None: nobody is, which spares the records."""
        decoder: Any = model.model.decoder
        self._limits = limits_
        self._device: torch.device = model.device
        self._dtype: torch.dtype = decoder.embed_tokens.weight.dtype
        self._layout = cache_layout(
            model.config.text_config, limits_.canvas_size, limits_.largest_chunk
        )
        products = products_of(model)
        self._backbone = Backbone(model, products)
        self._images = ImageEncoder(model, limits_.images)
        self._head = products.of_module(model.lm_head)
        self._sampler = sampler_for(self._device, self._dtype, limits_.vocab_size)
        self._cap: float = model.final_logit_softcapping
        self._products = products_name(decoder.embed_tokens.weight)
        self._products_reason = products_reason(decoder.embed_tokens.weight)
        self._soft_product = products.of_embeddings(
            decoder.embed_tokens.weight, limits_.canvas_size
        )
        self.isolated: Final = products.isolated if isolated is None else isolated
        """Whether every sequence runs alone, for some product has no span here."""
        self._scale: Tensor = decoder.embed_tokens.embed_scale.to(self._dtype)
        self._device_tokens = (
            limits.CPU_PASS_TOKENS if self._device.type == "cpu" else limits.GPU_PASS_TOKENS
        )
        self._most_tokens = self._device_tokens
        self._pass_tokens = self._most_tokens
        self._too_large = 0  # tokens of the largest pass of this step that ran out of memory
        self._calm_steps = 0  # since passes were last made smaller or larger
        self._tile_sequences = self._sampler.sequences_at_once(
            limits_.canvas_size * limits_.vocab_size, self._dtype.itemsize
        )
        self._prefix_cache = PrefixCache(0)
        self._sequences: dict[str, _OpenSequence] = {}
        self._pool = ThreadPoolExecutor(limits.HASH_THREADS, thread_name_prefix="trace")
        self._hashing: deque[Future[StepTrace]] = deque()
        self._recorded = 0  # sequences whose steps are recorded
        self._parked: ParkedMemory | None = None

    @property
    def chunk_tokens(self) -> int:
        """As in `ModelLimits`."""
        return self._limits.chunk_tokens

    @property
    def kernels(self) -> str:
        """What decides last bits besides torch: which sampler, experts and products run.

        It goes into the engine profile, whose length is bounded, so it is short: "pure.plain.torch"
        or "fused.fused.tiled".
        """
        return f"{self._sampler.name}.{self._backbone.moe_name}.{self._products}"

    @property
    def fast_paths(self) -> list[FastPath]:
        """What makes a step fast on an accelerator, and why something is off.

        On a CPU only what is off.
        """
        together = FastPath("one pass for all sequences", APART if self.isolated else "")
        if self._device.type == "cpu":
            return [together] if self.isolated else []
        return [
            *self._backbone.fast_paths(),
            FastPath("sampler", self._sampler.reason),
            FastPath("products of one tile size", self._products_reason),
            together,
        ]

    @property
    def prefix_hits(self) -> int:
        """Chunks that were copied instead of computed since the start."""
        return self._prefix_cache.hits

    @torch.inference_mode()
    def record(self, sequences: int) -> None:
        """Record the steps of up to so many sequences, before any job waits for them."""
        most = 1 if self.isolated else min(
            sequences, self._most_tokens // self._limits.canvas_size
        )  # fmt: skip
        self._recorded = sequences
        counts = [count for count in limits.RECORDED_SEQUENCES if count <= most]
        self._backbone.record(counts, self._limits.canvas_size)

    def park(self) -> int:
        """Free the device's memory and keep its bytes on the host. Returns how many those are.

        On a CPU there is nothing to free. No step may follow before `unpark`.
        """
        if self._device.type == "cpu" or self._parked is not None:
            return 0
        self._release(recordings=True)
        self._parked = ParkedMemory.park(tensors_on(self._device))
        gc.collect()
        torch.cuda.empty_cache()
        return self._parked.nbytes

    def unpark(self) -> None:
        """Take the memory back, and record the steps again whose recordings were dropped.

        Raises:
            RuntimeError: The device has no room yet. Everything stays on the host.
        """
        if self._parked is None:
            return
        try:
            self._parked.restore()
        except RuntimeError:
            torch.cuda.empty_cache()
            raise
        self._parked = None
        self.record(self._recorded)

    def footprint(self, request: GenerationRequest) -> int:
        """Count the bytes of the sequence's KV cache."""
        return self._layout.sequence_bytes(
            self._limits.sequence_tokens(request), self._dtype.itemsize
        )

    def max_context(self, memory_bytes: int) -> int:
        """Find the longest sequence, within the model's context, whose KV cache fits this much
        memory.
        """
        return self._layout.longest_sequence(
            memory_bytes, self._dtype.itemsize, self._limits.max_context
        )

    def set_sequences(self, sequences: int) -> None:
        """Take passes that are no larger than the memory plan of so many sequences counts."""
        self._most_tokens = bounds.pass_tokens(
            self._device_tokens, sequences, self._limits.canvas_size, self._limits.largest_chunk
        )
        self._pass_tokens = self._most_tokens

    def set_free_memory(self, free_bytes: int) -> None:
        """Keep prefixes in the memory that no sequence holds, up to PREFIX_CACHE_BYTES."""
        self._prefix_cache.resize(min(free_bytes, limits.PREFIX_CACHE_BYTES))

    def open(self, request: GenerationRequest) -> int:
        """Take a sequence in, and find which of its first chunks are cached.

        The first pass allocates its KV cache. A lack of memory then is a failure of this sequence.
        """
        state = SequenceState.of(request, self._limits)
        keys: list[Key] = []
        # A sequence that may not start yet would hold on to copies that the store has dropped.
        if request.tenant and request.canvas_limit > len(request.committed):
            chunks = prompt_chunks(request.prompt_ids, self.chunk_tokens, request.images)
            keys = prefix_keys(request.tenant, chunks)
        self._sequences[request.request_id] = _OpenSequence(state, keys, [], 0)
        return self.find_cached(request.request_id)

    def find_cached(self, request_id: str) -> int:
        """Look again which of the sequence's next chunks are cached, as others have gone on."""
        sequence = self._sequences[request_id]
        found = self._prefix_cache.find(sequence.prefix_keys, sequence.stored)
        for _ in found:
            sequence.state.pending.popleft()
        sequence.known += found
        sequence.stored += len(found)
        return len(found)

    def traces(self, request_id: str) -> tuple[StepTrace, ...]:
        """Return the traces of the sequence's canvas so far."""
        return self._sequences[request_id].state.traces()

    def close(self, request_id: str) -> None:
        """Forget a sequence and its cache."""
        self._sequences.pop(request_id, None)

    def commit(self, request_id: str, canvas: tuple[int, ...]) -> None:
        """Queue the canvas for prefill and clear the canvas state."""
        self._sequences[request_id].state.commit(canvas)

    @torch.inference_mode()
    def step(self, work: Sequence[SequenceWork]) -> list[SequenceOutcome]:
        """Do the work of all sequences, in passes of bounded size."""
        tasks = [
            _Task(item.request_id, self._sequences[item.request_id], item.chunks, item.denoise)
            for item in work
        ]
        self._too_large = 0
        outcomes: list[SequenceOutcome] = []
        for batch in self._batches(tasks):
            outcomes += self._guarded(batch)
        self._adapt()
        return outcomes

    def _adapt(self) -> None:
        """Halve the passes after one ran out of memory. Double them after CALM_STEPS that did
        not.
        """
        if self._too_large:
            self._pass_tokens = max(self._limits.canvas_size, self._too_large // 2)
            self._calm_steps = 0
        elif self._pass_tokens < self._most_tokens:
            self._calm_steps += 1
            if self._calm_steps >= limits.CALM_STEPS:
                self._pass_tokens = min(self._most_tokens, 2 * self._pass_tokens)
                self._calm_steps = 0

    def _batches(self, tasks: Sequence[_Task]) -> list[list[_Task]]:
        """Group the tasks into passes."""
        if self.isolated:
            apart = [self._apart(task) for task in tasks]
            return [[part] for parts in apart for part in parts]
        batches: list[list[_Task]] = []
        room = 0
        for task in tasks:
            tokens = self._tokens(task)
            if not batches or tokens > room:
                batches.append([])
                room = self._pass_tokens
            batches[-1].append(task)
            room -= tokens
        return batches

    def _tokens(self, task: _Task) -> int:
        """Count the tokens that a task adds to a pass."""
        return task.causal_tokens + self._limits.canvas_size * task.denoise

    @staticmethod
    def _apart(task: _Task) -> list[_Task]:
        """Split a task into passes of one segment each, whose shapes the request alone decides."""
        chunks = [
            _Task(task.request_id, task.sequence, 1, denoise=False) for _ in range(task.chunks)
        ]
        return (
            [*chunks, _Task(task.request_id, task.sequence, 0, denoise=True)]
            if task.denoise
            else chunks
        )

    def _guarded(self, batch: Sequence[_Task]) -> list[SequenceOutcome]:
        """Run a pass. If it fails, run its sequences in smaller passes.

        So only a sequence that fails alone is ended. A pass changes no sequence before its last
        operation, so it can be repeated.
        """
        batch = [task for task in batch if task.request_id in self._sequences]
        if not batch:
            return []
        try:
            return self._pass(batch)
        except (NonFiniteError, RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                self._release(recordings=len(batch) == 1)
            if len(batch) == 1:
                failure = FailedEvent(batch[0].request_id, *failure_of(error))
                self.close(failure.request_id)
                return [failure]
            if isinstance(error, torch.AcceleratorError):
                raise
            if is_out_of_memory(error):
                self._too_large = max(self._too_large, sum(map(self._tokens, batch)))
        half = len(batch) // 2
        return [*self._guarded(batch[:half]), *self._guarded(batch[half:])]

    def _release(self, *, recordings: bool) -> None:
        """Free what only saves work: masks, cached prefixes and, as a last resort, recordings.

        The next `set_free_memory` says again how much may be kept. Recordings do not come back,
        because recording would let others wait.
        """
        self._backbone.release(recordings=recordings)
        self._prefix_cache.resize(0)

    def _pass(self, tasks: Sequence[_Task]) -> list[SequenceOutcome]:
        """Run one pass: commit chunks to the caches, denoise canvases by one step."""
        denoising = [task for task in tasks if task.denoise]
        for task in denoising:
            task.sequence.state.start(self._limits.canvas_size, self._limits.vocab_size)
        states = self._states(tasks, denoising)
        tiles = [self._decide(*tile) for tile in self._tiles(denoising, states)]
        softs = [soft for tile in tiles for soft in tile.soft]
        decided = list(zip(denoising, to_host(tiles), softs, strict=True))
        traces = [
            self._trace(task.sequence.state.trace(decision, soft), decision)
            for task, decision, soft in decided
        ]
        copies = [copy for task in tasks for copy in self._copies(task)]
        # Nothing can fail from here on: a repeated pass must find its sequences as they were.
        for keys, chunk in copies:
            self._prefix_cache.keep(keys, chunk)
        for task in tasks:
            for _ in range(task.chunks):
                task.sequence.cache.commit(len(task.sequence.state.pending.popleft()))
            task.sequence.stored += task.chunks
        return [
            self._advance(task, decision, soft, trace)
            for (task, decision, soft), trace in zip(decided, traces, strict=True)
        ]

    def _states(self, tasks: Sequence[_Task], denoising: Sequence[_Task]) -> Tensor:
        """Compute the final states [sequences * C, H] of the denoised canvases."""
        size, device = self._limits.canvas_size, self._device
        segments: list[Segment] = []
        hidden: list[Tensor] = []
        canvas_tokens = len(denoising) * size
        for task in tasks:
            self._cache(task.sequence).reserve(self._tokens(task))
        if denoising:
            currents = np.concatenate([task.sequence.state.current for task in denoising])
            embedded = self._backbone.embed(torch.from_numpy(currents).to(device))
            softs = [self._soft(task.sequence.state, embedded[:size]) for task in denoising]
            hidden.append(self._backbone.condition(embedded, torch.cat(softs)))
            segments += [
                Segment(task.sequence.cache, index * size, size, task.causal_tokens, causal=False)
                for index, task in enumerate(denoising)
            ]
        start = canvas_tokens
        for task in tasks:
            offset = 0
            for index in range(task.chunks):
                chunk = task.sequence.state.pending[index]
                embedded = self._backbone.embed(torch.tensor(chunk.ids, device=device))
                hidden.append(self._images.put(embedded, chunk.images))
                blocks = self._images.blocks(chunk.images)
                segments.append(
                    Segment(
                        task.sequence.cache, start, len(chunk), offset, causal=True, blocks=blocks
                    )
                )
                start, offset = start + len(chunk), offset + len(chunk)
        return self._backbone.run(torch.cat(hidden), segments, canvas_tokens)

    def _cache(self, sequence: _OpenSequence) -> SequenceCache:
        """Return the sequence's cache. The first pass allocates it. Known chunks are copied into
        it, each at once, so that a pass which fails can be repeated.
        """
        if sequence.opened is None:
            tokens = self._limits.sequence_tokens(sequence.state.request)
            sequence.opened = SequenceCache(self._layout, tokens, self._device, self._dtype)
        while sequence.known:
            sequence.opened.append(sequence.known[0])
            sequence.known.pop(0)
        return sequence.opened

    def _soft(self, state: SequenceState, like: Tensor) -> Tensor:
        return torch.zeros_like(like) if state.soft is None else state.soft

    def _tiles(
        self, denoising: Sequence[_Task], states: Tensor
    ) -> list[tuple[Sequence[_Task], Tensor]]:
        """Group sequences whose logits exist at the same time, with their states."""
        size, sequences = self._limits.canvas_size, self._tile_sequences
        return [
            (
                denoising[start : start + sequences],
                states[start * size : (start + sequences) * size],
            )
            for start in range(0, len(denoising), sequences)
        ]

    def _decide(self, tasks: Sequence[_Task], states: Tensor) -> DeviceDecisions:
        """Sample from the states of a tile of sequences and decide their canvases."""
        size, vocab_size, device = self._limits.canvas_size, self._limits.vocab_size, self._device
        sequences = [task.sequence.state for task in tasks]
        uniforms, renoise = zip(
            *(sequence.draws(size, vocab_size) for sequence in sequences), strict=True
        )
        temperatures = np.repeat(
            np.array([sequence.temperature for sequence in sequences], dtype=np.float32), size
        )
        raw = self._head(states)
        labels = label_logits(sequences, raw)
        output = self._sampler.sample(
            raw,
            torch.from_numpy(temperatures).to(device),
            self._cap,
            torch.from_numpy(np.concatenate(uniforms)).to(device),
        )
        soft = self._soften(output.probabilities).view(len(sequences), size, -1)
        return decide(sequences, output, soft, np.stack(renoise), labels)

    def _soften(self, probabilities: Tensor) -> Tensor:
        """Compute the soft embeddings [P, H] that condition the next step, from probabilities [P,
        V].
        """
        return self._soft_product(probabilities) * self._scale

    def _trace(
        self, compute: Callable[[], StepTrace], decision: CanvasDecision
    ) -> StepTrace | Future[StepTrace]:
        """Compute a step's trace: at once, or beside the next step if it takes long.

        Few of them wait at a time, because each holds a copy of its soft embedding.
        """
        if decision.soft.nbytes < limits.HASH_ASIDE_BYTES:
            return compute()
        while len(self._hashing) >= limits.HASH_PENDING:
            self._hashing.popleft().result()
        future = self._pool.submit(compute)
        self._hashing.append(future)
        return future

    def _copies(self, task: _Task) -> list[tuple[list[Key], ChunkKV]]:
        """Copy what a pass has written, for the tenant's next prompt.

        A lack of memory for the copies is not a failure. What is not finite is not kept.
        """
        sequence, offset = task.sequence, 0
        made: list[tuple[list[Key], ChunkKV]] = []
        for index in range(task.chunks):
            tokens, depth = len(sequence.state.pending[index]), sequence.stored + index + 1
            size = self._layout.chunk_bytes(tokens, self._dtype.itemsize)
            keys = sequence.prefix_keys[:depth]
            if depth <= len(sequence.prefix_keys) and (
                made or self._prefix_cache.wants(keys, size)
            ):
                try:
                    chunk = sequence.cache.copy(offset, tokens)
                except (RuntimeError, MemoryError) as error:
                    if isinstance(error, torch.AcceleratorError) or not is_out_of_memory(error):
                        raise
                    return made
                if not chunk.finite:
                    return made
                made.append((keys, chunk))
            offset += tokens
        return made

    def _advance(
        self,
        task: _Task,
        decision: CanvasDecision,
        soft: Tensor,
        trace: StepTrace | Future[StepTrace],
    ) -> SequenceStep:
        state = task.sequence.state
        canvas, step = state.canvas, state.step
        if self.observe is not None:
            self.observe(task.request_id, state.record(decision, soft), soft)
        finished = state.advance(decision, soft, trace)
        return SequenceStep(
            task.request_id,
            canvas,
            step,
            tuple(decision.argmax.tolist()),
            finished,
            state.traces() if finished else (),
            decision.answers(self._cap),
        )
