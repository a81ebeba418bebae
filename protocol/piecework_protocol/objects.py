"""The signed objects. Names, order and sizes are those of the Solidity structs in contracts/src.

Each raises `ValueError` when it is made with a member out of its bounds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

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
    Uint32,
    Uint64,
)


class Finish(enum.IntEnum):
    """Whether a receipt is the job's last, and why (clause 4.5)."""

    MORE = 0
    END_OF_TEXT = 1
    TOKEN_LIMIT = 2


class Service(enum.IntEnum):
    """What a model's output can be held to (clause 3.10)."""

    REPLAYABLE = 0
    """The job's seed decides the result, and every receipt commits to the trace."""
    BEST_EFFORT = 1
    """The engine's own settings and randomness: no seed, no steps, no trace."""


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
    """The payer's authorization: the channel's deposit becomes `deposit` in total.

    It opens the channel or tops it up. `deposit` is in base units, `deadline` in Unix seconds.
    """

    channel: Channel
    deposit: Amount
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

    The authorizer signs it to ask, the operator to agree.
    """

    channel: ChannelId
    cumulative: Amount
    count: Uint64
    receipts_root: Digest


@dataclass(frozen=True, slots=True)
class RequestWithdrawal(TypedData):
    """The payer's notice: after the withdrawal delay the unclaimed rest goes back."""

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
    """One request for text, signed by the channel's authorizer. Its EIP-712 digest is its id.

    `max_amount` is in base units, `deadline` in Unix seconds.
    """

    channel: ChannelId
    salt: Bytes32
    offer: Digest
    model: Digest
    prompt: Digest
    parameters: Parameters
    max_amount: Amount
    deadline: Timestamp
    reply_key: PublicKey

    def id(self, domain: Domain) -> JobId:
        """Give the job's id at the escrow of `domain`."""
        return JobId(domain.digest(self))


@dataclass(frozen=True, slots=True)
class Acceptance(TypedData):
    """The operator's promise to run a job, and the prompt length that it will charge."""

    job: JobId
    prompt_tokens: Uint32


@dataclass(frozen=True, slots=True)
class Receipt(TypedData):
    """The operator's statement of one delivered canvas: a leaf of the channel's accumulator."""

    job: JobId
    canvas: Uint32
    output_digest: Digest
    trace_root: Digest
    steps: Uint32
    units: Uint32
    amount: Amount
    finish: Finish
    previous: Digest


@dataclass(frozen=True, slots=True)
class ModelOffer(TypedData):
    """One model of an offer: what it is, what it costs, how fast it ran at start-up."""

    name: str
    digest: Digest
    profile: str
    price_per_million_prompt_tokens: Amount
    price_per_million_output_tokens: Amount
    price_per_thousand_steps: Amount
    max_context: Uint32
    max_output: Uint32
    canvas_size: Uint32
    max_steps: Uint32
    tokens_per_second: Uint32
    first_canvas_ms: Uint32
    service: Service


@dataclass(frozen=True, slots=True)
class Offer(TypedData):
    """A worker's signed, expiring advertisement.

    `details` is a JSON object of facts that no price depends on.
    """

    operator: Address
    receiver: Address
    sequence: Uint64
    issued_at: Timestamp
    expires_at: Timestamp
    endpoint: str
    tls_certificate: Digest
    sealing_key: PublicKey
    tokens: tuple[Address, ...]
    models: tuple[ModelOffer, ...]
    slots: Uint32
    slots_free: Uint32
    queue_free: Uint32
    credit_window: Uint32
    min_withdrawal_delay: Seconds
    min_deposit: Amount
    details: str

    def model(self, digest: Digest) -> ModelOffer | None:
        """Find the entry of a model digest, or None when this worker does not serve it."""
        return next((m for m in self.models if m.digest == digest), None)
