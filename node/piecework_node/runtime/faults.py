"""What is wrong with the worker's surroundings: the conditions, and the board that holds them.

Every watcher reports to the board what its last check said, under its own name. A condition ends
only when a check of the same name succeeds. `worker check` and the running daemon use the same
checks and the same table.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from piecework.base.clock import Clock
from piecework.base.text import one_line
from piecework.chain.errors import (
    BadAnswer,
    ChainError,
    InsufficientGas,
    LogRangeRefused,
    MethodMissing,
    NodesDisagree,
    NoFinality,
    NonceTaken,
    NonceUnexplained,
    RpcLimited,
    RpcRefused,
    RpcUnavailable,
    SignerAway,
    SignerDiffers,
    SignerRefuses,
    TransactionReverted,
    WrongChain,
)
from piecework_node.metrics import Metrics

MAX_DETAIL_CHARACTERS: Final = 300
"""A detail may quote a node or an index."""


class Code(enum.Enum):
    """A stable name of a condition, as metrics, logs, `/status` and refusals show it."""

    WRONG_CHAIN = "wrong-chain"
    NODES_DISAGREE = "nodes-disagree"
    NODE_ODD = "node-odd"
    NODE_AWAY = "node-away"
    NODE_LIMITED = "node-limited"
    NODE_INCOMPLETE = "node-incomplete"
    NODE_BROKEN = "node-broken"
    NODE_REFUSES = "node-refuses"
    NO_FINALITY = "no-finality"
    HEAD_OLD = "head-old"
    CLOCK_BEHIND = "clock-behind"
    CLOCK_AHEAD = "clock-ahead"
    GAS_LOW = "gas-low"
    KEY_SHARED = "key-shared"
    TRANSACTIONS_REVERT = "transactions-revert"
    NOT_REGISTERED = "not-registered"
    STAKE_INACTIVE = "stake-inactive"
    PAYOUT_DIFFERS = "payout-differs"
    ENDPOINT_DIFFERS = "endpoint-differs"
    LOGS_REFUSED = "logs-refused"
    JOURNAL_OLD = "journal-old"
    CHALLENGE_OPEN = "challenge-open"
    ENGINE_CHANGED = "engine-changed"
    CARD_AWAY = "card-away"
    CARD_HOT = "card-hot"
    DISK_LOW = "disk-low"
    INDEX_DECLINES = "index-declines"
    INDEX_AWAY = "index-away"
    OFFER_HIDDEN = "offer-hidden"
    ADDRESS_UNREACHED = "address-unreached"
    RELAY_DECLINES = "relay-declines"
    RELAY_AWAY = "relay-away"
    UNREACHABLE = "unreachable"
    SIGNER_AWAY = "signer-away"
    SIGNER_DIFFERS = "signer-differs"
    SIGNER_LIMIT = "signer-limit"
    SIGNER_REFUSES = "signer-refuses"


class Stops(enum.Enum):
    """What a condition stops while it lasts. What is owed is settled as far as that goes."""

    NOTHING = "nothing"
    JOBS = "new jobs"
    SIGNING = "new jobs and every transaction"


@dataclass(frozen=True, slots=True)
class Condition:
    """One row of the table."""

    meaning: str
    """For a client, without any name or address."""
    stops: Stops
    remedy: str
    """For the operator."""
    patient: bool = False
    """Counts only once it has lasted for `chain_outage_s`. Jobs go on with what is known."""


CONDITIONS: Final[Mapping[Code, Condition]] = {
    Code.WRONG_CHAIN: Condition(
        "the chain's node serves another chain or other contracts",
        Stops.SIGNING,
        "Set rpc_url to a node of the deployment's chain",
    ),
    Code.NODES_DISAGREE: Condition(
        "the chain's nodes do not agree",
        Stops.SIGNING,
        "Find out which node is wrong and replace it in rpc_urls",
    ),
    Code.NODE_ODD: Condition(
        "one of the chain's nodes differs from the others",
        Stops.NOTHING,
        "Replace that node in rpc_urls",
    ),
    Code.NODE_AWAY: Condition(
        "the chain's node does not answer",
        Stops.JOBS,
        "Check rpc_url and the node, or set another one",
        patient=True,
    ),
    Code.NODE_LIMITED: Condition(
        "the chain's node declines for now",
        Stops.JOBS,
        "Use a node with a higher rate limit, or raise chain_poll_s",
        patient=True,
    ),
    Code.NODE_INCOMPLETE: Condition(
        "the chain's node lacks a method",
        Stops.JOBS,
        "Set rpc_url to a node that offers the method",
    ),
    Code.NODE_BROKEN: Condition(
        "the chain's node answers nonsense",
        Stops.JOBS,
        "Set rpc_url to another node",
        patient=True,
    ),
    Code.NODE_REFUSES: Condition(
        "the chain's node refuses",
        Stops.JOBS,
        "Read what the node says, and set rpc_url to another one if it stays",
        patient=True,
    ),
    Code.NO_FINALITY: Condition(
        "the chain's node does not say what is final",
        Stops.JOBS,
        "Set finality_depth to a number of blocks that is safe on this chain",
    ),
    Code.HEAD_OLD: Condition(
        "the chain's latest block is too old",
        Stops.JOBS,
        "Use a node that follows the chain. If blocks keep coming, set this machine's clock",
    ),
    Code.CLOCK_BEHIND: Condition(
        "the worker's clock is behind", Stops.JOBS, "Set this machine's clock. Run an NTP client"
    ),
    Code.CLOCK_AHEAD: Condition(
        "the worker's clock is ahead", Stops.JOBS, "Set this machine's clock. Run an NTP client"
    ),
    Code.GAS_LOW: Condition(
        "the worker cannot pay for settlements",
        Stops.JOBS,
        "Send the operator some of the chain's native coin",
    ),
    Code.KEY_SHARED: Condition(
        "the worker's nonces are used by somebody else",
        Stops.JOBS,
        "Another program sends with the operator's key: stop it, or let its transactions be mined. "
        "If there is none, the node is wrong: set rpc_url to another one, or several in rpc_urls",
        patient=True,
    ),
    Code.TRANSACTIONS_REVERT: Condition(
        "the chain refuses transactions of the worker",
        Stops.NOTHING,
        "Read which and why in the line and in piecework worker status. If another node does not "
        "refuse them, set rpc_url to it, or several in rpc_urls",
        patient=True,
    ),
    Code.NOT_REGISTERED: Condition(
        "the worker is not registered",
        Stops.JOBS,
        "Fund the operator and run piecework worker init again",
    ),
    Code.STAKE_INACTIVE: Condition(
        "the worker's stake is not active",
        Stops.JOBS,
        "Add to the stake, wait until it is no longer frozen, or register a new operator",
    ),
    Code.PAYOUT_DIFFERS: Condition(
        "the worker's payout address is not the registered one",
        Stops.JOBS,
        "Correct payout in config.toml, or let the stake's owner change the registry",
    ),
    Code.ENDPOINT_DIFFERS: Condition(
        "the registry names another address of the worker",
        Stops.NOTHING,
        "Run piecework worker init again: it corrects the registry",
    ),
    Code.LOGS_REFUSED: Condition(
        "the chain's node does not search events",
        Stops.NOTHING,
        "Each channel is asked for instead, which costs more requests. A node with eth_getLogs "
        "spares them",
    ),
    Code.JOURNAL_OLD: Condition(
        "the worker's journal lacks what the worker has signed",
        Stops.JOBS,
        "Stop the worker and run piecework worker recover",
    ),
    Code.CHALLENGE_OPEN: Condition(
        "the worker cannot answer a challenge",
        Stops.NOTHING,
        "Start the worker before that time with the model, device and precision of the job, or a "
        "part of the stake is lost",
    ),
    Code.ENGINE_CHANGED: Condition(
        "the worker runs another engine than jobs that may still be challenged",
        Stops.NOTHING,
        "Keep the earlier model, device and precision at hand until that time. If a challenge "
        "comes, start the worker with them, or a part of the stake is lost",
    ),
    Code.CARD_AWAY: Condition(
        "a card of the worker takes no jobs",
        Stops.NOTHING,
        "Do what the text says. The worker tries the card again by itself, and a restart tries it "
        "at once",
    ),
    Code.CARD_HOT: Condition(
        "a card of the worker is too hot",
        Stops.NOTHING,
        "Clean its fans and give it air, or set a lower power limit. Its jobs go on by themselves "
        "once it is cool",
    ),
    Code.DISK_LOW: Condition(
        "the worker's disk is nearly full",
        Stops.JOBS,
        "Free space on the disk of the worker's home, or lower min_free_disk_mib or evidence_s",
    ),
    Code.INDEX_DECLINES: Condition(
        "an index declines the offer", Stops.NOTHING, "Do what the index says, or remove it"
    ),
    Code.INDEX_AWAY: Condition(
        "an index does not answer", Stops.NOTHING, "Check its address in indexes, or remove it"
    ),
    Code.OFFER_HIDDEN: Condition(
        "an index takes the offer and does not show it",
        Stops.NOTHING,
        "Ask the people who run the index why, or remove it from indexes",
    ),
    Code.ADDRESS_UNREACHED: Condition(
        "the worker cannot be dialled from outside",
        Stops.NOTHING,
        "Open the port in router and firewall, correct endpoint, or name a relay",
    ),
    Code.RELAY_DECLINES: Condition(
        "a relay does not admit the worker",
        Stops.NOTHING,
        "Do what the relay says, or remove it from relays",
    ),
    Code.RELAY_AWAY: Condition(
        "a relay does not answer", Stops.NOTHING, "Check its address in relays, or remove it"
    ),
    Code.UNREACHABLE: Condition(
        "no client can reach the worker",
        Stops.JOBS,
        "Add a relay that admits this worker, or set bind and endpoint to a public address",
    ),
    Code.SIGNER_AWAY: Condition(
        "the worker's signer does not answer",
        Stops.JOBS,
        "Start piecework signer, or correct signer. Jobs that run wait for it",
    ),
    Code.SIGNER_DIFFERS: Condition(
        "the worker's signer has another key",
        Stops.JOBS,
        "Start the signer with this operator's key and market, or correct signer",
    ),
    Code.SIGNER_LIMIT: Condition(
        "the worker's signer has reached a limit of the day",
        Stops.JOBS,
        "Find out what was signed, in signed.jsonl of the signer's home. Wait for the next day, or "
        "raise the limit in signer.toml and restart the signer",
    ),
    Code.SIGNER_REFUSES: Condition(
        "the worker's signer refuses what the worker asks for",
        Stops.JOBS,
        "Correct signer.toml of the signer's home, and restart the signer",
    ),
}

_CODES: Final[tuple[tuple[type[ChainError], Code], ...]] = (
    (WrongChain, Code.WRONG_CHAIN),
    (NodesDisagree, Code.NODES_DISAGREE),
    (NoFinality, Code.NO_FINALITY),
    (InsufficientGas, Code.GAS_LOW),
    (NonceUnexplained, Code.KEY_SHARED),
    (NonceTaken, Code.KEY_SHARED),
    (TransactionReverted, Code.TRANSACTIONS_REVERT),
    (RpcLimited, Code.NODE_LIMITED),
    (RpcUnavailable, Code.NODE_AWAY),
    (MethodMissing, Code.NODE_INCOMPLETE),
    (LogRangeRefused, Code.LOGS_REFUSED),
    (RpcRefused, Code.NODE_REFUSES),
    (BadAnswer, Code.NODE_BROKEN),
    (SignerAway, Code.SIGNER_AWAY),
    (SignerDiffers, Code.SIGNER_DIFFERS),
    (SignerRefuses, Code.SIGNER_REFUSES),
)


def code_of(error: ChainError) -> Code | None:
    """Return what an error says of the node. None: it is about the one transaction only."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


