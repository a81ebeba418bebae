"""The signed objects of version 2. Names, order and sizes are those of their Solidity structs.

Each raises `ValueError` when it is made with a member that does not fit its type. What a member may
be at most stands in `ranges`, and the wire refuses everything else. All members were fixed at once
(clause 1.5): a member whose behaviour comes later is refused unless it is zero.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from piecework_protocol.eip712 import Domain, TypedData
from piecework_protocol.types import (
    Address,
    Amount,
    Bytes32,
    ChannelId,
    Digest,
    JobId,
    Micros,
    PublicKey,
    Seconds,
    Timestamp,
    Uint16,
    Uint32,
    Uint64,
)


class Finish(enum.IntEnum):
    """Whether a receipt is the job's last, and why (clause 4.5)."""

    MORE = 0
    END_OF_TEXT = 1
    TOKEN_LIMIT = 2
    CANCELLED = 3
    """The client left. The receipt charges what was done of the canvas (clause 3.8)."""


class Service(enum.IntEnum):
    """What a model's output can be held to (clause 3.10)."""

    REPLAYABLE = 0
    """The job's seed decides the result, and every receipt commits to the trace."""
    BEST_EFFORT = 1
    """The engine's own settings and randomness: no seed, no steps, no trace."""


class Kind(enum.IntEnum):
    """What a job asks for. `kinds.KINDS` has those that exist, the others are reserved."""

    TEXT = 0
    READ = 1
    AUDIT = 2
    OPEN = 3
    IMAGE = 4

    @property
    def bit(self) -> int:
        """Give the kind's bit in `ModelOffer.kinds`."""
        return 1 << self.value


class Route(enum.IntEnum):
    """How an endpoint is reached."""

    DIRECT = 0
    RELAYED = 1


class AuditLevel(enum.IntEnum):
    """How far an audit went."""

    RULES = 0
    REPLAY = 1
    FORCED = 2


class AuditOutcome(enum.IntEnum):
    """What an audit found."""

    PASS = 0
    FAIL = 1
    NO_VERDICT = 2


EVERYTHING: Final = Amount(2**96 - 1)
"""The amount of a `RequestWithdrawal` that takes all that is left and closes the channel."""


@dataclass(frozen=True, slots=True)
class Channel(TypedData):
    """A payment channel. Its EIP-712 digest is its id, which binds it to chain and escrow."""

    payer: Address
    authorizer: Address
    receiver: Address
    operator: Address
    token: Address
    withdrawal_delay: Seconds
    salt: Bytes32

    def id(self, domain: Domain) -> ChannelId:
        """Give the channel's id at the escrow of `domain`."""
        return ChannelId(domain.digest(self))


@dataclass(frozen=True, slots=True)
class FundChannel(TypedData):
    """The payer's authorization: `funded` base units in total were ever put into the channel.

    It opens the channel or tops it up. `fee` base units more leave the payer's pooled balance for
    the channel's receiver. `deadline` is in Unix seconds.
    """

    channel: Channel
    funded: Amount
    fee: Amount
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class Voucher(TypedData):
    """The authorizer's cumulative payment, in base units, for the first `count` receipts.

    `receipts_root` is the root of the tree over those receipts.
    """

    channel: ChannelId
    cumulative: Amount
    count: Uint64
    receipts_root: Digest


@dataclass(frozen=True, slots=True)
class CloseChannel(TypedData):
    """A voucher that both sides agree to be the last.

    The authorizer signs it to ask, the operator to agree. `fee` base units of the rest go to the
    receiver, who pays for the transaction.
    """

    channel: ChannelId
    cumulative: Amount
    count: Uint64
    receipts_root: Digest
    fee: Amount


@dataclass(frozen=True, slots=True)
class RequestWithdrawal(TypedData):
    """The payer's notice: after the withdrawal delay `amount` base units go back.

    `EVERYTHING` takes what is left and closes the channel. `nonce` is the number of requests that
    the channel made before, so that one that was called off cannot be sent again.
    """

    channel: ChannelId
    amount: Amount
    nonce: Uint64
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class CancelWithdrawal(TypedData):
    """The payer calls its request number `nonce` off."""

    channel: ChannelId
    nonce: Uint64
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class WithdrawPooled(TypedData):
    """The owner of a pooled balance sends `amount` of it to `to`.

    Anybody may submit it, and gets `fee`. `nonce` counts the owner's earlier ones.
    """

    owner: Address
    token: Address
    amount: Amount
    to: Address
    fee: Amount
    nonce: Uint64
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class AccountRequest(TypedData):
    """The authorizer asks a worker for its account of a channel (clause 5.7)."""

    channel: ChannelId
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class Parameters(TypedData):
    """Everything besides prompt and model that changes the result. Reals are in millionths.

    A best-effort job leaves the denoising to the engine. There everything but `max_tokens` is zero
    (clause 3.10).
    """

    seed: Uint64
    max_tokens: Uint32
    max_steps: Uint32
    temperature_start: Micros
    temperature_end: Micros
    entropy_bound: Micros
    confidence_threshold: Micros
    stability_steps: Uint32
    service: Service


@dataclass(frozen=True, slots=True)
class Job(TypedData):
    """One request, signed by the channel's authorizer. Its EIP-712 digest is its id.

    `entry` is the index of the model in the offer, and fixes its prices and profile. `model`
    repeats its digest. `max_amount` is in base units, `deadline` in Unix seconds.
    """

    channel: ChannelId
    salt: Bytes32
    offer: Digest
    entry: Uint32
    model: Digest
    kind: Kind
    content: Digest
    parameters: Parameters
    max_amount: Amount
    deadline: Timestamp
    reply_key: PublicKey

    def id(self, domain: Domain) -> JobId:
        """Give the job's id at the escrow of `domain`."""
        return JobId(domain.digest(self))


