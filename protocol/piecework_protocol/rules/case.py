"""What the rules are applied to: a job, its receipts, and what is open of one canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import Output
from piecework_protocol.merkle import EMPTY_ROOT
from piecework_protocol.objects import Job, Kind, ModelOffer, Receipt
from piecework_protocol.outlines import Outline
from piecework_protocol.trace import CanvasRecord, StepField
from piecework_protocol.types import Digest


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which ids of a model end a text, and which are control tokens."""

    end_ids: frozenset[int]
    control_ids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Case:
    """One canvas of a job. What is None is not known, and rules that need it say nothing.

    Signatures are the caller's business, and so are the proofs of fields that are open alone
    (`trace.OpenedField`). A step that is open whole is held to its leaf here.

    Attributes:
        model: The job's entry in its offer.
        receipts: The job's receipts, from canvas 0 to the canvas in question.
        prompt_tokens: Those of the acceptance.
        outline: That of the job's content.
        leaves: Those under the last receipt's trace root.
        record: The fields of the canvas leaf.
        steps: By step, the fields that are open.
        pins: By position, the ids that the content pins on this canvas. A text without a template
            pins nothing, which the outline says.
        output: The decoded output of the canvas.
        vocabulary: Of the model.

    Raises:
        MalformedInput: There is no receipt.
    """

    domain: Domain
    job: Job
    model: ModelOffer
    receipts: tuple[Receipt, ...]
    prompt_tokens: int | None = None
    outline: Outline | None = None
    leaves: tuple[Digest, ...] | None = None
    record: CanvasRecord | None = None
    steps: Mapping[int, Mapping[StepField, bytes]] = field(default_factory=dict)
    pins: Mapping[int, int] | None = None
    output: Output | None = None
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        if not self.receipts:
            raise MalformedInput("the rules are applied to a receipt")

    @property
    def receipt(self) -> Receipt:
        """The receipt of the canvas in question."""
        return self.receipts[-1]

    @property
    def known_pins(self) -> Mapping[int, int] | None:
        """The pinned positions, if they are known.

        There are none in a text without a template, and none under the empty root.
        """
        if self.pins is not None:
            return self.pins
        outline, record = self.outline, self.record
        if outline is not None and self.job.kind is Kind.TEXT and not outline.templated:
            return {}
        return {} if record is not None and record.pinned == EMPTY_ROOT else None
