"""Canvases that a worker showed, as files: one machine serves, and another one audits them.

So `bench.audit` can be redone with a worker on one card and an auditor on another. A file has the
canvases of one block of one worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.audit_workers import ServedCanvas
from piecework_model.requests import GenerationRequest
from piecework_protocol.trace import StepRecord

Asks = Callable[[int], GenerationRequest]
"""The request of a number."""


def shown_file(folder: Path, worker: str, block: int) -> Path:
    """Where the canvases of a block are."""
    return folder / f"{worker}-{block}.safetensors"


def write_shown(file: Path, canvases: Sequence[ServedCanvas], machine: str) -> None:
    """Write what a worker showed, whole or not at all. machine: what it ran on."""
    told = [
        {
            "request": int(canvas.request.request_id.rpartition("-")[2]),
            "committed": canvas.request.committed,
            "token_ids": canvas.token_ids,
            "steps": [[field.hex() for field in record.fields()] for record in canvas.records],
        }
        for canvas in canvases
    ]
    softs = {str(index): torch.stack(canvas.softs).cpu() for index, canvas in enumerate(canvases)}
    file.parent.mkdir(parents=True, exist_ok=True)
    made = file.with_suffix(".new")
    save_file(softs, made, {"canvases": json.dumps(told), "machine": machine})
    made.replace(file)


def read_shown(file: Path, asks: Asks, device: str) -> list[ServedCanvas]:
    """Read what a worker showed.

    asks: makes the requests again. Both machines must have the same checkpoint and code.
    """
    with safe_open(file, "pt", device=device) as held:
        told: list[dict[str, Any]] = json.loads(held.metadata()["canvases"])
        return [
            ServedCanvas(
                replace(asks(one["request"]), committed=tuple(map(tuple, one["committed"]))),
                tuple(StepRecord.parse(tuple(map(bytes.fromhex, s))) for s in one["steps"]),
                tuple(held.get_tensor(str(index))),
                tuple(one["token_ids"]),
            )
            for index, one in enumerate(told)
        ]


def shown_count(file: Path) -> int:
    """How many canvases a file has."""
    with safe_open(file, "pt") as held:
        return len(held.keys())


def machine_of(file: Path) -> str:
    """What the worker of a file ran on."""
    with safe_open(file, "pt") as held:
        return str(held.metadata()["machine"])
