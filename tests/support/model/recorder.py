"""A recorder for machines without a GPU: a replay does the recorded action again.

Buffers are shared among recordings as they are on a GPU, so what is read too late is wrong here as
well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from piecework_model.layers.graphs import RecordingRefusedError


@dataclass(frozen=True, slots=True)
class EchoRecording:
    """An action. pool_bytes: what it claims to hold."""

    action: Callable[[], None]
    pool_bytes: int

    def replay(self) -> None:
        """The action."""
        self.action()


@dataclass(slots=True)
class EchoRecorder:
    """Records anything, unless it is told a reason not to. made: how many it recorded."""

    refusal: str = ""
    pool_bytes: int = 0
    made: int = 0

    def record(self, action: Callable[[], None]) -> EchoRecording:
        """Does it once, as a warm-up would."""
        if self.refusal:
            raise RecordingRefusedError(self.refusal)
        action()
        self.made += 1
        return EchoRecording(action, self.pool_bytes)
