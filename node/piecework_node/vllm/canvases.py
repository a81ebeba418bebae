"""From a stream of token ids to canvases. Pure.

vLLM knows no canvases, but is charged by them. Ids are cut every `canvas_size`, and every canvas
but the last is full (clause 4.5). There are no steps and no leaves (clause 7.4).
"""

from __future__ import annotations

from typing import Final

from piecework_model.requests import CanvasEvent, CanvasFinish, GenerationRequest
from piecework_model.text.segments import SegmentStream
from piecework_model.text.tokens import TextCodec
from piecework_node.errors import EndpointLost
from piecework_node.vllm.wire import Chunk

_FULL_STOPS: Final = frozenset({"stop"})
_PAUSES: Final = frozenset({"length"})


class RequestWriter:
    """What writers of all kinds know of their request."""

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request

    @property
    def first_canvas(self) -> int:
        """The index of the first canvas that this sequence was to write."""
        return len(self._request.committed)

    @property
    def prompt_tokens(self) -> int:
        """The length of the job's prompt."""
        return len(self._request.prompt_ids)


class CanvasWriter(RequestWriter):
    """The growing text of one sequence. An unfinished canvas can be dropped and requested again."""

    def __init__(self, request: GenerationRequest, codec: TextCodec, canvas_size: int) -> None:
        super().__init__(request)
        self._codec, self._size = codec, canvas_size
        self._output = SegmentStream(codec)
        self._done: list[int] = []
        for canvas in request.committed:
            self._done += canvas
            self._output.append(canvas, final=False)
        self._open: list[int] = []
        self.ended = False

    @property
    def canvas(self) -> int:
        """The index of the canvas that is being written."""
        return len(self._done) // self._size

    def context(self) -> tuple[int, ...]:
        """Return the prompt for the engine to go on from: the job's prompt and every finished
        canvas.
        """
        return (*self._request.prompt_ids, *self._done)

    def room(self, canvas_limit: int) -> int:
        """Count the tokens that may be requested up to, not including, canvas `canvas_limit`."""
        most = min(self._request.max_tokens, canvas_limit * self._size)
        return 0 if self.ended else max(0, most - len(self._done))

    def fill(self) -> None:
        """Nothing: of a free text every canvas is asked for."""

    def drop_unfinished(self) -> None:
        """Forget the ids behind the last finished canvas."""
        self._open.clear()

    def take(self, chunk: Chunk) -> list[CanvasEvent]:
        """Return the canvases that a chunk finishes.

        Raises `EndpointLost` if the chunk ends for a reason that does not end a text.
        """
        events: list[CanvasEvent] = []
        for token in self._counting(chunk):
            if self.ended:
                break
            if token in self._codec.eos_ids:
                events.append(self._finish(CanvasFinish.END_OF_TEXT))
                break
            self._open.append(token)
            if len(self._done) + len(self._open) == self._request.max_tokens:
                events.append(self._finish(CanvasFinish.TOKEN_LIMIT))
            elif len(self._open) == self._size:
                events.append(self._finish(CanvasFinish.MORE))
        if chunk.finish in _FULL_STOPS and not self.ended:
            events.append(self._finish(CanvasFinish.END_OF_TEXT))
        if (
            chunk.finish is not None
            and chunk.finish not in _FULL_STOPS | _PAUSES
            and not self.ended
        ):
            raise EndpointLost("the endpoint ended the stream for a reason of its own")
        return events

    @staticmethod
    def _counting(chunk: Chunk) -> tuple[int, ...]:
        """Return the ids without the one that the engine stopped at, which it reports among
        them.
        """
        ids = chunk.token_ids
        stopped_at = chunk.finish in _FULL_STOPS and chunk.stop_id is not None
        return ids[:-1] if stopped_at and ids and ids[-1] == chunk.stop_id else ids

    def _finish(self, finish: CanvasFinish) -> CanvasEvent:
        ids, canvas = tuple(self._open), self.canvas
        final = finish is not CanvasFinish.MORE
        self._open.clear()
        self._done += ids
        self.ended = final
        return CanvasEvent(
            request_id=self._request.request_id,
            canvas=canvas,
            token_ids=ids,
            charged_ids=ids,
            segments=self._output.append(ids, final=final),
            steps=0,
            step_leaves=(),
            finish=finish,
        )
