"""What every number of a peer may be: one table for all objects and frames (clause 1.4).

The wire codec refuses a value outside of its range before anything else sees it. So every number
fits a signed 64-bit integer and the arithmetic of prices, except `seed`, which uses all its bits.
A member whose behaviour comes later has the range 0 to 0. Relative rules, such as a deadline of at
most a day from now, stay where admission judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Final

from piecework_protocol import frames, objects
from piecework_protocol.kinds import KINDS
from piecework_protocol.limits import (
    MAX_CANVAS_TOKENS,
    MAX_CANVASES_PER_JOB,
    MAX_CHANNEL_AMOUNT,
    MAX_DENOISING_STEPS,
    MAX_OFFER_MODELS,
    MAX_WITHDRAWAL_DELAY_S,
    MIN_WITHDRAWAL_DELAY_S,
)
from piecework_protocol.objects import Finish, Kind, Service


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the greatest value of a number, both included."""

    least: int
    greatest: int

    def check(self, value: int) -> None:
        """Refuse a value outside.

        Raises:
            ValueError: The value lies outside. The text holds both bounds.
        """
        if not self.least <= value <= self.greatest:
            raise ValueError(f"{value} is outside of {self.least} to {self.greatest}")


def _upto(greatest: int) -> Range:
    return Range(0, greatest)


MONEY: Final = _upto(MAX_CHANNEL_AMOUNT)
PRICE: Final = _upto(2**64 - 1)
TIME: Final = _upto(2**40 - 1)
SEQUENCE: Final = _upto(2**63 - 1)
TOTAL: Final = _upto(2**31 - 1)
PLACES: Final = _upto(2**20 - 1)
WITHDRAWAL_NONCE: Final = _upto(2**24 - 1)
CANVAS: Final = _upto(MAX_CANVASES_PER_JOB - 1)
CANVASES: Final = _upto(MAX_CANVASES_PER_JOB)
STEPS: Final = _upto(MAX_DENOISING_STEPS)
UNITS: Final = _upto(MAX_CANVAS_TOKENS)
KIND_BITS: Final = Range(1, sum(kind.bit for kind in Kind))
KIND: Final = _upto(max(KINDS))
SERVICE: Final = _upto(max(Service))

Table = Mapping[tuple[type, str], Range]


def _of(owner: type, /, **members: Range) -> Table:
    return {(owner, name): span for name, span in members.items()}


