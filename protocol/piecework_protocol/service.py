"""The two classes of service (clause 3.10): what follows for offers, jobs and receipts. Pure.

Both ends ask here, so they cannot differ. Nobody records the denoising steps of a best-effort
canvas. So its trace root is that of the tree without leaves (clause 5.8). A replayable canvas has
that root only when it was cancelled before its first step, so nobody can take one for the other
(clause 9.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from piecework_protocol import merkle
from piecework_protocol.objects import Finish, ModelOffer, Parameters, Receipt, Service
from piecework_protocol.trace import trace_root
from piecework_protocol.types import Digest, Micros, Uint32, Uint64

NO_TRACE: Final[Digest] = merkle.EMPTY_ROOT
"""The trace root of a best-effort canvas: no trace was promised."""


def best_effort_parameters(max_tokens: Uint32) -> Parameters:
    """Give the only parameters that a best-effort job of `max_tokens` tokens can have."""
    return Parameters(
        seed=Uint64(0),
        max_tokens=max_tokens,
        max_steps=Uint32(0),
        temperature_start=Micros(0),
        temperature_end=Micros(0),
        entropy_bound=Micros(0),
        confidence_threshold=Micros(0),
        stability_steps=Uint32(0),
        service=Service.BEST_EFFORT,
    )


def service_name(service: Service) -> str:
    """Name the class as JSON and people do: "replayable" or "best_effort"."""
    return service.name.lower()


def offer_fault(model: ModelOffer) -> str | None:
    """Say what contradicts the class in a model's terms, or None.

    Nobody pays for steps that nobody counts.
    """
    if model.service is Service.REPLAYABLE:
        return None
    if model.max_steps or model.price_per_thousand_steps:
        return "a best-effort model has no denoising steps to set or to charge"
    return None


def parameters_fault(parameters: Parameters) -> str | None:
    """Say what a best-effort job asks for that its class cannot give, or None."""
    if parameters.service is Service.REPLAYABLE:
        return None
    if parameters != best_effort_parameters(parameters.max_tokens):
        return "a best-effort job sets its token limit and nothing else"
    return None


def receipt_fault(parameters: Parameters, receipt: Receipt) -> tuple[str, str] | None:
    """Give the clause that a receipt's steps and trace root break, and how, or None."""
    if parameters.service is Service.BEST_EFFORT:
        if receipt.steps:
            return "4.4", f"{receipt.steps} denoising steps charged for a best-effort canvas"
        if receipt.trace_root != NO_TRACE:
            return "7.4", "a trace root on a best-effort canvas, which nobody could open"
        return None
    least = int(receipt.finish is not Finish.CANCELLED)
    if not least <= receipt.steps <= parameters.max_steps:
        return "4.4", f"{receipt.steps} denoising steps; at most {parameters.max_steps}"
    if (receipt.trace_root == NO_TRACE) != (receipt.steps == 0):
        return "7.4", "a replayable canvas has a trace exactly when it has steps"
    return None


def leaves_fault(receipt: Receipt, leaves: Sequence[bytes]) -> tuple[str, str] | None:
    """Give the clause that the leaves delivered with a receipt break, and how, or None."""
    fault = count_fault(receipt, leaves)
    if fault is None and trace_root(leaves) != receipt.trace_root:
        return "7.2", "the trace root is not that of the leaves"
    return fault


def count_fault(receipt: Receipt, leaves: Sequence[bytes]) -> tuple[str, str] | None:
    """Give the clause that the number of a receipt's leaves breaks, and how, or None.

    For a worker that has made the trace root of these very leaves.
    """
    expected = receipt.steps + 1 if receipt.steps else 0
    if len(leaves) == expected:
        return None
    return "7.2", f"{len(leaves)} leaves for {receipt.steps} denoising steps, not {expected}"
