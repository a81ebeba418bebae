"""Templates and reads on vLLM: one request a canvas, with the canvas given. Pure.

It takes a server with vLLM's pull request 57250 (`diffusion_seed_canvas`, `diffusion_pinned`,
`diffusion_max_steps`, `diffusion_read_only`). Free positions begin as noise of our own. A server
reports what the model says at pinned positions too, so they are put back.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from piecework_model import templates
from piecework_model.charging import charge_of
from piecework_model.requests import HOLE, CanvasEvent, GenerationRequest, ReadSlot
from piecework_model.sampling.answers import probabilities
from piecework_model.text.segments import SegmentStream
from piecework_model.text.tokens import TextCodec
from piecework_node.errors import EndpointLost
from piecework_node.vllm.canvases import RequestWriter
from piecework_node.vllm.wire import CanvasAnswer, CanvasRequest


def label_ids(slots: Sequence[ReadSlot]) -> tuple[int, ...]:
    """List the tokens of the labels of a canvas, each once, ascending."""
    return tuple(sorted({token for slot in slots for token in slot.label_ids}))


class FormWriter(RequestWriter):
    """The canvases of one template or read, one after the other."""

    def __init__(
        self, request: GenerationRequest, codec: TextCodec, canvas_size: int, vocab_size: int
    ) -> None:
        super().__init__(request)
        self._size, self._vocab = canvas_size, vocab_size
        self._charge = charge_of(request, canvas_size, codec.eos_ids, codec.control_ids)
        self._output = SegmentStream(codec)
        self._done: list[tuple[int, ...]] = []
        for canvas in request.committed:
            charged, _ = self._charge.append(canvas)
            self._output.append(charged, final=False)
            self._done.append(canvas)
        self.ended = False

    @property
    def canvas(self) -> int:
        """The index of the canvas that is being written."""
        return len(self._done)

    def room(self, canvas_limit: int) -> int:
        """Count the canvases that may be requested up to, not including, `canvas_limit`."""
        return 0 if self.ended else max(0, canvas_limit - self.canvas)

    def drop_unfinished(self) -> None:
        """Forget nothing: a canvas is asked for and answered as a whole."""

    def fill(self) -> CanvasEvent | None:
        """Return the next canvas if nobody would pay for a request of it, or None."""
        ids = self._charge.foregone()
        return None if ids is None else self._event(ids, ())

    def next(self) -> CanvasRequest:
        """Compose the request for the next canvas."""
        entries = templates.pins(self._request, self.canvas, self._size)
        slots = templates.slots(self._request, self.canvas, self._size)
        context = () if slots else tuple(token for canvas in self._done for token in canvas)
        return CanvasRequest(
            prompt_ids=(*self._request.prompt_ids, *context),
            canvas=tuple(
                secrets.randbelow(self._vocab) if entry == HOLE else entry for entry in entries
            ),
            pinned=tuple(index for index, entry in enumerate(entries) if entry != HOLE),
            label_ids=label_ids(slots),
        )

    def take(self, answer: CanvasAnswer) -> CanvasEvent:
        """Return the canvas that an answer fills.

        Raises:
            EndpointLost: The answer is not of this canvas.
        """
        entries = templates.pins(self._request, self.canvas, self._size)
        slots = templates.slots(self._request, self.canvas, self._size)
        if len(answer.token_ids) != self._size:
            raise EndpointLost("the endpoint does not fill the canvas")
        ids = tuple(
            token if entry == HOLE else entry
            for entry, token in zip(entries, answer.token_ids, strict=True)
        )
        try:
            answers = tuple(
                probabilities([answer.logprobs[s.position][i] for i in s.label_ids], cap=None)
                for s in slots
            )
        except (IndexError, KeyError):
            raise EndpointLost("the endpoint does not say a probability it was asked for") from None
        return self._event(ids, answers)

    def _event(self, ids: tuple[int, ...], answers: tuple[tuple[int, ...], ...]) -> CanvasEvent:
        """Take in the ids of the next canvas."""
        index = self.canvas
        charged, finish = self._charge.append(ids)
        self._done.append(ids)
        self.ended = finish is not finish.MORE
        return CanvasEvent(
            request_id=self._request.request_id,
            canvas=index,
            token_ids=ids,
            charged_ids=charged,
            segments=self._output.append(charged, final=self.ended),
            steps=0,
            step_leaves=(),
            finish=finish,
            answers=answers,
        )
