"""CUDA graphs for the pieces of a denoising step that have a fixed shape.

A step of the released model with one sequence launches thousands of small kernels. Launching them
takes longer than running them. A graph launches a recorded series of kernels at once. What is
recorded here is a *piece*: a function of tensors that decides nothing on the host, such as all that
is between two attentions of a layer (vLLM has the same idea in its piecewise CUDA graphs). Its
bucket is the shapes of its inputs, so the number of canvas tokens. In a step without prefill that
is sequences * canvas.

Why is it not one graph for the whole step? The number of keys differs from sequence to sequence.
Padding them to the longest would let neighbours decide the shape of a sequence's products, and with
it the last bits of its result. So attention stays outside, at some ten launches a sequence and
layer. Nothing is padded inside the pieces. A replay runs the same kernels on the same shapes as the
plain call.

A piece is recorded when its bucket comes for the RECORD_AT-th time, because the shape of a pass
with prefill may never come back. Pieces run one after another, so they share buffers: one for all
inputs of the same shape and place, and one for all such outputs. The pieces of a step with one
sequence of the released model then take some 16 MB instead of 250.

What does not fit into the bounds is called plainly. Only recordings that have been idle for long
make room. The pieces of a step take turns, so dropping the least recently used one would drop each
just before it is needed.

`CudaRecorder` has never captured on a GPU. The rest (buckets, buffers, bounds, refusals) is tested
on a CPU, with a recorder that replays by calling the function again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import torch
from torch import Tensor

from piecework_model.errors import ModelError

Tensors = tuple[Tensor, ...]
Piece = Callable[..., Tensors]
"""Tensors to tensors. It makes no decision on the host, has no state, and reads nothing else but
weights that stay in place.
"""
Bucket = tuple[str, tuple[Hashable, ...]]

RECORD_AT: Final = 3
"""Once could be chance, twice the first canvas beside a prefill. A canvas has 10 steps or more."""
MAX_RECORDINGS: Final = 512
"""With 31 pieces a step: 16 numbers of sequences. Each also costs some 100 KB of the driver's
memory.
"""
MAX_COUNTED_BUCKETS: Final = 4096
"""Shapes not recorded yet. A counter forgets them all when it is full."""
IDLE_RUNS: Final = 4096
"""Of any pieces: 130 steps of 31. A recording idle for so long belongs to a load that is over."""
POSTPONED_CALLS: Final = 100
"""Of a bucket for which there was no room, before it is tried again."""
WARM_UPS: Final = 2
"""Before a capture. Libraries allocate workspaces and choose kernels in their first calls."""


class Recording(Protocol):
    """An action that can be repeated on the buffers that it was recorded with."""

    @property
    def pool_bytes(self) -> int:
        """Device memory that it took for itself, without the buffers."""

    def replay(self) -> None:
        """Do it again, with what the buffers now hold."""


class Recorder(Protocol):
    """Turns an action into a recording."""

    def record(self, action: Callable[[], None]) -> Recording:
        """Record an action that only reads and writes buffers and weights.

        Raises RecordingRefusedError if it cannot be recorded.
        """


class RecordingRefusedError(ModelError):
    """A piece cannot be recorded and has to be called."""


class PieceRunner(Protocol):
    """Runs the pieces of a step."""

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """Run a piece and return its outputs.

        They may be inputs of the next run of any piece. They are lost after it, because recordings
        share their buffers.
        """

    def forget(self) -> None:
        """Drop all recordings, because weights moved or their memory is needed."""


class EagerPieceRunner:
    """Calls every piece: on a CPU, and where nothing is to be recorded."""

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """Call the piece."""
        return piece(*inputs)

    def forget(self) -> None:
        """Do nothing, since there are no recordings."""


Place = tuple[Literal["in", "out"], int, torch.Size, torch.dtype, torch.device]


@dataclass(slots=True)
class _Entry:
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]
    recording: Recording
    last_run: int


@dataclass(slots=True)
class GraphPieceRunner:
    """Records pieces that come again in the same shape. One thread, one stream.

    max_bytes: device memory that all recordings may hold, with their buffers. idle_runs: a
    recording not replayed for so many runs makes room for others.
    """

    recorder: Recorder
    max_bytes: int
    max_recordings: int = MAX_RECORDINGS
    idle_runs: int = IDLE_RUNS
    refusals: dict[Bucket, str] = field(default_factory=dict)
    """What is called because it cannot be recorded, and why. At most MAX_COUNTED_BUCKETS of
    them.
    """
    replays: int = 0
    _runs: int = 0
    # Least recently used first.
    _entries: OrderedDict[Bucket, _Entry] = field(default_factory=OrderedDict)
    _buffers: dict[Place, Tensor] = field(default_factory=dict)
    _seen: Counter[Bucket] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.max_bytes < 0 or self.max_recordings < 1:
            raise ValueError(f"no bounds: {self.max_bytes} bytes, {self.max_recordings} recordings")

    @property
    def recordings(self) -> int:
        """How many recordings there are."""
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """Device memory that they hold. Shared buffers count once."""
        pools = sum(entry.recording.pool_bytes for entry in self._entries.values())
        return pools + sum(buffer.nbytes for buffer in self._buffers.values())

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """Replay the piece if this bucket is recorded, else call it.

        A name stands for one piece and its weights.
        """
        self._runs += 1
        bucket = (name, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))
        entry = self._entries.get(bucket)
        if entry is None:
            made = piece(*inputs)
            if self._is_due(bucket):
                # Inputs that a piece hands on may stand in the very buffers that recording it
                # overwrites.
                made = tuple(tensor.clone() for tensor in made)
                self._record(bucket, piece, inputs, made)
            return made
        self._entries.move_to_end(bucket)
        entry.last_run = self._runs
        for place, tensor in zip(entry.inputs, inputs, strict=True):
            self._buffers[place].copy_(tensor)
        entry.recording.replay()
        self.replays += 1
        return tuple(self._buffers[place] for place in entry.outputs)

    def forget(self) -> None:
        """Drop all recordings, and start counting pieces from zero."""
        for kept in (self._entries, self._buffers, self._seen, self.refusals):
            kept.clear()

    def _is_due(self, bucket: Bucket) -> bool:
        """Count a call. Returns whether it is time to record."""
        if bucket in self.refusals:
            return False
        if len(self._seen) >= MAX_COUNTED_BUCKETS:
            self._seen.clear()
        self._seen[bucket] += 1
        return self._seen[bucket] >= RECORD_AT

    def _record(self, bucket: Bucket, piece: Piece, inputs: Tensors, outputs: Tensors) -> None:
        """Record a piece, whose call made `outputs` of `inputs`, if it fits."""
        reads, writes = _places("in", inputs), _places("out", outputs)
        if not self._make_room((*reads, *writes)):
            self._seen[bucket] = RECORD_AT - POSTPONED_CALLS
            return
        for place, tensor in zip((*reads, *writes), (*inputs, *outputs), strict=True):
            if place not in self._buffers:
                self._buffers[place] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, device=tensor.device
                )
        given = [self._buffers[place] for place in reads]
        for buffer, tensor in zip(given, inputs, strict=True):
            buffer.copy_(tensor)

        def action() -> None:
            for place, made in zip(writes, piece(*given), strict=True):
                self._buffers[place].copy_(made)

        del self._seen[bucket]
        try:
            self._entries[bucket] = _Entry(reads, writes, self.recorder.record(action), self._runs)
        except RecordingRefusedError as error:
            if len(self.refusals) >= MAX_COUNTED_BUCKETS:
                self.refusals.clear()
            self.refusals[bucket] = str(error)
        if self.held_bytes > self.max_bytes:  # its own memory was not known before
            self._entries.pop(bucket, None)
            self._seen[bucket] = RECORD_AT - POSTPONED_CALLS
        self._prune()

    def _make_room(self, places: Sequence[Place]) -> bool:
        """Say whether one more recording with these buffers fits the bounds.

        Idle recordings are dropped if need be.
        """
        while True:
            new_bytes = sum(_bytes(place) for place in places if place not in self._buffers)
            if (
                self.recordings < self.max_recordings
                and self.held_bytes + new_bytes <= self.max_bytes
            ):
                return True
            oldest = next(iter(self._entries), None)
            if oldest is None or self._runs - self._entries[oldest].last_run < self.idle_runs:
                return False
            del self._entries[oldest]
            self._prune()

    def _prune(self) -> None:
        """Free the buffers that no recording has."""
        used = {
            place for entry in self._entries.values() for place in (*entry.inputs, *entry.outputs)
        }
        for place in self._buffers.keys() - used:
            del self._buffers[place]


def _places(kind: Literal["in", "out"], tensors: Tensors) -> tuple[Place, ...]:
    """Name the buffers of these tensors: one for all of the same rank in a piece, shape and
    type.
    """
    return tuple((kind, rank, t.shape, t.dtype, t.device) for rank, t in enumerate(tensors))


def _bytes(place: Place) -> int:
    _, _, shape, dtype, _ = place
    return shape.numel() * dtype.itemsize


@dataclass(frozen=True, slots=True)
class CudaRecording:
    """A captured graph, and by how much its capture made the shared pool grow."""

    graph: torch.cuda.CUDAGraph
    pool_bytes: int

    def replay(self) -> None:
        """Launch the graph on the current stream."""
        self.graph.replay()


class CudaRecorder:
    """Captures on a stream of its own.

    All graphs take their scratch memory from one pool, which is as large as the largest of them
    needs. They run one after another, and a replay leaves nothing in it that is needed later.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, action: Callable[[], None]) -> CudaRecording:
        """Run the action WARM_UPS times, then capture it.

        Raises RecordingRefusedError if it cannot be captured, because it copies to the host or
        decides there.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                action()
        torch.cuda.current_stream().wait_stream(self._stream)
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                action()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RecordingRefusedError(
                f"it cannot be captured: {str(error).splitlines()[0]}"
            ) from error
        return CudaRecording(graph, max(0, torch.cuda.memory_reserved() - before))
