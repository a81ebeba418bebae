"""Where the frames of a job go."""

from __future__ import annotations

from typing import Protocol

from piecework_protocol.errors import Refusal
from piecework_protocol.frames import WorkerFrame


class FrameSink(Protocol):
    """A gRPC stream, or a list in a test. Neither method blocks."""

    def send(self, frame: WorkerFrame) -> None:
        """Queue a frame. Drafts may be dropped. No other frame is ever dropped."""
        ...

    def close(self, refusal: Refusal | None) -> None:
        """End the stream. `refusal` says why, unless the end is the ordinary one."""
        ...
