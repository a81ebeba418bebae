"""What an operator sees of a running worker."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from piecework_node.daemon.assembly import Components
from piecework_node.engine.link import EngineFacts
from piecework_protocol.objects import Offer
from piecework_protocol.pricing import Usage, price
from piecework_protocol.service import service_name
from piecework_protocol.types import address_hex, to_hex


async def status_of(p: Components, state: str, grpc_port: int) -> dict[str, Any]:
    """Everything an operator wants to know at a glance. Amounts in base units."""
    worker = p.worker
    current = p.board.current
    earnings = await p.journal.earnings()
    return {
        "state": state,
        "fault": worker.fault,
        "operator": address_hex(p.operator.address),
        "receiver": address_hex(worker.receiver),
        "grpc_port": grpc_port,
        "engine": {
            "ready": p.engine.ready,
            "pid": p.engine.pid,
            "restarts": p.engine.losses,
            **(_engine_status(p.engine.facts) if p.engine.facts else {}),
            **_endpoints(p),
        },
        "slots": p.config.slots,
        "queue": p.config.queue,
        "active": worker.active,
        "streams": worker.streams,
        "channels": len(list(worker.books)),
        "offer": _offer_status(current.offer) if current else None,
        "earnings": asdict(earnings),
        "unsettled": p.settler.unsettled,
        "exposure": worker.exposure,
        "exposure_bound": exposure_bound(p),
        "transactions": [
            {"kind": t.kind.value, "hash": "0x" + t.tx.hash.hex(), "state": t.state.value}
            for t in p.settler.under_way
        ],
        "refusals": dict(sorted(p.metrics.refusals.items())),
        "errors": [asdict(note) for note in p.metrics.errors],
    }


def exposure_bound(p: Components) -> int | None:
    """The most that can be delivered and not paid for by jobs that run at once (clause 3.7)."""
    current = p.board.current
    if current is None:
        return None
    model, config = current.offer.models[0], p.config
    usage = Usage(
        model.max_context,
        config.credit_window * model.canvas_size,
        config.credit_window * model.max_steps,
    )
    return (config.slots + config.queue) * price(model, usage)


def _endpoints(p: Components) -> dict[str, Any]:
    """The vLLM servers by their place in the settings; no URL, which may be nobody else's
    business."""
    if p.config.backend != "vllm":
        return {}
    from piecework_node.vllm.link import VllmLink

    members = p.engine.endpoints if isinstance(p.engine, VllmLink) else ()
    return {
        "endpoints": [
            {
                "number": m.number,
                "health": m.health.name.lower(),
                "running": m.load,
                "trouble": m.trouble,
            }
            for m in members
        ]
    }


def _engine_status(facts: EngineFacts) -> dict[str, Any]:
    return {
        "model": facts.name,
        "digest": to_hex(facts.digest),
        "service": service_name(facts.service),
        "profile": facts.profile,
        "device": facts.device,
        "precision": facts.details.get("precision", ""),
        "tokens_per_second": facts.tokens_per_second,
        "first_canvas_ms": facts.first_canvas_ms,
    }


def _offer_status(offer: Offer) -> dict[str, Any]:
    model = offer.models[0]
    return {
        "sequence": offer.sequence,
        "endpoint": offer.endpoint,
        "expires_at": offer.expires_at,
        "slots_free": offer.slots_free,
        "queue_free": offer.queue_free,
        "price_per_million_prompt_tokens": model.price_per_million_prompt_tokens,
        "price_per_million_output_tokens": model.price_per_million_output_tokens,
        "price_per_thousand_steps": model.price_per_thousand_steps,
    }
