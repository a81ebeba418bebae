"""Checking those who audit for money, with canvases whose result the client knows.

A check has the shape of an audit. It is a canvas of an earlier job of the client, as it was or
with one thing changed: a delivered token or answer, or a step under the trace root. The auditor
cannot tell it from a real one without computing the canvas. It never gets a canvas that it has made
or has been asked about before.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from piecework.client.auditors.opinions import Opinion
from piecework.client.limits import MAX_KNOWN_CANVASES
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.read import ReadOutput
from piecework_protocol.kinds.text import TextOutput
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Address, Amount, Digest

T = TypeVar("T")
Entropy = Callable[[int], bytes]
"""So many unpredictable bytes."""
SCALE: Final = 2**64


@dataclass(slots=True)
class KnownCanvas:
    """A canvas of the client, and everybody who knows it.

    Attributes:
        model: The digest of its model.
        content: What is claimed of it.
        leaves: Those that its worker signed for.
        ceiling: The most that its whole job could cost, in base units.
        known_to: Operators, owners and payout addresses of those who made it or were asked.
        proofs: How many auditors of other owners have proven that it passes.
        doubted: Whether an auditor that was checked with it found that it does not pass.
    """

    model: Digest
    content: AuditContent
    leaves: tuple[Digest, ...]
    ceiling: Amount
    known_to: set[Address]
    proofs: int = 0
    doubted: bool = False

    @property
    def good(self) -> bool:
        """Whether it passes, as far as is known."""
        return self.proofs > 0 and not self.doubted


class CheckKind(enum.Enum):
    """What is sent, and so what is right to say."""

    GOOD = "a canvas that passes"
    BAD_OUTPUT = "a canvas with another output than its trace"
    BAD_STEP = "a canvas with another step than its model takes"


@dataclass(frozen=True, slots=True)
class Check:
    """One canvas whose result is known."""

    kind: CheckKind
    content: AuditContent
    known: KnownCanvas

    def is_proof(self, opinion: Opinion) -> bool:
        """Say whether a missed check shows that the auditor lied.

        One who passes what was changed lies. But a canvas that a single auditor has passed may be
        that of a friend, who knew its leaves. So one who fails that canvas is not blamed alone.
        """
        return opinion.passed or self.known.proofs > 1

    def why_missed(self, opinion: Opinion) -> str | None:
        """Say how an auditor missed the check, or None if it did not."""
        right = self.kind is CheckKind.GOOD
        if opinion.passed is not right:
            said = "passes" if opinion.passed else "fails"
            return f"it was given {self.kind.value}, and said that it {said}"
        # What was changed decides none of the numbers that are computed again.
        mine = (self.known.leaves[0], *self.known.leaves[1:])
        theirs = (opinion.report.canvas_leaf, *opinion.step_leaves)
        if self.known.good and mine != theirs:
            return f"it was given {self.kind.value}, and computed other numbers"
        return None


@dataclass(slots=True)
class KnownCanvases:
    """The canvases to check with. The oldest are forgotten."""

    canvases: deque[KnownCanvas] = field(default_factory=lambda: deque(maxlen=MAX_KNOWN_CANVASES))

    def add(self, canvas: KnownCanvas) -> None:
        """Remember a canvas, or what is new about it."""
        for known in self.canvases:
            if known.content == canvas.content:
                known.known_to |= canvas.known_to
                known.proofs = max(known.proofs, canvas.proofs)
                known.doubted = known.doubted or canvas.doubted
                return
        self.canvases.append(canvas)

    def check_for(
        self, who: frozenset[Address], model: Digest, profile: str, entropy: Entropy
    ) -> Check | None:
        """Make a check for an auditor that has never seen its canvas. None: there is no canvas."""
        usable = [
            known
            for known in self.canvases
            if known.model == model
            and known.content.profile == profile
            and not known.known_to & who
        ]
        if not usable:
            return None
        known = draw(usable, entropy)
        known.known_to |= who
        kinds = [CheckKind.BAD_OUTPUT, CheckKind.BAD_STEP, *[CheckKind.GOOD] * (2 * known.good)]
        kind = draw(kinds, entropy)
        if kind is CheckKind.BAD_OUTPUT:
            return Check(kind, _with_another_output(known.content, entropy), known)
        if kind is CheckKind.BAD_STEP:
            return Check(kind, _with_another_step(known, entropy), known)
        return Check(kind, known.content, known)


def draw(things: Sequence[T], entropy: Entropy) -> T:
    """Draw one of several, each as likely as the others."""
    return things[int.from_bytes(entropy(8), "big") * len(things) // SCALE]


def chance(share: float, entropy: Entropy) -> bool:
    """Say yes in so large a share of the cases."""
    return int.from_bytes(entropy(8), "big") / SCALE < share


def _with_another_output(content: AuditContent, entropy: Entropy) -> AuditContent:
    told = content.told
    if isinstance(told, ReadOutput):
        return replace(content, output=_other_answers(told, entropy).encode())
    ids = list(told.token_ids)
    if not ids:
        told = TextOutput((_other_id(0, content, ids, entropy),), told.segments)
        return replace(content, output=told.encode())
    place = draw(range(len(ids)), entropy)
    ids[place] = _other_id(ids[place], content, ids, entropy)
    return replace(content, output=TextOutput(tuple(ids), told.segments).encode())


def _other_id(token: int, content: AuditContent, ids: Sequence[int], entropy: Entropy) -> int:
    """Draw another token, one that the model has used here if there is one."""
    used = {*ids, *(one for canvas in content.committed for one in canvas)} - {token}
    return draw(sorted(used), entropy) if used else token ^ 1


def _other_answers(told: ReadOutput, entropy: Entropy) -> ReadOutput:
    """Move half of the likeliest label's share to the least likely one."""
    answers = [list(answer) for answer in told.answers]
    if not answers:
        return told
    answer = draw(answers, entropy)
    most, least = answer.index(max(answer)), answer.index(min(answer))
    if most == least:  # all are equally likely
        least = (most + 1) % len(answer)
    moved = max(1, answer[most] // 2)
    answer[most] -= moved
    answer[least] += moved
    return ReadOutput(tuple(map(tuple, answers)))


def _with_another_step(known: KnownCanvas, entropy: Entropy) -> AuditContent:
    leaves = list(known.leaves)
    leaves[1 + draw(range(len(leaves) - 1), entropy)] = Digest(entropy(32))
    return replace(known.content, trace_root=trace_root(leaves))
