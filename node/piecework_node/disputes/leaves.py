"""The fields of the worker's leaves: kept, or computed again by the engine.

The journal keeps a job's sealed content and the leaves of its canvases until the audit window is
over. The fields of a step are kept as long as there is room for them. Without them the engine
replays the canvas. What comes out is compared with the leaves of the journal before anything is
sent. An answer that does not fit would be refused by the contract, and cost gas.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from piecework.chain.reading.disputes import Challenge
from piecework_node.evidence.steps import StepSource
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import ReplayableJobs
from piecework_node.keys.sealing import SealingKeyring
from piecework_node.runtime.cards import EngineCards, EngineEntry, entry_of
from piecework_node.runtime.opener import CannotOpen, CanvasOpener
from piecework_protocol.disputes import CHALLENGE_SECONDS, OpenedLeaf, open_leaf
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.objects import ModelOffer
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Timestamp

LOOK_AGAIN_S: Final = 3600
"""Between two looks for jobs of another engine, in seconds of the chain."""


class JournalLeaves:
    """Implements `disputes.defence.LeafSource`."""

    def __init__(
        self,
        journal: Journal,
        cards: EngineCards,
        keyring: SealingKeyring,
        domain: Domain,
        steps: StepSource | None = None,
    ) -> None:
        """`steps` has what is kept of canvases."""
        self._journal, self._cards = journal, cards
        self._opener = CanvasOpener(journal, cards, keyring, domain, steps)
        self._looked: tuple[frozenset[EngineEntry], Timestamp, str | None] | None = None

    async def open(self, asked: Challenge) -> OpenedLeaf:
        place = await self._journal.canvas_of(asked.channel, asked.receipt)
        stored = None if place is None else await self._journal.job(place[0])
        if place is None or stored is None:
            raise CannotOpen("the journal does not have this job any more")
        canvas = place[1]
        leaves = stored.canvases[canvas].leaves
        if trace_root(leaves) != asked.trace_root or not 0 <= asked.leaf < len(leaves):
            raise CannotOpen("the journal does not have the leaves of this canvas")
        fields = await self._opener.fields(stored, canvas, asked.leaf)
        try:
            return open_leaf(leaves, asked.leaf, fields, asked.fields)
        except MalformedInput:
            raise CannotOpen("the engine makes another canvas leaf than it did then") from None

    async def out_of_reach(self, time: Timestamp) -> str | None:
        able = [c.entry for c in self._cards if not c.failed or c.engine.facts is not None]
        served = frozenset(entry for entry in able if entry is not None)
        if None in able:
            return None if self._looked is None else self._looked[2]
        if self._looked is not None:
            known, at, found = self._looked
            if known == served and time < at + LOOK_AGAIN_S:
                return found
        found = await jobs_of_others(
            self._journal,
            time,
            lambda model: entry_of(model) in served,
            " and ".join(sorted(entry.profile for entry in served)),
            self._lacking,
        )
        self._looked = served, time, found
        return found

    async def _lacking(self, kept: ReplayableJobs, since: Timestamp) -> int:
        """Count an entry's jobs with a canvas that only its own engine can open."""
        canvases = await self._journal.traced(kept.offer, kept.entry, since)
        return len({job for job, canvas in canvases if not self._opener.is_kept(job, canvas)})


async def jobs_of_others(
    journal: Journal,
    time: Timestamp,
    runs: Callable[[ModelOffer], bool],
    profile: str,
    lacking: Callable[[ReplayableJobs, Timestamp], Awaitable[int]] | None = None,
) -> str | None:
    """Say which jobs may be challenged and ran on another engine. None: there are none.

    runs: whether a card of now has an offered model with its last bits. profile: what the engines
    of now call themselves. lacking: counts those of an entry's jobs that kept steps do not cover.
    None: no steps are kept.
    """
    since = Timestamp(max(0, time - CHALLENGE_SECONDS))
    jobs, until, profiles = 0, 0, set[str]()
    for kept in await journal.replayable(since):
        signed = await journal.offer(kept.offer)
        models = () if signed is None else signed.offer.models[kept.entry : kept.entry + 1]
        if any(map(runs, models)):
            continue
        count = kept.jobs if lacking is None else await lacking(kept, since)
        if not count:
            continue
        jobs, until = jobs + count, max(until, kept.deadline)
        profiles |= {model.profile for model in models}
    if not jobs:
        return None
    return (
        f"{jobs} jobs that may be challenged until {until + CHALLENGE_SECONDS} ran on "
        f"{' and '.join(sorted(profiles)) or 'an unknown engine'}, and the engine is "
        f"{profile} now"
    )
