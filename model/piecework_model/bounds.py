"""Whether a request can ever run: a pure check against the limits of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from piecework_model import limits, templates
from piecework_model.errors import ContextOverflowError, InvalidRequestError
from piecework_model.requests import (
    HOLE,
    GenerationDefaults,
    GenerationRequest,
    PromptImage,
    ReadSlot,
)
from piecework_protocol.limits import MAX_IMAGES_PER_PROMPT

_TEXTS: Final = ("request_id", "tenant")
_WHOLE: Final = (
    "seed",
    "max_tokens",
    "max_steps",
    "stability_steps",
    "canvas_limit",
    "draft_every",
)
_REAL: Final = ("temperature_start", "temperature_end", "entropy_bound", "confidence_threshold")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """How a loaded model sees images.

    token_id: stands in the prompt for each token of an image. patch: pixels a side. pooling:
    patches a side that become one token. most_tokens: of one image. scale: makes pixel values of
    bytes.
    """

    token_id: int
    patch: int
    pooling: int
    most_tokens: int
    scale: float

    @property
    def patch_bytes(self) -> int:
        """Of one patch: three colours a pixel."""
        return 3 * self.patch**2

    @property
    def most_patches(self) -> int:
        """Of one image. The vision tower always sees as many, padded."""
        return self.most_tokens * self.pooling**2


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a loaded model can do.

    max_context, canvas_size: in tokens. max_steps: denoising steps a canvas at most. images: None
    if prompts can have none. end_ids: those that end a text, or a hole of a template.
    """

    max_context: int
    canvas_size: int
    max_steps: int
    vocab_size: int
    images: ImageLimits | None = None
    end_ids: frozenset[int] = frozenset()

    @property
    def chunk_tokens(self) -> int:
        """Where prompts are cut for prefill (`prompt_chunks` in engine/scheduler.py)."""
        return limits.PREFILL_CHUNK_CANVASES * self.canvas_size

    @property
    def largest_chunk(self) -> int:
        """Tokens of the largest chunk. No cut goes through an image."""
        return max(self.chunk_tokens, self.images.most_tokens if self.images else 0)

    def sequence_tokens(self, request: GenerationRequest) -> int:
        """Count the tokens that a request's sequence holds at most: the prompt and all of its
        canvases. Of a read it holds one at a time.
        """
        canvases = 1 if request.reads else templates.canvas_count(request, self.canvas_size)
        return len(request.prompt_ids) + canvases * self.canvas_size


def pass_tokens(most: int, sequences: int, canvas: int, chunk: int) -> int:
    """Return how many tokens the executor takes in one pass, and the memory plan counts.

    most: of any pass on this device. sequences: of texts. All of them denoise in one pass beside
    the prefill of a step. More sequences, such as short reads, take more passes.
    """
    return min(most, sequences * canvas + limits.PREFILL_STEP_CHUNKS * chunk)


def kept_angle_bytes(max_context: int, token_bytes: int) -> int:
    """Return how many bytes of rotations a backbone remembers, and the memory plan counts.

    max_context: of the model, in tokens. token_bytes: of one token's rotation in all kinds of
    layers.
    """
    return min(limits.KEPT_ANGLE_BYTES, max_context * token_bytes)


def charged_length(
    canvas: tuple[int, ...], eos_ids: frozenset[int], remaining_tokens: int
) -> tuple[int, bool]:
    """Count the leading ids of a canvas that are charged, and say whether the text ends in it.

    The text ends when an end-of-text id is among the first `remaining_tokens` ids or directly
    behind them.
    """
    end = next((index for index, token in enumerate(canvas) if token in eos_ids), len(canvas))
    return min(end, remaining_tokens), end < len(canvas) and end <= remaining_tokens


def check(request: GenerationRequest, model: ModelLimits, eos_ids: frozenset[int]) -> None:
    """Check that `request` can run on such a model.

    Raises:
        InvalidRequestError: A field is out of bounds.
        ContextOverflowError: Prompt and canvases are longer than the context.
    """
    _check_types(request)
    _check_numbers(request, model)
    _check_ids("prompt_ids", request.prompt_ids, model.vocab_size)
    if not request.prompt_ids:
        raise InvalidRequestError("prompt_ids", "empty")
    _check_template(request, model, eos_ids)
    _check_reads(request, model)
    _check_images(request, model)
    needed = model.sequence_tokens(request)
    if needed > model.max_context:
        raise ContextOverflowError(needed, model.max_context)
    _check_committed(request, model, eos_ids)


