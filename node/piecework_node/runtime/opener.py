"""The steps of canvases that were made before: kept, sealed with the job, or computed again.

What comes out is compared with the leaves of the journal before anybody gets it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from piecework.base.errors import PieceworkError
from piecework_model.jobs import generation_request
from piecework_model.kinds import audit
from piecework_model.kinds.open import encode
from piecework_model.requests import GenerationRequest
from piecework_node.engine.link import EngineFacts, ReplayWork
from piecework_node.errors import EngineUnavailable, PromptRejected, ReplayDeclined
from piecework_node.evidence.steps import StepSource
from piecework_node.journal.protocol import Journal
from piecework_node.journal.records import StoredJob
from piecework_node.keys.sealing import SealingKeyring
from piecework_node.runtime.cards import EngineCard, EngineCards, entry_of
from piecework_node.runtime.requests import unpack_ids
from piecework_node.runtime.traces import RunningRequest
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import MalformedInput
from piecework_protocol.kinds import KINDS, Content
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.kinds.open import OpenContent
from piecework_protocol.objects import Kind, ModelOffer
from piecework_protocol.openings import KeptCanvas, StepOpening, unpack_records
from piecework_protocol.sealing import content_context, resume_context
from piecework_protocol.trace import CanvasRecord, leaf_of
from piecework_protocol.types import JobId
from piecework_protocol.worker_session import AcceptedJob


class CannotOpen(PieceworkError):
    """A leaf cannot be opened by this worker as it runs now."""


class CanvasOpener:
    """Opens the leaves of a worker's own canvases. `steps` has what is kept of them.

    What is not kept is asked of a card with the model of the job, and of its profile if it has to
    be replayed.
    """

    def __init__(
        self,
        journal: Journal,
        cards: EngineCards,
        keyring: SealingKeyring,
        domain: Domain,
        steps: StepSource | None = None,
    ) -> None:
        self._journal, self._cards = journal, cards
        self._keyring, self._domain, self._steps = keyring, domain, steps

    def is_kept(self, job: JobId, canvas: int) -> bool:
        """Say whether all fields of a canvas should be there without the engine."""
        return self._steps is not None and self._steps.has(job, canvas)

    async def fields(self, stored: StoredJob, canvas: int, leaf: int) -> tuple[bytes, ...]:
        """Return the fields of one leaf.

        Raises:
            CannotOpen: they are not there and cannot be computed as the engine runs now.
        """
        leaves = stored.canvases[canvas].leaves
        if leaf and stored.submission.job.kind is Kind.OPEN:
            return self._of_opening(stored, canvas)
        kept = await self._kept(stored, canvas)
        if kept is not None and len(kept.steps) >= leaf:
            fields = kept.steps[leaf - 1].fields() if leaf else kept.canvas.fields()
            if leaf_of(fields) == leaves[leaf]:
                return fields
        if not leaf:
            return (await self._record(stored, canvas)).fields()
        if stored.submission.job.kind is Kind.AUDIT:
            return await self._of_audit(stored, canvas, leaf)
        (opened,) = await self._replayed(stored, canvas, (leaf - 1,), soft=False)
        return opened.fields

    async def opened(
        self,
        stored: StoredJob,
        canvas: int,
        steps: Sequence[int],
        *,
        soft: bool,
        work: ReplayWork | None = None,
    ) -> tuple[CanvasRecord, tuple[StepOpening, ...]]:
        """Return the canvas record and some steps, with their soft embeddings if they are wanted.

        work: told what the engine does for them.

        Raises:
            CannotOpen: they are not there and cannot be computed as the engine runs now.
        """
        leaves = stored.canvases[canvas].leaves
        kept = await self._kept(stored, canvas)
        if kept is not None and kept.canvas.leaf() == leaves[0]:
            record = kept.canvas
        else:
            record = await self._record(stored, canvas)
        if record.leaf() != leaves[0]:
            raise CannotOpen("the engine makes another canvas leaf than it did then")
        shown = () if kept is None else kept.steps
        if not soft and steps[-1] < len(shown):
            found = [shown[step] for step in steps]
            if all(one.leaf() == leaves[one.step + 1] for one in found):
                return record, tuple(StepOpening(one.fields()) for one in found)
        return record, await self._replayed(stored, canvas, steps, soft=soft, work=work)

    async def _kept(self, stored: StoredJob, canvas: int) -> KeptCanvas | None:
        return await self._steps.find(stored.id, canvas) if self._steps is not None else None

    def _of_opening(self, stored: StoredJob, canvas: int) -> tuple[bytes, ...]:
        """Return the fields of a step that was sold. They are sealed with the canvas."""
        context = resume_context(self._domain, stored.id, canvas)
        try:
            secret = self._keyring.open(stored.canvases[canvas].resume_secret, context)
            (record,) = unpack_records(secret)
        except (MalformedInput, ValueError) as error:
            raise CannotOpen(f"the opened step does not open any more: {error}") from None
        return record.fields()

    async def _of_audit(self, stored: StoredJob, canvas: int, leaf: int) -> tuple[bytes, ...]:
        """Return the fields of a step that was computed again for an audit, by doing it again."""
        card, _ = self._card_for(await self._model_of(stored), same_profile=True)
        content = await self._content(stored)
        if not isinstance(content, AuditContent):
            raise CannotOpen("the content of this job is not that of an audit")
        try:
            audited = await card.engine.audit(content)
        except (EngineUnavailable, ReplayDeclined) as error:
            raise CannotOpen(str(error)) from error
        signed = tuple(stored.canvases[canvas].leaves[1:])
        # An audit that was cancelled has the first steps only.
        if tuple(r.leaf() for r in audited.records[: len(signed)]) != signed:
            raise CannotOpen("the engine computes other numbers than it did for this audit")
        return audited.records[leaf - 1].fields()

    async def _record(self, stored: StoredJob, canvas: int) -> CanvasRecord:
        model = await self._model_of(stored)
        card, facts = self._card_for(model, same_profile=False)
        try:
            request = await self._request(card, stored, canvas)
            accepted = AcceptedJob(
                stored.id,
                stored.submission.job,
                stored.submission.channel,
                model,
                stored.prompt_tokens,
                stored.at,
            )
            running = RunningRequest(request, facts.vocab_size, facts.end_ids)
            return running.canvas_record(accepted, request.committed)
        except (EngineUnavailable, PromptRejected, MalformedInput) as error:
            raise CannotOpen(str(error)) from error

    async def _replayed(
        self,
        stored: StoredJob,
        canvas: int,
        steps: Sequence[int],
        *,
        soft: bool,
        work: ReplayWork | None = None,
    ) -> tuple[StepOpening, ...]:
        model = await self._model_of(stored)
        card, _ = self._card_for(model, same_profile=True)
        leaves = stored.canvases[canvas].leaves
        try:
            request = await self._request(card, stored, canvas)
            replayed = await card.engine.replay(
                request, steps=len(leaves) - 1, wanted=tuple(steps), soft=soft, work=work
            )
        except (EngineUnavailable, PromptRejected, ReplayDeclined, MalformedInput) as error:
            raise CannotOpen(str(error)) from error
        if replayed.step_leaves != tuple(leaves[1:]):
            raise CannotOpen("the engine computes other numbers than it did for this job")
        return replayed.steps

    async def _model_of(self, stored: StoredJob) -> ModelOffer:
        signed = await self._journal.offer(stored.submission.job.offer)
        model = None if signed is None else signed.offer.entry(stored.submission.job)
        if model is None:
            raise CannotOpen("the journal does not have the offer of this job any more")
        return model

    def _card_for(self, model: ModelOffer, *, same_profile: bool) -> tuple[EngineCard, EngineFacts]:
        """Return a running card with this model, and what it runs.

        The one with the model's profile goes first, and of several the one that takes steps.
        """
        running = [(card, f) for card in self._cards if (f := card.engine.facts) is not None]
        if not running:
            raise CannotOpen("the engine is not running")
        of_model = [(card, facts) for card, facts in running if facts.digest == model.digest]
        if not of_model:
            raise CannotOpen("the job is of another model than the one that runs now")
        fitting = [(card, facts) for card, facts in of_model if card.entry == entry_of(model)]
        if same_profile and not fitting:
            others = " and ".join(sorted({facts.profile for _, facts in of_model}))
            raise CannotOpen(f"the job ran on {model.profile}, and the engine is {others}")
        return max(fitting or of_model, key=lambda found: found[0].serves)

    async def _request(
        self, card: EngineCard, stored: StoredJob, committed: int
    ) -> GenerationRequest:
        """Make the request of a job again, with so many canvases committed.

        Raises:
            MalformedInput: What is sealed does not open.
            PromptRejected, EngineUnavailable: The engine does not encode it.
        """
        job, content = stored.submission.job, await self._content(stored)
        before: tuple[tuple[int, ...], ...]
        if isinstance(content, OpenContent):
            encoded, before = encode(content), ((),) * committed  # an opened step has no tokens
        elif isinstance(content, AuditContent):
            encoded, before = audit.encode(content, await card.engine.encode(content.content)), ()
        else:
            encoded = await card.engine.encode(content)
            before = tuple(self._committed(stored, index) for index in range(committed))
        return generation_request(
            "replay",
            encoded,
            job.parameters,
            canvas_limit=committed + 1,
            committed=before,
            drafts=False,
        )

    async def _content(self, stored: StoredJob) -> Content:
        """Open the content of a job.

        Raises:
            MalformedInput: What is sealed does not open.
        """
        sealed = await self._journal.sealed_content(stored.id)
        if sealed is None:
            raise CannotOpen("the content of this job is not kept any more")
        data = self._keyring.open(sealed, content_context(self._domain, stored.id))
        rules = KINDS[stored.submission.job.kind]
        return await asyncio.to_thread(rules.decode_content, data)

    def _committed(self, stored: StoredJob, canvas: int) -> tuple[int, ...]:
        context = resume_context(self._domain, stored.id, canvas)
        return unpack_ids(self._keyring.open(stored.canvases[canvas].resume_secret, context))
