"""What the operator asks of every channel and job."""

from __future__ import annotations

from dataclasses import dataclass

from piecework_node.engine.link import EngineFacts
from piecework_protocol.credit import FIRST_PROMPT_TOKENS, CreditTerms, least_first
from piecework_protocol.types import Address, Amount, Seconds


@dataclass(frozen=True, slots=True)
class OperatorTerms:
    """Terms as admission checks them and as every offer states them. Amounts are in base units."""

    receiver: Address
    tokens: tuple[Address, ...]
    price_per_million_prompt_tokens: Amount
    price_per_million_output_tokens: Amount
    price_per_thousand_steps: Amount
    slots: int
    """Jobs that run at once."""
    queue: int
    """Jobs that may wait for a slot."""
    jobs_per_channel: int
    min_withdrawal_delay: Seconds
    min_deposit: Amount
    credit: CreditTerms
    offer_lifetime_s: int
    evidence_s: int = 0
    """Seconds after a job's deadline in which it can be audited."""

    @property
    def capacity(self) -> int:
        """Jobs that may run or wait at once."""
        return self.slots + self.queue

    def credit_fault(self, facts: EngineFacts) -> str | None:
        """Say why nobody new could begin a job of this model, or None."""
        least = least_first(
            self.price_per_million_prompt_tokens,
            self.price_per_million_output_tokens,
            self.price_per_thousand_steps,
            canvas_size=facts.canvas_size,
            max_steps=facts.max_steps,
        )
        if self.credit.first >= least:
            return None
        return (
            f"credit_first is {self.credit.first}. A prompt of {FIRST_PROMPT_TOKENS} tokens and a "
            f"canvas of {facts.canvas_size} tokens after {facts.max_steps} steps cost {least} with "
            f"{facts.name}, so no new client could begin. Set credit_first to {least} or more"
        )


@dataclass(frozen=True, slots=True)
class JobTimeouts:
    """Times after which the worker stops waiting, in seconds."""

    payment_s: float
    """For a voucher, while a job holds its place in the engine or after its end."""
    pause_s: int = 300
    """For the owner, who needs the machine. Then waiting jobs are handed back."""
