"""Teacher-forced audit: every opened step of a canvas is computed from the worker's own state.

A step's state is its canvas and the soft embedding of the step before it. Once both are shown, the
steps do not depend on each other, so all of them share one pass: the prompt and the canvases before
are prefilled once, and every step's canvas stands behind them. A model in float32 prefills them in
as few passes as it can. Another takes the engine's own chunks: its roundings depend on the cut.

What comes out are numbers beside the worker's numbers, on any engine profile. `judgement` decides
on them.

S = steps, C = canvas size, V = vocabulary, H = hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from piecework_model import bounds, limits, templates
from piecework_model.audit.opening import OpenedStep
from piecework_model.checkpoint.loading import LoadedModel
from piecework_model.engine.scheduler import joined_chunks, known_chunks
from piecework_model.errors import NonFiniteError, OpeningError
from piecework_model.layers.backbone import Backbone, CanvasesSegment, Segment
from piecework_model.layers.cache import SequenceCache
from piecework_model.layers.projections import products_of
from piecework_model.layers.vision import ImageEncoder
from piecework_model.layout import cache_layout
from piecework_model.requests import HOLE, GenerationRequest
from piecework_model.sampling import sampler
from piecework_model.sampling.philox import Moment, step_draws

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CanvasFigures:
    """The auditor's numbers beside the worker's. All are [S, C].

    entropy, gap: the worker's less the auditor's, as in the fingerprint (nats, and scaled logits).
    level: the auditor's entropy in nats. Errors grow with it.
    known: whether the sampled token is known, because it was accepted.
    distance: of an accepted position's uniform to the interval that its token has in the auditor's
        cumulative distribution. 0 inside of it. NaN where the token is not known.
    deficit: by how much the auditor's logit of the worker's argmax is below the auditor's largest.
    soft: the Euclidean distance of the two soft embeddings of a position, by the root of H. NaN
        where the worker's was not opened.
    free: whether the position is not pinned.
    temperature: of each step, [S].
    """

    entropy: Floats
    gap: Floats
    level: Floats
    known: Flags
    distance: Floats
    deficit: Floats
    soft: Floats
    free: Flags
    temperature: Floats

    @property
    def steps(self) -> int:
        """How many steps were computed."""
        return len(self.entropy)


@dataclass(frozen=True, slots=True)
class _Forced:
    """A step with what goes into it."""

    opened: OpenedStep
    given: Tensor | None  # the soft embedding [C, H] of the step before, None at step 0


class ForcedPass:
    """One loaded model that computes opened steps."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Take the model's weights as they are. Nothing is stored a second time."""
        model, decoder = loaded.model, loaded.model.model.decoder
        self._loaded, self._limits = loaded, loaded.limits
        embedding: Any = decoder.embed_tokens
        self._dtype: torch.dtype = embedding.weight.dtype
        self._device: torch.device = model.device
        size = loaded.limits.canvas_size
        tokens = limits.CPU_AUDIT_TOKENS if self._device.type == "cpu" else limits.GPU_PASS_TOKENS
        # No cut goes through an image, so a chunk with one may be longer than the others.
        self._chunk_tokens = tokens if self._dtype is torch.float32 else 0
        longest = max(loaded.limits.largest_chunk, self._chunk_tokens)
        self._layout = cache_layout(model.config.text_config, size, longest)
        # No row has to be independent of the others here: what differs are last bits.
        products = products_of(model, pack=False, invariant=False)
        self._backbone = Backbone(model, products)
        self._images = ImageEncoder(model, loaded.limits.images)
        self._head = products.of_module(model.lm_head)
        self._soft_product = products.of_matrix(embedding.weight)
        self._scale: Tensor = embedding.embed_scale.to(self._dtype)
        self._cap: float = model.final_logit_softcapping
        self._pass_steps = max(1, tokens // size)
        self._tile_rows = max(1, limits.LOGIT_TILE_VALUES // loaded.limits.vocab_size)

    @torch.inference_mode()
    def figures(self, request: GenerationRequest, opened: Sequence[OpenedStep]) -> CanvasFigures:
        """Compute the opened steps of the canvas that follows the request's committed ones.

        opened: in ascending order. A step counts if it is step 0 or if the soft embedding of the
            step before it is opened too.

        Raises:
            InvalidRequestError, ContextOverflowError: The request can never run.
            OpeningError: No step can be computed from these openings, or a step is one of another
                canvas.
            NonFiniteError: The auditor's model produced NaN or infinity.
        """
        bounds.check(request, self._loaded.limits, self._loaded.eos_ids)
        canvas = len(request.committed)
        steps = self._computable(request, opened)
        cache = self._prefilled(request)
        end = templates.end_before(request, request.committed, self._loaded.eos_ids)
        pins = templates.held(request, canvas, self._limits.canvas_size, end)
        free = np.array([entry == HOLE for entry in pins] or [True] * self._limits.canvas_size)
        parts = [
            self._pass(request, steps[start : start + self._pass_steps], cache, free)
            for start in range(0, len(steps), self._pass_steps)
        ]
        names = CanvasFigures.__dataclass_fields__
        return CanvasFigures(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        )

    def _computable(
        self, request: GenerationRequest, opened: Sequence[OpenedStep]
    ) -> list[_Forced]:
        """Pair each step with the soft embedding that goes into it."""
        canvas, width = len(request.committed), self._loaded.model.config.text_config.hidden_size
        size, shown = self._limits.canvas_size, dict[int, Tensor]()
        steps: list[_Forced] = []
        for step in opened:
            if step.canvas != canvas or not 0 <= step.step < request.max_steps:
                raise OpeningError(f"step {step.step} of canvas {step.canvas} is not one of this")
            if step.soft is not None and step.soft.shape != (size, width):
                raise OpeningError(f"step {step.step}: its soft embedding is of another model")
            if step.step == 0:
                steps.append(_Forced(step, None))
            elif (given := shown.get(step.step - 1)) is not None:
                steps.append(_Forced(step, given))
            if step.soft is not None:
                shown[step.step] = step.soft.to(self._device, self._dtype)
        if not steps:
            raise OpeningError("no opened step has the soft embedding of the step before it")
        return steps

    def _prefilled(self, request: GenerationRequest) -> SequenceCache:
        """Make the cache that all steps read, chunk by chunk."""
        chunks = joined_chunks(known_chunks(request, self._limits.chunk_tokens), self._chunk_tokens)
        tokens = sum(map(len, chunks))
        cache = SequenceCache(self._layout, tokens, self._device, self._dtype)
        for chunk in chunks:
            cache.reserve(len(chunk))
            embedded = self._backbone.embed(torch.tensor(chunk.ids, device=self._device))
            hidden, blocks = (
                self._images.put(embedded, chunk.images),
                self._images.blocks(chunk.images),
            )
            segment = Segment(cache, 0, len(chunk), 0, causal=True, blocks=blocks)
            self._backbone.run(hidden, [segment], 0)
            cache.commit(len(chunk))
        return cache

    def _pass(
        self,
        request: GenerationRequest,
        steps: Sequence[_Forced],
        cache: SequenceCache,
        free: Flags,
    ) -> CanvasFigures:
        """Compute some steps, all of them at once."""
        size, width = self._limits.canvas_size, len(steps) * self._limits.canvas_size
        before = np.concatenate([step.opened.before for step in steps])
        embedded = self._backbone.embed(torch.from_numpy(before).to(self._device))
        zeros = torch.zeros_like(embedded[:size])
        given = torch.cat([zeros if step.given is None else step.given for step in steps])
        segment = CanvasesSegment(cache, 0, len(steps), size)
        states = self._backbone.run(self._backbone.condition(embedded, given), [segment], width)
        rows = _rows(request, steps, free, self._limits.vocab_size)
        tiles = [
            self._scored(states[start:stop], rows.part(start, stop))
            for start in range(0, width, self._tile_rows)
            for stop in [min(width, start + self._tile_rows)]
        ]
        scores = [torch.cat(part).view(len(steps), size, -1) for part in zip(*tiles, strict=True)]
        return _compared(steps, scores[0].cpu().numpy(), scores[1], free, rows.temperatures[::size])

    def _scored(self, states: Tensor, rows: _Rows) -> tuple[Tensor, Tensor]:
        """Compute a tile's numbers [P, 4], as `_compared` takes them, and soft embeddings
        [P, H].

        The sampler's formulas without a draw: an accepted token is known, and no score asks what
        would be drawn elsewhere. Its order of operations is the engine's own, and is not needed.
        """
        temperatures, uniforms, tokens, known, argmax = rows.on(self._device)
        raw = self._head(states)
        least, most = torch.aminmax(raw, dim=-1)
        if not bool((torch.isfinite(least) & torch.isfinite(most)).all()):
            raise NonFiniteError  # tanh would hide an infinity
        logits = raw.to(torch.float32).div(self._cap).tanh_()
        logits.mul_((self._cap / temperatures)[:, None])
        exact = torch.softmax(logits, dim=-1)
        seen = exact
        if raw.dtype is not torch.float32:  # as the worker rounds them
            seen = logits.to(raw.dtype).softmax(dim=-1, dtype=torch.float32).to(raw.dtype)
        largest, place = logits.max(-1)
        expected = torch.linalg.vecdot(exact, logits)
        deficit = largest - _at(logits, argmax)
        second = logits.scatter_(-1, place[:, None], -torch.inf).amax(-1)
        distance = torch.full_like(uniforms, torch.nan)
        # One position in fifteen: each is accepted once in all steps, and the sums cost much.
        distance[known] = _distance(exact[known], tokens[known], uniforms[known])
        # The logarithm of the sum is the largest logit less its log-probability.
        entropy = largest - _at(exact, place).log() - expected
        numbers = entropy, largest - second, deficit, distance
        soft = self._soft_product(seen) * self._scale
        return torch.stack([number.to(torch.float64) for number in numbers], dim=-1), soft


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the steps' positions need to be scored, one behind the other: all are [P]."""

    temperatures: Floats
    uniforms: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    known: Flags
    argmax: npt.NDArray[np.int64]

    def part(self, start: int, stop: int) -> _Rows:
        """Return some of the rows."""
        return _Rows(*(column[start:stop] for column in self._columns))

    def on(self, device: torch.device) -> list[Tensor]:
        """Copy the columns to a device, in their order."""
        return [torch.from_numpy(column).to(device) for column in self._columns]

    @property
    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return self.temperatures, self.uniforms, self.tokens, self.known, self.argmax


def _rows(
    request: GenerationRequest, steps: Sequence[_Forced], free: Flags, vocab_size: int
) -> _Rows:
    canvas, opened = len(request.committed), [step.opened for step in steps]
    size = len(opened[0].before)
    moments = [Moment(request.seed, canvas, step.step) for step in opened]
    heats = [
        sampler.temperature(
            request.temperature_start,
            request.temperature_end,
            request.max_steps - step.step,
            request.max_steps,
        )
        for step in opened
    ]
    return _Rows(
        np.repeat(np.array(heats, dtype=np.float32), size),
        step_draws(moments, size, vocab_size).uniforms.reshape(-1),
        np.concatenate([step.after for step in opened]),
        np.concatenate([step.accepted & free for step in opened]),
        np.concatenate([step.argmax for step in opened]),
    )


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """Take one value [P] of each row [P, V]."""
    return values.gather(1, columns[:, None])[:, 0]


def _distance(exact: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
    """Compute how far uniforms [P] are from the tokens' intervals of the cumulative distribution.

    A probability in float64, 0 inside of the interval. exact: probabilities [P, V] float32.
    """
    earlier = torch.arange(exact.shape[1], device=exact.device)[None] < tokens[:, None]
    below = (exact * earlier).sum(-1, dtype=torch.float64)
    total = exact.sum(-1, dtype=torch.float64)
    low, high = below / total, (below + _at(exact, tokens)) / total
    return torch.maximum(low - uniforms, uniforms - high).clamp_min(0.0)


def _compared(
    steps: Sequence[_Forced],
    numbers: npt.NDArray[np.float64],
    softs: Tensor,
    free: Flags,
    temperature: Floats,
) -> CanvasFigures:
    """Put the worker's numbers beside the auditor's [S, C, 4] and soft embeddings [S, C, H]."""
    opened = [step.opened for step in steps]
    entropy, gap, deficit, distance = np.moveaxis(numbers, -1, 0)
    prints = np.stack([step.fingerprint for step in opened])
    accepted = np.stack([step.accepted for step in opened]) & free
    shown = [
        _soft_distance(step.soft, soft, free) for step, soft in zip(opened, softs, strict=True)
    ]
    return CanvasFigures(
        entropy=(prints[..., 0] - entropy).astype(np.float32),
        gap=(prints[..., 2] - gap).astype(np.float32),
        level=entropy.astype(np.float32),
        known=accepted,
        distance=np.where(accepted, distance, np.nan).astype(np.float32),
        deficit=deficit.astype(np.float32),
        soft=np.stack(shown),
        free=np.broadcast_to(free, entropy.shape),
        temperature=temperature,
    )


def _soft_distance(theirs: Tensor | None, ours: Tensor, free: Flags) -> Floats:
    """Compute the distances [C] of two soft embeddings [C, H]. A pinned position has none."""
    if theirs is None:
        return np.full(len(ours), np.nan, dtype=np.float32)
    apart = (theirs.to(ours.device, torch.float32) - ours.to(torch.float32)).norm(dim=-1)
    width: int = ours.shape[-1]
    found: Floats = (apart / width**0.5).cpu().numpy()
    return np.where(free, found, 0.0).astype(np.float32)
