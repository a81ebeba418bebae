"""Count what the worker does. One object has its own registry, so that nothing is global."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from piecework.base.connections import Refused
from piecework.base.text import one_line
from piecework_protocol.errors import Reason
from piecework_protocol.objects import Receipt
from piecework_protocol.states import JobState
from piecework_protocol.types import Timestamp

Kind = TypeVar("Kind", Counter, Gauge)
MAX_KEPT_ERRORS = 50
"""The status page shows recent errors. Older ones are in the log."""
_COMMIT_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5)


MAX_NOTE_CHARACTERS = 500
"""An error may quote what a stranger wrote."""


@dataclass(frozen=True, slots=True)
class ErrorNote:
    """An error as the operator sees it on the status page."""

    at: Timestamp
    where: str
    message: str


class Metrics:
    """Counters and gauges, by the names that Prometheus shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = Counter(
            "piecework_jobs", "Jobs by what became of them", ["state"], registry=self.registry
        )
        self._refusals = Counter(
            "piecework_refusals", "Jobs missed, by reason", ["reason"], registry=self.registry
        )
        self._canvases = self._counter("piecework_canvases", "Canvases delivered")
        self._steps = self._counter("piecework_denoising_steps", "Denoising steps delivered")
        self._tokens = self._counter("piecework_output_tokens", "Output tokens charged")
        self._charged = self._counter("piecework_charged_base_units", "Base units on receipts")
        self._accepted = self._counter(
            "piecework_accepted_base_units", "Base units on accepted vouchers"
        )
        self._transactions = Counter(
            "piecework_transactions",
            "Settlement transactions by kind and state",
            ["kind", "state"],
            registry=self.registry,
        )
        self._chain_errors = self._counter(
            "piecework_chain_errors", "Failed conversations with the chain"
        )
        self._engine_losses = self._of_cards(
            Counter, "piecework_engine_restarts", "Times the engine of a card was lost"
        )
        self._contained = self._counter(
            "piecework_contained_errors", "Errors of the worker's own that ended one job each"
        )
        self._publish_errors = self._counter(
            "piecework_publish_errors", "Offers that an index did not take"
        )
        self._pauses = self._of_cards(
            Counter, "piecework_pauses", "Times the owner needed the card"
        )
        self._paused_seconds = self._of_cards(
            Counter,
            "piecework_paused_seconds",
            "Seconds in which no job took a step on the card for the owner's sake",
        )
        self._handed_back = self._counter(
            "piecework_jobs_handed_back", "Jobs given up unpaid because a pause lasted too long"
        )
        self._count_connections()
        self._gauges()
        self._surroundings()
        self._cards()
        self.refusals: dict[str, int] = {}
        self.states: dict[str, int] = {}
        """Jobs by what became of them, since the start."""
        self.tokens = self.steps = 0
        """Charged on receipts since the start."""
        self.head_age_s: float | None = None
        self.gas_held: int | None = None
        """The operator's native coin in wei, as it was last seen."""
        self.errors: deque[ErrorNote] = deque(maxlen=MAX_KEPT_ERRORS)

    def _gauges(self) -> None:
        """Gauges of what the worker does, and the time of its commits."""
        self.slots = self._gauge("piecework_slots", "Jobs that may run at once")
        self.active = self._gauge("piecework_jobs_active", "Jobs that run or wait for a slot")
        self.exposure = self._gauge("piecework_exposure_base_units", "Delivered and not paid for")
        self.unsettled = self._gauge(
            "piecework_unsettled_base_units", "Accepted and not settled on chain"
        )
        self.waiting = self._gauge(
            "piecework_payout_waiting_base_units",
            "In the escrow until it is pushed to the receiver",
        )
        self.strangers = self._gauge(
            "piecework_strangers_owe_base_units",
            "Owed on openings that are not mined, by all payers without a mined deposit",
        )
        self.strangers_limit = self._gauge(
            "piecework_strangers_limit_base_units", "What these payers may owe together"
        )
        self.left = self._gauge(
            "piecework_left_unpaid_base_units",
            "Owed by payers whose deposit is gone or never came",
        )
        self.at_limit = self._gauge(
            "piecework_payers_at_limit",
            "Payers that wait for credit or have less than an eighth of theirs left",
        )
        self.kept_steps_bytes = self._gauge(
            "piecework_kept_steps_bytes",
            "Sealed steps of canvases on disk, at most evidence_bytes",
        )
        self.ready = self._gauge("piecework_ready", "1 while jobs are taken on")
        self.pause = self._gauge("piecework_paused", "1 while the owner needs every card")
        self.commit = Histogram(
            "piecework_journal_commit_seconds",
            "Time to make records durable",
            buckets=_COMMIT_BUCKETS_S,
            registry=self.registry,
        )

    def _surroundings(self) -> None:
        """Gauges of what the worker stands on: node, clock and gas tank."""
        self._faults = Gauge(
            "piecework_fault",
            "1 while this condition of the surroundings lasts",
            ["code"],
            registry=self.registry,
        )
        self.gas = self._gauge("piecework_gas_wei", "The operator's native coin, in wei")
        self.head_age = self._gauge(
            "piecework_head_age_seconds", "Age of the chain's latest block by this clock"
        )
        self.clock_offset = self._gauge(
            "piecework_clock_offset_seconds",
            "This clock less the indexes'. Above 0 it is ahead",
        )

    def _cards(self) -> None:
        """Gauges of each card of the worker."""
        self.card_ready = self._of_cards(
            Gauge, "piecework_card_ready", "1 while jobs take steps on the card"
        )
        self.card_slots = self._of_cards(
            Gauge, "piecework_card_slots", "Jobs that may run at once on the card"
        )
        self.card_active = self._of_cards(
            Gauge, "piecework_card_jobs_active", "Jobs that run or wait for a slot on the card"
        )
        self.card_paused = self._of_cards(
            Gauge, "piecework_card_paused", "1 while the owner needs the card"
        )
        self.card_temperature = self._of_cards(
            Gauge, "piecework_card_temperature_celsius", "Of the card. NaN: it does not tell"
        )
        self.card_power = self._of_cards(
            Gauge, "piecework_card_power_watts", "That the card draws. NaN: it does not tell"
        )

    def _count_connections(self) -> None:
        self._connections_refused = Counter(
            "piecework_connections_refused",
            "Connections closed as soon as they came, by port and reason",
            ["port", "reason"],
            registry=self.registry,
        )
        self._cut_off = self._counter(
            "piecework_connections_cut_off", "Connections that broke a bound and were closed"
        )
        self.connections = self._gauge("piecework_connections", "Open connections to the job port")
        self.streams = self._gauge("piecework_streams", "Open job streams")

    def refused(self, reason: Reason) -> None:
        """A job was declined."""
        self._refusals.labels(reason.name).inc()
        self.refusals[reason.name] = self.refusals.get(reason.name, 0) + 1

    def connection_refused(self, port: str, why: Refused) -> None:
        """A connection to a port ("jobs" or "admin") was closed as soon as it came."""
        self._connections_refused.labels(port, why).inc()

    def cut_off(self) -> None:
        """A connection broke a bound and was closed."""
        self._cut_off.inc()

    def moved(self, state: JobState) -> None:
        """A job reached a state."""
        self.states[state.value] = self.states.get(state.value, 0) + 1
        self._jobs.labels(state.value).inc()

    def delivered(self, receipt: Receipt) -> None:
        """A canvas was delivered."""
        self._canvases.inc()
        self._steps.inc(receipt.steps)
        self._tokens.inc(receipt.units)
        self.tokens += receipt.units
        self.steps += receipt.steps
        self._charged.inc(receipt.amount)

    def accepted(self, amount: int) -> None:
        """A voucher added `amount` base units."""
        self._accepted.inc(amount)

    def transaction(self, kind: str, state: str) -> None:
        """A transaction reached a state."""
        self._transactions.labels(kind, state).inc()

    def begin_transactions(self, kind: str, state: str) -> None:
        """Show a kind and a state from 0 on. An alert sees the first of them only then."""
        self._transactions.labels(kind, state)

    def chain_error(self) -> None:
        """The chain did not answer, or refused."""
        self._chain_errors.inc()

    def begin_card(self, card: str) -> None:
        """Show the counters of a card from 0 on. An alert sees its first event only then."""
        for counter in (self._engine_losses, self._pauses, self._paused_seconds):
            counter.labels(card)

    def engine_lost(self, card: str) -> None:
        """The engine process of a card died or hung."""
        self._engine_losses.labels(card).inc()

    def contained(self) -> None:
        """An error of ours ended one job, or was left behind by a loop that goes on."""
        self._contained.inc()

    def paused(self, card: str) -> None:
        """The owner needs a card."""
        self._pauses.labels(card).inc()

    def resumed(self, card: str, seconds: float) -> None:
        """A pause of a card is over."""
        self._paused_seconds.labels(card).inc(seconds)

    def handed_back(self) -> None:
        """A job was given up in a pause."""
        self._handed_back.inc()

    def publish_error(self) -> None:
        """An index did not take the offer."""
        self._publish_errors.inc()

    def head(self, age_s: float) -> None:
        """The chain's latest block is so old."""
        self.head_age_s = age_s
        self.head_age.set(age_s)

    def tank(self, wei: int) -> None:
        """The operator holds so much of the native coin."""
        self.gas_held = wei
        self.gas.set(wei)

    def fault(self, code: str, *, present: bool) -> None:
        """A condition lasts, or does not."""
        self._faults.labels(code).set(int(present))

    def note(self, at: Timestamp, where: str, message: str) -> None:
        """Keep an error for the status page."""
        self.errors.append(ErrorNote(at, where, one_line(message, MAX_NOTE_CHARACTERS)))

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _of_cards(self, kind: type[Kind], name: str, text: str) -> Kind:
        return kind(name, text, ["card"], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)
