"""A whole worker in memory, and clients that trade with it over lists of bytes.

Everything durable lives in `WorkerHarness.journal`. `WorkerHarness.boot` builds the worker from it,
as a start after kill -9 does. `Client` carries the frames of a scripted client.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from piecework.chain.contracts.authorizations import sign_opening
from piecework_node import logs
from piecework_node.daemon.offered import offered
from piecework_node.engine.link import EngineEvent
from piecework_node.evidence.steps import StepStore
from piecework_node.jobs.offers import OfferAddress, OfferEntry, build_offer
from piecework_node.jobs.opening import OpeningServer
from piecework_node.jobs.terms import JobTimeouts, OperatorTerms
from piecework_node.jobs.worker import Worker
from piecework_node.journal.records import OfferIssued
from piecework_node.keys.sealing import SealingKeyring, WrappingSecrets
from piecework_node.metrics import Metrics
from piecework_node.runtime.cards import EngineCard, EngineCards
from piecework_node.runtime.channels import Channels
from piecework_node.runtime.faults import FaultBoard
from piecework_node.runtime.jobs import JobRuntime
from piecework_node.runtime.live import LiveChannel, LiveJob
from piecework_node.runtime.opener import CanvasOpener
from piecework_node.settlement.openings import Openings
from piecework_node.settlement.settler import Settler
from piecework_node.times import now
from piecework_protocol.credit import CreditTerms
from piecework_protocol.eip712 import Domain
from piecework_protocol.errors import Refusal
from piecework_protocol.frames import (
    Funding,
    FundingAuthorization,
    OpeningAuthorization,
    SubmitJob,
    WorkerFrame,
)
from piecework_protocol.kinds import Content
from piecework_protocol.ledger import closing_of
from piecework_protocol.objects import Channel, Endpoint, FundChannel, Parameters, Route, Service
from piecework_protocol.signing import AsyncSigner, LocalSigner, sign
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    Digest,
    Micros,
    PayerSignature,
    PublicKey,
    Seconds,
    Signature,
    Timestamp,
    Uint32,
    Uint64,
    keccak256,
)
from piecework_protocol.wire import SignedOffer, decode_client_frame, encode_worker_frame
from tests.support.client.scripted_client import ScriptedClient, ScriptedJob
from tests.support.clock import FakeClock
from tests.support.node.fake_engine import CANVAS, FACTS, MAX_STEPS, FakeEngine
from tests.support.node.fake_escrow import TOKEN_DOMAIN, FakeEscrow
from tests.support.node.faults import KillSwitch
from tests.support.node.memory_journal import MemoryJournal

DOMAIN = Domain(31337, Address(b"\x11" * 20))
OPERATOR = LocalSigner(bytes(keccak256(b"operator")))
RECEIVER = Address(b"\x22" * 20)
TOKEN = Address(b"\x33" * 20)
TERMS = OperatorTerms(
    receiver=RECEIVER,
    tokens=(TOKEN,),
    price_per_million_prompt_tokens=Amount(1_500_000),
    price_per_million_output_tokens=Amount(2_300_000),
    price_per_thousand_steps=Amount(700),
    slots=3,
    queue=3,
    jobs_per_channel=4,
    min_withdrawal_delay=Seconds(900),
    min_deposit=Amount(1000),
    credit=CreditTerms(Amount(1_000), Amount(20_000), Amount(100_000), Amount(4_000)),
    offer_lifetime_s=600,
)
TIMEOUTS = JobTimeouts(payment_s=30.0)
OUTAGE_S = 60.0
REFRESH_S = 10.0
ROTATION_S = 3600
EVIDENCE_S = 5 * 24 * 3600


def address_with(sealing_key: PublicKey) -> OfferAddress:
    """Where the worker under test is reached."""
    return OfferAddress(
        (Endpoint(Route.DIRECT, "127.0.0.1:50051"),), Digest(bytes(32)), sealing_key
    )


def entry(active: int = 0, *, terms: OperatorTerms = TERMS) -> OfferEntry:
    """The line of a worker with one card on which so many jobs run or wait."""
    return OfferEntry(FACTS, terms.slots, terms.queue, active)


class ListSink:
    """Implements `runtime.sink.FrameSink`: frames as bytes in a list."""

    def __init__(self, switch: KillSwitch) -> None:
        self.switch = switch
        self.frames: deque[bytes] = deque()
        self.closed = False
        self.refusal: Refusal | None = None

    def send(self, frame: WorkerFrame) -> bool:
        self.switch.point()
        if not self.closed:
            self.frames.append(encode_worker_frame(frame))
        return not self.closed

    def close(self, refusal: Refusal | None) -> None:
        self.closed = True
        self.refusal = refusal


class WorkerHarness:
    """One worker with its surroundings."""

    def __init__(
        self,
        *,
        terms: OperatorTerms = TERMS,
        timeouts: JobTimeouts = TIMEOUTS,
        make_engine: Callable[[KillSwitch], FakeEngine] = FakeEngine,
        profiles: Sequence[str] = (FACTS.profile,),
        steps_folder: Path | None = None,
        evidence_bytes: int = 2**20,
    ) -> None:
        """profiles: one for each card. Every card has the slots and the queue of the terms.

        `steps_folder` is where steps are kept. None: they are not.
        """
        self.steps_folder, self.evidence_bytes = steps_folder, evidence_bytes
        self.steps: StepStore | None = None
        self.runtime: JobRuntime
        self.terms, self.timeouts, self.make_engine = terms, timeouts, make_engine
        self.profiles = profiles
        self.clock = FakeClock()
        self.signer: AsyncSigner = OPERATOR
        self.journal = MemoryJournal(DOMAIN)
        self.chain: FakeEscrow = FakeEscrow()
        self.metrics = Metrics()
        self.lives = 0
        self.issued: list[SignedOffer] = []
        self.openings: Openings | None = None
        """Set by a test that settles. Without one every opening would be submitted."""

    async def boot(self, switch: KillSwitch | None = None) -> None:
        """Start the worker from what the journal holds."""
        self.switch = switch or KillSwitch()
        self.journal.switch = self.switch
        self.lives += 1
        self.engines = [self.make_engine(self.switch) for _ in self.profiles]
        for engine, profile in zip(self.engines, self.profiles, strict=True):
            engine.known = replace(FACTS, profile=profile)
        self.engine = self.engines[0]
        self.cards = EngineCards(
            [
                EngineCard(str(n), engine, slots=self.terms.slots, queue=self.terms.queue)
                for n, engine in enumerate(self.engines)
            ]
        )
        self.keyring = await SealingKeyring.load(
            self.journal,
            WrappingSecrets(OPERATOR.secret),
            clock=self.clock,
            entropy=_entropy(self.lives),
            rotation_s=ROTATION_S,
        )
        log = logs.silent()
        await self._load_steps()
        if self.lives > 1 and self.runtime.openings is not None:
            await self.runtime.openings.close()  # the process of before is dead
        self.runtime = JobRuntime(
            self.journal,
            self.cards,
            domain=DOMAIN,
            signer=self.signer,
            clock=self.clock,
            metrics=self.metrics,
            log=log,
            steps=self.steps,
            openings=OpeningServer(
                CanvasOpener(self.journal, self.cards, self.keyring, DOMAIN, self.steps),
                self.journal,
            ),
        )
        self.faults = FaultBoard(self.clock, self.metrics, log, patience_s=OUTAGE_S)
        self.channels = Channels(
            self.runtime,
            self.chain,
            self.faults,
            refresh_s=REFRESH_S,
            outage_s=OUTAGE_S,
            log=log,
            wait_s=0,
        )
        self.worker = Worker(
            self.runtime,
            self.channels,
            self.keyring,
            terms=self.terms,
            timeouts=self.timeouts,
            openings=self._check_opening,
            log=log,
        )
        # A daemon forgets them: here a job that a kill swallowed may be sent again as it is.
        for signed in self.issued:
            self.worker.remember_offer(signed)
        await self.worker.recover()
        await self.issue_offer()

    async def _load_steps(self) -> None:
        if self.steps_folder is not None:
            self.steps = StepStore(
                self.steps_folder,
                self.keyring,
                DOMAIN,
                budget_bytes=self.evidence_bytes,
                window_s=EVIDENCE_S,
                clock=self.clock,
                log=logs.silent(),
            )
            await self.steps.load()

    async def _check_opening(
        self, live: LiveChannel, funding: FundingAuthorization, *, taken: bool
    ) -> None:
        if self.openings is not None:
            await self.openings.check(live, funding, taken=taken)

    async def issue_offer(self) -> SignedOffer:
        """Sign a fresh offer."""
        current = self.keyring.current
        assert current is not None
        offer = build_offer(
            self.terms,
            offered(self.worker, takes_jobs=any(card.serves for card in self.cards)),
            address_with(current),
            operator=OPERATOR.address,
            sequence=await self.journal.last_sequence() + 1,
            now=now(self.clock),
        )
        self.offer = SignedOffer(offer, sign(DOMAIN, offer, OPERATOR))
        await self.journal.append([OfferIssued(Digest(DOMAIN.digest(offer)), self.offer)])
        self.worker.remember_offer(self.offer)
        self.issued.append(self.offer)
        return self.offer

    async def engine_step(self, row: str) -> EngineEvent | None:
        """Let one row of an engine go on, and hand its event to the worker."""
        for card, engine in enumerate(self.engines):
            if row in engine.runnable():
                event = engine.step(row)
                await self.engine_event(event, card)
                return event
        return None

    async def engine_event(self, event: EngineEvent, card: int = 0) -> None:
        """Hand an event of a card's engine to the worker."""
        await self.worker.engine_event(list(self.cards)[card], event)

    def runnable(self) -> list[str]:
        """The rows of all engines that may go on."""
        return [row for engine in self.engines for row in engine.runnable()]

    async def run_engine(self, limit: int = 1000) -> None:
        """Let the engine go on as long as it may."""
        for _ in range(limit):
            rows = self.runnable()
            if not rows:
                return
            await self.engine_step(rows[0])


