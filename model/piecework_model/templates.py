"""Templates: which positions of a canvas are pinned, and what of a filled one is charged. No torch.

A template covers whole canvases with one entry a position (`GenerationRequest.template`). A pinned
position holds its token from the initial canvas on. It is never renoised, counts as accepted, and
adds nothing to the entropy sum of the acceptance rule. All else is the published sampler.

A hole is a run of free positions. The model may fill less of it than there is: what stands behind
an end-of-text id in the same hole is left out, on the next canvas too. Other control tokens in a
hole are dropped. What is charged is the rest of the template, fixed tokens included.
"""

from __future__ import annotations

from collections.abc import Iterable

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
    return next(
        (index for index, token in enumerate(template) if token in eos_ids), len(template)
    )


class FilledForm:
    """What is charged of a template's canvases, one after the other."""

    def __init__(self, eos_ids: frozenset[int], control_ids: frozenset[int]) -> None:
        self._eos_ids, self._control_ids = eos_ids, control_ids
        self._ended = False  # whether the hole that the last canvas stopped in is over

    def preview(self, entries: Ids, canvas: Ids) -> Ids:
        """Return what would be charged of the next canvas if it were this one.

        entries: the canvas's entries of the template. Both are [C].
        """
        return self._read(entries, canvas)[0]

    def append(self, entries: Ids, canvas: Ids) -> Ids:
        """Take the next canvas in, and return what is charged of it."""
        charged, self._ended = self._read(entries, canvas)
        return charged

    def _read(self, entries: Ids, canvas: Ids) -> tuple[Ids, bool]:
        charged: list[int] = []
        ended = self._ended
        for entry, token in _before_end(entries, canvas, self._eos_ids):
            if entry != HOLE:
                charged.append(entry)
                ended = False
            elif token in self._eos_ids:
                ended = True
            elif not ended and token not in self._control_ids:
                charged.append(token)
        return tuple(charged), ended


def _before_end(
    entries: Ids, canvas: Ids, eos_ids: frozenset[int]
) -> Iterable[tuple[int, int]]:
    """Pair entries and ids up to the end of the form."""
    return list(zip(entries, canvas, strict=True))[: form_length(entries, eos_ids)]
