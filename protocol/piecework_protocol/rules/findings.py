"""The numbers of the rules, and what a broken one is reported as."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class RuleNumber(enum.IntEnum):
    """The rules. Audit reports and the dispute contract name them by number, so none is reused."""

    CHAIN = 1
    """Receipts are of one job, in order, and each holds the digest of the one before (4.1)."""
    STEPS = 2
    """A canvas takes 1 to `maxSteps` steps, and has a trace if it has steps (4.4, 7.4)."""
    TOTALS = 3
    """A receipt's totals are those before it and its own (4.4)."""
    PRICE = 4
    """A receipt charges the difference of two total prices of the offer (3.4)."""
    CEILING = 5
    """Neither `maxAmount` nor `maxTokens` is exceeded (3.4, 4.4)."""
    FINISH = 6
    """A canvas is the last exactly where its kind and the token limit say so (4.5)."""
    PROMPT = 7
    """The prompt tokens charged are those that the worker accepted (3.5, 3.8)."""
    LEAVES = 8
    """The leaves lead to the trace root, and what is open of a leaf to the leaf (7.1, 7.2)."""
    CANVAS = 9
    """The canvas leaf binds what the job and the offer say (7.1)."""
    PINNED = 10
    """The pinned positions are under the canvas leaf's root (7.1)."""
    FIELDS = 11
    """A step's fields have their lengths, indices, and ids of the vocabulary (7.1)."""
    INITIAL = 12
    """Before step 0 a free position holds its Philox id (7.3, purpose 0)."""
    HELD = 13
    """A pinned position is accepted and has its id before, after and as argmax (3.3)."""
    RENOISED = 14
    """After a step a position that was not accepted holds its Philox id (7.3, purpose 2)."""
    CONTINUITY = 15
    """A step begins with the canvas that the one before it ended with (7.1)."""
    ENTROPY = 16
    """The accepted positions are those of least entropy, up to the bound (7.5)."""
    STOP = 17
    """A canvas ends with the first step that is stable and confident, or with the last (7.5)."""
    OUTPUT = 18
    """The output is what the last argmax canvas says (4.2, 4.4)."""
    FINGERPRINT = 19
    """The committed numbers can be those of one distribution (7.5)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule. step: of the canvas, or None where the rule is not about one. No text of the
    job.
    """

    rule: RuleNumber
    step: int | None
    text: str

    def __str__(self) -> str:
        """Give one line: the rule, what is broken, and at which step."""
        at = "" if self.step is None else f" (step {self.step})"
        return f"rule {self.rule.value} ({self.rule.name.lower()}): {self.text}{at}"
