"""What an operator sees of a running worker."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from piecework_node.daemon.assembly import Components
from piecework_node.daemon.engines import KeptCard
from piecework_node.engine.link import EngineFacts
from piecework_node.runtime.credit import CreditTotals
from piecework_node.runtime.pause import Pause
from piecework_protocol.credit import most_written_off
from piecework_protocol.objects import Offer
from piecework_protocol.types import address_hex
from piecework_protocol.usual import price_with_steps, usual_jobs
from piecework_protocol.views import PRICES, members

DAY_S: Final = 24 * 3600


async def status_of(p: Components, state: str, grpc_port: int) -> dict[str, Any]:
    """Return everything an operator wants to know at a glance. Amounts are in base units."""
    base, worker, current = p.base, p.worker, p.board.current
    stopping, totals = p.channels.faults.stopping, credit_totals(p)
    return {
        "state": state,
        "fault": stopping.line if stopping else None,
        "faults": [
            {"code": f.code.value, "stops": f.condition.stops.value, "line": f.line}
            for f in p.channels.faults.faults
        ],
        "pause": _pause_status(p),
        "operator": address_hex(base.operator.address),
        "receiver": address_hex(worker.terms.receiver),
        "grpc_port": grpc_port,
        "engine": _engine_of(base.engines.kept[0]),
        "cards": [_card_status(p, one) for one in base.engines],
        "slots": worker.terms.slots,
        "queue": worker.terms.queue,
        "active": worker.active,
        "streams": worker.streams,
        "channels": len(p.channels),
        "offer": _offer_status(current.offer) if current else None,
        "earnings": asdict(await base.journal.earnings()),
        "unsettled": p.channels.unsettled,
        "waiting": {address_hex(t): amount for t, amount in p.settler.payouts.waiting.items()},
        "exposure": p.channels.exposure,
        "exposure_bound": None if totals is None else totals.bound,
        "credit": _credit_status(p, totals),
        "transactions": [
            {"kind": t.kind.value, "hash": "0x" + t.tx.hash.hex(), "state": t.state.value}
            for t in p.settler.under_way
        ],
        "refusals": dict(sorted(base.metrics.refusals.items())),
        "errors": [asdict(note) for note in base.metrics.errors],
    }


def _pause_status(p: Components) -> dict[str, Any] | None:
    """Why jobs pause on every card, and until when. None: they run on one."""
    pause = p.worker.cards.pause
    freed = sum(pausing.freed_bytes for pausing in p.worker.pausing.values())
    return None if pause is None else _pause_members(p, pause, freed)


def _pause_members(p: Components, pause: Pause, freed_bytes: int) -> dict[str, Any]:
    return {
        **members(pause, "causes", "ends_at", "gives_up_at"),
        "seconds": round(p.base.clock.monotonic() - pause.began, 1),
        "freed_bytes": freed_bytes,
    }


def _engine_of(one: KeptCard) -> dict[str, Any]:
    """What the engine of a card is, if it runs, and how it does."""
    facts = one.backend.facts
    return {
        "ready": one.card.ready,
        "pid": one.backend.pid,
        "restarts": one.backend.losses,
        **(_engine_status(facts) if facts else {}),
        **_endpoints(one),
    }


def _card_status(p: Components, one: KeptCard) -> dict[str, Any]:
    card, gpus = one.card, p.owners[one.card.name].gpus
    freed = p.worker.pausing[card.name].freed_bytes
    return {
        **members(card, "name", "serves", "slots", "queue"),
        "failed": card.failed or None,
        "pause": None if card.pause is None else _pause_members(p, card.pause, freed),
        "active": p.runtime.load[card.name],
        "engine": _engine_of(one),
        "gpu": asdict(gpus[0]) if gpus else None,
        "gpus": list(map(asdict, gpus)),
    }


def _credit_status(p: Components, totals: CreditTotals | None) -> dict[str, int] | None:
    """What payers owe, with limits. `per_day`: the most that the bound can grow by in a day."""
    credit, every_s = p.runtime.credit, p.base.config.write_off_s
    if credit is None or totals is None:
        return None
    return {
        **members(totals, "owed", "strangers", "left", "at_limit"),
        "strangers_limit": credit.terms.strangers,
        "per_day": most_written_off(credit.terms, every_s, DAY_S),
    }


def exposure_bound(p: Components) -> int | None:
    """Return the most that all payers together can cost us (clause 9.3), in base units."""
    totals = credit_totals(p)
    return None if totals is None else totals.bound


def credit_totals(p: Components) -> CreditTotals | None:
    """Add up what all payers owe (clause 9.3). None: the worker gives no credit."""
    credit = p.runtime.credit
    return credit.totals() if credit is not None else None


def _endpoints(one: KeptCard) -> dict[str, Any]:
    """The vLLM servers by their number in the settings. Their URLs may be private."""
    if one.config.backend != "vllm":
        return {}
    from piecework_node.vllm.link import VllmLink

    members = one.backend.endpoints if isinstance(one.backend, VllmLink) else ()
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
        **members(facts, "digest", "service", "profile", "device"),
        "kinds": [kind.name.lower() for kind in facts.kinds],
        "precision": facts.details.get("precision", ""),
        **members(facts, "tokens_per_second", "steps_per_second", "first_canvas_ms"),
    }


def _offer_status(offer: Offer) -> dict[str, Any]:
    model = offer.models[0]
    usual = usual_jobs(offer, model)
    return {
        **members(offer, "sequence", "endpoint", "expires_at", "slots_free", "queue_free"),
        **members(model, *PRICES),
        "with_steps": {
            "p50": price_with_steps(model, usual.steps_p50),
            "p90": price_with_steps(model, usual.steps_p90),
            **members(usual, "jobs", "source"),
        },
    }