def _check_template(
    request: GenerationRequest, model: ModelLimits, eos_ids: frozenset[int]
) -> None:
    template = request.template
    if len(template) % model.canvas_size:
        raise InvalidRequestError(
            "template", f"{len(template)} entries are not whole canvases of {model.canvas_size}"
        )
    _check_ids("template", tuple(entry for entry in template if entry != HOLE), model.vocab_size)
    length = templates.form_length(template, eos_ids)
    end = template[length:]
    if len(end) >= model.canvas_size and not request.reads:
        raise InvalidRequestError("template", "its last canvas is empty")
    if not request.reads and not eos_ids.issuperset(end):
        raise InvalidRequestError("template", "something stands behind its end of text")
    if not request.reads and request.max_tokens < length:
        raise InvalidRequestError(
            "max_tokens", f"{request.max_tokens}, but the template needs {length}"
        )


def _check_reads(request: GenerationRequest, model: ModelLimits) -> None:
    if not request.reads:
        return
    size = model.canvas_size
    if len(request.template) != len(request.reads) * size:
        raise InvalidRequestError(
            "reads", f"{len(request.reads)} canvases, but the template has other"
        )
    if request.max_steps != 1:
        raise InvalidRequestError("max_steps", f"{request.max_steps}, but a read takes 1")
    if request.max_tokens % (size * len(request.reads)):
        raise InvalidRequestError(
            "max_tokens",
            f"{request.max_tokens} is no multiple of the template's {len(request.template)}",
        )
    for index, canvas in enumerate(request.reads):
        free = request.template[index * size : (index + 1) * size]
        for slot in canvas:
            _check_slot(slot, free, model)


def _check_images(request: GenerationRequest, model: ModelLimits) -> None:
    if not request.images:
        return
    if model.images is None:
        raise InvalidRequestError("images", "this model takes none")
    if len(request.images) > MAX_IMAGES_PER_PROMPT:
        raise InvalidRequestError("images", f"at most {MAX_IMAGES_PER_PROMPT}")
    behind = 0
    for image in request.images:
        _check_image(image, model.images)
        span = request.prompt_ids[image.start : image.start + image.tokens]
        # Between two images stands a token of another kind, or they would be one block.
        if image.start < behind or span != (model.images.token_id,) * image.tokens:
            raise InvalidRequestError("images", "the prompt does not show one where it stands")
        behind = image.start + image.tokens + 1


def _check_image(image: PromptImage, model: ImageLimits) -> None:
    patches = image.columns * image.rows
    if min(image.columns, image.rows) < 1 or image.columns % model.pooling + (
        image.rows % model.pooling
    ):
        raise InvalidRequestError("images", f"{image.columns} x {image.rows} patches")
    if patches != image.tokens * model.pooling**2 or image.tokens > model.most_tokens:
        raise InvalidRequestError("images", f"{image.tokens} tokens of {patches} patches")
    if len(image.patches) != patches * model.patch_bytes:
        raise InvalidRequestError("images", f"{len(image.patches)} bytes of {patches} patches")


def _check_slot(slot: ReadSlot, entries: tuple[int, ...], model: ModelLimits) -> None:
    if not (0 <= slot.position < len(entries) and entries[slot.position] == HOLE):
        raise InvalidRequestError("reads", f"position {slot.position} is not free")
    if not 2 <= len(set(slot.label_ids)) == len(slot.label_ids) <= limits.MAX_LABELS:
        raise InvalidRequestError("reads", f"a slot has 2 to {limits.MAX_LABELS} unlike labels")
    _check_ids("reads", slot.label_ids, model.vocab_size)


def _check_committed(
    request: GenerationRequest, model: ModelLimits, eos_ids: frozenset[int]
) -> None:
    canvases = templates.canvas_count(request, model.canvas_size)
    if len(request.committed) >= canvases:
        raise InvalidRequestError(
            "committed", f"{len(request.committed)} canvases of {canvases}: nothing is left"
        )
    for index, canvas in enumerate(request.committed):
        if len(canvas) != model.canvas_size:
            raise InvalidRequestError(
                "committed", f"canvas {index} has {len(canvas)} of {model.canvas_size} ids"
            )
        _check_ids("committed", canvas, model.vocab_size)
        entries = templates.pins(request, index, model.canvas_size)
        if any(entry not in (HOLE, token) for entry, token in zip(entries, canvas, strict=False)):
            raise InvalidRequestError("committed", f"canvas {index} is not of the template")
        if not entries and not eos_ids.isdisjoint(canvas):
            raise InvalidRequestError(
                "committed", f"the text ends in canvas {index}: nothing is left"
            )


