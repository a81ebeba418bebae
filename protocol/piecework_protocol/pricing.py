"""What a job costs (clause 3.4), in base units.

The arithmetic is on integers. It rounds down, against the claimer.
"""

from __future__ import annotations

from dataclasses import dataclass

from piecework_protocol.kinds import KINDS
from piecework_protocol.objects import Kind, ModelOffer, Parameters, Receipt
from piecework_protocol.types import Amount


@dataclass(frozen=True, slots=True)
class Usage:
    """What a job has used so far: counts of tokens and of denoising steps."""

    prompt_tokens: int
    output_tokens: int
    denoising_steps: int


def usage_of(receipt: Receipt) -> Usage:
    """Give what a job had used when the receipt was signed."""
    return Usage(receipt.total_prompt_tokens, receipt.total_units, receipt.total_steps)


def price(model: ModelOffer, usage: Usage) -> Amount:
    """Give the whole job's price at `usage`, in base units.

    A canvas costs the difference between two such prices. So rounding costs the worker less than
    one base unit a job, for any number of canvases.
    """
    millionths = (
        usage.prompt_tokens * model.price_per_million_prompt_tokens
        + usage.output_tokens * model.price_per_million_output_tokens
        + usage.denoising_steps * 1000 * model.price_per_thousand_steps
    )
    return Amount(millionths // 1_000_000)


def worst_case(model: ModelOffer, kind: Kind, parameters: Parameters, prompt_tokens: int) -> Amount:
    """Give the most that a job can cost, in base units.

    That is every unit and every denoising step that its parameters allow.
    """
    canvases = canvases_for(model, parameters.max_tokens)
    steps = canvases * parameters.max_steps
    return price(model, Usage(prompt_tokens, most_units(kind, parameters), steps))


def most_units(kind: Kind, parameters: Parameters) -> int:
    """Count the output tokens that a job is charged at most."""
    return parameters.max_tokens if KINDS[kind].charges_units else 0


def canvases_for(model: ModelOffer, tokens: int) -> int:
    """Count the canvases that hold `tokens` tokens, rounded up."""
    return -(-tokens // model.canvas_size)
