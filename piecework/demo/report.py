"""What the demo found, as one JSON object, and whether every promise of the protocol held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piecework.base.amounts import Token
from piecework.chain.contracts.events import Settled
from piecework.client.journal.proofs import ProvenReceipt
from piecework.demo.jobs import JobResult
from piecework.demo.market import Balances
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Voucher
from piecework_protocol.types import Address, Signature, to_hex
from piecework_protocol.views import as_json, members


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that the verdict rests on. The chain's word comes from the chain, not from the
    worker."""

    results: Sequence[JobResult]
    receipts: Sequence[ProvenReceipt]
    voucher: Voucher
    voucher_signature: Signature
    settlements: Sequence[Settled]
    fees: int
    gas: dict[str, int]
    before: Balances
    after: Balances
    worker: dict[str, Any]
    timings_ms: dict[str, float]
    domain: Domain
    payer: Address
    token: Token


def verdict(evidence: Evidence) -> list[str]:
    """What does not hold; an empty list is success (exit code 0)."""
    found = [
        f"job {r.number} was not delivered: {r.error or 'it did not end'}"
        for r in evidence.results
        if not r.delivered
    ]
    found += [f"receipt {p.row.leaf_index}: {p.trouble}" for p in evidence.receipts if p.trouble]
    voucher, settled = evidence.voucher, sum(s.amount for s in evidence.settlements)
    if len(evidence.receipts) != voucher.count or not evidence.receipts:
        found.append(f"{len(evidence.receipts)} receipts and a voucher over {voucher.count}")
    if sum(p.row.receipt.amount for p in evidence.receipts) != voucher.cumulative:
        found.append("the receipts do not add up to the last voucher")
    if settled != voucher.cumulative:
        found.append(f"settled {settled}, the last voucher says {voucher.cumulative}")
    if not evidence.settlements or evidence.settlements[-1].receipts_root != voucher.receipts_root:
        found.append("the chain was not given the voucher's receipts root")
    if evidence.before.total != evidence.after.total:
        found.append(
            f"money is not conserved: {evidence.before.total} became {evidence.after.total}"
        )
    if evidence.after.receiver - evidence.before.receiver != voucher.cumulative + evidence.fees:
        found.append("the receiver did not get what the voucher and the fees say")
    return found


def to_json(evidence: Evidence) -> dict[str, Any]:
    """The object that `--json` prints."""
    domain = evidence.domain
    ended = [r.ended for r in evidence.results if r.ended is not None]
    first, voucher, jobs = evidence.results[0], evidence.voucher, max(1, len(evidence.results))
    gas = sum(evidence.gas.values())
    return {
        "ok": not verdict(evidence),
        "problems": verdict(evidence),
        "domain": {"chain_id": domain.chain_id, "escrow": to_hex(domain.verifying_contract)},
        "payer": to_hex(evidence.payer),
        "token": members(evidence.token, "address", "symbol", "decimals"),
        "text": first.text,
        "model": first.accepted.model if first.accepted else None,
        "model_digest": to_hex(first.accepted.model_digest) if first.accepted else None,
        "canvases": sum(e.canvases for e in ended),
        "tokens": sum(e.output_tokens for e in ended),
        "denoising_steps": sum(e.denoising_steps for e in ended),
        "jobs": [_job(r) for r in evidence.results],
        "receipts": [_receipt(p) for p in evidence.receipts],
        "receipts_root": to_hex(voucher.receipts_root),
        "voucher": {
            **members(voucher, "channel", "cumulative", "count"),
            "signature": to_hex(evidence.voucher_signature),
        },
        "settlement_tx": to_hex(evidence.settlements[-1].log.transaction)
        if evidence.settlements
        else None,
        "settlements": len(evidence.settlements),
        "fees": evidence.fees,
        "gas_used": gas,
        "gas": {**evidence.gas, "per_job": gas // jobs},
        "balances": {"before": as_json(evidence.before), "after": as_json(evidence.after)},
        "worker": evidence.worker,
        "timings_ms": {name: round(value, 1) for name, value in evidence.timings_ms.items()},
    }


def _job(result: JobResult) -> dict[str, Any]:
    ended = result.ended
    return {
        "job_id": to_hex(ended.job) if ended else None,
        **members(result, "prompt", "text"),
        "canvases": ended.canvases if ended else 0,
        "tokens": ended.output_tokens if ended else 0,
        "denoising_steps": ended.denoising_steps if ended else 0,
        "cost": ended.cost if ended else 0,
        "drafts_seen": result.drafts,
        "first_canvas_ms": round(result.first_canvas_ms, 1),
        "total_ms": round(result.total_ms, 1),
        "error": result.error or None,
    }


def _receipt(proven: ProvenReceipt) -> dict[str, Any]:
    receipt = as_json(proven.row.receipt)
    return {
        "job_id": receipt.pop("job"),
        **receipt,
        **members(proven.row, "signature", "digest", "leaf_index"),
        "proof": as_json(proven.proof.siblings) if proven.proof else None,
    }
