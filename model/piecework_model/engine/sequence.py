"""The state of one sequence between steps, and what a step makes of it. All executors share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from piecework_model import limits
from piecework_model.engine.scheduler import known_chunks
from piecework_model.errors import NonFiniteError
from piecework_model.layers.transfer import host_copies
from piecework_model.requests import GenerationRequest
from piecework_model.sampling import sampler, trace
from piecework_model.sampling.philox import Moment, StepDraws, step_draws
from piecework_model.sampling.sampler import SampleOutput

Ids = npt.NDArray[np.int64]

_EMBEDDING_TYPES: dict[torch.dtype, trace.EmbeddingType] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What one step decided about one sequence's canvas, on the host.

    before, after, argmax: int64 [C]. accepted: bool [C]. fingerprint: float16 [C, 3]. soft: the
    sequence's soft embedding [C, H] as bytes.
    """

    before: Ids
    after: Ids
    argmax: Ids
    accepted: npt.NDArray[np.bool_]
    fingerprint: npt.NDArray[np.float16]
    soft: memoryview
    confident: bool


@dataclass(slots=True)
class SequenceState:
    """What a sequence needs for its next step, besides its cache."""

    request: GenerationRequest
    pending: deque[tuple[int, ...]]  # chunks that are not in the cache yet
    canvas: int  # index of the canvas being denoised
    step: int = 0
    current: Ids | None = None  # [C], None before the first step of a canvas
    soft: Tensor | None = None  # [C, H], None at step 0
    # The last argmax canvases, at most stability_steps.
    _history: deque[bytes] = field(default_factory=deque)
    _leaves: list[bytes | Future[bytes]] = field(default_factory=list)
    _drawn: tuple[Moment, StepDraws] | None = None  # for the steps from that moment on

    @classmethod
    def of(cls, request: GenerationRequest, chunk_tokens: int) -> SequenceState:
        return cls(request, deque(known_chunks(request, chunk_tokens)), len(request.committed))

    @property
    def moment(self) -> Moment:
        """What the draws of the next step depend on."""
        return Moment(self.request.seed, self.canvas, self.step)

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

    def leaf(self, decision: Decision, soft: Tensor) -> Callable[[], bytes]:
        """Return a function that computes the trace leaf of the step that was just decided."""
        return partial(_leaf, self.canvas, self.step, decision, _EMBEDDING_TYPES[soft.dtype])

    def advance(self, decision: Decision, soft: Tensor, leaf: bytes | Future[bytes]) -> bool:
        """Take a decided step in. Returns whether the canvas is finished. It cannot fail.

        A canvas is finished when it is stable and confident, or out of steps.
        """
        request = self.request
        argmax = decision.argmax.tobytes()
        enough = len(self._history) == request.stability_steps
        stable = enough and all(earlier == argmax for earlier in self._history)
        if request.stability_steps:
            if enough:
                self._history.popleft()
            self._history.append(argmax)
        self._leaves.append(leaf)
        self.step += 1
        self.current, self.soft = decision.after, soft
        return (stable and decision.confident) or self.step == request.max_steps

    def leaves(self) -> tuple[bytes, ...]:
        """Return the trace leaves of the canvas so far. Waits for those that are still being
        computed.
        """
        return tuple(leaf if isinstance(leaf, bytes) else leaf.result() for leaf in self._leaves)

    def commit(self, canvas: tuple[int, ...]) -> None:
        """End the canvas, which becomes the next chunk, and start the next one."""
        self.pending.append(canvas)
        self.canvas, self.step, self.current, self.soft = self.canvas + 1, 0, None, None
        self._history.clear()
        self._leaves.clear()


def _leaf(canvas: int, step: int, decision: Decision, kind: trace.EmbeddingType) -> bytes:
    return trace.leaf(
        trace.StepRecord(
            canvas=canvas,
            step=step,
            before=decision.before.astype("<u4").tobytes(),
            after=decision.after.astype("<u4").tobytes(),
            argmax=decision.argmax.astype("<u4").tobytes(),
            accepted=np.packbits(decision.accepted, bitorder="little").tobytes(),
            embedding_digest=trace.embedding_digest(kind, decision.soft),
            fingerprint=decision.fingerprint.astype("<f2").tobytes(),
        )
    )


@dataclass(frozen=True, slots=True)
class DeviceDecisions:
    """What a step decided about several sequences, on the device still.

    parts: tensors whose first axis counts the sequences, as `decide` lists them. soft: the last of
    them, [sequences, C, H].
    """

    states: Sequence[SequenceState]
    parts: tuple[Tensor, ...]

    @property
    def soft(self) -> Tensor:
        return self.parts[-1]


def decide(
    states: Sequence[SequenceState], output: SampleOutput, soft: Tensor, renoise: Ids
) -> DeviceDecisions:
    """Decide the canvases of `states`, and wait for nothing.

    output: over sequences * C positions. soft: [sequences, C, H]. renoise: [sequences, C].
    """
    count, size = renoise.shape
    device = output.entropy.device
    entropy = output.entropy.view(count, size)
    request = [state.request for state in states]
    bounds = torch.tensor(
        [[r.entropy_bound for r in request], [r.confidence_threshold for r in request]],
        dtype=torch.float32,
    ).to(device)
    accepted = sampler.accept(entropy, bounds[0])
    sampled = output.sampled.view(count, size)
    after = torch.where(accepted, sampled, torch.from_numpy(renoise).to(device))
    finite = torch.isfinite(entropy).all(-1) & torch.isfinite(
        soft.flatten(1).sum(-1, dtype=torch.float32)
    )
    argmax, fingerprint = output.argmax.view(count, size), output.fingerprint.view(count, size, 3)
    sure = sampler.confident(entropy, bounds[1])
    return DeviceDecisions(states, (finite, sure, after, argmax, accepted, fingerprint, soft))


def to_host(decided: Sequence[DeviceDecisions]) -> list[Decision]:
    """Copy decisions to the host, all of them at once: one a sequence, in their order.

    Raises:
        NonFiniteError: One of the sequences is not finite. To find out which, ask for each alone.
    """
    host = iter(host_copies([part for tile in decided for part in tile.parts]))
    tiles = [(tile.states, [next(host) for _ in tile.parts]) for tile in decided]
    if not all(bool(finite.all()) for _, (finite, *_) in tiles):
        raise NonFiniteError
    return [made for states, parts in tiles for made in _unpacked(states, parts)]


def _unpacked(states: Sequence[SequenceState], parts: Sequence[Tensor]) -> list[Decision]:
    """Make decisions of the tensors that `decide` lists, on the host."""
    _, sure, afters, argmaxes, flags, prints = (part.numpy() for part in parts[:-1])
    softs = parts[-1].view(torch.uint8).numpy()  # [sequences, C, H * bytes]
    return [
        Decision(
            before=_current(state),
            after=afters[index],
            argmax=argmaxes[index],
            accepted=flags[index].astype(np.bool_),
            fingerprint=prints[index],
            soft=memoryview(softs[index]).cast("B"),
            confident=bool(sure[index]),
        )
        for index, state in enumerate(states)
    ]


def _current(state: SequenceState) -> Ids:
    if state.current is None:
        raise ValueError("a sequence has no canvas before its first step")
    return state.current
