"""What the demo found, as one JSON object, and whether every promise of the protocol held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from piecework.base.amounts import Token
from piecework.chain.events import Settled
from piecework.client.journal.proofs import ProvenReceipt
from piecework.demo.jobs import JobResult
from piecework.demo.market import Balances
from piecework_protocol.eip712 import Domain
from piecework_protocol.objects import Voucher
from piecework_protocol.types import Address, Signature, to_hex


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
        "token": {
            "address": to_hex(evidence.token.address or b""),
            "symbol": evidence.token.symbol,
            "decimals": evidence.token.decimals,
        },
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
            "channel": to_hex(voucher.channel),
            "cumulative": voucher.cumulative,
            "count": voucher.count,
            "signature": to_hex(evidence.voucher_signature),
        },
        "settlement_tx": to_hex(evidence.settlements[-1].log.transaction)
        if evidence.settlements
        else None,
        "settlements": len(evidence.settlements),
        "fees": evidence.fees,
        "gas_used": gas,
        "gas": {**evidence.gas, "per_job": gas // jobs},
        "balances": {"before": evidence.before.to_json(), "after": evidence.after.to_json()},
        "worker": evidence.worker,
        "timings_ms": {name: round(value, 1) for name, value in evidence.timings_ms.items()},
    }


def _job(result: JobResult) -> dict[str, Any]:
    ended = result.ended
    return {
        "job_id": to_hex(ended.job) if ended else None,
        "prompt": result.prompt,
        "text": result.text,
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
    receipt = proven.row.receipt
    return {
        "job_id": to_hex(receipt.job),
        "canvas": receipt.canvas,
        "output_digest": to_hex(receipt.output_digest),
        "trace_root": to_hex(receipt.trace_root),
        "steps": receipt.steps,
        "units": receipt.units,
        "amount": receipt.amount,
        "finish": int(receipt.finish),
        "total_prompt_tokens": receipt.total_prompt_tokens,
        "total_units": receipt.total_units,
        "total_steps": receipt.total_steps,
        "total_amount": receipt.total_amount,
        "previous": to_hex(receipt.previous),
        "signature": to_hex(proven.row.signature),
        "digest": to_hex(proven.row.digest),
        "leaf_index": proven.row.leaf_index,
        "proof": [to_hex(s) for s in proven.proof.siblings] if proven.proof else None,
    }
