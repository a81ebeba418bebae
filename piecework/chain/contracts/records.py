"""What the chain says of blocks, channels and workers, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from piecework.chain.contracts.events import SkipReason
from piecework_protocol.states import ChannelState
from piecework_protocol.types import Address, Amount, Bytes32, Seconds, Timestamp, Uint64

_NOTHING: Final = Amount(0)
_NEVER: Final = Timestamp(0)
_NONE: Final = Uint64(0)


@dataclass(frozen=True, slots=True)
class Block:
    """A block's number, hash and time."""

    number: int
    hash: Bytes32
    timestamp: Timestamp


@dataclass(frozen=True, slots=True)
class ChannelOnChain:
    """A channel as the escrow knows it. Amounts are in base units; they never go down.

    `funded` was ever put in, `settled` paid to the receiver, `withdrawn` taken back in part.
    `requested` is what the payer asked to take back since `withdrawal_requested_at`, 0 for nothing.
    `requests` counts such requests and is the nonce of the next one.
    """

    state: ChannelState
    funded: Amount
    settled: Amount
    withdrawn: Amount = _NOTHING
    requested: Amount = _NOTHING
    withdrawal_requested_at: Timestamp = _NEVER
    requests: Uint64 = _NONE

    @property
    def capacity(self) -> Amount:
        """What vouchers can draw in all, settled ones included, as things stand."""
        if self.state is ChannelState.CLOSED:
            return self.settled
        return Amount(self.funded - self.withdrawn)

    @property
    def available(self) -> Amount:
        """What vouchers can count on in all: what was asked back counts as gone at once."""
        return Amount(max(self.settled, self.capacity - self.requested))

    @property
    def left(self) -> Amount:
        """What is in the channel: neither settled nor taken back."""
        return Amount(self.capacity - self.settled)


UNKNOWN_CHANNEL = ChannelOnChain(ChannelState.NONE, Amount(0), Amount(0))
"""A channel that the escrow has never seen."""


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """A worker as the registry knows it. `active`: bonded with at least the minimum stake.

    `registration` is the number of this registration, `nonce` how many the operator had before.
    `offered_owner` may take the stake over, None for nobody. `frozen_until` is 0 for never frozen.
    """

    owner: Address
    operator: Address
    payout: Address
    stake: Amount
    endpoint: str
    active: bool
    registered_at: Timestamp
    unbond_requested_at: Timestamp
    registration: int = 0
    nonce: Uint64 = _NONE
    frozen_until: Timestamp = _NEVER
    offered_owner: Address | None = None


@dataclass(frozen=True, slots=True)
class StakeRequirements:
    """What a registration costs and how long leaving takes."""

    token: Address
    min_stake: Amount
    unbonding_delay: Seconds


@dataclass(frozen=True, slots=True)
class ClaimPreview:
    """What a claim would pay now, in base units, or why nothing."""

    payable: Amount
    reason: SkipReason


def channel_from(row: tuple[Any, ...]) -> ChannelOnChain:
    """Read the escrow's ChannelState."""
    funded, settled, withdrawn, requested, requested_at, requests, closed = row
    if closed:
        state = ChannelState.CLOSED
    elif funded == 0:
        state = ChannelState.NONE
    else:
        state = ChannelState.WITHDRAWING if requested_at else ChannelState.OPEN
    return ChannelOnChain(
        state=state,
        funded=Amount(funded),
        settled=Amount(settled),
        withdrawn=Amount(withdrawn),
        requested=Amount(requested),
        withdrawal_requested_at=Timestamp(requested_at),
        requests=Uint64(requests),
    )


def worker_from(row: tuple[Any, ...]) -> RegisteredWorker:
    """Read the registry's WorkerView."""
    operator, owner, offered, payout, stake, number, nonce, since, leaving, frozen, *rest = row
    active, endpoint = rest
    return RegisteredWorker(
        owner=owner,
        operator=operator,
        payout=payout,
        stake=Amount(stake),
        endpoint=endpoint,
        active=active,
        registered_at=Timestamp(since),
        unbond_requested_at=Timestamp(leaving),
        registration=number,
        nonce=Uint64(nonce),
        frozen_until=Timestamp(frozen),
        offered_owner=Address(offered) if any(offered) else None,
    )
