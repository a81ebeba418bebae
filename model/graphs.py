"""CUDA graphs for the pieces of a denoising step that have a fixed shape.

A step of the released model at one row launches thousands of small kernels; launching them takes longer
than running them. A graph launches a recorded sequence at once. What is recorded here is a *piece*: a
function of tensors that decides nothing on the host, such as all that stands between two attentions of a
layer. Its bucket is the shapes of its inputs, so of the number of canvas tokens, which is rows x canvas in
a step that prefills nothing.

Why not one graph for the whole step: attention is over keys whose number differs from row to row. Padding
them to the longest row's would let the neighbours decide the shape of a row's products, and with it the
last bits of its result. Attention therefore stays outside, at some ten launches a row and layer, and inside
the pieces nothing is padded at all: a replay computes what the plain call computes, with the same kernels
on the same shapes.

A piece is recorded when its bucket comes for the RECORD_AT-th time, since a pass that prefills has a shape
of its own that may never come back. Recordings are bounded in number and in bytes; the one unused for
longest goes first.

Never run on a GPU: `CudaRecorder` has not captured anything yet. What is around it (buckets, buffers, bounds,
refusals) is tested on a CPU with a recorder that replays by calling the function again.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Piece = Callable[..., Tensors]
"""Tensors to tensors: no host decision, no state, no other input but weights that stay where they are."""
Bucket = tuple[str, tuple[Hashable, ...]]

RECORD_AT: Final = 3
"""Once could be chance, twice the first canvas beside a prefill; a canvas has 10 steps and more."""
MAX_RECORDINGS: Final = 512
"""Of 31 pieces a step: 16 numbers of rows. Each costs some 100 KB of the driver's memory as well."""
MAX_COUNTED_BUCKETS: Final = 4096  # shapes not recorded yet; a counter forgets them all when it is full
WARM_UPS: Final = 2  # before a capture: libraries allocate workspaces and choose kernels in their first calls


class Recording(Protocol):
    """A piece that can be repeated on the buffers that it was recorded with."""

    @property
    def outputs(self) -> Tensors:
        """Overwritten by each replay."""

    @property
    def pool_bytes(self) -> int:
        """Device memory that it holds, its inputs aside."""

    def replay(self) -> None:
        """Computes the outputs from what the inputs now hold."""


class Recorder(Protocol):
    """How a piece becomes a recording."""

    def record(self, piece: Piece, inputs: Tensors) -> Recording:
        """Records `piece` on these very buffers. RecordingRefusedError when it cannot be recorded."""


class RecordingRefusedError(Exception):
    """A piece cannot be recorded; it has to be called."""


class Pieces(Protocol):
    """Who runs the pieces of a step."""

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """The piece's outputs. They may be inputs of the next run, of whatever piece, and are gone after it:
        recordings share their scratch memory.
        """


class PlainPieces:
    """Calls every piece: on a CPU, and wherever nothing is to be recorded."""

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """The call."""
        return piece(*inputs)


@dataclass(slots=True)
class _Entry:
    inputs: Tensors
    recording: Recording

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.inputs) + self.recording.pool_bytes


@dataclass(slots=True)
class RecordedPieces:
    """Records pieces that come again in the same shape. One thread, one stream.

    recorder: how. max_bytes: device memory that all recordings may hold, their inputs included.
    """

    recorder: Recorder
    max_bytes: int
    max_recordings: int = MAX_RECORDINGS
    refusals: dict[Bucket, str] = field(default_factory=dict)
    """What is called because it could not be recorded, and why; at most MAX_COUNTED_BUCKETS of them."""
    replays: int = 0
    _entries: OrderedDict[Bucket, _Entry] = field(default_factory=OrderedDict)  # least recently used first
    _seen: Counter[Bucket] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.max_bytes < 0 or self.max_recordings < 1:
            raise ValueError(f"no bounds: {self.max_bytes} bytes, {self.max_recordings} recordings")

    @property
    def recordings(self) -> int:
        """How many there are."""
        return len(self._entries)

    @property
    def held_bytes(self) -> int:
        """Device memory that they hold."""
        return sum(entry.bytes for entry in self._entries.values())

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """A replay if this bucket is recorded, else a call. A name stands for one piece and its weights."""
        bucket = (name, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))
        entry = self._entries.get(bucket)
        if entry is None:
            entry = self._record(bucket, piece, inputs)
        if entry is None:
            return piece(*inputs)
        self._entries.move_to_end(bucket)
        for buffer, tensor in zip(entry.inputs, inputs, strict=True):
            buffer.copy_(tensor)
        entry.recording.replay()
        self.replays += 1
        return entry.recording.outputs

    def forget(self) -> None:
        """Drops all recordings: weights moved, or their memory is needed. Pieces are counted anew."""
        self._entries.clear()
        self._seen.clear()
        self.refusals.clear()

    def _record(self, bucket: Bucket, piece: Piece, inputs: Tensors) -> _Entry | None:
        """A new entry within the bounds, or None if the piece has to be called."""
        if bucket in self.refusals:
            return None
        for counted in (self._seen, self.refusals):
            if len(counted) >= MAX_COUNTED_BUCKETS:
                counted.clear()
        self._seen[bucket] += 1
        if self._seen[bucket] < RECORD_AT:
            return None
        del self._seen[bucket]
        buffers = tuple(tensor.clone(memory_format=torch.contiguous_format) for tensor in inputs)
        try:
            entry = _Entry(buffers, self.recorder.record(piece, buffers))
        except RecordingRefusedError as error:
            self.refusals[bucket] = str(error)
            return None
        if entry.bytes > self.max_bytes:
            self.refusals[bucket] = f"needs {entry.bytes} bytes, all recordings may hold {self.max_bytes}"
            return None
        self._entries[bucket] = entry
        while self.recordings > self.max_recordings or self.held_bytes > self.max_bytes:
            self._entries.popitem(last=False)
        return entry


@dataclass(frozen=True, slots=True)
class CudaRecording:
    """A captured graph, the tensors that it writes, and by how much capturing it made the pool grow."""

    graph: torch.cuda.CUDAGraph
    outputs: Tensors
    pool_bytes: int

    def replay(self) -> None:
        """Launches the graph on the current stream."""
        self.graph.replay()


class CudaRecorder:
    """Captures on a stream of its own into one pool. Pieces run one after another, so scratch memory of one
    may be an output of another: that is why outputs do not outlive the next run.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(self, piece: Piece, inputs: Tensors) -> CudaRecording:
        """Calls the piece WARM_UPS times, then captures it. What cannot be captured (a copy to the host, a
        decision on the host) raises RecordingRefusedError.
        """
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                piece(*inputs)
        torch.cuda.current_stream().wait_stream(self._stream)
        before = torch.cuda.memory_reserved()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = piece(*inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RecordingRefusedError(f"it cannot be captured: {str(error).splitlines()[0]}") from error
        return CudaRecording(graph, outputs, max(0, torch.cuda.memory_reserved() - before))
