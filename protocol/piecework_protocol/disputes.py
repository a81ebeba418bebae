"""What a dispute contract decides (docs/disputes.md): exact rules, challenges, and their numbers.

Everything here has a twin in Solidity. `tests/vectors/disputes.json` holds both together.
"""

from __future__ import annotations

import enum

from piecework_protocol.objects import Finish, Kind


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
