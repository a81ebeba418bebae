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

Recording a piece stops the device for some 30 ms. So it is done before jobs come, for the numbers
of sequences of a ladder (`limits.RECORDED_SEQUENCES`). After that a bucket is replayed or called.
A step of more sequences takes so long to compute that launching its kernels is no part of its time.

Pieces run one after another, so they share buffers: one for all inputs of the same place, width and
type, and one for all such outputs. Shorter ones are the first rows of the longest. So record the
largest step first. All recordings of eight sequences of the released model then take some 130 MB.

What does not fit into the bounds is called plainly.

`CudaRecorder` has never captured on a GPU. The rest (buckets, buffers, bounds, refusals) is tested
on a CPU, with a recorder that replays by calling the function again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

MAX_RECORDINGS: Final = 512
"""With 31 pieces a step: 16 numbers of sequences. Each also costs some 100 KB of the driver's
memory.
"""
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

    def recording(self) -> AbstractContextManager[None]:
        """Record what runs inside of it, where that is possible."""

    @property
    def reason(self) -> str:
        """Why pieces are called that were to be recorded, or empty."""

    def forget(self) -> None:
        """Drop all recordings, because weights moved or their memory is needed."""


class EagerPieceRunner:
    """Calls every piece: on a CPU, and where nothing is to be recorded."""

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """Call the piece."""
        return piece(*inputs)

    def recording(self) -> AbstractContextManager[None]:
        """Record nothing."""
        return nullcontext()

    @property
    def reason(self) -> str:
        return "the experts decide on the host"

    def forget(self) -> None:
        """Do nothing, since there are no recordings."""


Place = tuple[Literal["in", "out"], int, tuple[int, ...], torch.dtype, torch.device]
"""A buffer: of which input or output, its shape behind the rows, its type and device."""


@dataclass(frozen=True, slots=True)
class _Entry:
    inputs: Tensors  # views of the shared buffers
    outputs: Tensors
    recording: Recording


@dataclass(slots=True)
class GraphPieceRunner:
    """Replays pieces in the shapes in which they were recorded. One thread, one stream.

    max_bytes: device memory that all recordings may hold, with their buffers.
    """

    recorder: Recorder
    max_bytes: int
    max_recordings: int = MAX_RECORDINGS
    refusals: dict[Bucket, str] = field(default_factory=dict)
    """What is called although it was to be recorded, and why. At most max_recordings of them."""
    replays: int = 0
    _recording: bool = False
    _entries: dict[Bucket, _Entry] = field(default_factory=dict)
    _buffers: dict[Place, Tensor] = field(default_factory=dict)

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
        stores = [
            tensor.untyped_storage()
            for entry in self._entries.values()
            for tensor in (*entry.inputs, *entry.outputs)
        ]
        return pools + sum({store.data_ptr(): store.nbytes() for store in stores}.values())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record every piece that runs inside, if it fits. Begin with the largest inputs."""
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def run(self, name: str, piece: Piece, *inputs: Tensor) -> Tensors:
        """Replay the piece if this bucket is recorded, else call it.

        A name stands for one piece and its weights.
        """
        bucket = (name, tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs))
        entry = self._entries.get(bucket)
        if entry is None:
            made = piece(*inputs)
            if self._recording and bucket not in self.refusals:
                # Inputs that a piece hands on may stand in the very buffers that recording it
                # overwrites.
                made = tuple(tensor.clone() for tensor in made)
                self._record(bucket, piece, inputs, made)
            return made
        for buffer, tensor in zip(entry.inputs, inputs, strict=True):
            buffer.copy_(tensor)
        entry.recording.replay()
        self.replays += 1
        return entry.outputs

    @property
    def reason(self) -> str:
        if self.refusals:
            return f"{len(self.refusals)} of {len(self.refusals) + self.recordings}: " + next(
                iter(self.refusals.values())
            )
        return "" if self.recordings else "nothing was recorded"

    def forget(self) -> None:
        """Drop all recordings."""
        for kept in (self._entries, self._buffers, self.refusals):
            kept.clear()

    def _record(self, bucket: Bucket, piece: Piece, inputs: Tensors, outputs: Tensors) -> None:
        """Record a piece, whose call made `outputs` of `inputs`, if it fits."""
        made: dict[Place, Tensor] = {}
        reads = self._views("in", inputs, made)
        writes = self._views("out", outputs, made)
        new_bytes = sum(buffer.nbytes for buffer in made.values())
        if self.recordings >= self.max_recordings or self.held_bytes + new_bytes > self.max_bytes:
            self._refuse(bucket, f"no room beside {self.held_bytes} bytes of recordings")
            return
        for buffer, tensor in zip(reads, inputs, strict=True):
            buffer.copy_(tensor)

        def action() -> None:
            for buffer, output in zip(writes, piece(*reads), strict=True):
                buffer.copy_(output)

        try:
            recording = self.recorder.record(action)
        except RecordingRefusedError as error:
            self._refuse(bucket, str(error))
            return
        if self.held_bytes + new_bytes + recording.pool_bytes > self.max_bytes:
            self._refuse(bucket, f"its own memory is {recording.pool_bytes} bytes")
            return
        self._buffers |= made
        self._entries[bucket] = _Entry(reads, writes, recording)

    def _views(
        self, kind: Literal["in", "out"], tensors: Tensors, made: dict[Place, Tensor]
    ) -> Tensors:
        """Return buffers of the tensors' shapes: the first rows of shared ones.

        A buffer that is missing or too short is allocated into `made`. Recordings that have the
        shorter one keep it.
        """
        views = []
        for rank, tensor in enumerate(tensors):
            place = (kind, rank, tuple(tensor.shape[1:]), tensor.dtype, tensor.device)
            buffer = made.get(place, self._buffers.get(place))
            if buffer is None or len(buffer) < len(tensor):
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
                made[place] = buffer
            views.append(buffer[: len(tensor)])
        return tuple(views)

    def _refuse(self, bucket: Bucket, reason: str) -> None:
        if len(self.refusals) < self.max_recordings:
            self.refusals[bucket] = reason


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