@dataclass
class JobStream(ScriptedJob):
    """One job at the client, and its current stream."""

    sink: ListSink | None = None
    live: LiveJob | None = None


class Client(ScriptedClient):
    """A scripted client whose frames go straight to a worker in memory."""

    def __init__(
        self,
        harness: WorkerHarness,
        name: str = "payer",
        *,
        deposit: int = 1_000_000,
        salt: int = 0,
        delay: int = 3600,
    ) -> None:
        """`delay` is the channel's withdrawal delay in seconds."""
        self.harness = harness
        signer = LocalSigner(bytes(keccak256(name.encode())))
        channel = Channel(
            payer=signer.address,
            authorizer=signer.address,
            receiver=RECEIVER,
            operator=OPERATOR.address,
            token=TOKEN,
            withdrawal_delay=Seconds(delay),
            salt=Bytes32(salt.to_bytes(32, "big")),
        )
        super().__init__(DOMAIN, signer, channel, deposit)

    def open_on_chain(self) -> None:
        """The channel's opening is mined."""
        self.harness.chain.open(self.id, self.deposit)

    def funding(
        self, *, lifetime_s: int = 3600, fee: int = 0, funded: int | None = None
    ) -> FundingAuthorization:
        """An authorization to open or raise the channel out of the pooled balance."""
        deadline = Timestamp(self.harness.clock.now() + lifetime_s)
        total = Amount(self.deposit if funded is None else funded)
        authorization = FundChannel(self.channel, total, Amount(fee), deadline)
        signature = PayerSignature(sign(DOMAIN, authorization, self.signer))
        return FundingAuthorization(authorization, signature)

    def opening(self, *, fee: int = 0, lifetime_s: int = 3600) -> OpeningAuthorization:
        """An authorization to open the channel out of the payer's own tokens."""
        return sign_opening(
            TOKEN_DOMAIN,
            DOMAIN,
            self.channel,
            self.signer,
            amount=Amount(self.deposit),
            fee=Amount(fee),
            funded_before=Amount(0),
            valid_before=Timestamp(int(self.harness.clock.now()) + lifetime_s),
        )

    async def ask_to_close(self, settler: Settler, fee: int = 0) -> tuple[Signature, bytes]:
        """Agree with the worker that the latest voucher is the last."""
        final = closing_of(self.book.voucher(), fee)
        return await settler.close_channel(self.channel, final, sign(DOMAIN, final, self.signer))

    def job(
        self,
        seed: int,
        max_tokens: int = 20,
        *,
        prompt: str | Content = "a fox",
        lifetime_s: int = 3600,
        entry: int = 0,
        **changes: Any,
    ) -> JobStream:
        """A signed job with its sealed content, not submitted. `changes` are of its parameters."""
        deadline = self.harness.clock.now() + lifetime_s
        asked = parameters(seed, max_tokens).replace(**changes)
        return JobStream.sealed(self, self.harness.offer, prompt, asked, deadline, entry=entry)

    async def submit(
        self, line: JobStream, *, funding: Funding | None = None, drafts: bool = False
    ) -> None:
        """Open a stream for a job, or come back to it. `Refusal` as the worker gives it."""
        line.open(funding=funding, drafts=drafts)
        frame = decode_client_frame(line.upward.popleft())
        assert isinstance(frame, SubmitJob)
        line.sink, line.live = ListSink(self.harness.switch), None
        line.live = await self.harness.worker.submit(frame, line.sink)

    def read(self, line: JobStream) -> bool:
        """Take one frame off the line, verify it, and pay what there is to pay."""
        if line.sink is None or not line.sink.frames:
            return False
        self.take(line, line.sink.frames.popleft())
        return True

    async def deliver(self, line: JobStream) -> bool:
        """Let the worker take one frame off the line."""
        if line.live is None or line.sink is None or not line.upward:
            return False
        await self.harness.worker.receive(
            line.live, line.sink, decode_client_frame(line.upward.popleft())
        )
        return True

    async def drop(self, line: JobStream) -> None:
        """The connection breaks: what was under way is lost, the worker notices."""
        live, sink = line.live, line.sink
        self.forget(line)
        if live is not None and sink is not None:
            await self.harness.worker.detach(live, sink)

    def forget(self, line: JobStream) -> None:
        """The connection is gone; the worker may not know."""
        line.live, line.sink = None, None
        line.upward.clear()

    async def finish(self, line: JobStream, rounds: int = 500) -> None:
        """Trade without faults until nothing moves any more."""
        for _ in range(rounds):
            moved = self.read(line) or await self.deliver(line)
            if not moved:
                rows = self.harness.runnable()
                if not rows:
                    return
                await self.harness.engine_step(rows[0])
            await asyncio.sleep(0)


def parameters(seed: int, max_tokens: int) -> Parameters:
    """Parameters within every bound."""
    return Parameters(
        seed=Uint64(seed),
        max_tokens=Uint32(max_tokens),
        max_steps=Uint32(MAX_STEPS),
        temperature_start=Micros(800_000),
        temperature_end=Micros(400_000),
        entropy_bound=Micros(100_000),
        confidence_threshold=Micros(5_000),
        stability_steps=Uint32(1),
        service=Service.REPLAYABLE,
    )


def _entropy(life: int):  # type: ignore[no-untyped-def]
    counter = [0]

    def draw(count: int) -> bytes:
        counter[0] += 1
        return sha256(f"{life}/{counter[0]}".encode()).digest()[:count]

    return draw


__all__ = ["CANVAS", "Client", "JobStream", "ListSink", "WorkerHarness"]
