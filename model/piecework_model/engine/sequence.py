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


def decisions(
    states: Sequence[SequenceState], output: SampleOutput, soft: Tensor, renoise: Ids
) -> list[Decision]:
    """Copy what a step decided to the host: one decision a sequence, in the order of `states`.

    output: over sequences * C positions. soft: [sequences, C, H]. renoise: [sequences, C].

    Raises:
        NonFiniteError: One of the sequences is not finite. To find out which, ask for each alone.
    """
    count, size = renoise.shape
    device = output.entropy.device
    entropy = output.entropy.view(count, size)
    request = [state.request for state in states]
    bounds = torch.tensor([r.entropy_bound for r in request], dtype=torch.float32, device=device)
    thresholds = torch.tensor(
        [r.confidence_threshold for r in request], dtype=torch.float32, device=device
    )
    accepted = sampler.accept(entropy, bounds)
    sampled = output.sampled.view(count, size)
    after = torch.where(accepted, sampled, torch.from_numpy(renoise).to(device))
    sure = sampler.confident(entropy, thresholds).tolist()
    finite = torch.isfinite(entropy).all(-1) & torch.isfinite(
        soft.flatten(1).sum(-1, dtype=torch.float32)
    )
    if not bool(finite.all()):
        raise NonFiniteError
    fingerprint = output.fingerprint.view(count, size, 3)
    host = [
        part.cpu().contiguous()
        for part in (after, output.argmax.view(count, size), accepted, fingerprint)
    ]
    afters, argmaxes, flags, prints = (part.numpy() for part in host)
    softs = soft.contiguous().cpu().view(torch.uint8).numpy()  # [sequences, C, H * bytes]
    return [
        Decision(
            before=_current(state),
            after=afters[index],
            argmax=argmaxes[index],
            accepted=flags[index].astype(np.bool_),
            fingerprint=prints[index],
            soft=memoryview(softs[index]).cast("B"),
            confident=sure[index],
        )
        for index, state in enumerate(states)
    ]


def _current(state: SequenceState) -> Ids:
    if state.current is None:
        raise ValueError("a sequence has no canvas before its first step")
    return state.current
