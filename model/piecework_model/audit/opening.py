"""What a worker opens of a step, checked and as arrays: the input of a forced audit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from piecework_model.audit.replay import ReplayedStep
from piecework_model.bounds import ModelLimits
from piecework_model.errors import ImpossibleStepError, OpeningError
from piecework_protocol.trace import EmbeddingType, StepRecord, soft_field

Ids = npt.NDArray[np.int64]

_DTYPES: Final[dict[EmbeddingType, torch.dtype]] = {
    EmbeddingType.FLOAT32: torch.float32,
    EmbeddingType.BFLOAT16: torch.bfloat16,
    EmbeddingType.FLOAT16: torch.float16,
}


@dataclass(frozen=True, slots=True)
class OpenedStep:
    """One step as its worker showed it.

    before, after, argmax: ids [C]. accepted: bool [C]. fingerprint: float32 [C, 3], of float16
    values. soft: the soft embedding [C, H] that the step made, or None if it was not opened.
    """

    canvas: int
    step: int
    before: Ids
    after: Ids
    argmax: Ids
    accepted: npt.NDArray[np.bool_]
    fingerprint: npt.NDArray[np.float32]
    soft: Tensor | None

    @classmethod
    def of(cls, record: StepRecord, soft: Tensor | None, limits: ModelLimits) -> OpenedStep:
        """Read a step's fields.

        Raises:
            ImpossibleStepError: They are of another canvas size, an id is beyond the vocabulary,
                or a number is not finite.
        """
        size = limits.canvas_size
        if record.size != size:
            raise ImpossibleStepError(
                f"step {record.step}: its fields are not those of {size} positions"
            )
        before, after, argmax = (
            np.frombuffer(part, dtype="<u4").astype(np.int64)
            for part in (record.before, record.after, record.argmax)
        )
        if max(int(part.max()) for part in (before, after, argmax)) >= limits.vocab_size:
            raise ImpossibleStepError(f"step {record.step}: an id is beyond the vocabulary")
        bits = np.unpackbits(np.frombuffer(record.accepted, np.uint8), bitorder="little")
        prints = np.frombuffer(record.fingerprint, dtype="<f2").astype(np.float32)
        if not np.isfinite(prints).all():
            raise ImpossibleStepError(f"step {record.step}: its fingerprint is not finite")
        if soft is not None and not bool(torch.isfinite(soft).all()):
            raise ImpossibleStepError(f"step {record.step}: its soft embedding is not finite")
        accepted = bits[:size].astype(np.bool_)
        fingerprint = prints.reshape(size, 3)
        return cls(record.canvas, record.step, before, after, argmax, accepted, fingerprint, soft)

    @classmethod
    def of_replay(cls, step: ReplayedStep, limits: ModelLimits) -> OpenedStep:
        """Open a step that was replayed here."""
        return cls.of(step.record, step.soft, limits)


def write_soft(soft: Tensor) -> bytes:
    """Return the values of a soft embedding [positions, width], row by row, as `read_soft` takes
    them.
    """
    data: bytes = soft.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return data


def read_soft(field: bytes, rows: bytes, *, positions: int, width: int) -> Tensor:
    """Read an opened soft embedding [positions, width] that a step committed to by its field.

    Raises:
        OpeningError: It is not the one that was committed.
        ImpossibleStepError: It has another length.
    """
    kind = EmbeddingType(field[0])
    if soft_field(kind, rows) != field:
        raise OpeningError("the soft embedding is not the one that the step committed to")
    if len(rows) != positions * width * kind.width:
        shape = f"{positions} x {width}"
        raise ImpossibleStepError(f"a soft embedding of {len(rows)} bytes is not one of {shape}")
    return torch.frombuffer(bytearray(rows), dtype=_DTYPES[kind]).view(positions, width)