@dataclass(frozen=True, slots=True)
class Fault:
    """A condition that a check found."""

    code: Code
    detail: str

    @property
    def condition(self) -> Condition:
        """Its row of the table."""
        return CONDITIONS[self.code]

    @property
    def line(self) -> str:
        """One line for the operator: the code, what is wrong, and what to do."""
        return f"{self.code.value}: {self.detail}. {self.condition.remedy}"

    @property
    def public(self) -> str:
        """One line for a client."""
        return f"{self.condition.meaning} ({self.code.value})"


class FaultBoard:
    """The conditions of now, by the check that found each."""

    def __init__(self, clock: Clock, metrics: Metrics, log: Any, *, patience_s: float) -> None:
        """`patience_s`: how long a patient condition must last before it counts."""
        self._clock, self._metrics, self._log = clock, metrics, log
        self._patience_s = patience_s
        self._found: dict[str, tuple[Fault, float]] = {}
        """By check: the fault, and the monotonic time since which the check fails."""
        self._shown: frozenset[Code] = frozenset()
        self.show()

    def failed(self, check: str, code: Code, detail: str) -> None:
        """Record that a check failed. A patient condition counts from its first failure on."""
        known = self._found.get(check)
        since = self._clock.monotonic() if known is None else known[1]
        fault = Fault(code, one_line(detail, MAX_DETAIL_CHARACTERS).rstrip(". "))
        self._found[check] = (fault, since)
        self.show()

    def passed(self, check: str) -> None:
        """Record that a check succeeded. What it found before is over."""
        self._found.pop(check, None)
        self.show()

    def is_failing(self, *checks: str) -> bool:
        """Whether one of these checks failed last, be it long enough to count or not."""
        return any(check in self._found for check in checks)

    def failures(self, *checks: str) -> tuple[Fault, ...]:
        """What these checks found last, be it long enough to count or not."""
        return tuple(self._found[check][0] for check in checks if check in self._found)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The conditions that count now, the gravest first. One for each code."""
        found: dict[Code, Fault] = {}
        for fault in self._counting().values():
            found.setdefault(fault.code, fault)
        gravity = list(Stops)
        return tuple(sorted(found.values(), key=lambda f: -gravity.index(f.condition.stops)))

    @property
    def stopping(self) -> Fault | None:
        """The gravest condition that stops new jobs. None: jobs are taken."""
        return next((f for f in self.faults if f.condition.stops is not Stops.NOTHING), None)

    @property
    def may_sign(self) -> bool:
        """Whether transactions may be signed."""
        return self.may_sign_beside()

    def may_sign_beside(self, *checks: str) -> bool:
        """Whether transactions may be signed, apart from what these checks found."""
        others = [fault for check, fault in self._counting().items() if check not in checks]
        return all(fault.condition.stops is not Stops.SIGNING for fault in others)

    def _counting(self) -> dict[str, Fault]:
        """By check: the faults that have lasted long enough to count."""
        moment = self._clock.monotonic()
        return {
            check: fault
            for check, (fault, since) in self._found.items()
            if not fault.condition.patient or moment - since >= self._patience_s
        }

    def show(self) -> None:
        """Bring the metric up to date, and log each condition that came or went."""
        active = {fault.code: fault for fault in self.faults}
        for code in Code:
            self._metrics.fault(code.value, present=code in active)
        for code, fault in active.items():
            if code not in self._shown:
                self._log.error("fault", code=code.value, error=fault.line)
        for code in self._shown - active.keys():
            self._log.info("fault is over", code=code.value)
        self._shown = frozenset(active)
