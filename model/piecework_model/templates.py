"""Templates: which positions of a canvas are pinned. No torch.

A template covers whole canvases with one entry a position (`GenerationRequest.template`). A pinned
position holds its token from the initial canvas on. It is never renoised, counts as accepted, and
adds nothing to the entropy sum of the acceptance rule. Its soft embedding is zero, so the next step
has no opinion of the model about it. All else is the published sampler.

A hole ends with an end-of-text id. What is left of it on later canvases is not written any more. A
canvas that is only fixed text and such a rest is *given*: the rest is pinned to the id that ended
the hole, so no position is free and one step ends the canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

from piecework_model.requests import HOLE, GenerationRequest, ReadSlot

Ids = tuple[int, ...]


def canvas_count(request: GenerationRequest, canvas_size: int) -> int:
    """Count the canvases of a request, at most."""
    if request.template and not request.reads:
        return len(request.template) // canvas_size
    return -(-request.max_tokens // canvas_size)


def pins(request: GenerationRequest, canvas: int, canvas_size: int) -> Ids:
    """Return a canvas's entries of the template [C], or nothing if the request writes freely."""
    start = _index(request, canvas, canvas_size) * canvas_size
    return request.template[start : start + canvas_size]


def hole_end(entries: Ids, canvas: Ids, before: int | None, end_ids: frozenset[int]) -> int | None:
    """Return the id that ended the hole in which a canvas stops, or None if it goes on.

    entries: of the template, for this canvas. before: what this function said of the canvas before.
    """
    end = before
    for entry, token in zip(entries, canvas, strict=False):
        if entry != HOLE:
            end = None
        elif end is None and token in end_ids:
            end = token
    return end


def given(entries: Ids, end: int | None) -> Ids | None:
    """Return a canvas that the model has nothing to say on, or None if a position is free.

    entries: of the template, for this canvas. end: from `hole_end` for the canvas before.
    """
    ids: list[int] = []
    for entry in entries:
        end = end if entry == HOLE else None
        if entry == HOLE and end is None:
            return None
        ids.append(entry if end is None else end)
    return tuple(ids)


def held(request: GenerationRequest, canvas: int, canvas_size: int, end: int | None) -> Ids:
    """Return what is pinned of a canvas [C], with the rest of a hole that ended before it.

    end: from `hole_end` for the canvas before. It is None for a read.
    """
    entries = pins(request, canvas, canvas_size)
    rest = given(entries, end) if entries else None
    return entries if rest is None else rest


def end_before(
    request: GenerationRequest, committed: Sequence[Ids], end_ids: frozenset[int]
) -> int | None:
    """Return what `hole_end` says of the last of the canvases that were committed."""
    end: int | None = None
    if not request.template or request.reads:
        return end
    for index, canvas in enumerate(committed):
        end = hole_end(pins(request, index, len(canvas)), canvas, end, end_ids)
    return end


def slots(request: GenerationRequest, canvas: int, canvas_size: int) -> tuple[ReadSlot, ...]:
    """Return the slots that a canvas of a read has, or nothing if the request is not a read."""
    if not request.reads:
        return ()
    return request.reads[_index(request, canvas, canvas_size)]


def _index(request: GenerationRequest, canvas: int, canvas_size: int) -> int:
    """Find which canvas of the template a canvas is: all draws of the first one come first."""
    if not request.reads:
        return canvas
    return canvas // (canvas_count(request, canvas_size) // len(request.reads))


def form_length(template: Ids, eos_ids: frozenset[int]) -> int:
    """Count the positions of a template before its end, which is pinned to an end-of-text id."""
    return next((index for index, token in enumerate(template) if token in eos_ids), len(template))
