"""The fields of the worker's leaves: from the journal, and computed again by the engine.

The journal keeps a job's sealed content and the leaves of its canvases until the audit window is
over. The fields of a step are not kept: one canvas of a large model has megabytes of them. So the
engine replays the canvas. Its leaves are compared with those of the journal before anything is
sent. An answer that does not fit would be refused by the contract, and cost gas.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from piecework.chain.disputes import Challenge
from piecework_model.jobs import generation_request
from piecework_model.requests import GenerationRequest
from piecework_node.disputes.defence import CannotOpen
from piecework_node.errors import EngineUnavailable, PromptRejected, ReplayDeclined
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import StoredJob
from piecework_node.keys.sealing import SealingKeyring
from piecework_node.runtime.cards import EngineCard, EngineCards, EngineEntry, entry_of
from piecework_node.runtime.requests import unpack_ids
from piecework_node.runtime.traces import RunningRequest
from piecework_protocol.disputes import CHALLENGE_SECONDS, OpenedLeaf, open_leaf
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import KINDS
from piecework_protocol.objects import ModelOffer
from piecework_protocol.sealing import content_context, resume_context
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Timestamp
from piecework_protocol.worker_session import AcceptedJob

LOOK_AGAIN_S: Final = 3600
"""Between two looks for jobs of another engine, in seconds of the chain."""


class JournalLeaves:
    """Implements `disputes.defence.LeafSource`."""

    def __init__(
        self, journal: Journal, cards: EngineCards, keyring: SealingKeyring, domain: Domain
    ) -> None:
        self._journal, self._cards = journal, cards
        self._keyring, self._domain = keyring, domain
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
        fields = await self._fields(stored, canvas, leaves, asked.leaf)
        try:
            return open_leaf(leaves, asked.leaf, fields, asked.fields)
        except MalformedInput:
            raise CannotOpen("the engine makes another canvas leaf than it did then") from None

    async def out_of_reach(self, time: Timestamp) -> str | None:
        able = [card.entry for card in self._cards if not card.failed]
        served = frozenset(entry for entry in able if entry is not None)
        if None in able:
            return None if self._looked is None else self._looked[2]
        if self._looked is not None:
            known, at, found = self._looked
            if known == served and time < at + LOOK_AGAIN_S:
                return found
        found = await self._jobs_of_others(served, time)
        self._looked = served, time, found
        return found

    async def _jobs_of_others(self, served: frozenset[EngineEntry], time: Timestamp) -> str | None:
        jobs, until, profiles = 0, 0, set[str]()
        for kept in await self._journal.replayable(Timestamp(max(0, time - CHALLENGE_SECONDS))):
            signed = await self._journal.offer(kept.offer)
            models = () if signed is None else signed.offer.models[kept.entry : kept.entry + 1]
            if any(entry_of(model) in served for model in models):
                continue
            jobs, until = jobs + kept.jobs, max(until, kept.deadline)
            profiles |= {model.profile for model in models}
        if not jobs:
            return None
        return (
            f"{jobs} jobs that may be challenged until {until + CHALLENGE_SECONDS} ran on "
            f"{' and '.join(sorted(profiles)) or 'an unknown engine'}, and the engine is "
            f"{' and '.join(sorted(entry.profile for entry in served))} now"
        )

    async def _fields(
        self, stored: StoredJob, canvas: int, leaves: Sequence[bytes], leaf: int
    ) -> tuple[bytes, ...]:
        model = await self._model_of(stored)
        card, vocab_size = self._card_for(model, same_profile=bool(leaf))
        try:
            request = await self._request(card, stored, canvas if leaf else 0)
            if not leaf:
                accepted = AcceptedJob(
                    stored.id,
                    stored.submission.job,
                    stored.submission.channel,
                    model,
                    stored.prompt_tokens,
                    stored.at,
                )
                running = RunningRequest(request, vocab_size)
                return running.canvas_record(accepted, canvas).fields()
            replayed = await card.engine.replay(request, steps=len(leaves) - 1, step=leaf - 1)
        except (EngineUnavailable, PromptRejected, ReplayDeclined, MalformedInput) as error:
            raise CannotOpen(str(error)) from error
        if replayed.step_leaves != tuple(leaves[1:]):
            raise CannotOpen("the engine computes other numbers than it did for this job")
        return replayed.record.fields()

    def _card_for(self, model: ModelOffer, *, same_profile: bool) -> tuple[EngineCard, int]:
        """Return a card that can make the leaf of a job of this model, and its vocabulary."""
        running = [(c, c.engine.facts) for c in self._cards if c.engine.facts is not None]
        if not running:
            raise CannotOpen("the engine is not running")
        of_model = [(c, f) for c, f in running if f is not None and f.digest == model.digest]
        if not of_model:
            raise CannotOpen("the job is of another model than the one that runs now")
        fitting = [(c, f) for c, f in of_model if c.entry == entry_of(model)]
        if same_profile and not fitting:
            others = " and ".join(sorted({f.profile for _, f in of_model}))
            raise CannotOpen(f"the job ran on {model.profile}, and the engine is {others}")
        card, facts = (fitting or of_model)[0]
        return card, facts.vocab_size

    async def _model_of(self, stored: StoredJob) -> ModelOffer:
        signed = await self._journal.offer(stored.submission.job.offer)
        model = None if signed is None else signed.offer.entry(stored.submission.job)
        if model is None:
            raise CannotOpen("the journal does not have the offer of this job any more")
        return model

    async def _request(
        self, card: EngineCard, stored: StoredJob, committed: int
    ) -> GenerationRequest:
        """Make the request of a job again, with so many canvases committed.

        Raises:
            MalformedInput: What is sealed does not open.
            PromptRejected, EngineUnavailable: The engine does not encode it.
        """
        job = stored.submission.job
        sealed = await self._journal.sealed_content(stored.id)
        if sealed is None:
            raise CannotOpen("the content of this job is not kept any more")
        data = self._keyring.open(sealed, content_context(self._domain, stored.id))
        content = await asyncio.to_thread(KINDS[job.kind].decode_content, data)
        encoded = await card.engine.encode(content)
        return generation_request(
            "replay",
            encoded,
            job.parameters,
            canvas_limit=committed + 1,
            committed=tuple(self._committed(stored, index) for index in range(committed)),
            drafts=False,
        )

    def _committed(self, stored: StoredJob, canvas: int) -> tuple[int, ...]:
        context = resume_context(self._domain, stored.id, canvas)
        return unpack_ids(self._keyring.open(stored.canvases[canvas].resume_secret, context))
