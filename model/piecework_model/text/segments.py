"""What a model wrote, as segments of an answer."""

from __future__ import annotations

from piecework_model.text.tokens import TextCodec, TextStream
from piecework_protocol.kinds.text import OutputSegment, final_segments


class SegmentStream:
    """The answer of growing ids, handed out in parts. The parts add up to the whole."""

    def __init__(self, codec: TextCodec) -> None:
        self._text = TextStream(codec)

    def append(self, ids: tuple[int, ...], *, final: bool) -> tuple[OutputSegment, ...]:
        """Add ids and return what they add to the answer.

        Unless `final`, hold back what later ids could change.
        """
        return final_segments(self._text.append(ids, final=final))

    def preview(self, ids: tuple[int, ...]) -> tuple[OutputSegment, ...]:
        """Return what `append` would return, and change nothing."""
        return final_segments(self._text.preview(ids))