@dataclass(frozen=True, slots=True)
class Acceptance(TypedData):
    """The operator's promise to run a job, and the prompt length that it will charge.

    `accepted_at` is the only time that an operator signs about a job. Receipts have none, so that
    those of a replayable job follow from the job alone.
    """

    job: JobId
    prompt_tokens: Uint32
    accepted_at: Timestamp


@dataclass(frozen=True, slots=True)
class Receipt(TypedData):
    """The operator's statement of one piece of work: a leaf of the channel's accumulator.

    The totals are those of the job after this receipt. So one receipt and the offer prove its
    price (clause 4.4).
    """

    job: JobId
    canvas: Uint32
    output_digest: Digest
    trace_root: Digest
    steps: Uint32
    units: Uint32
    amount: Amount
    finish: Finish
    total_prompt_tokens: Uint32
    total_units: Uint32
    total_steps: Uint32
    total_amount: Amount
    previous: Digest


@dataclass(frozen=True, slots=True)
class ModelOffer(TypedData):
    """One model and profile of an offer: what it is, what it costs, how fast it ran at start-up.

    Bit i of `kinds` says that jobs of kind i are taken.
    """

    name: str
    digest: Digest
    profile: str
    kinds: Uint32
    service: Service
    price_per_million_prompt_tokens: Amount
    price_per_million_output_tokens: Amount
    price_per_thousand_steps: Amount
    max_context: Uint32
    max_output: Uint32
    canvas_size: Uint32
    max_steps: Uint32
    tokens_per_second: Uint32
    first_canvas_ms: Uint32

    @property
    def kind_names(self) -> list[str]:
        """Give the kinds of jobs that are taken, by name. Bits of no known kind are left out."""
        return [kind.name.lower() for kind in Kind if self.kinds & kind.bit]


@dataclass(frozen=True, slots=True)
class Endpoint(TypedData):
    """One way to a worker: its own address or that of a relay, as `host:port`."""

    route: Route
    address: str


@dataclass(frozen=True, slots=True)
class Offer(TypedData):
    """A worker's signed, expiring advertisement.

    `credit_*` and the fees are in base units (clauses 3.7 and 6.7). `details` is a JSON object of
    facts that no price depends on.
    """

    operator: Address
    receiver: Address
    sequence: Uint64
    issued_at: Timestamp
    expires_at: Timestamp
    endpoints: tuple[Endpoint, ...]
    tls_certificate: Digest
    sealing_key: PublicKey
    tokens: tuple[Address, ...]
    models: tuple[ModelOffer, ...]
    slots: Uint32
    slots_free: Uint32
    queue_free: Uint32
    credit_first: Amount
    credit_mined: Amount
    credit_max: Amount
    open_fee: Amount
    top_up_fee: Amount
    close_fee: Amount
    min_top_up: Amount
    min_withdrawal_delay: Seconds
    min_deposit: Amount
    evidence_seconds: Uint64
    details: str

    @property
    def endpoint(self) -> str:
        """Give the address that is dialled first, or "" when there is none."""
        return next((e.address for e in self.ways), "")

    @property
    def ways(self) -> tuple[Endpoint, ...]:
        """Give the endpoints in the order in which they are dialled: direct ones first."""
        return tuple(sorted(self.endpoints, key=lambda endpoint: endpoint.route))

    @property
    def place(self) -> str:
        """Name where the worker is. Workers behind one relay have places of their own."""
        way = next(iter(self.ways), None)
        if way is None or way.route is Route.DIRECT:
            return self.endpoint
        return f"{way.address} {self.operator.hex()}"

    def entry(self, job: Job) -> ModelOffer | None:
        """Find the model that a job names, or None when entry and digest do not agree."""
        model = self.models[job.entry] if job.entry < len(self.models) else None
        return model if model is not None and model.digest == job.model else None

    def model(self, digest: Digest) -> ModelOffer | None:
        """Find the first entry of a model digest, or None when this worker does not serve it."""
        return next((m for m in self.models if m.digest == digest), None)


@dataclass(frozen=True, slots=True)
class Registration(TypedData):
    """What an operator agrees to when it joins. It signs this unless it submits it itself.

    `nonce` counts the operator's earlier registrations. The domain is the registry's.
    """

    operator: Address
    owner: Address
    payout: Address
    stake: Amount
    endpoint: str
    nonce: Uint64
    deadline: Timestamp


@dataclass(frozen=True, slots=True)
class AuditReport(TypedData):
    """What an auditor found about one receipt. `rule` and `step` say where."""

    receipt: Digest
    level: AuditLevel
    outcome: AuditOutcome
    rule: Uint16
    step: Uint32
    score: Uint64
    threshold: Uint64
    evidence: Digest
    profile: Digest


@dataclass(frozen=True, slots=True)
class Verdict(TypedData):
    """What a committee decided about a challenge. The domain is that of the disputes."""

    challenge: Bytes32
    guilty: bool
    leaf_root: Digest
    deadline: Timestamp


REGISTRY_NAME: Final = "Piecework Registry"
DISPUTES_NAME: Final = "Piecework Disputes"


def registry_domain(chain_id: int, registry: Address) -> Domain:
    """Give the domain of registrations."""
    return Domain(chain_id, registry, REGISTRY_NAME)


def disputes_domain(chain_id: int, disputes: Address) -> Domain:
    """Give the domain of verdicts."""
    return Domain(chain_id, disputes, DISPUTES_NAME)
