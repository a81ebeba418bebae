"""Audits by other workers, for money.

Auditors are drawn by stake among the owners other than that of the audited worker. They read the
prompt and the answer. They are told neither whose canvas it is nor who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

from piecework.base.errors import PieceworkError
from piecework.base.files import FileError, write_private
from piecework.client.auditors.checks import (
    SCALE,
    Check,
    KnownCanvas,
    KnownCanvases,
    chance,
    draw,
)
from piecework.client.auditors.opinions import Opinion, PanelDecision, decide
from piecework.client.audits.auditor import Auditor, CanvasReport
from piecework.client.audits.engine import EngineAuditor
from piecework.client.config import MARKET, SELF, ClientConfig
from piecework.client.evidence import Texts, make_evidence
from piecework.client.jobs.audit_ceilings import most_of_a_report
from piecework.client.jobs.driver import JobContext
from piecework.client.jobs.events import CanvasAudited, JobFinished, JobStarted
from piecework.client.jobs.requests import AuditRequest, JobRequest
from piecework.client.jobs.run import JobRun
from piecework.client.jobs.spending import AuditPurse
from piecework.client.journal.learning import learn_broken
from piecework.client.journal.records import Part
from piecework.client.journal.store import NO_PART
from piecework.client.limits import AUDIT_TIMEOUT_S, MAX_ASKED_AUDITORS, MAX_AUDITORS, MAX_OPINIONS
from piecework.client.network.discovery import ChainView, Discovery
from piecework_protocol.errors import EvidenceRefused, MalformedInput
from piecework_protocol.evidence.audits import audit_content
from piecework_protocol.evidence.check import check_evidence
from piecework_protocol.evidence.file import EvidenceFile, read_evidence, write_evidence
from piecework_protocol.kinds.audit import AuditContent
from piecework_protocol.objects import AuditLevel, AuditOutcome, Kind, Offer
from piecework_protocol.types import Address, Amount, JobId, address_hex, parse_address

AUDITOR_CLAUSE: Final = "3.3 as an auditor"
"""The report is what the canvas shows."""
_REPLAY_ALONE: Final = "others audit by replay alone"


class ForgedAudit(PieceworkError):
    """An auditor has signed a report that its own leaves contradict."""


class AuditMarket(Protocol):
    """The client that buys audits: `PieceworkClient`."""

    @property
    def context(self) -> JobContext: ...

    @property
    def chain(self) -> ChainView: ...

    @property
    def discovery(self) -> Discovery: ...

    def run(self, request: JobRequest, part: Part = NO_PART) -> JobRun: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """A worker that may audit. `who`: its operator, owner and payout address."""

    operator: Address
    who: frozenset[Address]
    stake: Amount


@dataclass(frozen=True, slots=True)
class _Asked:
    """The canvas that is to be audited, and those who must not be asked."""

    known: KnownCanvas
    canvas: int

    @property
    def content(self) -> AuditContent:
        return self.known.content


@dataclass(slots=True)
class _Bill:
    """What jobs have cost, in base units."""

    cost: int = 0


class MarketAuditor:
    """Implements `Auditor` with other workers.

    first: who is asked first. None: one of the market.
    check_rate: how often an auditor is checked beside its audit.
    price_cap: as `most_of_a_report` has it.
    """

    def __init__(
        self,
        market: AuditMarket,
        *,
        first: Address | None = None,
        check_rate: float = 0.0,
        price_cap: float = 3.0,
        canvases: KnownCanvases | None = None,
    ) -> None:
        self._market, self._first, self._check_rate = market, first, check_rate
        self._price_cap = price_cap
        self.canvases = canvases or KnownCanvases()
        """What auditors are checked with."""

    async def audit(
        self,
        evidence: bytes,
        canvas: int,
        level: AuditLevel,
        openings: bytes = b"",
        purse: AuditPurse | None = None,
        *,
        control: bool = True,
    ) -> CanvasReport:
        """Have a canvas audited. A failure has a second opinion, or it is not a verdict.

        `purse` pays for reports about this canvas. Checks of auditors serve all audits, and the
        client's own budget pays for them.
        """
        nothing = partial(CanvasReport, level, AuditOutcome.NO_VERDICT, canvas)
        if level is not AuditLevel.REPLAY:
            return nothing(reason=_REPLAY_ALONE)
        try:
            asked = await self._asked(read_evidence(evidence), canvas)
            panel = await self._panel(asked)
        except (MalformedInput, EvidenceRefused) as error:
            return nothing(reason=f"this canvas cannot be audited by others: {error}")
        except PieceworkError as error:
            return nothing(reason=f"no auditor can be looked up: {error}")
        opinions: list[Opinion] = []
        cost, troubles = 0, list[str]()
        decision = decide(opinions, MAX_OPINIONS)
        asked_for = 0
        async for candidate in panel:
            if not decision.wants_more or asked_for >= MAX_ASKED_AUDITORS:
                break
            asked_for += 1
            opinion, spent, trouble = await self._opinion_of(candidate, asked, purse)
            cost += spent
            if opinion is None:
                troubles.append(f"{address_hex(candidate.operator)}: {trouble}")
                continue
            opinions.append(opinion)
            decision = decide(opinions, MAX_OPINIONS)
        troubles += await self._learn(asked, opinions, decision)
        return replace(_report(asked, opinions, decision, Amount(cost)), remarks=tuple(troubles))

    async def forced_lacks(self, evidence: bytes, canvas: int) -> str:
        """Nobody sells forced audits."""
        return _REPLAY_ALONE

    # --- who

    async def _asked(self, file: EvidenceFile, canvas: int) -> _Asked:
        proven = await asyncio.to_thread(check_evidence, file)
        content = audit_content(file, proven, canvas)
        channel = file.channel
        who = await self._parties(channel.operator, channel.receiver)
        leaves = file.canvases[canvas].leaves or ()
        job = file.job.job
        return _Asked(KnownCanvas(job.model, content, leaves, job.max_amount, set(who)), canvas)

    async def _parties(self, operator: Address, receiver: Address) -> frozenset[Address]:
        """Everybody who stands behind a worker, as far as the chain says."""
        registered = await self._market.chain.worker(operator)
        owners = () if registered is None else (registered.owner, registered.payout)
        return frozenset((operator, receiver, *owners))

    async def _panel(self, asked: _Asked) -> AsyncIterator[Candidate]:
        """Look up who may audit, and return them in the order in which they are asked."""
        model, content = asked.known.model, asked.content
        found = await self._market.discovery.offers("0x" + model.hex())
        fitting = [
            signed.offer
            for signed in found.offers
            if any(
                m.digest == model and m.profile == content.profile and m.kinds & Kind.AUDIT.bit
                for m in signed.offer.models
            )
        ]
        candidates: list[Candidate] = []
        for offer in self._some_of(fitting):
            registered = await self._market.chain.worker(offer.operator)
            if registered is None:
                continue
            who = {offer.operator, offer.receiver, registered.owner, registered.payout}
            if not who & asked.known.known_to:
                candidates.append(Candidate(offer.operator, frozenset(who), registered.stake))
        return self._in_order(candidates)

    def _some_of(self, offers: list[Offer]) -> list[Offer]:
        """Return as many as are looked up. Who lists the offers has no say in which these are."""
        named = [offer for offer in offers if offer.operator == self._first]
        left = [offer for offer in offers if offer not in named]
        while left and len(named) < MAX_AUDITORS:
            offer = draw(left, self._market.context.entropy)
            left.remove(offer)
            named.append(offer)
        return named

    async def _in_order(self, candidates: list[Candidate]) -> AsyncIterator[Candidate]:
        """Yield the first one if it is named, then by stake. One of each owner."""
        heard: set[Address] = set()
        named = [c for c in candidates if c.operator == self._first]
        if self._first is not None and not named:
            return
        left = [c for c in candidates if c not in named]
        while named or left:
            chosen = named.pop() if named else self._drawn(left)
            if chosen in left:
                left.remove(chosen)
            if not chosen.who & heard:
                heard |= chosen.who
                yield chosen

    def _drawn(self, candidates: Sequence[Candidate]) -> Candidate:
        """Draw by stake. Everybody counts with at least one base unit."""
        weights = [max(1, candidate.stake) for candidate in candidates]
        place = int.from_bytes(self._market.context.entropy(8), "big") * sum(weights) // SCALE
        for candidate, weight in zip(candidates, weights, strict=True):
            place -= weight
            if place < 0:
                return candidate
        return candidates[-1]

    # --- what

    async def _opinion_of(
        self, candidate: Candidate, asked: _Asked, purse: AuditPurse | None
    ) -> tuple[Opinion | None, int, str]:
        """Buy an audit, and now and then a check before or behind it.

        Returns:
            The opinion, what all of it has cost, and why there is no opinion.
        """
        entropy, check, bill = self._market.context.entropy, None, _Bill()
        if chance(self._check_rate, entropy):
            content = asked.content
            known = self.canvases
            check = known.check_for(candidate.who, asked.known.model, content.profile, entropy)
        # Where the check stands says nothing about which of the two it is.
        order: list[Check | None] = [None] if check is None else [None, check]
        if chance(0.5, entropy):
            order.reverse()
        opinion: Opinion | None = None
        asked.known.known_to |= candidate.who
        try:
            for one in order:
                whose = asked.known if one is None else one.known
                content = asked.content if one is None else one.content
                part = purse.next_part() if one is None and purse is not None else NO_PART
                said = await self._buy(candidate.operator, whose, content, bill, part)
                if one is None:
                    opinion = said
                elif (missed := one.why_missed(said)) is not None:
                    if one.is_proof(said):
                        await self._distrust(said, content, missed)
                    else:
                        one.known.doubted = True
                    return None, bill.cost, f"missed a check: {missed}"
                elif said.passed:
                    one.known.proofs += 1
        except TimeoutError:
            return None, bill.cost, f"it took longer than {AUDIT_TIMEOUT_S:.0f} s"
        except PieceworkError as error:
            # What a check comes to says nothing of the canvas, unless the auditor has forged it.
            if opinion is None or isinstance(error, ForgedAudit):
                return None, bill.cost, str(error)
        return opinion, bill.cost, ""

    async def _buy(
        self, operator: Address, known: KnownCanvas, content: AuditContent, bill: _Bill, part: Part
    ) -> Opinion:
        """Buy one report. What it costs is added to the bill, whatever comes of it. The budget of
        `part` pays.

        Raises:
            ForgedAudit: It contradicts itself. The auditor gets no more jobs.
            PieceworkError: The worker does not give it.
        """
        most = most_of_a_report(known.ceiling, self._price_cap)
        request = AuditRequest(content, operator, "0x" + known.model.hex(), most)
        clock = self._market.context.clock
        started, job, audited = clock.monotonic(), JobId(bytes(32)), None
        cost = Amount(0)
        try:
            async with asyncio.timeout(AUDIT_TIMEOUT_S), self._market.run(request, part) as run:
                async for event in run:
                    if isinstance(event, JobStarted):
                        job = event.job
                    elif isinstance(event, CanvasAudited):
                        audited, cost = event, event.cost
                    elif isinstance(event, JobFinished):
                        cost = event.cost
        finally:
            bill.cost += cost
        if audited is None or audited.report.outcome is AuditOutcome.NO_VERDICT:
            raise MalformedInput("the auditor ended without a report")
        opinion = Opinion(
            operator, audited.report, audited.leaves[1:], job, cost, clock.monotonic() - started
        )
        fault = audited.report.leaves_fault(audited.leaves)
        if fault is not None:
            await self._distrust(opinion, content, fault)
            raise ForgedAudit(fault)
        return opinion

    # --- what follows

    async def _learn(
        self, asked: _Asked, opinions: Sequence[Opinion], decision: PanelDecision
    ) -> list[str]:
        """Keep what the canvas has shown. Returns a line for each auditor that is given up."""
        why = "two others say otherwise of the same canvas"
        for odd in decision.odd:
            await self._distrust(odd, asked.content, why)
        if decision.verdict is not None and decision.verdict.passed:
            asked.known.proofs = sum(opinion.passed for opinion in opinions)
            self.canvases.add(asked.known)
        return [f"{address_hex(odd.operator)}: {why}" for odd in decision.odd]

    async def _distrust(self, opinion: Opinion, content: AuditContent, why: str) -> None:
        """Give an auditor no more jobs, and keep what it has signed."""
        context = self._market.context
        now, workers = context.now(), context.store.workers
        clause = f"{AUDITOR_CLAUSE}: {why}"
        await workers.run(
            workers.remember, opinion.operator, lambda memory: learn_broken(memory, now, clause)
        )
        texts = Texts(content.encode(), {0: opinion.report.encode()})
        file = context.store.folder / f"auditor-{opinion.job.hex()[:16]}.json"
        try:
            data = write_evidence(await make_evidence(context, opinion.job, texts))
            await asyncio.to_thread(partial(write_private, file, data, replace=True))
        except (FileError, PieceworkError):
            return  # what was learnt stays


def _report(
    asked: _Asked,
    opinions: Sequence[Opinion],
    decision: PanelDecision,
    cost: Amount,
) -> CanvasReport:
    by = tuple(opinion.operator for opinion in opinions)
    report = CanvasReport(
        AuditLevel.REPLAY,
        AuditOutcome.NO_VERDICT,
        asked.canvas,
        steps=asked.content.steps,
        seconds=sum(opinion.seconds for opinion in opinions),
        by=by,
        jobs=tuple(opinion.job for opinion in opinions),
        cost=cost,
    )
    verdict = decision.verdict
    if verdict is not None:
        findings = verdict.report.findings
        outcome = verdict.report.outcome
        return replace(report, outcome=outcome, findings=findings, confirmed=not verdict.passed)
    if opinions:
        found = "; ".join(opinions[0].report.findings)
        names = " and ".join(address_hex(operator) for operator in by)
        reason = f"{names} found that it fails ({found}), and no second auditor agrees"
    else:
        reason = "nobody of another owner audits on the worker's profile"
    return replace(report, reason=reason)


def auditor_of(
    market: AuditMarket, config: ClientConfig, canvases: KnownCanvases | None = None
) -> Auditor:
    """Return who audits, by the settings."""
    if config.audit_by == SELF:
        return EngineAuditor(config.audit_model)
    first = None if config.audit_by == MARKET else parse_address(config.audit_by)
    rate = config.audit_check_rate
    return MarketAuditor(
        market, first=first, check_rate=rate, price_cap=config.price_cap, canvases=canvases
    )
