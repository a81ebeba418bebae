"""Templates: which positions of a canvas are pinned. No torch.

A template covers whole canvases with one entry a position (`GenerationRequest.template`). A pinned
position holds its token from the initial canvas on. It is never renoised, counts as accepted, and
adds nothing to the entropy sum of the acceptance rule. Its soft embedding is zero, so the next step
has no opinion of the model about it. All else is the published sampler.
"""

from __future__ import annotations

from piecework_model.requests import GenerationRequest, ReadSlot

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
