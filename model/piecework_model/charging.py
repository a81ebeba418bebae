"""What of a canvas is charged, and whether the text ends with it. No torch.

The charged ids are what the client gets. Free text ends before its first end-of-text id. Of a
template all is charged but these: what stands behind an end-of-text id in the same hole, on the
next canvas too, and other control tokens in a hole. Fixed tokens are charged. A read has no text.
"""

from __future__ import annotations

from typing import Protocol

from piecework_model import bounds, templates
from piecework_model.requests import HOLE, CanvasFinish, GenerationRequest

Ids = tuple[int, ...]


class Charge(Protocol):
    """The canvases of one request, one after the other."""

    def preview(self, canvas: Ids) -> Ids:
        """Return what would be charged of the next canvas if it had these ids."""
        ...

    def append(self, canvas: Ids) -> tuple[Ids, CanvasFinish]:
        """Take the next canvas in. Return what is charged, and whether the text ends."""
        ...

    def foregone(self) -> Ids | None:
        """Return the next canvas if the model has nothing to say on it, or None.

        All of it is fixed, or is the rest of a hole that has ended (`templates.given`). Nothing of
        that rest is charged.
        """
        ...


def charge_of(
    request: GenerationRequest,
    canvas_size: int,
    eos_ids: frozenset[int],
    control_ids: frozenset[int],
) -> Charge:
    """Begin with the first canvas of a request."""
    if request.reads:
        return _Read(templates.canvas_count(request, canvas_size))
    if request.template:
        return _Form(request.template, canvas_size, eos_ids, control_ids)
    return _FreeText(request.max_tokens, eos_ids)


class _FreeText:
    def __init__(self, max_tokens: int, eos_ids: frozenset[int]) -> None:
        self._remaining, self._eos_ids = max_tokens, eos_ids

    def preview(self, canvas: Ids) -> Ids:
        length, _ = bounds.charged_length(canvas, self._eos_ids, self._remaining)
        return canvas[:length]

    def append(self, canvas: Ids) -> tuple[Ids, CanvasFinish]:
        length, ended = bounds.charged_length(canvas, self._eos_ids, self._remaining)
        self._remaining -= length
        if ended:
            return canvas[:length], CanvasFinish.END_OF_TEXT
        limit = CanvasFinish.TOKEN_LIMIT if self._remaining == 0 else CanvasFinish.MORE
        return canvas[:length], limit

    def foregone(self) -> None:
        return None


class _Form:
    def __init__(
        self,
        template: Ids,
        canvas_size: int,
        eos_ids: frozenset[int],
        control_ids: frozenset[int],
    ) -> None:
        self._template = template
        self._length = templates.form_length(template, eos_ids)
        self._size, self._eos_ids, self._control_ids = canvas_size, eos_ids, control_ids
        self._canvas = 0
        self._end: int | None = None  # what ended the hole that the last canvas stopped in

    def preview(self, canvas: Ids) -> Ids:
        return self._read(canvas)[0]

    def append(self, canvas: Ids) -> tuple[Ids, CanvasFinish]:
        charged, self._end = self._read(canvas)
        self._canvas += 1
        over = self._canvas * self._size >= self._length
        return charged, CanvasFinish.END_OF_TEXT if over else CanvasFinish.MORE

    def foregone(self) -> Ids | None:
        start = self._canvas * self._size
        return templates.given(self._template[start : start + self._size], self._end)

    def _read(self, canvas: Ids) -> tuple[Ids, int | None]:
        charged: list[int] = []
        end = self._end
        start = self._canvas * self._size
        entries = self._template[start : min(start + self._size, self._length)]
        for entry, token in zip(entries, canvas, strict=False):  # the end is not charged
            if entry != HOLE:
                charged.append(entry)
                end = None
            elif end is None and token in self._eos_ids:
                end = token
            elif end is None and token not in self._control_ids:
                charged.append(token)
        return tuple(charged), end


class _Read:
    def __init__(self, canvases: int) -> None:
        self._left = canvases

    def preview(self, canvas: Ids) -> Ids:
        return ()

    def append(self, canvas: Ids) -> tuple[Ids, CanvasFinish]:
        self._left -= 1
        return (), CanvasFinish.MORE if self._left else CanvasFinish.END_OF_TEXT

    def foregone(self) -> None:
        return None
