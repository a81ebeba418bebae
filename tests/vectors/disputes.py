"""Golden vectors of disputes: draws of the engine, and the table of rules."""

from __future__ import annotations

from typing import Any

from piecework_model.sampling.philox import Moment, Purpose, draws, initial_ids
from piecework_protocol.disputes import TraceRule, applies
from piecework_protocol.objects import Finish, Kind

SEEDS = (0, 1, 2**63 + 12_345, 2**64 - 1)
VOCABULARY = 262_144
ODD_VOCABULARY = 50_257


def vectors() -> dict[str, Any]:
    """Make the whole of `disputes.json`."""
    return {
        "draws": [_draw(seed, purpose) for seed in SEEDS for purpose in Purpose],
        "applies": [
            [[applies(rule, kind, finish) for finish in Finish] for kind in Kind]
            for rule in TraceRule
        ],
    }


def _draw(seed: int, purpose: Purpose) -> dict[str, Any]:
    """One draw, by the engine's own generator. An initial one is checked against its ids."""
    step = 0 if purpose is Purpose.INITIAL else 7
    moment, position = Moment(seed, canvas=3, step=step), 5
    vocabulary = ODD_VOCABULARY if seed == 1 else VOCABULARY
    word = int(draws([moment], position + 1, purpose)[0, 0, position])
    token = word * vocabulary >> 32
    if purpose is Purpose.INITIAL:
        assert token == int(initial_ids([moment], position + 1, vocabulary)[0, position])
    return {
        "seed": str(seed),
        "canvas": 3,
        "step": step,
        "position": position,
        "purpose": int(purpose),
        "word": word,
        "vocabulary": vocabulary,
        "token": token,
    }
