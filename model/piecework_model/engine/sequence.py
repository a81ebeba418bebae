"""The state of one sequence between steps, and what a step makes of it. All executors share it."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from piecework_model import limits, templates
from piecework_model.bounds import ModelLimits
from piecework_model.engine.executor import StepTrace
from piecework_model.engine.scheduler import PrefillChunk, known_chunks
from piecework_model.errors import NonFiniteError
from piecework_model.layers.transfer import host_copies
from piecework_model.requests import HOLE, GenerationRequest, ReadSlot
from piecework_model.sampling import sampler
from piecework_model.sampling.answers import probabilities
from piecework_model.sampling.philox import Moment, StepDraws, initial_ids, step_draws
from piecework_model.sampling.sampler import SampleOutput
from piecework_protocol.trace import EmbeddingType, StepRecord, soft_field

Ids = npt.NDArray[np.int64]

_EMBEDDING_TYPES: dict[torch.dtype, EmbeddingType] = {
    torch.float32: EmbeddingType.FLOAT32,
    torch.bfloat16: EmbeddingType.BFLOAT16,
    torch.float16: EmbeddingType.FLOAT16,
}


@dataclass(frozen=True, slots=True)
class CanvasDecision:
    """What one step decided about one sequence's canvas, on the host.

    before, after, argmax: int64 [C]. accepted: bool [C]. fingerprint: float16 [C, 3]. soft: the
    sequence's soft embedding [C, H] as bytes. label_logits: of a read, the logits of the labels of
    each slot.
    """

    before: Ids
    after: Ids
    argmax: Ids
    accepted: npt.NDArray[np.bool_]
    fingerprint: npt.NDArray[np.float16]
    soft: memoryview
    confident: bool
    label_logits: tuple[tuple[float, ...], ...]

    def answers(self, cap: float) -> tuple[tuple[int, ...], ...]:
        """Compute the probabilities of each slot's labels. cap: the model's, of its logits."""
        return tuple(probabilities(logits, cap) for logits in self.label_logits)


@dataclass(slots=True)
class SequenceState:
    """What a sequence needs for its next step, besides its cache."""

    request: GenerationRequest
    pending: deque[PrefillChunk]  # chunks that are not in the cache yet
    canvas: int  # index of the canvas being denoised
    step: int = 0
    current: Ids | None = None  # [C], None before the first step of a canvas
    soft: Tensor | None = None  # [C, H], None at step 0
    pins: Ids | None = None  # [C] with HOLE where free, None if all positions are
    end: int | None = None  # what ended the hole that the canvas before stopped in
    end_ids: frozenset[int] = frozenset()
    # The last argmax canvases, at most stability_steps.
    _history: deque[bytes] = field(default_factory=deque)
    _traces: list[StepTrace | Future[StepTrace]] = field(default_factory=list)
    _drawn: tuple[Moment, StepDraws] | None = None  # for the steps from that moment on

    @classmethod
    def of(cls, request: GenerationRequest, model: ModelLimits) -> SequenceState:
        return cls(
            request,
            deque(known_chunks(request, model.chunk_tokens)),
            len(request.committed),
            end=templates.end_before(request, request.committed, model.end_ids),
            end_ids=model.end_ids,
        )

    @property
    def moment(self) -> Moment:
        """What the draws of the next step depend on."""
        return Moment(self.request.seed, self.canvas, self.step)

    def start(self, positions: int, vocab_size: int) -> None:
        """Lay out the canvas of `positions` tokens before its first step: noise between its pins.

        Later calls change nothing.
        """
        if self.current is not None:
            return
        noise = initial_ids([self.moment], positions, vocab_size)[0]
        entries = templates.held(self.request, self.canvas, positions, self.end)
        self.pins = np.array(entries, dtype=np.int64) if entries else None
        self.current = noise if self.pins is None else np.where(self.pins == HOLE, noise, self.pins)

    @property
    def slots(self) -> tuple[ReadSlot, ...]:
        """The slots of the canvas, if the request is a read. Call `start` first."""
        return templates.slots(self.request, self.canvas, len(_current(self)))

    @property
    def free(self) -> int:
        """Count the free positions of the canvas. Call `start` first."""
        return len(_current(self)) if self.pins is None else int((self.pins == HOLE).sum())

    @property
    def mean_threshold(self) -> float:
        """The confidence threshold for the mean over all positions, in which a pinned one is 0.

        So the mean over the free ones is compared with the request's own threshold.
        """
        return self.request.confidence_threshold * (self.free / len(_current(self)))

    def draws(self, positions: int, vocab_size: int) -> tuple[npt.NDArray[np.float64], Ids]:
        """Return the next step's uniforms and renoised ids [positions].

        Several steps are drawn at once, which takes hardly longer than one.
        """
        start, drawn = self._drawn or (None, None)
        ahead = (
            self.step - start.step if start and start.canvas == self.canvas else limits.DRAWN_STEPS
        )
        if drawn is None or not 0 <= ahead < limits.DRAWN_STEPS:
            now = self.moment
            steps = [replace(now, step=now.step + later) for later in range(limits.DRAWN_STEPS)]
            drawn, ahead = step_draws(steps, positions, vocab_size), 0
            self._drawn = now, drawn
        return drawn.uniforms[ahead], drawn.renoise[ahead]

    @property
    def temperature(self) -> np.float32:
        request = self.request
        return sampler.temperature(
            request.temperature_start,
            request.temperature_end,
            request.max_steps - self.step,
            request.max_steps,
        )

    def trace(self, decision: CanvasDecision, soft: Tensor) -> Callable[[], StepTrace]:
        """Return a function that computes the trace of the step that was just decided."""
        return partial(_trace, self.canvas, self.step, decision, _EMBEDDING_TYPES[soft.dtype])

    def record(self, decision: CanvasDecision, soft: Tensor) -> StepRecord:
        """Return what that leaf commits to. Call it before `advance`."""
        return step_record(self.canvas, self.step, decision, _EMBEDDING_TYPES[soft.dtype])

    def advance(
        self, decision: CanvasDecision, soft: Tensor, trace: StepTrace | Future[StepTrace]
    ) -> bool:
        """Take a decided step in. Returns whether the canvas is finished. It cannot fail.

        A canvas is finished when it is stable and confident, out of steps, or without a free
        position. So each canvas has a step, and a receipt something to show.
        """
        request = self.request
        argmax = decision.argmax.tobytes()
        enough = len(self._history) == request.stability_steps
        stable = enough and all(earlier == argmax for earlier in self._history)
        if request.stability_steps:
            if enough:
                self._history.popleft()
            self._history.append(argmax)
        self._traces.append(trace)
        self.step += 1
        self.current, self.soft = decision.after, soft
        return (stable and decision.confident) or self.step == request.max_steps or not self.free

    def traces(self) -> tuple[StepTrace, ...]:
        """Return the traces of the canvas so far. Waits for those that are still being computed."""
        return tuple(
            trace if isinstance(trace, StepTrace) else trace.result() for trace in self._traces
        )

    def commit(self, canvas: tuple[int, ...]) -> None:
        """End the canvas and go on to the next one.

        It becomes the next chunk, but not that of a read: the next one stands in its place.
        """
        if not self.request.reads:
            self.pending.append(PrefillChunk(canvas))
            entries = templates.pins(self.request, self.canvas, len(canvas))
            self.end = templates.hole_end(entries, canvas, self.end, self.end_ids)
        self.canvas, self.step, self.current, self.soft = self.canvas + 1, 0, None, None
        self._history.clear()
        self._traces.clear()


def step_record(
    canvas: int, step: int, decision: CanvasDecision, kind: EmbeddingType
) -> StepRecord:
    """Record a decided step as the trace commits to it. kind: the number type of its soft rows."""
    return StepRecord(
        canvas=canvas,
        step=step,
        before=decision.before.astype("<u4").tobytes(),
        after=decision.after.astype("<u4").tobytes(),
        argmax=decision.argmax.astype("<u4").tobytes(),
        accepted=np.packbits(decision.accepted, bitorder="little").tobytes(),
        soft=soft_field(kind, decision.soft),
        fingerprint=decision.fingerprint.astype("<f2").tobytes(),
    )


def _trace(canvas: int, step: int, decision: CanvasDecision, kind: EmbeddingType) -> StepTrace:
    record = step_record(canvas, step, decision, kind)
    return StepTrace(record.leaf(), record)


@dataclass(frozen=True, slots=True)
class DeviceDecisions:
    """What a step decided about several sequences, on the device still.

    parts: tensors as `decide` lists them. soft: the last of them, [sequences, C, H].
    """

    states: Sequence[SequenceState]
    parts: tuple[Tensor, ...]

    @property
    def soft(self) -> Tensor:
        return self.parts[-1]


def label_logits(states: Sequence[SequenceState], raw: Tensor) -> Tensor:
    """Take the logits of all labels of all slots, one behind the other, float32 [labels].

    raw: [sequences * C, V], the output of the last layer, which the sampler may overwrite later.
    """
    places = [
        (index * len(_current(state)) + slot.position, label)
        for index, state in enumerate(states)
        for slot in state.slots
        for label in slot.label_ids
    ]
    if not places:
        return raw.new_empty(0, dtype=torch.float32)
    rows, labels = torch.tensor(places, device=raw.device).unbind(1)
    return raw[rows, labels].to(torch.float32)


def decide(
    states: Sequence[SequenceState],
    output: SampleOutput,
    soft: Tensor,
    renoise: Ids,
    labels: Tensor,
) -> DeviceDecisions:
    """Decide the canvases of `states`, and wait for nothing.

    output: over sequences * C positions. soft: [sequences, C, H], zeroed where a position is
    pinned. renoise: [sequences, C]. labels: from `label_logits`.
    """
    count, size = renoise.shape
    device = output.entropy.device
    entropy = output.entropy.view(count, size)
    argmax, sampled = output.argmax.view(count, size), output.sampled.view(count, size)
    finite = torch.isfinite(entropy).all(-1) & torch.isfinite(
        soft.flatten(1).sum(-1, dtype=torch.float32)
    )
    pins = _pins(states, size)
    if pins is not None:
        pins = pins.to(device)
        pinned = pins != HOLE
        entropy = entropy.masked_fill(pinned, 0.0)
        argmax, sampled = (torch.where(pinned, pins, ids) for ids in (argmax, sampled))
        soft.masked_fill_(pinned[..., None], 0.0)
    bounds = torch.tensor(
        [
            [state.request.entropy_bound for state in states],
            [state.mean_threshold for state in states],
        ],
        dtype=torch.float32,
    ).to(device)
    accepted = sampler.accept(entropy, bounds[0])
    after = torch.where(accepted, sampled, torch.from_numpy(renoise).to(device))
    sure = sampler.confident(entropy, bounds[1])
    fingerprint = output.fingerprint.view(count, size, 3)
    parts = (finite, sure, after, argmax, accepted, fingerprint, labels, soft)
    return DeviceDecisions(states, parts)


def _pins(states: Sequence[SequenceState], size: int) -> Tensor | None:
    """Return the pins of all canvases [sequences, C], or None if there are none."""
    if all(state.pins is None for state in states):
        return None
    free = np.full(size, HOLE, dtype=np.int64)
    return torch.from_numpy(
        np.stack([free if state.pins is None else state.pins for state in states])
    )


def to_host(decided: Sequence[DeviceDecisions]) -> list[CanvasDecision]:
    """Copy decisions to the host, all of them at once: one a sequence, in their order.

    Raises:
        NonFiniteError: One of the sequences is not finite. To find out which, ask for each alone.
    """
    host = iter(host_copies([part for tile in decided for part in tile.parts]))
    tiles = [(tile.states, [next(host) for _ in tile.parts]) for tile in decided]
    if not all(bool(finite.all()) for _, (finite, *_) in tiles):
        raise NonFiniteError
    return [made for states, parts in tiles for made in _unpacked(states, parts)]


def _unpacked(states: Sequence[SequenceState], parts: Sequence[Tensor]) -> list[CanvasDecision]:
    """Make decisions of the tensors that `decide` lists, on the host."""
    _, sure, afters, argmaxes, flags, prints, labels = (part.numpy() for part in parts[:-1])
    softs = parts[-1].view(torch.uint8).numpy()  # [sequences, C, H * bytes]
    logits = iter(labels.tolist())
    return [
        CanvasDecision(
            before=_current(state),
            after=afters[index],
            argmax=argmaxes[index],
            accepted=flags[index].astype(np.bool_),
            fingerprint=prints[index],
            soft=memoryview(softs[index]).cast("B"),
            confident=bool(sure[index]),
            label_logits=tuple(
                tuple(itertools.islice(logits, len(slot.label_ids))) for slot in state.slots
            ),
        )
        for index, state in enumerate(states)
    ]


def _current(state: SequenceState) -> Ids:
    if state.current is None:
        raise ValueError("a sequence has no canvas before its first step")
    return state.current
