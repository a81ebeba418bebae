"""Where the frames of a job go."""

from __future__ import annotations

from typing import Protocol

from piecework_protocol.errors import Refusal
from piecework_protocol.frames import WorkerFrame


class FrameSink(Protocol):
    """A gRPC stream, or a list in a test. Neither method blocks."""

    def send(self, frame: WorkerFrame) -> bool:
        """Queue a frame. Return whether it will be sent.

        Drafts may be dropped. No other frame is, unless the stream has ended.
        """
        ...

    def close(self, refusal: Refusal | None) -> None:
        """End the stream. `refusal` says why, unless the end is the ordinary one."""
        ...
