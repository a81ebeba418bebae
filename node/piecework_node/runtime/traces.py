"""The leaves of a canvas: what the worker commits to beside the engine's own step leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from piecework_model import templates
from piecework_model.requests import HOLE, GenerationRequest
from piecework_protocol.errors import MalformedInput
from piecework_protocol.trace import CanvasRecord, pinned_root
from piecework_protocol.types import DIGEST_BYTES, Digest
from piecework_protocol.worker_session import AcceptedJob


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """What a job's sequence runs, on how large a vocabulary, and which of its ids end a text."""

    request: GenerationRequest
    vocab_size: int
    end_ids: frozenset[int]

    def canvas_record(
        self, accepted: AcceptedJob, committed: Sequence[tuple[int, ...]]
    ) -> CanvasRecord:
        """Make the record of the canvas behind those that are committed (clause 7.1).

        Raises:
            MalformedInput: The canvas is none of the job's.
        """
        job, size, canvas = accepted.job, accepted.model.canvas_size, len(committed)
        end = templates.end_before(self.request, committed, self.end_ids)
        entries = templates.held(self.request, canvas, size, end)
        return CanvasRecord(
            canvas=canvas,
            size=size,
            vocab_size=self.vocab_size,
            kind=job.kind,
            seed=job.parameters.seed,
            parameters=job.parameters.struct_hash(),
            content=job.content,
            pinned=pinned_root(pin for pin in enumerate(entries) if pin[1] != HOLE),
            prompt_tokens=accepted.prompt_tokens,
        )


def leaves_of(record: CanvasRecord, step_leaves: Sequence[bytes]) -> tuple[Digest, ...]:
    """List the leaves of a canvas: its canvas leaf, then the engine's own step leaves.

    Raises:
        MalformedInput: The engine's leaves are not digests.
    """
    if any(len(leaf) != DIGEST_BYTES for leaf in step_leaves):
        raise MalformedInput(f"a step leaf has {DIGEST_BYTES} bytes")
    return (record.leaf(), *map(Digest, step_leaves))
