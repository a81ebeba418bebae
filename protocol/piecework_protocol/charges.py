"""What a receipt may charge (clauses 3.4, 3.8 and 4.4). Pure, for streams and for evidence files.

Everything here follows from the job, the offer and the receipts. What an output holds is judged by
its kind.
"""

from __future__ import annotations

from piecework_protocol.objects import Finish, Job, ModelOffer, Receipt
from piecework_protocol.pricing import Usage, canvases_for, price, usage_of
from piecework_protocol.service import receipt_fault

NOTHING_USED = Usage(0, 0, 0)


def usage_after(last: Receipt | None, receipt: Receipt, prompt_tokens: int) -> Usage:
    """Add one receipt to what the job had used.

    A job that is cancelled before its first step owes the part of the prompt that was read.

    Args:
        last: The receipt before, or None for canvas 0.
        receipt: The receipt that is added.
        prompt_tokens: Those that the worker accepted.
    """
    before = usage_of(last) if last is not None else NOTHING_USED
    unread = receipt.finish is Finish.CANCELLED and last is None and not receipt.steps
    if unread and not receipt.units:
        prompt_tokens = min(prompt_tokens, receipt.total_prompt_tokens)
    return Usage(
        prompt_tokens,
        before.output_tokens + receipt.units,
        before.denoising_steps + receipt.steps,
    )


def charge_fault(
    job: Job, model: ModelOffer, last: Receipt | None, receipt: Receipt, prompt_tokens: int
) -> tuple[str, str] | None:
    """Give the clause that a receipt's charge breaks, and how, or None.

    The arguments are those of `usage_after`. `model` is the job's entry in its offer.
    """
    fault = receipt_fault(job.parameters, receipt) or _size_fault(job, model, receipt)
    if fault is not None:
        return fault
    after = usage_after(last, receipt, prompt_tokens)
    if after.output_tokens > job.parameters.max_tokens:
        return "4.4", f"more than the {job.parameters.max_tokens} tokens asked for"
    if usage_of(receipt) != after:
        return "4.4", "the receipt's totals are not those of its job"
    total, charged = price(model, after), last.total_amount if last is not None else 0
    if receipt.total_amount != total or receipt.amount != total - charged:
        return "4.4", f"charged {receipt.amount}, owed {total - charged}"
    if total > job.max_amount:
        return "3.4", f"the job's ceiling of {job.max_amount} is exceeded"
    return None


def _size_fault(job: Job, model: ModelOffer, receipt: Receipt) -> tuple[str, str] | None:
    if receipt.units > model.canvas_size:
        return "4.4", f"{receipt.units} tokens charged for a canvas of {model.canvas_size}"
    final = receipt.canvas + 1 >= canvases_for(model, job.parameters.max_tokens)
    if final and receipt.finish is Finish.MORE:
        return "4.5", "the job's token limit is reached and the receipt says more"
    return None