def _check_types(request: GenerationRequest) -> None:
    """Check the type of every field.

    A request comes from outside, and Python takes a fraction of a step or a seed in quotes until
    something deep inside of it fails.
    """
    for field in _TEXTS:
        if not isinstance(value := getattr(request, field), str):
            raise InvalidRequestError(field, f"is {_type(value)}, not a text")
    for field in _WHOLE:
        if not _is_whole(value := getattr(request, field)):
            raise InvalidRequestError(field, f"is {_type(value)}, not a whole number")
    for field in _REAL:
        if not (_is_whole(value := getattr(request, field)) or isinstance(value, float)):
            raise InvalidRequestError(field, f"is {_type(value)}, not a number")
    for field in ("prompt_ids", "committed", "template", "reads", "images"):
        if not isinstance(value := getattr(request, field), tuple):
            raise InvalidRequestError(field, f"is {_type(value)}, not a tuple")
    for index, canvas in enumerate(request.committed):
        if not isinstance(canvas, tuple):
            raise InvalidRequestError("committed", f"canvas {index} is {_type(canvas)}")
    if not all(isinstance(slots, tuple) and all(map(_is_slot, slots)) for slots in request.reads):
        raise InvalidRequestError("reads", "a canvas is not a tuple of slots")
    if not all(map(_is_image, request.images)):
        raise InvalidRequestError("images", "holds something else than images")


def _is_image(value: object) -> bool:
    return (
        isinstance(value, PromptImage)
        and all(map(_is_whole, (value.start, value.tokens, value.columns, value.rows)))
        and value.start >= 0
        and isinstance(value.patches, bytes)
    )


def _is_slot(value: object) -> bool:
    return (
        isinstance(value, ReadSlot)
        and _is_whole(value.position)
        and isinstance(value.label_ids, tuple)
        and all(map(_is_whole, value.label_ids))
    )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _type(value: object) -> str:
    return type(value).__name__


def _check_numbers(request: GenerationRequest, model: ModelLimits) -> None:
    if not 0 < len(request.request_id) <= limits.MAX_REQUEST_ID_CHARS:
        raise InvalidRequestError("request_id", f"{len(request.request_id)} characters")
    if len(request.tenant) > limits.MAX_REQUEST_ID_CHARS:
        raise InvalidRequestError("tenant", f"{len(request.tenant)} characters")
    _between("seed", request.seed, 0, limits.MAX_SEED)
    most = limits.MAX_READ_CANVASES * model.canvas_size if request.reads else model.max_context
    _between("max_tokens", request.max_tokens, 1, most)
    check_denoising(request, model.max_steps)
    _between("canvas_limit", request.canvas_limit, 0, limits.MAX_CANVAS_LIMIT)
    _between("draft_every", request.draft_every, 0, limits.MAX_DRAFT_EVERY_STEPS)


def check_denoising(asked: GenerationRequest | GenerationDefaults, most_steps: int) -> None:
    """Hold the settings of denoising to their bounds.

    Raises:
        InvalidRequestError: one is out of bounds, or not a finite number.
    """
    _between("max_steps", asked.max_steps, 1, most_steps)
    _between(
        "temperature_end", asked.temperature_end, limits.MIN_TEMPERATURE, limits.MAX_TEMPERATURE
    )
    _between(
        "temperature_start", asked.temperature_start, asked.temperature_end, limits.MAX_TEMPERATURE
    )
    _between("entropy_bound", asked.entropy_bound, 0.0, limits.MAX_ENTROPY_BOUND_NATS)
    _between(
        "confidence_threshold",
        asked.confidence_threshold,
        0.0,
        limits.MAX_CONFIDENCE_THRESHOLD_NATS,
    )
    _between("stability_steps", asked.stability_steps, 0, limits.MAX_STABILITY_STEPS)


def _between(field: str, value: float, low: float, high: float) -> None:
    # Compared first: a whole number may be too large for a float.
    if not (low <= value <= high and math.isfinite(value)):
        raise InvalidRequestError(field, f"{value} is not in [{low}, {high}]")


def _check_ids(field: str, ids: tuple[int, ...], vocab_size: int) -> None:
    if not all(map(_is_whole, ids)):
        raise InvalidRequestError(field, "holds something else than whole numbers")
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise InvalidRequestError(field, f"ids must be in [0, {vocab_size})")
