"""What a dispute contract decides (docs/disputes.md): exact rules, challenges, and their numbers.

Everything here has a twin in Solidity. `tests/vectors/disputes.json` holds both together.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from piecework_protocol import merkle
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import Finish, Kind
from piecework_protocol.rules.findings import RuleNumber
from piecework_protocol.trace import CanvasField, StepField, leaf_of
from piecework_protocol.types import Bytes32


class TraceRule(enum.IntEnum):
    """What an honest trace never breaks, whatever the hardware. The numbers are the contract's."""

    CANVAS_LEAF = 0
    """The canvas leaf is that of the job and of the receipt."""
    STEP_LEAF = 1
    """A step leaf has its place and its form."""
    CONTINUITY = 2
    """A step begins with what the step before it left."""
    INITIAL_CANVAS = 3
    """The first canvas is Philox's where nothing is pinned."""
    RENOISE = 4
    """What a step does not accept is Philox's after it."""
    PINNED = 5
    """A pinned position keeps its token and counts as accepted."""
    OUTPUT = 6
    """The charged tokens are those of the last argmax canvas, in their order."""


_EVERY_FINISH = frozenset(Finish)
_BOTH = frozenset({Kind.TEXT, Kind.READ})
_TEXT = frozenset({Kind.TEXT})
RULES_APPLY: dict[TraceRule, tuple[frozenset[Kind], frozenset[Finish]]] = {
    TraceRule.CANVAS_LEAF: (_BOTH, _EVERY_FINISH),
    TraceRule.STEP_LEAF: (_BOTH, _EVERY_FINISH),
    # A read takes one step a canvas.
    TraceRule.CONTINUITY: (_TEXT, _EVERY_FINISH),
    TraceRule.INITIAL_CANVAS: (_BOTH, _EVERY_FINISH),
    TraceRule.RENOISE: (_BOTH, _EVERY_FINISH),
    TraceRule.PINNED: (_BOTH, _EVERY_FINISH),
    # A read has no tokens. A cancelled receipt has those of a draft.
    TraceRule.OUTPUT: (_TEXT, _EVERY_FINISH - {Finish.CANCELLED}),
}
"""For which kinds and finishes of a receipt each rule holds."""


def applies(rule: TraceRule, kind: Kind, finish: Finish) -> bool:
    """Say whether a rule holds for a receipt."""
    kinds, finishes = RULES_APPLY[rule]
    return kind in kinds and finish in finishes


RULE_NUMBERS: dict[TraceRule, RuleNumber] = {
    TraceRule.CANVAS_LEAF: RuleNumber.CANVAS,
    TraceRule.STEP_LEAF: RuleNumber.FIELDS,
    TraceRule.CONTINUITY: RuleNumber.CONTINUITY,
    TraceRule.INITIAL_CANVAS: RuleNumber.INITIAL,
    TraceRule.RENOISE: RuleNumber.RENOISED,
    TraceRule.PINNED: RuleNumber.HELD,
    TraceRule.OUTPUT: RuleNumber.OUTPUT,
}
"""The rule of an audit that each rule of the contract is."""


@dataclass(frozen=True, slots=True)
class OpenedLeaf:
    """A leaf of a trace with some of its fields open, as the contract takes it.

    index: 0 for the canvas leaf, k + 1 for that of step k. digests: SHA-256 of each field. fields:
    their bytes, empty where one stays closed. siblings: the proof under the trace root.
    """

    index: int
    digests: tuple[Bytes32, ...]
    fields: tuple[bytes, ...]
    siblings: tuple[Bytes32, ...]


def open_leaf(
    leaves: Sequence[bytes], index: int, fields: Sequence[bytes], wanted: int
) -> OpenedLeaf:
    """Open fields of a leaf: bit i of `wanted` for field i. `fields` are the bytes of all of them.

    Raises:
        MalformedInput: The fields are not those of the leaf.
    """
    kind = CanvasField if index == 0 else StepField
    known = 0 <= index < len(leaves) and len(fields) == len(kind) and all(fields)
    if not known or leaf_of(fields) != leaves[index]:
        raise MalformedInput("the fields are not those of the leaf")
    return OpenedLeaf(
        index,
        tuple(Bytes32(hashlib.sha256(field).digest()) for field in fields),
        tuple(field if wanted >> i & 1 else b"" for i, field in enumerate(fields)),
        merkle.prove(leaves, index).siblings,
    )


def field_bits(fields: Collection[StepField | CanvasField]) -> int:
    """Write fields as the bits that a challenge asks for."""
    return sum(1 << field for field in set(fields))


class ChallengeStatus(enum.IntEnum):
    """Where a challenge stands. The numbers are the contract's."""

    NONE = 0
    OPEN = 1
    ANSWERED = 2
    SILENT = 3
    LATE = 4
    """A silence that was answered afterwards."""
    ESCALATED = 5
    GUILTY = 6
    NOT_GUILTY = 7
    NO_VERDICT = 8


# The windows of the contract, in seconds. A test reads them from it.
JOB_SECONDS = 24 * 3600
CHALLENGE_SECONDS = 3 * 24 * 3600
ANSWER_SECONDS = 24 * 3600
ESCALATE_SECONDS = 12 * 3600
VERDICT_SECONDS = 24 * 3600
MAX_RUNNING = 8
"""Windows of one operator that run at a time. What is asked beside them waits, up to a week."""
EVIDENCE_SECONDS = CHALLENGE_SECONDS + ANSWER_SECONDS + VERDICT_SECONDS
"""How long after a job's deadline its evidence may still be asked for."""
