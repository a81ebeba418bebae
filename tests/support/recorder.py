"""A recorder for machines without a GPU: a replay calls the piece again on its buffers.

It is as unforgiving as CUDA graphs: outputs stay in one place, and every replay spoils the outputs of all
other recordings, as graphs do that share their scratch memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from model.graphs import Piece, RecordingRefusedError, Tensors


def spoil(tensor: Tensor) -> None:
    """No computation may go on from this."""
    tensor.fill_(math.nan if tensor.is_floating_point() else 77)


@dataclass(slots=True)
class EchoRecording:
    """Inputs, outputs and the piece between them."""

    piece: Piece
    inputs: Tensors
    outputs: Tensors
    others: list[EchoRecording] = field(repr=False)

    @property
    def pool_bytes(self) -> int:
        """Of its outputs."""
        return sum(tensor.nbytes for tensor in self.outputs)

    def replay(self) -> None:
        """The call, its results put where they belong."""
        made = self.piece(*self.inputs)
        for other in self.others:
            for tensor in other.outputs:
                spoil(tensor)
        for place, tensor in zip(self.outputs, made, strict=True):
            place.copy_(tensor)


@dataclass(slots=True)
class EchoRecorder:
    """Records anything, unless it is told a reason not to."""

    refusal: str = ""
    made: list[EchoRecording] = field(default_factory=list)

    def record(self, piece: Piece, inputs: Tensors) -> EchoRecording:
        """Calls the piece once for the shapes of its outputs."""
        if self.refusal:
            raise RecordingRefusedError(self.refusal)
        recording = EchoRecording(piece, inputs, tuple(t.clone() for t in piece(*inputs)), self.made)
        self.made.append(recording)
        return recording
