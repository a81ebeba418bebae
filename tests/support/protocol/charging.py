"""What a worker charges with a receipt: totals by the usage, and the amount by the price."""

from __future__ import annotations

from piecework_protocol.charges import usage_after
from piecework_protocol.objects import ModelOffer, Receipt
from piecework_protocol.pricing import price
from piecework_protocol.types import Amount, Uint32


def charge_receipt(
    receipt: Receipt, last: Receipt | None, entry: ModelOffer, prompt_tokens: int
) -> Receipt:
    """The receipt with its totals and its amount. `last`: the one before it."""
    after = usage_after(last, receipt, prompt_tokens)
    total, before = price(entry, after), last.total_amount if last is not None else 0
    return receipt.replace(
        total_units=Uint32(after.output_tokens),
        total_steps=Uint32(after.denoising_steps),
        total_amount=total,
        amount=Amount(total - before),
    )