RANGES: Final[Table] = {
    # --- signed objects
    **_of(objects.Channel, withdrawal_delay=Range(MIN_WITHDRAWAL_DELAY_S, MAX_WITHDRAWAL_DELAY_S)),
    **_of(objects.FundChannel, funded=MONEY, fee=MONEY, deadline=TIME),
    **_of(objects.Voucher, cumulative=MONEY, count=SEQUENCE),
    **_of(objects.CloseChannel, cumulative=MONEY, count=SEQUENCE, fee=MONEY),
    **_of(objects.RequestWithdrawal, amount=MONEY, nonce=WITHDRAWAL_NONCE, deadline=TIME),
    **_of(objects.CancelWithdrawal, nonce=WITHDRAWAL_NONCE, deadline=TIME),
    **_of(objects.WithdrawPooled, amount=MONEY, fee=MONEY, nonce=SEQUENCE, deadline=TIME),
    **_of(objects.AccountRequest, deadline=TIME),
    **_of(
        objects.Parameters,
        seed=_upto(2**64 - 1),
        max_tokens=TOTAL,
        max_steps=STEPS,
        temperature_start=TOTAL,
        temperature_end=TOTAL,
        entropy_bound=TOTAL,
        confidence_threshold=TOTAL,
        stability_steps=STEPS,
        service=SERVICE,
    ),
    **_of(
        objects.Job,
        entry=_upto(MAX_OFFER_MODELS - 1),
        kind=KIND,
        max_amount=MONEY,
        deadline=TIME,
    ),
    **_of(objects.Acceptance, prompt_tokens=TOTAL, accepted_at=TIME),
    **_of(
        objects.Receipt,
        canvas=CANVAS,
        steps=STEPS,
        units=UNITS,
        amount=MONEY,
        finish=_upto(max(Finish)),
        total_prompt_tokens=TOTAL,
        total_units=TOTAL,
        total_steps=TOTAL,
        total_amount=MONEY,
    ),
    **_of(
        objects.ModelOffer,
        kinds=KIND_BITS,
        service=SERVICE,
        price_per_million_prompt_tokens=PRICE,
        price_per_million_output_tokens=PRICE,
        price_per_thousand_steps=PRICE,
        max_context=TOTAL,
        max_output=TOTAL,
        canvas_size=UNITS,
        max_steps=STEPS,
        tokens_per_second=TOTAL,
        first_canvas_ms=TOTAL,
    ),
    **_of(objects.Endpoint, route=_upto(max(objects.Route))),
    **_of(
        objects.Offer,
        sequence=SEQUENCE,
        issued_at=TIME,
        expires_at=TIME,
        slots=PLACES,
        slots_free=PLACES,
        queue_free=PLACES,
        credit_first=MONEY,
        credit_mined=MONEY,
        credit_max=MONEY,
        open_fee=MONEY,
        top_up_fee=MONEY,
        close_fee=MONEY,
        min_top_up=MONEY,
        min_withdrawal_delay=_upto(MAX_WITHDRAWAL_DELAY_S),
        min_deposit=MONEY,
        evidence_seconds=_upto(2**31),
    ),
    **_of(objects.Registration, stake=MONEY, nonce=SEQUENCE, deadline=TIME),
    **_of(
        objects.AuditReport,
        level=_upto(max(objects.AuditLevel)),
        outcome=_upto(max(objects.AuditOutcome)),
        rule=_upto(2**16 - 1),
        step=STEPS,
        score=SEQUENCE,
        threshold=SEQUENCE,
    ),
    **_of(objects.Verdict, deadline=TIME),
    # --- frames
    **_of(
        frames.OpeningAuthorization,
        amount=MONEY,
        fee=MONEY,
        valid_after=TIME,
        valid_before=TIME,
    ),
    **_of(frames.SubmitJob, received=CANVASES),
    **_of(frames.LeafRef, canvas=CANVAS),
    **_of(frames.PayVoucher, base_count=SEQUENCE),
    **_of(frames.Accepted, prompt_tokens=TOTAL, accepted_at=TIME, available=CANVASES),
    **_of(frames.Draft, canvas=CANVAS, step=STEPS),
    **_of(frames.VoucherAccepted, count=SEQUENCE),
    **_of(frames.JobEnded, canvases=CANVASES),
    **_of(
        frames.Progress,
        canvas=CANVASES,
        step=STEPS,
        prompt_tokens=TOTAL,
        queue_position=PLACES,
        paused_until=TIME,
    ),
    **_of(frames.ShownVoucher, base_count=SEQUENCE),
}
"""The range of every integer member, by class and name."""


def check(value: object, *names: str) -> None:
    """Hold members of an object to the table.

    Raises:
        ValueError: A member lies outside of its range. The text names it.
    """
    kind = type(value)
    for name in names:
        try:
            RANGES[kind, name].check(getattr(value, name))
        except ValueError as error:
            raise ValueError(f"{kind.__name__}.{name}: {error}") from None


def check_all(value: object) -> None:
    """Hold every number inside of a value to the table, before a journal keeps it.

    Raises:
        ValueError: A member lies outside of its range. The text names it.
    """
    if isinstance(value, tuple):
        for part in value:
            check_all(part)
        return
    numbers, others = _plan(type(value))
    for name, span in numbers:
        try:
            span.check(getattr(value, name))
        except ValueError as error:
            raise ValueError(f"{type(value).__name__}.{name}: {error}") from None
    for name in others:
        part = getattr(value, name)
        if not isinstance(part, bytes | str | int):
            check_all(part)


_PLANS: dict[type, tuple[tuple[tuple[str, Range], ...], tuple[str, ...]]] = {}


def _plan(kind: type) -> tuple[tuple[tuple[str, Range], ...], tuple[str, ...]]:
    """Give the numbers of a class with their ranges, and its other members."""
    if kind in _PLANS:
        return _PLANS[kind]
    names = [member.name for member in fields(kind)] if is_dataclass(kind) else []
    numbers = tuple((name, RANGES[kind, name]) for name in names if (kind, name) in RANGES)
    others = tuple(name for name in names if (kind, name) not in RANGES)
    return _PLANS.setdefault(kind, (numbers, others))
