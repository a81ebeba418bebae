"""Let go of old jobs, of their steps and of sealing keys once nobody can ask for them any more.

A challenge may be answered long after the time that a job's evidence is kept for: it can come three
days after the job's deadline, and wait in line for seven more. A worker that was away or paused in
the meantime still owes the answer. So nothing goes while a challenge is open, and nothing goes
before the chain has said that none is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from piecework_node.evidence.steps import StepStore
from piecework_node.keys.sealing import SealingKeyring


class PrunedJournal(Protocol):
    """A journal that lets go of old jobs (`SqliteJournal`)."""

    async def prune(self, window_s: int) -> object:
        """Do one small step. What comes back is true if there may be more."""
        ...


class EvidenceExpiry:
    """What goes at its time.

    window_s: seconds after a job's deadline for which its evidence is kept. quiet: says whether no
    challenge is open.
    """

    def __init__(
        self,
        journal: PrunedJournal,
        steps: StepStore,
        keyring: SealingKeyring,
        *,
        window_s: int,
        quiet: Callable[[], bool],
    ) -> None:
        self._journal, self._steps, self._keyring = journal, steps, keyring
        self._window_s, self._quiet = window_s, quiet

    async def step(self) -> bool:
        """Let go of a little. Return whether there may be more."""
        if not self._quiet():
            return False
        if await self._journal.prune(self._window_s):
            return True
        self._steps.prune()
        await self._keyring.drop_old()
        return False
